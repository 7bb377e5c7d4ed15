import pytest
import torch
from torch.nn import functional as F

from xycodec.nn.deterministic import attention
from xycodec.nn.deterministic.attention import attend
from xycodec.nn.deterministic.kernels import has_onednn, uses_onednn

LENGTHS = (33, 50, 1, 0)


@pytest.fixture(params=["here", "onednn"])
def library(request, monkeypatch):
    """What attends on this processor, and on those where oneDNN does."""
    if request.param == "onednn" and not has_onednn():
        pytest.skip("this torch has no oneDNN product")
    monkeypatch.setattr(attention, "uses_onednn", lambda part: request.param == "onednn" or uses_onednn(part))


@pytest.fixture
def batch():
    q, k, v = torch.randn(4, 50, 3, 6, 64).permute(2, 0, 3, 1, 4)
    return q, k, v, torch.arange(50) < torch.tensor(LENGTHS)[:, None]


def test_it_is_attention(library, batch):
    q, k, v, mask = batch
    torch.testing.assert_close(attend(q, k, v), F.scaled_dot_product_attention(q, k, v), atol=1e-5, rtol=0)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
    got = attend(q, k, v, mask)
    for i, length in enumerate(LENGTHS):
        torch.testing.assert_close(got[i, :, :length], expected[i, :, :length], atol=1e-5, rtol=0)


def test_a_bias_is_added_to_the_scores(library, batch):
    q, k, v, _ = batch
    bias = torch.randn(4, 6, 50, 50)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    assert (expected - attend(q, k, v)).abs().max() > 0.1
    torch.testing.assert_close(attend(q, k, v, bias=bias), expected, atol=1e-5, rtol=0)


def test_padding_does_not_matter(library, batch):
    q, k, v, mask = batch
    together = attend(q, k, v, mask)
    for i, length in enumerate(LENGTHS[:3]):
        alone = attend(*(part[i : i + 1, :, :length] for part in (q, k, v)))
        torch.testing.assert_close(together[i, :, :length], alone[0], atol=1e-6, rtol=0)


@pytest.mark.exact
def test_threads_do_not_matter(library, threads, batch):
    q, k, v, _ = batch
    threads(1)
    expected = attend(q, k, v)
    for count in (2, 3, 4, 8, 16):
        threads(count)
        assert torch.equal(attend(q, k, v), expected)


@pytest.mark.exact
@pytest.mark.parametrize("frames", [384, 447, 500, 511])
@pytest.mark.parametrize("biased", [False, True])
def test_threads_do_not_matter_where_mkl_divides_its_sums(threads, frames, biased):
    """Ten seconds are 500 frames of a tower."""
    q, k, v = torch.randn(3, 1, 12, frames, 64).unbind()
    bias = torch.randn(1, 12, frames, frames) if biased else None
    threads(1)
    expected = attend(q, k, v, bias=bias)
    for count in (2, 7, 8, 16):
        threads(count)
        assert torch.equal(attend(q, k, v, bias=bias), expected), count


def test_gradients_pass(library, batch):
    q, k, v, _ = batch
    q.requires_grad_()
    attend(q, k, v).sum().backward()
    assert q.grad.isfinite().all()
