import math

import numpy as np
import pytest
import torch

import reference
from xycodec.errors import AudioError, ConfigError
from xycodec.losses.adversarial import adversarial_loss, discriminator_loss, plain_feature_matching
from xycodec.nn.frequency_discriminator import FrequencyDiscriminator, MultiFrequencyDiscriminator

NARROW = 16


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.1


# the published sizes


def test_parameters():
    with torch.device("meta"):
        built = MultiFrequencyDiscriminator(16_000)
    assert reference.count_parameters(built) == 5_256_372


def test_shapes_for_three_seconds():
    """The lengths do not depend on the widths, so a narrow one tells them."""
    out = MultiFrequencyDiscriminator(16_000, channels=NARROW)(noise(2, 48_000))
    assert [tuple(each.logits.shape) for each in out] == [
        (2, 1, *size) for size in ((9, 188), (17, 94), (33, 47), (65, 24), (129, 12), (257, 6))
    ]
    assert [len(each.features) for each in out] == [6] * 6
    assert out[0].features[0].shape == (2, 2, 65, 1501)
    assert out[5].features[0].shape[2:] == (2049, 47)


def table(module):
    """(in, out, kernel, stride, padding and its kind) of every layer, the last one too."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "padding_mode")
    return [tuple(getattr(layer, name) for name in names) for layer in (*module.layers, module.post)]


@pytest.mark.parametrize(("channels", "lasts"), [(512, (64, 128, 256, 512, 512, 512)), (64, (8, 16, 32, 64, 64, 64))])
def test_layers(channels, lasts):
    with torch.device("meta"):
        built = MultiFrequencyDiscriminator(16_000, channels=channels)
    for part, last in zip(built.frequencies, lasts, strict=True):
        widths = [2, *(max(2, last // 2**i) for i in (5, 4, 3, 2, 1, 0)), 1]
        pairs = zip(widths[:-1], widths[1:], (1, 2, 1, 2, 1, 2, 1), strict=True)
        assert table(part) == [(*pair, (3, 3), (s, s), (1, 1), "reflect") for *pair, s in pairs]


# equality with loops


def moving_gain(module):
    """Weight-normed layers whose gain is not the norm of their direction; biases that matter."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in module.named_parameters():
            if name.endswith("original0"):
                value.mul_(1 + torch.rand(value.shape, generator=generator))
            elif name.endswith("bias"):
                value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    return module


def convolution(x, layer):
    """One picture (in, H, W) -> (out, H', W'), place by place, in float64."""
    parts = layer.parametrizations.weight
    gain, direction = reference.array(parts.original0), reference.array(parts.original1)
    weight = gain * direction / np.sqrt((direction**2).sum(axis=(1, 2, 3), keepdims=True))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    stride = layer.stride[0]
    rows = [
        [np.tensordot(weight, padded[:, i : i + 3, j : j + 3], 3) for j in range(0, x.shape[2], stride)]
        for i in range(0, x.shape[1], stride)
    ]
    return np.array(rows).transpose(2, 0, 1) + reference.array(layer.bias)[:, None, None]


def htk(bins, window):
    """Weights (bins of the spectrum, as many filters) one at a time; 0 to 8000 Hz."""

    def hz(mel):
        return 700 * (10 ** (mel / 2595) - 1)

    edges = [hz(2595 * math.log10(1 + 8000 / 700) * i / (bins + 1)) for i in range(bins + 2)]
    heights = np.zeros((bins, bins))
    for b in range(bins):
        for m in range(bins):
            low, centre, high = edges[m : m + 3]
            at = b * 16_000 / window
            heights[b, m] = min((at - low) / (centre - low), (high - at) / (high - centre))
    return np.clip(heights, 1e-6, 1)


