import numpy as np
import pytest
import torch

import reference
from xycodec.nn.semantic_conv import SemanticDecoder, SemanticEncoder


def make(part, dim=6):
    return reference.randomise(part(dim), scale=1.0).requires_grad_(False)


def convolve(x, conv):
    w = reference.array(conv.weight)
    b = 0 if conv.bias is None else reference.array(conv.bias)[:, None]
    half = w.shape[2] // 2
    x = np.pad(x, ((0, 0), (half, half)))
    frames = x.shape[1] - 2 * half
    return np.stack([np.einsum("oik,ik->o", w, x[:, t : t + 2 * half + 1]) for t in range(frames)], axis=1) + b


def elu(x):
    return np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1)


def units(x, modules):
    for module in modules:
        x = x + convolve(elu(convolve(elu(x), module.conv1)), module.conv2)
    return x


def encode(x, model):
    x = convolve(x, model.stem)
    for block in model.blocks:
        x = convolve(units(x, block.units), block.conv)
    return x


def decode(x, model):
    x = convolve(x, model.stem)
    for block in model.blocks:
        x = units(convolve(x, block.conv), block.units)
    return convolve(x, model.head)


@pytest.mark.parametrize("frames", [1, 2, 9])
@pytest.mark.parametrize(("part", "loops"), [(SemanticEncoder, encode), (SemanticDecoder, decode)])
def test_equals_loops(part, loops, frames):
    model = make(part)
    x = torch.randn(2, 6, frames)
    for got, item in zip(model(x), x, strict=True):
        np.testing.assert_allclose(reference.array(got), loops(reference.array(item), model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("part", [SemanticEncoder, SemanticDecoder])
def test_what_learns_computes_the_same(part):
    model, x = make(part), torch.randn(2, 6, 40)
    frozen = model(x)
    learning = model.requires_grad_(True)(x)
    assert learning.requires_grad
    torch.testing.assert_close(learning.detach(), frozen, atol=1e-5, rtol=1e-5)


@pytest.mark.exact
@pytest.mark.parametrize("part", [SemanticEncoder, SemanticDecoder])
@pytest.mark.parametrize("frames", [1, 25, 150])
def test_neither_threads_nor_neighbours_matter(threads, part, frames):
    torch.manual_seed(0)
    model, x = part(768).requires_grad_(False), torch.randn(2, 768, frames)
    threads(1)
    one = model(x)
    assert torch.equal(model(x[1:]), one[1:])
    for count in (2, 4):
        threads(count)
        assert torch.equal(model(x), one), count


@pytest.mark.parametrize(("part", "published"), [(SemanticEncoder, 14_747_136), (SemanticDecoder, 16_516_608)])
def test_full_size_has_the_published_number_of_parameters(part, published):
    with torch.device("meta"):
        assert sum(p.numel() for p in part(768).parameters()) == published
