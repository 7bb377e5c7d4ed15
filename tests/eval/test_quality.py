import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pesq
import pytest
import soxr
from pystoi import stoi

import xycodec
from xycodec.audio import read_audio
from xycodec.errors import AudioError
from xycodec.eval.metrics import mel_distance
from xycodec.eval.quality import PIECE_S, RATE, measure_quality

PIECE = round(PIECE_S * RATE)


@pytest.fixture(scope="module")
def speech():
    """3.2 s."""
    return read_audio(Path(xycodec.__file__).parent / "assets" / "harbour.flac")


def noisy(audio, level=0.01, seed=0):
    return audio + (np.random.default_rng(seed).standard_normal(len(audio)) * level).astype(np.float32)


def blocks(audio, size):
    return (audio[start : start + size] for start in range(0, len(audio), size))


def test_one_piece_has_the_libraries_values_with_the_original_as_reference(speech):
    decoded = noisy(speech)
    halves = [soxr.resample(audio, 16_000, 8000) for audio in (speech, decoded)]
    measured = asdict(measure_quality([decoded], [speech]))
    assert measured.pop("missing") == {}
    assert measured == pytest.approx(
        {
            "stoi": stoi(speech, decoded, 16_000),
            "pesq_wb": pesq.pesq(16_000, speech, decoded, "wb"),
            "pesq_nb": pesq.pesq(8000, *halves, "nb"),
            "mel_distance": mel_distance([decoded], [speech], 16_000),
        },
        rel=1e-12,
    )


def test_equal_audio_has_the_best_values(speech):
    quality = measure_quality([speech], [speech.copy()])
    assert quality.stoi == pytest.approx(1)
    assert quality.pesq_wb == pytest.approx(4.644, abs=1e-3)
    assert quality.pesq_nb == pytest.approx(4.549, abs=1e-3)
    assert quality.mel_distance == 0


def test_more_noise_is_worse_in_every_metric(speech):
    clean, low, high = (measure_quality([noisy(speech, level)], [speech]) for level in (0.001, 0.01, 0.1))
    for name, sign in {"stoi": 1, "pesq_wb": 1, "pesq_nb": 1, "mel_distance": -1}.items():
        values = [sign * getattr(quality, name) for quality in (clean, low, high)]
        assert values == sorted(values, reverse=True), name


def test_long_audio_is_the_mean_of_its_pieces_by_length(speech):
    original = np.resize(speech, PIECE + 32_000)
    decoded = np.concatenate([noisy(original[:PIECE], 0.003), noisy(original[PIECE:], 0.05)])
    whole = asdict(measure_quality(blocks(decoded, 7777), blocks(original, 100_000)))
    first, second = (
        asdict(measure_quality([decoded[part]], [original[part]])) for part in (slice(PIECE), slice(PIECE, None))
    )
    assert whole.pop("missing") == {}
    for name, value in whole.items():
        assert first[name] != pytest.approx(second[name], rel=0.05)
        weighted = (first[name] * PIECE + second[name] * 32_000) / (PIECE + 32_000)
        assert value == pytest.approx(weighted, rel=1e-6), name


def test_a_silent_piece_counts_only_where_silence_can_be_measured(speech):
    original = np.concatenate([np.resize(speech, PIECE), np.zeros(PIECE, np.float32)])
    decoded = noisy(original)
    whole, first = measure_quality([decoded], [original]), measure_quality([decoded[:PIECE]], [original[:PIECE]])
    assert (whole.stoi, whole.pesq_wb, whole.pesq_nb) == (first.stoi, first.pesq_wb, first.pesq_nb)
    assert whole.mel_distance > first.mel_distance
    assert whole.missing == {}


def test_more_stretches_of_speech_than_pesq_has_room_for():
    """60 bursts in 30 s, with pauses between them, kill the process if PESQ sees them together."""
    time = np.arange(30 * RATE) / RATE
    bursts = noisy(np.zeros(len(time), np.float32), 0.2) * (time % 0.5 < 0.25)
    assert measure_quality([noisy(bursts, 0.001)], [bursts]).pesq_wb > 1.5


SHORT = "under 0.41 s of speech"


@pytest.mark.parametrize(
    ("samples", "missing"),
    [
        (1, {"stoi": SHORT, "pesq_wb": "under 0.25 s", "pesq_nb": "under 0.25 s"}),
        (3999, {"stoi": SHORT, "pesq_wb": "under 0.25 s", "pesq_nb": "under 0.25 s"}),
        (4000, {"stoi": SHORT}),
        (6559, {"stoi": SHORT}),
        (6560, {}),
    ],
)
def test_short_audio(speech, samples, missing):
    original = speech[20_000:][:samples]
    quality = measure_quality([noisy(original)], [original])
    assert quality.missing == missing
    for name, value in asdict(quality).items():
        assert (value is None) == (name in missing), name


def test_too_little_speech_between_pauses(speech):
    original = np.zeros(32_000, np.float32)
    original[16_000:20_000] = speech[20_000:24_000]
    quality = measure_quality([original], [original])
    assert (quality.stoi, quality.missing) == (None, {"stoi": SHORT})


def test_silence_has_no_quality(speech):
    silence = np.zeros_like(speech)
    quality = measure_quality([speech], [silence])
    assert quality.missing == dict.fromkeys(("stoi", "pesq_wb", "pesq_nb"), "silent")
    assert (quality.stoi, quality.pesq_wb, quality.pesq_nb) == (None, None, None)


def test_a_decoding_that_is_silent(speech):
    quality = measure_quality([np.zeros_like(speech)], [speech])
    assert quality.stoi == pytest.approx(0, abs=1e-6)
    assert quality.missing == dict.fromkeys(("pesq_wb", "pesq_nb"), "decoded to silence")


def test_without_pesq_the_others_are_there(speech, monkeypatch):
    with_pesq = measure_quality([noisy(speech)], [speech])
    monkeypatch.setitem(sys.modules, "pesq", None)
    without = measure_quality([noisy(speech)], [speech])
    assert (without.stoi, without.mel_distance) == (with_pesq.stoi, with_pesq.mel_distance)
    assert (without.pesq_wb, without.pesq_nb) == (None, None)
    assert set(without.missing) == {"pesq_wb", "pesq_nb"}
    assert "xycodec[eval]" in without.missing["pesq_wb"]


def test_the_longer_one_counts_to_the_shorters_end(speech):
    assert measure_quality([noisy(speech)], [speech[:-5000]]) == measure_quality(
        [noisy(speech)[:-5000]], [speech[:-5000]]
    )


def test_nothing_to_compare_is_an_error(speech):
    with pytest.raises(AudioError, match="nothing to compare"):
        measure_quality([], [speech])
