import pytest
import torch
from torch import nn
from torch.nn import functional as F

from xycodec.nn.deterministic.linear import Linear, convolve, product


@pytest.mark.exact
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 11, 17, 27, 50])
def test_a_row_depends_on_neither_rows_nor_threads(threads, rows):
    x, weight, bias = torch.randn(64, 96), torch.randn(48, 96), torch.randn(48)
    expected = product(x, weight, bias)[:rows]
    for count in (1, 2, 3, 6, 8, 16):
        threads(count)
        assert torch.equal(product(x[:rows], weight, bias), expected)


# Sums and rows of real models: threads divide long sums, sums of some lengths, and few rows.
@pytest.mark.exact
@pytest.mark.parametrize(
    ("terms", "columns"),
    [(201, 80), (240, 768), (384, 128), (400, 642), (512, 642), (768, 768), (2304, 768), (3072, 512), (4096, 512)],
)
@pytest.mark.parametrize("rows", [1, 8, 12, 48, 200])
def test_a_long_sum_does_not_depend_on_threads(threads, rows, terms, columns):
    x, weight, bias = torch.randn(rows, terms), torch.randn(columns, terms), torch.randn(columns)
    threads(1)
    expected = product(x, weight, bias)
    torch.testing.assert_close(expected.double(), x.double() @ weight.double().T + bias, atol=1e-3, rtol=0)
    for count in (2, 3, 4, 8, 16):
        threads(count)
        assert torch.equal(product(x, weight, bias), expected)


def test_product_is_a_linear_map():
    layer = Linear(6, 5)
    for shape in ((6,), (3, 6), (2, 3, 6), (1, 0, 6), (0, 6)):
        x = torch.randn(*shape, dtype=torch.float64)
        expected = x @ layer.weight.double().T + layer.bias.double()
        torch.testing.assert_close(layer(x.float()), expected.float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("terms", [1, 255, 256, 257, 511, 512, 513, 767, 768, 769, 2000])
def test_a_sum_of_any_length_is_whole(terms):
    x, weight = torch.randn(5, terms), torch.randn(3, terms)
    exact = (x.double() @ weight.double().T).float()
    torch.testing.assert_close(product(x, weight), exact, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("terms", [6, 2000])
def test_product_passes_gradients(terms, rows):
    x, weight = torch.randn(2, rows, terms, requires_grad=True), torch.randn(5, terms, requires_grad=True)
    bias = torch.randn(5, requires_grad=True)
    product(x, weight, bias).square().sum().backward()
    got = x.grad, weight.grad, bias.grad
    x.grad = weight.grad = bias.grad = None
    F.linear(x, weight, bias).square().sum().backward()
    for ours, theirs in zip(got, (x.grad, weight.grad, bias.grad), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


def test_only_what_is_asked_for_gets_a_gradient():
    x, weight = torch.randn(3, 6), torch.randn(5, 6, requires_grad=True)
    product(x, weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(dim=0).expand(5, -1))
    assert x.grad is None


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("length", [1, 2, 7, 8])
def test_convolve_is_the_convolution(stride, length):
    conv, x = nn.Conv1d(5, 6, 3, stride=stride, padding=1), torch.randn(2, length, 5)
    expected = conv(x.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(convolve(x, conv), expected, atol=1e-5, rtol=0)
