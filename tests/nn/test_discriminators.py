import math

import numpy as np
import pytest
import torch
from torch.nn.utils import parametrize

import reference
from xycodec.errors import AudioError, ConfigError
from xycodec.nn.discriminators import (
    Discriminators,
    PeriodDiscriminator,
    ScaleDiscriminator,
    SpectrogramDiscriminator,
)

FAMILIES = ("period", "scale", "spectrogram")


def only(family, **changes):
    return Discriminators(**{name: name == family for name in FAMILIES}, **changes)


# the published sizes


@pytest.mark.parametrize(
    ("family", "parameters"), [("period", 41_105_770), ("scale", 29_618_821), ("spectrogram", 472_330)]
)
def test_parameters_of_each_family(family, parameters):
    with torch.device("meta"):
        built = only(family)
    assert reference.count_parameters(built) == parameters


def test_shapes_for_five_seconds():
    """The lengths do not depend on the widths, so a narrow one tells them."""
    out = Discriminators(channels=4).eval()(torch.randn(2, 80_000) * 0.1)
    assert [tuple(each.logits.shape) for each in out] == [
        *((2, n) for n in (988, 990, 990, 994, 990)),
        *((2, n) for n in (1250, 626, 313)),
        *((2, 1, *size) for size in ((309, 65), (153, 129), (622, 33), (1247, 17), (2497, 9))),
    ]
    assert [len(each.features) for each in out] == [6] * 5 + [8] * 3 + [5] * 5


