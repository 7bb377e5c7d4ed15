import pytest
import torch
from torch import nn
from torch.nn import functional as F

from xycodec.nn.dac import UpConv1d
from xycodec.nn.deterministic import rows
from xycodec.nn.deterministic.kernels import has_onednn, uses_onednn
from xycodec.nn.deterministic.linear import product
from xycodec.nn.deterministic.rows import add_product, convolved, padded, plain_inference, upsampled

# Layers of real models, with stride and padding: of one channel, of many, of more taps than whole strides.
LAYERS = [
    (1, 64, 7, 1, 3),
    (64, 128, 16, 8, 4),
    (128, 256, 10, 5, 3),
    (1024, 256, 3, 1, 1),
    (768, 768, 3, 1, 1),
    (256, 1024, 7, 1, 3),
    (64, 1, 7, 1, 3),
    (5, 3, 4, 3, 0),
]
FRAMES = (1, 2, 25, 150)
TRANSPOSED = [(1024, 512, 8), (512, 256, 5), (128, 64, 2), (6, 3, 3)]  # channels in and out, stride
FEW = (1, 2, 7, 50)


@pytest.fixture(params=["here", "onednn"], autouse=True)
def library(request, monkeypatch):
    """The library of products on this processor, and oneDNN, as on others."""
    if request.param == "onednn" and not has_onednn():
        pytest.skip("this torch has no oneDNN product")
    monkeypatch.setattr(rows, "uses_onednn", lambda part: request.param == "onednn" or uses_onednn(part))


def make(kind, *sizes, **settings):
    torch.manual_seed(0)
    return kind(*sizes, **settings).requires_grad_(False)


def convolution(layer, frames, **settings):
    """A layer and so many frames' rows for it."""
    inner, outer, taps, stride, padding = layer
    conv = make(nn.Conv1d, inner, outer, taps, stride=stride, padding=padding, **settings)
    return conv, torch.randn(max(1, (frames - 1) * stride + taps - 2 * padding + stride // 2), inner)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frames", FRAMES)
def test_a_convolution_is_torchs(layer, bias, frames):
    conv, x = convolution(layer, frames, bias=bias)
    expected = F.conv1d(x.t(), conv.weight.contiguous(), conv.bias, conv.stride, conv.padding).t()
    torch.testing.assert_close(convolved(conv, x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("inner", "outer", "stride"), TRANSPOSED)
@pytest.mark.parametrize("frames", FEW)
def test_a_transposed_convolution_is_torchs(inner, outer, stride, frames):
    conv = make(UpConv1d, inner, outer, stride)
    x = torch.randn(frames, inner)
    got = upsampled(conv, x)
    expected = F.conv_transpose1d(
        x.t(), conv.weight.contiguous(), conv.bias, stride, conv.padding[0], conv.output_padding[0]
    ).t()
    assert got.shape == (stride * frames, outer)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def assert_threads_do_not_matter(threads, compute):
    threads(1)
    one = compute()
    for count in (2, 4):
        threads(count)
        assert torch.equal(compute(), one), count


@pytest.mark.exact
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frames", FRAMES)
def test_threads_do_not_matter_to_a_convolution(threads, layer, bias, frames):
    conv, x = convolution(layer, frames, bias=bias)
    assert_threads_do_not_matter(threads, lambda: convolved(conv, x))


@pytest.mark.exact
@pytest.mark.parametrize(("inner", "outer", "stride"), TRANSPOSED)
@pytest.mark.parametrize("frames", FEW)
def test_threads_do_not_matter_to_a_transposed_convolution(threads, inner, outer, stride, frames):
    conv, x = make(UpConv1d, inner, outer, stride), torch.randn(frames, inner)
    assert_threads_do_not_matter(threads, lambda: upsampled(conv, x))


def test_zeros_on_both_sides():
    x = torch.randn(3, 2)
    assert torch.equal(padded(x, 2, 1), torch.cat([torch.zeros(2, 2), x, torch.zeros(1, 2)]))
    assert torch.equal(padded(x, 0, 0), x)


def test_weights_keep_their_values_and_their_memory():
    conv, x = make(nn.Conv1d, 6, 4, 3, padding=1), torch.randn(9, 6)
    before, place = conv.weight.clone(), conv.weight.data_ptr()
    first = convolved(conv, x)
    assert torch.equal(conv.weight, before)
    assert conv.weight.data_ptr() == place
    assert torch.equal(convolved(conv, x), first)


def test_sums_of_more_than_512_terms_are_the_linear_maps():
    x, weight = torch.randn(16, 1024), torch.randn(1024, 8)
    out = torch.ones(16, 8)
    add_product(x, weight, out)
    torch.testing.assert_close(out, 1 + product(x, weight.t()), atol=1e-4, rtol=1e-5)


def test_not_where_something_learns_nor_in_another_precision():
    conv, x = make(nn.Conv1d, 4, 5, 3), torch.randn(1, 4, 6)
    assert plain_inference(conv, x)
    assert not plain_inference(conv, x.requires_grad_())
    assert not plain_inference(conv, x.detach().double())
    assert not plain_inference(make(nn.Conv1d, 4, 5, 3).double(), x.detach())
    assert not plain_inference(conv, torch.empty(1, 4, 6, device="meta"))
    with torch.autocast("cpu"):
        assert not plain_inference(conv, x.detach())
    conv.requires_grad_(True)
    assert not plain_inference(conv, x.detach())
    with torch.no_grad():
        assert plain_inference(conv, x)
