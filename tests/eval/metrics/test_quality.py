import sys
from pathlib import Path

import numpy as np
import pesq
import pytest
import soxr
from pystoi import stoi

import xycodec
from xycodec.errors import AudioError, XycodecError
from xycodec.eval.metrics.distances import mel_distance
from xycodec.eval.metrics.pitch import compare_pitch, pitch_track, swift_session, swift_track
from xycodec.eval.metrics.quality import METERS, PIECE_S, PROTOCOL, measure_quality, plain
from xycodec.eval.results import METRICS, ROUNDTRIP, ClipResult, Scores, pooled
from xycodec.io.audio import read_audio
from xycodec.io.rate import SPEECH_RATE

PIECE = round(PIECE_S * SPEECH_RATE)
DAC = ("dac_mel_distance", "stft_distance", "normalised_stft_distance")
HEARD = ("stoi", "pesq_wb", "pesq_nb")
F0, VOICING = ("f0_error", "swift_f0_error"), ("voicing_error", "swift_voicing_error")
UNVOICED = dict.fromkeys(F0, "no frame is voiced in both")


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
    measured = measure_quality([decoded], [speech])
    assert measured.missing == {}
    assert measured.values == pytest.approx(
        {
            "stoi": stoi(speech, decoded, 16_000),
            "pesq_wb": pesq.pesq(16_000, speech, decoded, "wb"),
            "pesq_nb": pesq.pesq(8000, *halves, "nb"),
            "mel_distance": mel_distance([decoded], [speech], 16_000),
        },
        rel=1e-12,
    )


def test_equal_audio_has_the_best_values(speech):
    quality = measure_quality([speech], [speech.copy()], METERS)
    best = {"stoi": 1, "pesq_wb": 4.644, "pesq_nb": 4.549, "si_sdr": 100}
    zero = dict.fromkeys(("mel_distance", *DAC, *F0, *VOICING), 0)
    assert quality.values == pytest.approx(best | zero, abs=1e-3)
    assert {name: quality.values[name] for name in zero} == zero


def test_more_noise_is_worse_in_every_metric(speech):
    measured = [measure_quality([noisy(speech, level)], [speech], METERS).values for level in (0.001, 0.01, 0.1)]
    # Noise takes the frames away that are hard to track, and SwiftF0 shrugs a little of it off.
    for name in set(METERS) - {*F0, "swift_voicing_error"}:
        values = [quality[name] for quality in measured]
        assert values == sorted(set(values), reverse=METRICS[name].better == "higher"), name


def test_long_audio_is_the_mean_of_its_pieces_by_length(speech):
    original = np.resize(speech, PIECE + 32_000)
    decoded = np.concatenate([noisy(original[:PIECE], 0.003), noisy(original[PIECE:], 0.05)])
    whole = measure_quality(blocks(decoded, 7777), blocks(original, 100_000), METERS)
    first, second = (
        measure_quality([decoded[part]], [original[part]], METERS).values for part in (slice(PIECE), slice(PIECE, None))
    )
    assert whole.missing == {}
    for name in set(METERS) - {"si_sdr", *F0, *VOICING}:
        assert first[name] != pytest.approx(second[name], rel=0.05)
        weighted = (first[name] * PIECE + second[name] * 32_000) / (PIECE + 32_000)
        assert whole.values[name] == pytest.approx(weighted, rel=1e-6), name


def test_a_silent_piece_counts_only_where_silence_can_be_measured(speech):
    original = np.concatenate([np.resize(speech, PIECE), np.zeros(PIECE, np.float32)])
    decoded = noisy(original)
    whole, first = measure_quality([decoded], [original]), measure_quality([decoded[:PIECE]], [original[:PIECE]])
    assert [whole.values[name] for name in HEARD] == [first.values[name] for name in HEARD]
    assert whole.values["mel_distance"] > first.values["mel_distance"]
    assert whole.missing == {}


def test_more_stretches_of_speech_than_pesq_has_room_for():
    """60 bursts in 30 s, with pauses between them, kill the process if PESQ sees them together."""
    time = np.arange(30 * SPEECH_RATE) / SPEECH_RATE
    bursts = noisy(np.zeros(len(time), np.float32), 0.2) * (time % 0.5 < 0.25)
    assert measure_quality([noisy(bursts, 0.001)], [bursts]).values["pesq_wb"] > 1.5


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
    assert set(quality.values) == set(ROUNDTRIP) - set(missing)


