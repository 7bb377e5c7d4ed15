import numpy as np
import pytest
import torch

from xycodec.errors import AudioError
from xycodec.eval.metrics.distances import (
    CHUNK_S,
    MOST_DB,
    Moments,
    dac_mel_distance,
    mel_distance,
    normalised_stft_distance,
    stft_distance,
)
from xycodec.losses.mel import MultiScaleMel

RATE = 2000  # low, so that minutes are cheap


def noise(samples, seed=0):
    return (np.random.default_rng(seed).standard_normal(samples) * 0.1).astype(np.float32)


def blocks(audio, size):
    return (audio[start : start + size] for start in range(0, len(audio), size))


@pytest.mark.parametrize("samples", [1, 100, 2047, 2048, 19_999, 20_000])
def test_one_piece_is_the_loss(samples):
    decoded, target = noise(samples), noise(samples, 1)
    short = max(0, 2048 - samples)
    padded = [torch.from_numpy(np.pad(audio, (0, short)))[None] for audio in (decoded, target)]
    expected = MultiScaleMel(RATE)(*padded, torch.tensor([samples])).value().item()
    assert mel_distance([decoded], [target], RATE) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("sizes", [(1, 7), (333, 20_000), (19_999, 20_001), (50_000, 1000), (10**6, 10**6)])
def test_the_cut_into_blocks_does_not_matter(sizes):
    decoded, target = noise(50_001), noise(50_001, 1)
    expected = mel_distance([decoded], [target], RATE)
    assert mel_distance(blocks(decoded, sizes[0]), blocks(target, sizes[1]), RATE) == expected


def test_long_audio_is_the_mean_of_its_pieces_by_length():
    size = round(CHUNK_S * RATE)
    decoded, target = noise(2 * size + 5000), noise(2 * size + 5000, 1)
    decoded[:size] = target[:size]
    pieces = [slice(0, size), slice(size, 2 * size), slice(2 * size, None)]
    values = [mel_distance([decoded[piece]], [target[piece]], RATE) for piece in pieces]
    assert values[0] == 0
    assert values[1] > 1
    weighted = (values[1] * size + values[2] * 5000) / (2 * size + 5000)
    assert mel_distance([decoded], [target], RATE) == pytest.approx(weighted)


def test_equal_audio_has_no_distance():
    audio = noise(45_000)
    assert mel_distance([audio], blocks(audio.copy(), 999), RATE) == 0


@pytest.mark.parametrize("samples", [10_000, 20_000, 30_000])
def test_the_longer_one_counts_to_the_shorters_end(samples):
    decoded, target = noise(50_000), noise(samples, 1)
    expected = mel_distance([decoded[:samples]], [target], RATE)
    assert mel_distance([decoded], [target], RATE) == expected
    assert mel_distance([target], [decoded], RATE) == pytest.approx(expected)


def test_memory_does_not_grow_with_the_audio():
    read = [0, 0]

    def endless(which, seed):
        block = noise(1000, seed)
        while True:
            read[which] += len(block)
            yield block

    def finite(source, stop):
        for _ in range(stop):
            # Neither stream runs ahead of the other by more than a piece.
            assert abs(read[0] - read[1]) <= CHUNK_S * RATE + 1000
            yield next(source)

    assert mel_distance(finite(endless(0, 0), 100), endless(1, 1), RATE) > 1
    assert read[0] == 100_000


@pytest.mark.parametrize(("decoded", "target"), [([], [1]), ([1], []), ([], []), ([0], [1])])
def test_nothing_to_compare_is_an_error(decoded, target):
    with pytest.raises(AudioError) as error:
        mel_distance([noise(n) for n in decoded], [noise(n) for n in target], RATE)
    assert "\n" not in str(error.value)


# Descript Audio Codec's distances


def slaney_hz(mel):
    return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)


