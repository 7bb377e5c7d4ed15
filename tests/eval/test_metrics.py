import numpy as np
import pytest
import torch

from xycodec.errors import AudioError
from xycodec.eval.metrics import CHUNK_S, mel_distance
from xycodec.losses import MultiScaleMel

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
