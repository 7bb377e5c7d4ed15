import pytest
import torch
from torch import nn
from torch.nn import functional as F

from xycodec.nn.linear import Linear, convolve, product


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 11, 17, 27, 50])
def test_a_row_depends_on_neither_rows_nor_threads(threads, rows):
    x, weight, bias = torch.randn(64, 96), torch.randn(48, 96), torch.randn(48)
    expected = product(x, weight, bias)[:rows]
    for count in (1, 2, 3, 6, 8, 16):
        threads(count)
        assert torch.equal(product(x[:rows], weight, bias), expected)


def test_product_is_a_linear_map():
    layer = Linear(6, 5)
    for shape in ((6,), (3, 6), (2, 3, 6), (1, 0, 6), (0, 6)):
        x = torch.randn(*shape, dtype=torch.float64)
        expected = x @ layer.weight.double().T + layer.bias.double()
        torch.testing.assert_close(layer(x.float()), expected.float(), atol=1e-5, rtol=0)


def test_product_passes_gradients():
    x, weight = torch.randn(3, 6, requires_grad=True), torch.randn(5, 6, requires_grad=True)
    product(x, weight).square().sum().backward()
    got = x.grad, weight.grad
    x.grad = weight.grad = None
    F.linear(x, weight).square().sum().backward()
    for ours, theirs in zip(got, (x.grad, weight.grad), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("length", [1, 2, 7, 8])
def test_convolve_is_the_convolution(stride, length):
    conv, x = nn.Conv1d(5, 6, 3, stride=stride, padding=1), torch.randn(2, length, 5)
    expected = conv(x.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(convolve(x, conv), expected, atol=1e-5, rtol=0)