def test_too_little_speech_between_pauses(speech):
    original = np.zeros(32_000, np.float32)
    original[16_000:20_000] = speech[20_000:24_000]
    quality = measure_quality([original], [original])
    assert quality.missing == {"stoi": SHORT}
    assert "stoi" not in quality.values


def test_silence_has_no_quality(speech):
    silence = np.zeros_like(speech)
    quality = measure_quality([speech], [silence])
    assert quality.missing == dict.fromkeys(HEARD, "silent")
    assert list(quality.values) == ["mel_distance"]


def test_a_decoding_that_is_silent(speech):
    quality = measure_quality([np.zeros_like(speech)], [speech])
    assert quality.values["stoi"] == pytest.approx(0, abs=1e-6)
    assert quality.missing == dict.fromkeys(("pesq_wb", "pesq_nb"), "decoded to silence")


def test_without_pesq_the_others_are_there(speech, monkeypatch):
    with_pesq = measure_quality([noisy(speech)], [speech])
    monkeypatch.setitem(sys.modules, "pesq", None)
    without = measure_quality([noisy(speech)], [speech])
    assert without.values == {name: with_pesq.values[name] for name in ("stoi", "mel_distance")}
    assert set(without.missing) == {"pesq_wb", "pesq_nb"}
    assert "xycodec[eval]" in without.missing["pesq_wb"]


def test_the_longer_one_counts_to_the_shorters_end(speech):
    assert measure_quality([noisy(speech)], [speech[:-5000]]) == measure_quality(
        [noisy(speech)[:-5000]], [speech[:-5000]]
    )


def test_nothing_to_compare_is_an_error(speech):
    with pytest.raises(AudioError, match="nothing to compare"):
        measure_quality([], [speech])


# signal-to-distortion ratio, pitch, and the rest


@pytest.mark.parametrize("sizes", [(1000, 333_333), (PIECE + 1, 777)])
def test_the_cut_into_blocks_does_not_matter(speech, sizes):
    original = np.resize(speech, PIECE + 20_000)
    decoded, names = noisy(original), ("si_sdr", "voicing_error", "stft_distance")
    expected = measure_quality([decoded], [original], names)
    assert measure_quality(blocks(decoded, sizes[0]), blocks(original, sizes[1]), names) == expected


def test_si_sdr_is_a_ratio_of_the_whole_clips_energies(speech):
    original = np.concatenate([np.resize(speech, PIECE), np.resize(speech, 50_000) * 0.01])
    decoded = noisy(original, 0.01)
    x, y = (audio.astype(np.float64) - audio.mean(dtype=np.float64) for audio in (original, decoded))
    target = (x @ y) / (x @ x) * x
    expected = 10 * np.log10((target @ target) / ((y - target) @ (y - target)))
    whole = measure_quality([decoded], [original], ["si_sdr"]).values["si_sdr"]
    assert whole == pytest.approx(expected, abs=1e-9)
    parts = [slice(PIECE), slice(PIECE, None)]
    values = [measure_quality([decoded[part]], [original[part]], ["si_sdr"]).values["si_sdr"] for part in parts]
    assert values[1] < whole - 10 < values[0]


# The network of SwiftF0 is some cents off.
@pytest.mark.parametrize(("track", "prefix", "exact"), [(pitch_track, "", 0.01), (swift_track, "swift_", 0.1)])
def test_pitch_counts_frames_over_pieces_and_over_clips(track, prefix, exact):
    f0, voicing = errors = (f"{prefix}f0_error", f"{prefix}voicing_error")
    time = np.arange(PIECE + 80_000) / SPEECH_RATE
    original, decoded = (
        sum(np.sin(2 * np.pi * hz * k * time) / k for k in range(1, 9)).astype(np.float32) / 4
        for hz in (200, np.where(time < PIECE_S, 200, 212))
    )
    decoded[-40_000:] = 0
    whole = measure_quality([decoded], [original], errors)
    parts = [slice(PIECE), slice(PIECE, None)]
    tracks = [[track(audio[part], SPEECH_RATE) for audio in (decoded, original)] for part in parts]
    one, two = (compare_pitch(*pair) for pair in tracks)
    both = one + two
    assert whole.weights == {f0: one.voiced + two.voiced, voicing: one.frames + two.frames}
    assert whole.values[f0] == pytest.approx(both.square_cents / both.voiced)
    assert whole.values[voicing] == pytest.approx(two.flipped / both.frames)
    assert whole.values[voicing] == pytest.approx(2.5 / 25, rel=0.03)
    clips = [
        ClipResult("", "", None, None, 1.0, scores=measure_quality([decoded[part]], [original[part]], errors))
        for part in parts
    ]
    assert pooled(clips, f0) == pytest.approx(whole.values[f0] ** 0.5)
    assert pooled(clips, voicing) == pytest.approx(whole.values[voicing])
    cents = 1200 * np.log2(212 / 200)
    assert pooled(clips, f0) == pytest.approx(cents * (two.voiced / both.voiced) ** 0.5, rel=exact)


