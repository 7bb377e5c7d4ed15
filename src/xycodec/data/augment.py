"""Augmentation of clips: speed, pitch, formants, equalizer, gain. Drawn first, then applied, so that a draw shows."""

import math
from dataclasses import dataclass

import numpy as np
import soxr
from numpy.random import Generator
from python_stretch.Signalsmith import Stretch
from scipy.signal import ShortTimeFFT, sosfilt
from scipy.signal.windows import hann

from xycodec.data.config import Augmentation
from xycodec.io.audio import Samples

EQ_BANDS = ((100.0, 400.0), (400.0, 1600.0), (1600.0, 6400.0))
"""Hz: the centre of each peaking filter is drawn from its band, evenly on a logarithmic scale."""
EQ_Q = 1.0
_WINDOW = 0.032  # s: holds three periods of a low voice
_LIFTER = 0.0025  # s: below the period of a high voice; a shorter wave in the spectrum is its envelope
_MOST = 20.0  # dB: a band that the recording lacks is not raised to what is below it


@dataclass(frozen=True)
class Peak:
    """A peaking filter: its centre in Hz, and the gain there in dB."""

    hz: float
    db: float


@dataclass(frozen=True)
class Change:
    """Changes to one clip; the default changes nothing."""

    speed: float = 1.0
    """Factor; 2 halves the duration and doubles every frequency."""
    semitones: float = 0.0
    formants: float = 1.0
    """Factor on the frequencies of the spectrum's envelope."""
    peaks: tuple[Peak, ...] = ()
    gain_db: float = 0.0


def draw_change(config: Augmentation, generator: Generator) -> Change:
    """Draw a change. It uses up the same random numbers whatever `config` says: settings do not disturb each other."""
    speed, pitch, eq, gain = generator.random(4) < (config.speed, config.pitch, config.eq, config.gain)
    speed_at, pitch_at, gain_at = (
        float(generator.uniform(*span)) for span in (config.speed_range, config.pitch_range, config.gain_range)
    )
    centres = [math.exp(generator.uniform(math.log(low), math.log(high))) for low, high in EQ_BANDS]
    peaks = tuple(Peak(hz, float(generator.uniform(*config.eq_range))) for hz in centres)
    # From a stream of their own: crops are drawn from this one next, and stay where they were before there was this.
    (apart,) = generator.spawn(1)
    formants, formants_at = apart.random() < config.formant, float(apart.uniform(*config.formant_range))
    return Change(
        speed=speed_at if speed else 1.0,
        semitones=pitch_at if pitch else 0.0,
        formants=formants_at if formants else 1.0,
        peaks=peaks if eq else (),
        gain_db=gain_at if gain else 0.0,
    )


def apply_change(samples: Samples, rate: int, change: Change) -> Samples:
    """Apply `change` to mono `samples` (1-D) at `rate` Hz.

    The result has `round(len(samples) / change.speed)` samples. If anything changed, none lies beyond full scale:
    a clip that would is turned down as a whole.
    """
    if change == Change():
        return samples
    if change.speed != 1:
        samples = soxr.resample(samples, rate * change.speed, rate)
    if change.semitones:
        samples = _shift_pitch(samples, rate, change.semitones)
    if change.formants != 1:
        samples = _shift_formants(samples, rate, change.formants)
    for peak in change.peaks:
        # A peak above the Nyquist frequency has nothing to act on.
        if 2 * peak.hz < rate:
            samples = sosfilt(_peaking(peak, rate), samples).astype(np.float32)
    samples = samples * np.float32(10 ** (change.gain_db / 20))
    loudest = float(np.abs(samples).max(initial=0.0))
    return samples / np.float32(loudest) if loudest > 1 else samples


def _shift_pitch(samples: Samples, rate: int, semitones: float) -> Samples:
    # The seed, because an exact resume needs the same samples again.
    stretch = Stretch(0)
    stretch.preset(1, rate)
    stretch.setTransposeSemitones(semitones)
    shifted: Samples = np.asarray(stretch.process(samples[None]), np.float32)[0]
    return shifted


def _shift_formants(samples: Samples, rate: int, factor: float) -> Samples:
    """Stretch the envelope of every short spectrum along the frequencies, by cepstral smoothing; phases stay."""
    size = 2 * round(rate * _WINDOW / 2)
    if len(samples) < size:
        return samples
    transform = ShortTimeFFT(hann(size, sym=False), size // 4, rate)
    spectrum = transform.stft(samples.astype(np.float64))  # (bins, frames)
    cepstrum = np.fft.irfft(np.log(np.abs(spectrum) + 1e-7), axis=0)
    cut = round(rate * _LIFTER)
    cepstrum[cut : size - cut + 1] = 0
    envelope = np.fft.rfft(cepstrum, axis=0).real
    places = (np.arange(len(envelope)) / factor).clip(max=len(envelope) - 1)
    below = places.astype(np.int64).clip(max=len(envelope) - 2)
    part = (places - below)[:, None]
    moved = (1 - part) * envelope[below] + part * envelope[below + 1]
    most = _MOST / 20 * math.log(10)
    gain = np.exp((moved - envelope).clip(-most, most))
    shifted: Samples = transform.istft(spectrum * gain, k1=len(samples)).astype(np.float32)
    return shifted


def _peaking(peak: Peak, rate: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """One second-order section, (1, 6): Bristow-Johnson, Cookbook formulae for audio EQ, "peakingEQ"."""
    gain = 10 ** (peak.db / 40)
    angle = 2 * math.pi * peak.hz / rate
    alpha = math.sin(angle) / (2 * EQ_Q)
    ahead = (1 + alpha * gain, -2 * math.cos(angle), 1 - alpha * gain)
    back = (1 + alpha / gain, -2 * math.cos(angle), 1 - alpha / gain)
    return np.array([[*ahead, *back]]) / back[0]
