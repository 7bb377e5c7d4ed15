from math import ceil, prod

import numpy as np
import pytest
import torch
from torch.nn.utils import parametrize

import reference
from xycodec.nn.dac import DacDecoder, DacEncoder, Snake, _Snake

STRIDES = (8, 5, 4, 2)


def check(got, expected):
    # Values reach 44 within and Snake squares the sines of several times as much: rounding is at the fifth digit.
    np.testing.assert_allclose(reference.array(got), expected, atol=3e-4, rtol=3e-4)


def make(part):
    """Random weights that matter, weight norm in place."""
    return reference.randomise(part, scale=1.0).requires_grad_(False)


def folded(part):
    for module in list(part.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
    return part


def count(part):
    return sum(p.numel() for p in part.parameters())


# loops


def snake(x, module):
    alpha = reference.array(module.alpha)[0]
    return x + np.sin(alpha * x) ** 2 / (alpha + 1e-9)


def weight(conv):
    """The norm over all axes but the first, written out."""
    parts = conv.parametrizations.weight
    g, v = reference.array(parts.original0), reference.array(parts.original1)
    return g * v / np.sqrt((v**2).sum(axis=(1, 2), keepdims=True))


def convolve(x, conv, stride=1, dilation=1, padding=0):
    w, b = weight(conv), reference.array(conv.bias)
    x = np.pad(x, ((0, 0), (padding, padding)))
    span = dilation * (w.shape[2] - 1) + 1
    starts = range(0, x.shape[1] - span + 1, stride)
    return np.stack([np.einsum("oik,ik->o", w, x[:, s : s + span : dilation]) + b for s in starts], axis=1)


def transposed(x, conv, stride):
    w, b = weight(conv), reference.array(conv.bias)
    out = np.zeros((w.shape[1], stride * x.shape[1] + 2 * stride))
    for t in range(x.shape[1]):
        out[:, t * stride : t * stride + w.shape[2]] += np.einsum("iok,i->ok", w, x[:, t])
    start = ceil(stride / 2)
    return out[:, start : start + stride * x.shape[1]] + b[:, None]


def unit(x, module, dilation):
    y = convolve(snake(x, module.snake1), module.conv1, dilation=dilation, padding=3 * dilation)
    return x + convolve(snake(y, module.snake2), module.conv2)


def units(x, modules):
    for module, dilation in zip(modules, (1, 3, 9), strict=True):
        x = unit(x, module, dilation)
    return x


def encode(audio, model):
    x = convolve(audio, model.stem, padding=3)
    for block, stride in zip(model.blocks, model.strides, strict=True):
        x = snake(units(x, block.units), block.snake)
        x = convolve(x, block.conv, stride=stride, padding=ceil(stride / 2))
    return convolve(snake(x, model.snake), model.head, padding=1)


def decode(latents, model, strides):
    x = convolve(latents, model.stem, padding=3)
    for block, stride in zip(model.blocks, strides, strict=True):
        x = units(transposed(snake(x, block.snake), block.conv, stride), block.units)
    return convolve(snake(x, model.snake), model.head, padding=3)


@pytest.mark.parametrize("samples", [30, 61])
def test_the_encoder_equals_loops(samples):
    model = make(DacEncoder(width=3, strides=(3, 2), output_dim=5))
    audio = torch.randn(2, 1, samples)
    latents = model(audio)
    assert latents.shape == (2, 5, model.num_frames(samples))
    for item, clip in zip(latents, audio, strict=True):
        check(item, encode(reference.array(clip), model))


@pytest.mark.parametrize("strides", [(3, 2), (4, 5)])
def test_the_decoder_equals_loops(strides):
    model = make(DacDecoder(input_dim=5, width=12, strides=strides))
    latents = torch.randn(2, 5, 4)
    audio = model(latents)
    assert audio.shape == (2, 1, 4 * prod(strides))
    for item, clip in zip(audio, latents, strict=True):
        check(item, decode(reference.array(clip), model, strides))


def test_folding_changes_nothing():
    model = make(DacDecoder(input_dim=5, width=16, strides=STRIDES))
    latents = torch.randn(1, 5, 3)
    before = model(latents)
    assert torch.equal(folded(model)(latents), before)
    assert not [key for key in model.state_dict() if "parametrizations" in key]


def test_a_channel_of_alpha_zero_passes_unchanged():
    module = Snake(2)
    module.alpha.data[:, 1] = 0.0
    x = torch.randn(1, 2, 9)
    assert torch.equal(module(x)[:, 1], x[:, 1])
    assert not torch.equal(module(x)[:, 0], x[:, 0])


# threads, and what learns


@pytest.mark.exact
@pytest.mark.parametrize("size", [{"width": 64, "output_dim": 256}, {"width": 1024, "input_dim": 256}])
@pytest.mark.parametrize("frames", [3, *(pytest.param(frames, marks=pytest.mark.long) for frames in (1, 11))])
def test_threads_and_other_items_do_not_matter(threads, size, frames):
    kind, shape = (DacEncoder, (1, 320 * frames)) if "output_dim" in size else (DacDecoder, (256, frames))
    part = folded(make(kind(strides=STRIDES, **size)))
    x = torch.randn(2, *shape)
    threads(1)
    expected = part(x)
    assert torch.equal(part(x[1:]), expected[1:])
    for count in (2, 4):
        threads(count)
        assert torch.equal(part(x), expected), count


@pytest.mark.parametrize("part", [DacEncoder(width=4, strides=(4, 2), output_dim=8),
                                  DacDecoder(input_dim=8, width=16, strides=(4, 5))])  # fmt: skip
def test_what_learns_computes_the_same(part):
    part = reference.randomise(part, scale=1.0)
    x = torch.randn(2, 1 if isinstance(part, DacEncoder) else 8, 60)
    learning = part(x)
    assert learning.requires_grad
    with torch.no_grad():
        # Activations reach 44 here, and each of twenty convolutions rounds at the seventh digit of that.
        torch.testing.assert_close(part(x), learning, atol=1e-4, rtol=1e-5)


def test_the_gradient_of_snake():
    module = Snake(3).double()
    module.alpha.data[0, :, 0] = torch.tensor([0.3, 1.0, -2.0])
    x = torch.randn(2, 3, 11, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, alpha: _Snake.apply(x, alpha), (x, module.alpha))
    grad = torch.randn(2, 3, 11, dtype=torch.float64)
    naive = x + torch.sin(module.alpha * x).square() / (module.alpha + 1e-9)
    expected = torch.autograd.grad(naive, (x, module.alpha), grad)
    for got, wanted in zip(torch.autograd.grad(module(x), (x, module.alpha), grad), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_a_channel_of_alpha_zero_learns_nothing_wild():
    module = Snake(1)
    module.alpha.data.zero_()
    x = torch.randn(4, 1, 1000, requires_grad=True)
    module(x).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert module.alpha.grad.abs() < 1e-3


# the published sizes


def test_frames_of_the_published_strides():
    with torch.device("meta"):
        model = DacEncoder(width=1, strides=STRIDES, output_dim=1)
        for samples in (312, 319, 320, 631, 632, 1000, 48_000):
            assert model(torch.empty(1, 1, samples)).shape[2] == model.num_frames(samples)
    assert [model.num_frames(n) for n in range(3000)] == [(n + 8) // 320 for n in range(3000)]


def test_full_size_has_the_published_number_of_parameters():
    with torch.device("meta"):
        encoder = DacEncoder(width=64, strides=STRIDES, output_dim=256)
        decoder = DacDecoder(input_dim=256, width=1024, strides=STRIDES)
    # As printed in the paper: 12.18 and 19.27 times 2^20.
    assert (count(encoder), count(decoder)) == (12_770_944, 20_209_730)
    assert (count(folded(encoder)), count(folded(decoder))) == (12_762_944, 20_201_025)
