import pytest
import torch
from torch.nn import functional as F

from xycodec.nn.convolution import Conv1d, PointwiseConv, UpConv1d
from xycodec.nn.linear import product

# Layers of real models, with stride, dilation and padding: of few and of many channels.
LAYERS = [
    (1, 64, 7, 1, 1, 3),
    (128, 128, 7, 1, 3, 9),
    (64, 128, 16, 8, 1, 4),
    (128, 256, 10, 5, 1, 3),
    (512, 512, 7, 1, 9, 27),
    (1024, 256, 3, 1, 1, 1),
    (768, 768, 3, 1, 1, 1),
    (64, 1, 7, 1, 1, 3),
    (5, 3, 4, 3, 2, 0),
]


def make(kind, *sizes, **settings):
    torch.manual_seed(0)
    return kind(*sizes, **settings).requires_grad_(False)


def equal_for_threads(threads, compute):
    threads(1)
    one = compute()
    for count in (2, 4):
        threads(count)
        assert torch.equal(compute(), one), count
    return one


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("frames", [1, 2, 25, 40, 150])
def test_a_convolution_is_torchs_and_threads_do_not_matter(threads, layer, frames):
    inner, outer, taps, stride, dilation, padding = layer
    conv = make(Conv1d, inner, outer, taps, stride=stride, dilation=dilation, padding=padding)
    x = torch.randn(2, inner, max(1, (frames - 1) * stride + dilation * (taps - 1) + 1 - 2 * padding + stride // 2))
    got = equal_for_threads(threads, lambda: conv(x))
    expected = F.conv1d(x, conv.weight.contiguous(), conv.bias, stride, padding, dilation)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("inner", "outer", "stride"), [(1024, 512, 8), (512, 256, 5), (128, 64, 2), (6, 3, 3)])
@pytest.mark.parametrize("frames", [1, 2, 7, 50])
def test_a_transposed_convolution_is_torchs_and_threads_do_not_matter(threads, inner, outer, stride, frames):
    conv = make(UpConv1d, inner, outer, stride)
    x = torch.randn(2, inner, frames)
    got = equal_for_threads(threads, lambda: conv(x))
    padding, more = conv.padding[0], conv.output_padding[0]
    expected = F.conv_transpose1d(x, conv.weight.contiguous(), conv.bias, stride, padding, more)
    assert got.shape == (2, outer, stride * frames)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("inner", "outer", "bias"), [(512, 512, True), (768, 768, False), (5, 3, True)])
@pytest.mark.parametrize("frames", [1, 2, 50, 333])
def test_a_convolution_of_one_tap_is_torchs_and_threads_do_not_matter(threads, inner, outer, bias, frames):
    conv = make(PointwiseConv, inner, outer, bias=bias)
    x, residual = torch.randn(2, inner, frames), torch.randn(2, outer, frames)
    got = equal_for_threads(threads, lambda: conv.onto(residual, x))
    torch.testing.assert_close(got, residual + F.conv1d(x, conv.weight, conv.bias), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("frames", [33_000, 700])
def test_an_item_computes_as_if_alone(frames):
    conv = make(Conv1d, 8, 64, 10, stride=5, padding=3)
    x = torch.randn(3, 8, 5 * frames)
    for item, alone in zip(conv(x), x, strict=True):
        assert torch.equal(item, conv(alone[None])[0])


def test_weights_keep_their_values_where_they_are_laid_out_anew():
    conv = make(Conv1d, 6, 4, 3, padding=1)
    before, x = conv.weight.clone(), torch.randn(1, 6, 9)
    first = conv(x)
    assert torch.equal(conv.weight, before)
    assert torch.equal(conv.state_dict()["weight"], before)
    assert torch.equal(conv(x), first)
    # One that is still trained keeps its memory, which an optimizer's state goes with.
    conv.requires_grad_(True)
    place = conv.weight.data_ptr()
    conv.weight.data = before.clone()
    place = conv.weight.data_ptr()
    with torch.no_grad():
        conv(x)
    assert conv.weight.data_ptr() == place


def test_what_learns_has_gradients():
    for conv in (Conv1d(4, 5, 3, padding=1), UpConv1d(4, 5, 2)):
        x = torch.randn(1, 4, 6, requires_grad=True)
        conv(x).sum().backward()
        assert x.grad is not None
        assert conv.weight.grad is not None


def test_sums_of_more_than_512_terms_are_the_linear_maps():
    conv = make(PointwiseConv, 1024, 8, bias=False)
    x = torch.randn(1, 1024, 16)
    expected = product(x[0].T, conv.weight[..., 0]).T
    torch.testing.assert_close(conv.onto(torch.zeros(1, 8, 16), x)[0], expected, atol=1e-4, rtol=1e-5)