def picture(audio, hop):
    """Both channels (2, bins, frames), each frame by sums of cosines and sines."""
    window, bins = 4 * hop, 2 * hop + 1
    padded = np.pad(audio, window // 2, mode="reflect")
    n = np.arange(window)
    hann = 0.5 - 0.5 * np.cos(2 * math.pi * n / window)
    angles = 2 * math.pi * np.outer(np.arange(bins), n) / window
    frames = []
    for start in range(0, len(audio) + 1, hop):
        frame = padded[start : start + window] * hann / math.sqrt(window)
        power = (np.cos(angles) @ frame) ** 2 + (np.sin(angles) @ frame) ** 2
        frames.append(np.sqrt(np.maximum(power, 1e-7)) @ htk(bins, window))
    linear = np.array(frames).T
    return np.stack([linear, np.clip((20 * np.log10(linear) - 20 + 100) / 100, 0, 1)])


@pytest.mark.parametrize(("hop", "samples"), [(32, 700), (32, 256), (64, 1100)])
def test_equals_a_loop(hop, samples):
    module = moving_gain(FrequencyDiscriminator(hop, 16_000, channels=NARROW))
    audio = noise(samples)
    audio[samples // 2 :] *= 1e-4  # so that the least magnitude matters
    x, maps = picture(reference.array(audio), hop), []
    for layer in module.layers:
        x = convolution(x, layer)
        x = np.where(x > 0, x, 0.2 * x)
        maps.append(x)
    got = module(audio[None])
    np.testing.assert_allclose(reference.array(got.logits[0]), convolution(x, module.post), atol=2e-4)
    for ours, expected in zip(got.features, maps, strict=True):
        np.testing.assert_allclose(reference.array(ours[0]), expected, atol=2e-4)


def transparent(module):
    """Let the first map be the picture: neither of its channels is ever negative."""
    layer = module.layers[0]
    kernel = torch.zeros(2, 2, 3, 3)
    kernel[0, 0, 1, 1] = kernel[1, 1, 1, 1] = 1
    layer.weight, layer.bias.data[:] = kernel, 0
    return module


def test_it_sees_loudness_in_decibels():
    module = transparent(FrequencyDiscriminator(64, 16_000, channels=NARROW))
    quiet, loud, silence = (module(noise(1, 4000) * gain).features[0][0].detach() for gain in (1, 10, 0))
    torch.testing.assert_close(loud[0], quiet[0] * 10, rtol=0.01, atol=1e-3)
    within = (quiet[1] > 0.3) & (loud[1] < 1)
    assert within.float().mean() > 0.5
    torch.testing.assert_close(loud[1][within], quiet[1][within] + 0.2, rtol=0, atol=1e-3)
    assert 0 < silence[0].max() < 1e-3
    assert silence[1].min() == 0


# all of them together


@pytest.mark.parametrize("samples", [8192, 8193, 9215, 12_345])
def test_any_length_from_the_shortest_on(samples):
    built = MultiFrequencyDiscriminator(16_000, channels=NARROW)
    assert built.min_samples == 8192
    for each in built(noise(1, samples)):
        assert torch.isfinite(each.logits).all()
        assert each.logits.numel() > 0


def test_an_item_of_a_batch_is_judged_alone():
    built, audio = MultiFrequencyDiscriminator(16_000, channels=NARROW), noise(3, 9000)
    for batch, single in zip(built(audio), built(audio[1:2]), strict=True):
        for together, alone in zip((batch.logits, *batch.features), (single.logits, *single.features), strict=True):
            torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("level", [1.0, 0.0])
def test_gradients_reach_every_parameter_and_the_audio(level):
    built = MultiFrequencyDiscriminator(16_000, channels=NARROW)
    audio = (noise(1, 8192) * level).requires_grad_()
    sum(each.logits.square().mean() for each in built(audio)).backward()
    assert all(value.grad is not None and value.grad.any() for value in built.parameters())
    assert torch.isfinite(audio.grad).all()
    assert bool(audio.grad.any()) == bool(level)


def test_what_is_saved_gives_the_same_judgement():
    built, other = (moving_gain(MultiFrequencyDiscriminator(16_000, channels=NARROW)) for _ in range(2))
    audio = noise(2, 8192)
    other.load_state_dict(built.state_dict())
    for ours, theirs in zip(built(audio), other(audio), strict=True):
        assert torch.equal(ours.logits, theirs.logits)
    assert all("layers" in name or "post" in name for name in built.state_dict())


def test_under_autocast_convolutions_are_bfloat16_and_spectrograms_float32():
    built = MultiFrequencyDiscriminator(16_000, channels=NARROW)
    for part in built.frequencies:
        transparent(part)
    audio = noise(2, 8192).bfloat16()
    exact = built(audio.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = built(audio)
    for ours, theirs in zip(exact, rough, strict=True):
        assert torch.equal(theirs.features[0], ours.features[0].bfloat16())
        assert theirs.logits.dtype == torch.bfloat16
        torch.testing.assert_close(theirs.logits.float(), ours.logits, atol=0.05, rtol=0.05)


@pytest.mark.long
def test_it_learns_to_tell_and_the_audio_to_pass():
    built = MultiFrequencyDiscriminator(16_000, channels=32)
    optimizer = torch.optim.AdamW(built.parameters(), lr=1e-2)
    real, decoded = noise(2, 8192), (noise(2, 8192, seed=1) * 0.3).requires_grad_()
    for _ in range(40):
        optimizer.zero_grad()
        loss = discriminator_loss(built(real), built(decoded.detach())).value()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.45  # 0.5 is what the same answer to everything costs
    built.requires_grad_(False)

    def generator_loss(audio):
        fake = built(audio)
        return adversarial_loss(fake).value() + 20 * plain_feature_matching(built(real), fake).value()

    before = generator_loss(decoded)
    before.backward()
    step = 0.01 * decoded.grad / decoded.grad.square().mean().sqrt()
    assert generator_loss(decoded.detach() - step) < before


# what is refused


@pytest.mark.parametrize("samples", [0, 8191])
def test_audio_that_is_too_short(samples):
    with pytest.raises(AudioError, match=f"{samples} samples is too short .* at least 8192$"):
        MultiFrequencyDiscriminator(16_000, channels=8)(torch.zeros(1, samples))


@pytest.mark.parametrize("channels", [0, -8, 4, 100])
def test_widths_that_do_not_divide(channels):
    with pytest.raises(ConfigError, match=f"channels is {channels}, must be a positive multiple of 8"):
        MultiFrequencyDiscriminator(16_000, channels=channels)