def frame_by_frame(decoded, original, rate, bins, unit_energy=False):
    """Both distances as sums over frames and bands, one at a time, in float64."""
    total = 0.0
    for window, bands in zip((2048, 512), bins or (None, None), strict=True):
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
        hann /= np.sqrt((hann**2).sum()) if unit_energy else 1
        hz = np.arange(window // 2 + 1) * rate / window
        filters = np.eye(len(hz))
        if bands:
            top = 15 + 27 * np.log(rate / 2000) / np.log(6.4)
            edges = [slaney_hz(mel) for mel in np.linspace(0, top, bands + 2)]
            filters = [np.interp(hz, edges[i : i + 3], [0, 1, 0]) * 2 / (edges[i + 2] - edges[i]) for i in range(bands)]
        frames = [
            [
                np.asarray(filters) @ np.abs(np.fft.rfft(padded[start : start + window] * hann))
                for start in range(0, len(original) + 1, window // 4)
            ]
            for padded in (
                np.pad(audio.astype(np.float64), window // 2, mode="reflect") for audio in (decoded, original)
            )
        ]
        one, two = map(np.array, frames)
        logs = np.log10(np.maximum(one**2, 1e-5)) - np.log10(np.maximum(two**2, 1e-5))
        total += np.abs(one - two).mean() + np.abs(logs).mean()
    return total


@pytest.mark.parametrize("samples", [1025, 5000, 8192])
def test_dac_distances_equal_a_computation_frame_by_frame(samples):
    decoded, original = noise(samples), noise(samples, 1) * np.linspace(0, 0.02, samples, dtype=np.float32)
    mel, stft = dac_mel_distance(decoded, original, 16_000), stft_distance(decoded, original)
    assert mel == pytest.approx(frame_by_frame(decoded, original, 16_000, (150, 80)), rel=1e-4)
    assert stft == pytest.approx(frame_by_frame(decoded, original, 16_000, None), rel=1e-4)
    assert mel == dac_mel_distance(original, decoded, 16_000)
    normalised = normalised_stft_distance(decoded, original)
    assert normalised == pytest.approx(frame_by_frame(decoded, original, 16_000, None, unit_energy=True), rel=1e-4)
    assert normalised_stft_distance(original, original.copy()) == 0


def test_equality_has_no_dac_distance_and_a_gain_of_two_has_a_known_one():
    original = noise(20_000) * 10  # far above the floor
    assert stft_distance(original, original.copy()) == dac_mel_distance(original, original.copy(), 16_000) == 0
    hann = [torch.hann_window(window) for window in (2048, 512)]
    means = [
        torch.from_numpy(original).stft(len(w), len(w) // 4, window=w, return_complex=True).abs().mean() for w in hann
    ]
    expected = 2 * np.log10(4) + sum(means).item()
    assert stft_distance(2 * original, original) == pytest.approx(expected, rel=1e-4)


# scale-invariant signal-to-distortion ratio


@pytest.mark.parametrize("level", [-20.0, 0.0, 12.5, 60.0])
@pytest.mark.parametrize("gain", [1, -3, 1e-3])
def test_si_sdr_of_a_known_noise_level_whatever_the_gain_and_the_offset(level, gain):
    original, added = noise(30_000).astype(np.float64), noise(30_000, 1).astype(np.float64)
    original, added = original - original.mean(), added - added.mean()
    added -= (added @ original) / (original @ original) * original
    added *= np.sqrt((original @ original) / (added @ added)) * 10 ** (-level / 20)
    value = Moments.of(gain * (original + added) + 0.3 * gain, original - 2).si_sdr
    assert value == pytest.approx(level, abs=1e-6)


def test_si_sdr_is_capped_both_ways():
    original = noise(16_000)
    assert Moments.of(original, original).si_sdr == pytest.approx(MOST_DB)
    assert Moments.of(0.3 * original, original).si_sdr == pytest.approx(MOST_DB)
    time = np.arange(16_000) / 16_000
    sine, cosine = np.sin(2 * np.pi * 100 * time), np.cos(2 * np.pi * 100 * time)
    assert Moments.of(cosine, sine).si_sdr == -MOST_DB


@pytest.mark.parametrize("cuts", [(1,), (9999,), (100, 101, 7000), tuple(range(500, 10_000, 500))])
def test_moments_add_up(cuts):
    decoded, original = noise(10_000) + 1, noise(10_000) + noise(10_000, 1) * np.float32(0.1) - 2
    whole, first, *rest = (
        Moments.of(decoded[part], original[part])
        for part in [slice(None), *(slice(*ends) for ends in zip((0, *cuts), (*cuts, 10_000), strict=True))]
    )
    added = sum(rest, first)
    assert added.samples == whole.samples
    np.testing.assert_allclose(added.mean, whole.mean, rtol=1e-13)
    np.testing.assert_allclose(added.products, whole.products, rtol=1e-11)
    np.testing.assert_allclose(
        whole.products, np.cov(np.stack([decoded, original]).astype(np.float64), bias=True) * 10_000, rtol=1e-11
    )


def test_what_is_constant_has_no_ratio():
    still, moving = np.full(10_000, 0.1, np.float32), noise(10_000)
    assert Moments.of(still, moving).constant == (True, False)
    assert Moments.of(moving, still).constant == (False, True)
    assert Moments.of(0 * still, moving * np.float32(1e-30)).constant == (True, False)
    steps = Moments.of(moving, still) + Moments.of(moving, 2 * still)
    assert steps.constant == (False, False)