def test_widths():
    narrow = Discriminators(channels=8)
    audio = torch.randn(1, 4000)
    widths = [[feature.shape[1] // 8 for feature in each.features] for each in narrow(audio)]
    assert widths[:5] == [[1, 4, 16, 32, 32, 0]] * 5
    assert widths[5:8] == [[4, 4, 8, 16, 32, 32, 32, 0]] * 3
    assert widths[8:] == [[1] * 5] * 5


def table(module):
    """(in, out, kernel, stride, groups, padding, dilation) of every layer, the last one too."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "groups", "padding", "dilation")
    return [tuple(getattr(layer, name) for name in names) for layer in (*module.layers, module.post)]


def test_layers_by_period():
    widths = ((1, 32), (32, 128), (128, 512), (512, 1024), (1024, 1024))
    with torch.device("meta"):
        built = [PeriodDiscriminator(period) for period in (2, 11)]
    for module in built:
        assert table(module) == [
            *((*width, (5, 1), (3 if i < 4 else 1, 1), 1, (2, 0), (1, 1)) for i, width in enumerate(widths)),
            (1024, 1, (3, 1), (1, 1), 1, (1, 0), (1, 1)),
        ]


def test_layers_by_scale():
    with torch.device("meta"):
        built = [ScaleDiscriminator(poolings) for poolings in (0, 2)]
    for module in built:
        assert table(module) == [
            (1, 128, (15,), (1,), 1, (7,), (1,)),
            (128, 128, (41,), (2,), 4, (20,), (1,)),
            (128, 256, (41,), (2,), 16, (20,), (1,)),
            (256, 512, (41,), (4,), 16, (20,), (1,)),
            (512, 1024, (41,), (4,), 16, (20,), (1,)),
            (1024, 1024, (41,), (1,), 16, (20,), (1,)),
            (1024, 1024, (5,), (1,), 1, (2,), (1,)),
            (1024, 1, (3,), (1,), 1, (1,), (1,)),
        ]


def test_layers_by_spectrogram():
    assert table(SpectrogramDiscriminator(512)) == [
        (2, 32, (3, 9), (1, 1), 1, (1, 4), (1, 1)),
        (32, 32, (3, 9), (1, 2), 1, (1, 4), (1, 1)),
        (32, 32, (3, 9), (1, 2), 1, (2, 4), (2, 1)),
        (32, 32, (3, 9), (1, 2), 1, (4, 4), (4, 1)),
        (32, 32, (3, 3), (1, 1), 1, (1, 1), (1, 1)),
        (32, 1, (3, 3), (1, 1), 1, (1, 1), (1, 1)),
    ]


# equality with loops


def moving_gain(module, seed=0):
    """Weight-normed layers whose gain is not the norm of their direction; biases that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            if name.endswith("original0"):
                value.mul_(0.5 + torch.rand(value.shape, generator=generator))
            elif name.endswith("bias"):
                value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    return module


def weight_of(layer):
    """The weight as its norm defines it, in float64."""
    if not parametrize.is_parametrized(layer):
        return reference.array(layer.weight)
    parts = layer.parametrizations.weight
    if hasattr(parts, "original1"):
        gain, direction = reference.array(parts.original0), reference.array(parts.original1)
        norms = np.sqrt((direction**2).reshape(len(direction), -1).sum(axis=1))
        return gain * direction / norms.reshape(gain.shape)
    weight = reference.array(parts.original)
    return weight / np.linalg.svd(weight.reshape(len(weight), -1), compute_uv=False)[0]


def convolution(x, layer):
    """One picture (in, H, W) -> (out, H', W'), output by output; a 1-D layer sees a picture one sample wide."""
    weight, bias = weight_of(layer), reference.array(layer.bias)
    flat = weight.ndim == 3
    weight = weight[..., None] if flat else weight
    stride, padding, dilation = (
        (*getattr(layer, name), 0 if name == "padding" else 1) if flat else getattr(layer, name)
        for name in ("stride", "padding", "dilation")
    )
    x = np.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2))
    reach = [(size - 1) * step + 1 for size, step in zip(weight.shape[2:], dilation, strict=True)]
    height, width = ((n - r) // s + 1 for n, r, s in zip(x.shape[1:], reach, stride, strict=True))
    out = np.zeros((len(weight), height, width))
    inputs, outputs = weight.shape[1], len(weight) // layer.groups
    for o in range(len(weight)):
        group = x[(o // outputs) * inputs :][:inputs]
        for i in range(height):
            for j in range(width):
                top, left = i * stride[0], j * stride[1]
                seen = group[:, top : top + reach[0] : dilation[0], left : left + reach[1] : dilation[1]]
                out[o, i, j] = (seen * weight[o]).sum() + bias[o]
    return out


def stack(x, module, slope):
    maps = []
    for layer in module.layers:
        x = convolution(x, layer)
        x = np.where(x > 0, x, slope * x)
        maps.append(x)
    return convolution(x, module.post), maps


def assert_equal(output, logits, maps):
    np.testing.assert_allclose(reference.array(output.logits[0]), logits, atol=1e-4)
    assert len(output.features) == len(maps)
    for got, expected in zip(output.features, maps, strict=True):
        np.testing.assert_allclose(reference.array(got[0]).reshape(expected.shape), expected, atol=1e-4)


def gaussian(samples):
    audio = torch.randn(samples)
    return audio, reference.array(audio)


@pytest.mark.parametrize(("period", "samples"), [(2, 60), (3, 61), (5, 63), (7, 70), (11, 75)])
def test_period_equals_a_loop(period, samples):
    module = moving_gain(PeriodDiscriminator(period, 4))
    audio, x = gaussian(samples)
    while len(x) % period:
        x = np.append(x, x[samples - 2 - (len(x) - samples)])  # mirrored at the last sample
    logits, maps = stack(x.reshape(1, -1, period), module, 0.1)
    assert_equal(module(audio[None]), logits.flatten(), [*maps, logits])


@pytest.mark.parametrize("poolings", [0, 1, 2])
def test_scale_equals_a_loop(poolings):
    module = moving_gain(ScaleDiscriminator(poolings, 4))
    audio, x = gaussian(50 + poolings)
    for _ in range(300):
        module(audio[None])  # spectral norm comes nearer to the largest singular value with every pass
    module.eval()
    for _ in range(poolings):
        padded = np.pad(x, 2)
        x = np.array([padded[start : start + 4].sum() / 4 for start in range(0, len(padded) - 3, 2)])
    logits, maps = stack(x[None, :, None], module, 0.1)
    assert_equal(module(audio[None]), logits.flatten(), [*maps, logits])


def test_the_full_rate_has_spectral_norm_and_the_others_weight_norm():
    kinds = []
    for scale in Discriminators(channels=4).scales:
        names = {type(layer.parametrizations.weight[0]).__name__ for layer in (*scale.layers, scale.post)}
        kinds.append(names)
    assert kinds == [{"_SpectralNorm"}, {"_WeightNorm"}, {"_WeightNorm"}]


@pytest.mark.parametrize(("window", "samples"), [(128, 300), (256, 256), (512, 770)])
def test_spectrogram_equals_a_loop(window, samples):
    module = moving_gain(SpectrogramDiscriminator(window, 4))
    assert not parametrize.is_parametrized(module.layers[0])
    audio, x = gaussian(samples)
    hann = np.array([0.5 - 0.5 * math.cos(2 * math.pi * i / window) for i in range(window)])
    starts = range(0, samples - window + 1, window // 4)
    spectrum = np.stack([np.fft.rfft(x[start : start + window] * hann) for start in starts])
    spectrum /= math.sqrt((hann**2).sum())
    logits, maps = stack(np.stack([spectrum.real, spectrum.imag]), module, 0.2)
    assert_equal(module(audio[None]), logits, maps)


# all of them together


@pytest.mark.parametrize("samples", [2048, 2049, 2053, 3001, 12_345])
def test_any_length_from_the_shortest_on(samples):
    built = Discriminators(channels=4)
    assert built.min_samples == 2048
    for each in built(torch.randn(1, samples)):
        assert torch.isfinite(each.logits).all()
        assert each.logits.numel() > 0


@pytest.mark.parametrize("family", ["period", "scale"])
@pytest.mark.parametrize("samples", [11, 12, 13, 32])
def test_without_spectrograms_audio_may_be_very_short(family, samples):
    built = only(family, channels=4)
    assert built.min_samples == 11
    assert all(torch.isfinite(each.logits).all() for each in built(torch.randn(2, samples)))


def test_an_item_of_a_batch_is_judged_alone():
    built = Discriminators(channels=4).eval()
    audio = torch.randn(3, 5000)
    together, alone = built(audio), built(audio[1:2])
    for batch, single in zip(together, alone, strict=True):
        torch.testing.assert_close(batch.logits[1:2], single.logits, atol=1e-5, rtol=1e-4)
        for of_batch, of_single in zip(batch.features, single.features, strict=True):
            torch.testing.assert_close(of_batch[1:2], of_single, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_can_be_left_out(family):
    built, count = only(family, channels=4), {"period": 5, "scale": 3, "spectrogram": 5}[family]
    assert len(built(torch.randn(1, 2048))) == count
    whole = Discriminators(channels=4)
    prefix = family + "s."
    kept = {name for name in whole.state_dict() if name.startswith(prefix)}
    assert set(built.state_dict()) == kept


def test_gradients_reach_every_parameter_and_the_audio():
    built = Discriminators(channels=4)
    audio = torch.randn(1, 3000, requires_grad=True)
    sum(each.logits.square().mean() for each in built(audio)).backward()
    assert all(value.grad is not None and value.grad.any() for value in built.parameters())
    assert (audio.grad != 0).all()


def test_what_is_saved_gives_the_same_judgement():
    built = moving_gain(Discriminators(channels=4))
    audio = torch.randn(2, 2500)
    for _ in range(3):
        built(audio)
    other = Discriminators(channels=4)
    other.load_state_dict(built.state_dict())
    # in training too, where spectral norm moves its estimate
    for _ in range(2):
        for ours, theirs in zip(built(audio), other(audio), strict=True):
            assert torch.equal(ours.logits, theirs.logits)


def test_under_autocast_convolutions_are_bfloat16_and_spectrograms_float32():
    built = Discriminators(channels=4).eval()
    for part in built.spectrograms:  # the first two channels of the first map are the picture, where it is positive
        first = part.layers[0]
        torch.nn.init.zeros_(first.bias)
        torch.nn.init.zeros_(first.weight).data[:2, :, 1, 4] = torch.eye(2)
    audio = (torch.randn(2, 3000) * 0.1).bfloat16()
    exact = built(audio.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = built(audio)
    for ours, theirs in zip(exact[-5:], rough[-5:], strict=True):
        positive = ours.features[0] > 0
        assert positive.any()
        assert torch.equal(theirs.features[0][positive], ours.features[0][positive].bfloat16())
    for ours, theirs in zip(exact, rough, strict=True):
        assert theirs.logits.dtype == torch.bfloat16
        torch.testing.assert_close(theirs.logits.float(), ours.logits, atol=0.03, rtol=0.05)


# what is refused


@pytest.mark.parametrize(("families", "samples"), [(FAMILIES, 2047), (("period",), 10), (("scale",), 1), (FAMILIES, 0)])
def test_audio_that_is_too_short(families, samples):
    built = Discriminators(**{name: name in families for name in FAMILIES}, channels=4)
    with pytest.raises(AudioError, match=f"{samples} samples is too short .* at least {built.min_samples}$"):
        built(torch.zeros(1, samples))


@pytest.mark.parametrize("channels", [0, -4, 2, 30])
def test_widths_that_do_not_divide(channels):
    with pytest.raises(ConfigError, match=f"channels is {channels}, must be a positive multiple of 4"):
        Discriminators(channels=channels)


def test_no_family_at_all():
    with pytest.raises(ConfigError, match="keep at least one"):
        Discriminators(period=False, scale=False, spectrogram=False)
