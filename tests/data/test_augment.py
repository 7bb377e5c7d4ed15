import numpy as np
import pytest
from corpus import noise, tone
from scipy.linalg import solve_toeplitz
from scipy.signal import freqz, lfilter

from xycodec.data.augment import EQ_BANDS, Change, Peak, _peaking, apply_change, draw_change
from xycodec.data.config import Augmentation

RATES = (16000, 24000, 44100)
ALL = Augmentation(speed=1, pitch=1, gain=1, eq=1, formant=1)


def frequency(samples, rate):
    """Hz of the strongest partial, from the middle of the clip."""
    middle = samples[len(samples) // 4 : -len(samples) // 4]
    size = 1 << 20
    return np.argmax(np.abs(np.fft.rfft(middle * np.hanning(len(middle)), size))) * rate / size


def level(samples):
    middle = samples[len(samples) // 4 : -len(samples) // 4]
    return 10 * np.log10(np.mean(middle.astype(np.float64) ** 2))


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("speed", [0.9, 1.07, 1.1])
def test_speed_changes_duration_and_frequency(rate, speed):
    out = apply_change(tone(440, 3, rate), rate, Change(speed=speed))
    assert len(out) == round(3 * rate / speed)
    assert frequency(out, rate) == pytest.approx(440 * speed, rel=1e-4)
    assert level(out) == pytest.approx(level(tone(440, 3, rate)), abs=0.05)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("semitones", [-2.0, 0.5, 2.0])
def test_pitch_changes_frequency_alone(rate, semitones):
    out = apply_change(tone(440, 3, rate), rate, Change(semitones=semitones))
    assert len(out) == 3 * rate
    # The shift is right to a twentieth of a semitone, which is 0.3 %, and to a quarter of a decibel.
    assert frequency(out, rate) == pytest.approx(440 * 2 ** (semitones / 12), rel=0.01)
    assert level(out) == pytest.approx(level(tone(440, 3, rate)), abs=0.8)


def test_pitch_stays_where_it_was_in_time():
    click = np.zeros(16000, np.float32)
    click[8000] = 0.9
    out = apply_change(click, 16000, Change(semitones=1.0))
    assert abs(int(np.argmax(np.abs(out))) - 8000) <= 160


FORMANTS = (600.0, 1500.0, 2700.0)


def vowel(period, rate, seconds=2.0):
    """A pulse every `period` samples through three resonances, 90 Hz wide."""
    pulses = np.zeros(round(seconds * rate))
    pulses[::period] = 1
    for hz in FORMANTS:
        radius = np.exp(-np.pi * 90 / rate)
        pulses = lfilter([1], [1, -2 * radius * np.cos(2 * np.pi * hz / rate), radius**2], pulses)
    return (0.5 * pulses / np.abs(pulses).max()).astype(np.float32)


def correlations(samples, lags):
    middle = samples[len(samples) // 4 : -len(samples) // 4].astype(np.float64)
    return np.array([middle[: len(middle) - lag] @ middle[lag:] for lag in range(lags)])


def period_of(samples):
    """Samples between two pulses: the strongest autocorrelation from 20 on."""
    return 20 + int(np.argmax(correlations(samples, 400)[20:]))


def resonances(samples, rate):
    """Hz of the three lowest peaks of the spectrum that linear prediction finds."""
    order = 12  # two for each of them, and some for what the shift leaves
    kept = correlations(samples, order + 1)
    hz, response = freqz(1, [1, *-solve_toeplitz(kept[:-1], kept[1:])], worN=8192, fs=rate)
    size = np.abs(response)
    peaks = np.flatnonzero((size[1:-1] > size[:-2]) & (size[1:-1] > size[2:])) + 1
    return hz[peaks[:3]]


@pytest.mark.parametrize(("rate", "period"), [(16000, 133), (16000, 200), (24000, 300)])
@pytest.mark.parametrize("factor", [0.87, 1.15])
def test_formants_move_and_pitch_and_duration_stay(rate, period, factor):
    samples = vowel(period, rate)
    out = apply_change(samples, rate, Change(formants=factor))
    assert out.dtype == np.float32
    assert len(out) == len(samples)
    assert period_of(samples) == period_of(out) == period
    # Pulses stay where they are, too.
    shift = np.fft.irfft(np.fft.rfft(out) * np.fft.rfft(samples).conj(), len(samples))
    assert abs((int(np.argmax(shift)) + period // 2) % period - period // 2) <= 4
    before, after = resonances(samples, rate), resonances(out, rate)
    np.testing.assert_allclose(before, FORMANTS, rtol=0.03)
    # Of a voice the spectrum is only known at its harmonics: one peak may be off by 5 %, their mean by 2 %.
    moved = after / before
    assert (np.sign(moved - 1) == np.sign(factor - 1)).all()
    assert np.exp(np.log(moved).mean()) == pytest.approx(factor, rel=0.07)


def test_formants_of_what_is_short_silent_or_not_changed():
    for samples in (noise(0.01), np.zeros(16000, np.float32), np.zeros(0, np.float32)):
        np.testing.assert_array_equal(apply_change(samples, 16000, Change(formants=1.1)), samples)
    samples = noise(1.003)
    np.testing.assert_allclose(apply_change(samples, 16000, Change(formants=1 + 1e-9)), samples, atol=1e-6)


def test_a_band_that_is_empty_stays_low():
    """Noise is not raised to the level of speech where a recording has nothing above 4 kHz."""
    spectrum = np.fft.rfft(noise(2.0))
    spectrum[len(spectrum) // 2 :] *= 1e-4
    samples = np.fft.irfft(spectrum).astype(np.float32)
    out = np.abs(np.fft.rfft(apply_change(samples, 16000, Change(formants=1.15)))) ** 2
    # Up to 4.6 kHz it may rise by 20 dB, from 80 dB below the rest; windows spill a little more.
    assert out[len(out) * 9 // 16 :].mean() < 1e-4 * out[: len(out) // 2].mean()


@pytest.mark.parametrize("db", [-12.0, 3.0])
def test_gain_is_exact_in_decibels(db):
    samples = tone(440, 1, 16000)
    out = apply_change(samples, 16000, Change(gain_db=db))
    np.testing.assert_allclose(out, samples * 10 ** (db / 20), rtol=1e-6)


@pytest.mark.parametrize("change", [Change(gain_db=12), Change(peaks=(Peak(440, 12.0),)), Change(semitones=1.3)])
def test_nothing_goes_beyond_full_scale(change):
    samples = tone(440, 1, 16000, level=0.99)
    out = apply_change(samples, 16000, change)
    assert 0.9 < np.abs(out).max() <= 1


@pytest.mark.parametrize("hz", [150.0, 1000.0, 5000.0])
@pytest.mark.parametrize("db", [-6.0, 4.0])
def test_a_peak_moves_its_own_frequency_by_its_gain(hz, db):
    out = apply_change(tone(hz, 2, 16000, level=0.1), 16000, Change(peaks=(Peak(hz, db),)))
    assert level(out) - level(tone(hz, 2, 16000, level=0.1)) == pytest.approx(db, abs=0.02)
    (section,) = _peaking(Peak(hz, db), 16000)
    _, response = freqz(section[:3], section[3:], worN=[0.0, np.pi])
    np.testing.assert_allclose(np.abs(response), 1, atol=1e-9)


def test_a_peak_beyond_the_band_does_nothing():
    samples = noise(0.5, 8000)
    np.testing.assert_array_equal(apply_change(samples, 8000, Change(peaks=(Peak(6000.0, 6.0),))), samples)


def test_the_default_change_returns_the_samples_themselves():
    samples = noise(0.5, level=3.0)
    assert apply_change(samples, 16000, Change()) is samples


def test_a_change_is_the_same_every_time():
    change = draw_change(ALL, np.random.default_rng(5))
    samples = noise(1.0, 24000)
    np.testing.assert_array_equal(apply_change(samples, 24000, change), apply_change(samples, 24000, change))


def test_draws_lie_in_their_ranges_and_happen_as_often_as_asked():
    generator = np.random.default_rng(0)
    settings = Augmentation(speed=0.5, speed_range=(0.8, 0.9), pitch=0.25, gain=1, gain_range=(-3, -1), eq=0.1)
    changes = [draw_change(settings, generator) for _ in range(4000)]
    shares = [np.mean([made(c) for c in changes]) for made in (lambda c: c.speed != 1, lambda c: c.semitones != 0)]
    assert shares == pytest.approx([0.5, 0.25], abs=0.03)
    assert np.mean([bool(c.peaks) for c in changes]) == pytest.approx(0.1, abs=0.03)
    assert all(c.speed == 1 or 0.8 <= c.speed <= 0.9 for c in changes)
    assert all(-2 <= c.semitones <= 2 and -3 <= c.gain_db <= -1 for c in changes)
    for change in changes:
        for peak, (low, high) in zip(change.peaks, EQ_BANDS, strict=bool(change.peaks)):
            assert low <= peak.hz <= high
            assert -6 <= peak.db <= 6


def test_no_probability_no_change():
    assert draw_change(Augmentation(), np.random.default_rng(0)) == Change()


def test_one_setting_does_not_disturb_the_others():
    alone, beside = (draw_change(settings, np.random.default_rng(3)) for settings in (Augmentation(gain=1), ALL))
    assert alone.gain_db == beside.gain_db != 0
    assert 0.87 <= beside.formants <= 1.15


def test_formants_leave_all_else_as_it_was_drawn_before_there_were_any():
    """The 13 numbers of the other changes, and the place of the crop after them."""
    for settings in (Augmentation(speed=1, eq=1), ALL):
        generator = np.random.default_rng(4)
        change = draw_change(settings, generator)
        numbers = np.random.default_rng(4).random(14)
        assert change.speed == pytest.approx(0.9 + 0.2 * numbers[4])
        assert change.peaks[2].db == pytest.approx(-6 + 12 * numbers[12])
        assert generator.random() == numbers[13]
