import math

import numpy as np
import pytest
from tests.judging import speech

from xycodec.eval.metrics.pitch import PitchErrors, compare_pitch, pitch_track, swift_track

RATE = 16_000


def tone(hz, seconds=1.0):
    """A complex tone: 1 to 8 times `hz`."""
    time = np.arange(round(seconds * RATE)) / RATE
    return sum(np.sin(2 * np.pi * hz * k * time) / k for k in range(1, 9)).astype(np.float32) * 0.1


def white(seconds=1.0):
    return (np.random.default_rng(0).standard_normal(round(seconds * RATE)) * 0.1).astype(np.float32)


def count(decoded, original):
    """The same, one frame at a time."""
    errors = PitchErrors()
    for heard, said in zip(decoded, original, strict=True):
        cents = 1200 * math.log(heard / said, 2) if heard and said else 0.0
        errors += PitchErrors(1, int(heard > 0 and said > 0), cents**2, int((heard > 0) != (said > 0)))
    return errors


@pytest.mark.parametrize("hz", [70.0, 123.4, 250.0, 480.0])
def test_a_tone_has_its_pitch_every_10_ms(hz):
    track = pitch_track(tone(hz), RATE)
    assert len(track) == pytest.approx(95, abs=1)
    np.testing.assert_allclose(track, hz, rtol=2e-3)


def test_noise_silence_and_pitch_out_of_range_are_unvoiced():
    assert not pitch_track(np.zeros(RATE, np.float32), RATE).any()
    assert (pitch_track(white(), RATE) > 0).mean() < 0.1
    tracks = np.concatenate([pitch_track(tone(hz), RATE) for hz in (45.0, 700.0)])
    assert ((tracks == 0) | ((tracks >= 60) & (tracks <= 500))).all()


@pytest.mark.parametrize("cents", [-300, 10, 100, 450])
def test_tones_a_known_number_of_cents_apart(cents):
    decoded, original = (pitch_track(tone(hz), RATE) for hz in (200 * 2 ** (cents / 1200), 200))
    errors = compare_pitch(decoded, original)
    assert errors.voiced == errors.frames == len(original)
    assert math.sqrt(errors.square_cents / errors.voiced) == pytest.approx(abs(cents), abs=1)
    assert errors.flipped == 0


def test_half_of_it_unvoiced():
    original, decoded = tone(150, 2.0), tone(150, 2.0)
    decoded[RATE:] = white()
    errors = compare_pitch(pitch_track(decoded, RATE), pitch_track(original, RATE))
    assert errors.flipped / errors.frames == pytest.approx(0.5, abs=0.06)
    assert errors.voiced + errors.flipped == errors.frames


def test_counts_equal_those_of_a_loop_and_add_up():
    random = np.random.default_rng(0)
    decoded, original = random.uniform(60, 500, (2, 300)) * (random.uniform(size=(2, 300)) < 0.6)
    whole, slow = compare_pitch(decoded, original), count(decoded, original)
    assert (whole.frames, whole.voiced, whole.flipped) == (slow.frames, slow.voiced, slow.flipped)
    assert 0 < whole.flipped < whole.voiced + whole.flipped < whole.frames == 300
    assert whole.square_cents == pytest.approx(slow.square_cents)
    joined = compare_pitch(decoded[:77], original[:77]) + compare_pitch(decoded[77:], original[77:])
    assert joined.square_cents == pytest.approx(whole.square_cents)
    assert (joined.frames, joined.voiced, joined.flipped) == (whole.frames, whole.voiced, whole.flipped)
    assert compare_pitch(original, decoded).square_cents == pytest.approx(whole.square_cents)


def test_the_shortest_piece_has_a_frame():
    assert len(pitch_track(tone(200, 0.05), RATE)) == 1


@pytest.mark.parametrize("hz", [70.0, 123.4, 250.0, 480.0])
def test_swift_hears_a_tones_pitch_every_16_ms(hz):
    track = swift_track(tone(hz), RATE)
    assert len(track) == RATE // 256
    np.testing.assert_allclose(track[2:-2], hz, rtol=1e-2)  # the network is off by up to 6 cents here


def test_swift_finds_noise_silence_and_pitch_out_of_range_unvoiced():
    assert not swift_track(np.zeros(RATE, np.float32), RATE).any()
    assert (swift_track(white(), RATE) > 0).mean() < 0.1
    tracks = np.concatenate([swift_track(tone(hz), RATE) for hz in (45.0, 700.0)])
    assert ((tracks == 0) | ((tracks >= 60) & (tracks <= 500))).all()


@pytest.mark.parametrize("gain", [30, 0.1, 1e-6])
def test_swift_ignores_the_level(gain):
    np.testing.assert_allclose(swift_track(speech() * np.float32(gain), RATE), swift_track(speech(), RATE), rtol=1e-4)


def test_swift_and_praat_agree_on_speech():
    clip = speech()
    praat, swift = pitch_track(clip, RATE), swift_track(clip, RATE)
    steps = np.round((np.arange(len(praat)) * 0.01 + 0.025) / 0.016).astype(int).clip(max=len(swift) - 1)
    errors = compare_pitch(swift[steps], praat)
    assert errors.voiced > 0.4 * errors.frames
    assert errors.flipped < 0.15 * errors.frames  # 7 % over the dev set
    assert math.sqrt(errors.square_cents / errors.voiced) < 150


def test_swifts_shortest_piece():
    assert len(swift_track(tone(200, 0.05), RATE)) == 3