@pytest.mark.parametrize(
    ("decoded", "original", "missing"),
    [
        ("speech", "silence", dict.fromkeys((*HEARD, "si_sdr"), "silent") | UNVOICED),
        (
            "silence", "speech",
            dict.fromkeys(("pesq_wb", "pesq_nb", "si_sdr"), "decoded to silence")
            | UNVOICED,
        ),
        ("faint", "speech", dict.fromkeys(("pesq_wb", "pesq_nb"), "decoded to silence")),
        (
            "huge", "speech",
            dict.fromkeys(DAC, "levels beyond float32")
            | dict.fromkeys(("pesq_wb", "pesq_nb"), "no speech found"),
        ),
        ("clipped", "speech", {}),
        ("speech", "clipped", {}),
        ("constant", "constant", {"si_sdr": "silent"} | UNVOICED),
    ],
)  # fmt: skip
def test_every_metric_has_a_finite_value_or_a_reason(speech, decoded, original, missing):
    audio = {
        "speech": speech,
        "silence": np.zeros_like(speech),
        "constant": np.full_like(speech, 0.1),
        "faint": speech * np.float32(1e-30),
        "huge": speech * np.float32(1e30),
        "clipped": np.clip(speech * 20, -1, 1),
    }
    quality = measure_quality([audio[decoded]], [audio[original]], METERS)
    assert quality.missing == missing
    assert set(quality.values) == set(METERS) - set(missing)
    assert np.isfinite(list(quality.values.values())).all()


@pytest.mark.parametrize(
    ("samples", "there"),
    [
        (799, ["si_sdr"]),
        (800, sorted(("si_sdr", *VOICING))),
        (1024, sorted(("si_sdr", *VOICING))),
        (1025, sorted((*DAC, "si_sdr", *VOICING))),
    ],
)
def test_audio_shorter_than_a_window(samples, there):
    audio = noisy(np.zeros(samples, np.float32), 0.1)
    quality = measure_quality([noisy(audio)], [audio], set(METERS) - set(ROUNDTRIP))
    assert sorted(set(quality.values) - set(F0)) == there
    if samples == 799:
        assert {quality.missing[name] for name in (*F0, *VOICING)} == {"under 0.05 s"}
        assert quality.missing["stft_distance"] == "under 1025 samples"


@pytest.mark.parametrize(("module", "prefix"), [("parselmouth", ""), ("swift_f0", "swift_")])
def test_without_a_tracker_of_pitch_the_others_are_there(speech, monkeypatch, module, prefix):
    monkeypatch.setitem(sys.modules, module, None)
    swift_session.cache_clear()
    quality = measure_quality([noisy(speech)], [speech], ["si_sdr", *F0, *VOICING])
    lost = {f"{prefix}f0_error", f"{prefix}voicing_error"}
    assert set(quality.values) == {"si_sdr", *F0, *VOICING} - lost
    assert quality.missing == dict.fromkeys(lost, "not installed: pip install 'xycodec[eval]'")


@pytest.mark.parametrize("which", ["decoded", "original"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_a_number_is_an_error(speech, which, value):
    broken = speech.copy()
    broken[-1] = value
    pair = {"decoded": [speech], "original": [speech]} | {which: [broken]}
    with pytest.raises(AudioError, match=f"the {which} audio holds a NaN or an infinity"):
        measure_quality(**pair)


def test_an_unknown_metric_names_the_nearest(speech):
    with pytest.raises(XycodecError, match="did you mean 'stoi'"):
        measure_quality([speech], [speech], ["mel_distance", "stio"])
    with pytest.raises(XycodecError, match="known ones are stoi, pesq_wb"):
        measure_quality([speech], [speech], ["zzz"])


def test_tables_know_every_metric_and_the_protocol_is_one_line_each():
    assert set(ROUNDTRIP) <= set(METERS) <= set(METRICS)
    for sentence in PROTOCOL.values():
        assert sentence.endswith(".")
        assert "\n" not in sentence


def test_one_row_of_json():
    assert plain(Scores({"stoi": 0.5}, {"f0_error": "why"}, {"stoi": 2})) == {
        "stoi": 0.5,
        "f0_error": None,
        "missing": {"f0_error": "why"},
    }
