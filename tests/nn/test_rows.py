import pytest
import torch
from torch.nn import functional as F

from xycodec.nn.convolution import Conv1d, UpConv1d
from xycodec.nn.rows import convolved, padded, upsampled

# Layers of real models, with stride and padding: of one channel, of many, of more taps than whole strides.
LAYERS = [(1, 64, 7, 1, 3), (64, 128, 16, 8, 4), (128, 256, 10, 5, 3), (1024, 256, 3, 1, 1), (256, 1024, 7, 1, 3),
          (64, 1, 7, 1, 3), (5, 3, 4, 3, 0)]  # fmt: skip


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
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frames", [1, 2, 25, 150])
def test_a_convolution_is_torchs_and_threads_do_not_matter(threads, layer, bias, frames):
    inner, outer, taps, stride, padding = layer
    conv = make(Conv1d, inner, outer, taps, stride=stride, padding=padding, bias=bias)
    x = torch.randn(max(1, (frames - 1) * stride + taps - 2 * padding + stride // 2), inner)
    got = equal_for_threads(threads, lambda: convolved(conv, x))
    expected = F.conv1d(x.t(), conv.weight.contiguous(), conv.bias, stride, padding).t()
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("inner", "outer", "stride"), [(1024, 512, 8), (512, 256, 5), (128, 64, 2), (6, 3, 3)])
@pytest.mark.parametrize("frames", [1, 2, 7, 50])
def test_a_transposed_convolution_is_torchs_and_threads_do_not_matter(threads, inner, outer, stride, frames):
    conv = make(UpConv1d, inner, outer, stride)
    x = torch.randn(frames, inner)
    got = equal_for_threads(threads, lambda: upsampled(conv, x))
    expected = F.conv_transpose1d(
        x.t(), conv.weight.contiguous(), conv.bias, stride, conv.padding[0], conv.output_padding[0]
    ).t()
    assert got.shape == (stride * frames, outer)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_zeros_on_both_sides():
    x = torch.randn(3, 2)
    assert torch.equal(padded(x, 2, 1), torch.cat([torch.zeros(2, 2), x, torch.zeros(1, 2)]))
    assert torch.equal(padded(x, 0, 0), x)
