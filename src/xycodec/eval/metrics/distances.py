"""Distances between an original and its decoding."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from math import log10

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from xycodec.errors import AudioError
from xycodec.io.audio import Samples
from xycodec.io.reader import regrouped
from xycodec.losses.mel import MultiScaleMel
from xycodec.nn.mel import magnitudes, mel_filterbank

CHUNK_S = 10.0
MOST_DB = 100.0
"""SI-SDR is capped here, and at its negative, so that equality has a finite value."""
SHORTEST_DAC = 1025
"""Samples that DAC's distances need: their longest window is reflected at both ends."""
_DAC_SCALES = ((2048, 150), (512, 80))  # window, mel bins
_SHORTEST = 2048  # the longest window of the multi-scale distance


@torch.no_grad()
def mel_distance(decoded: Iterable[Samples], original: Iterable[Samples], sample_rate: int) -> float:
    """Multi-scale log10 mel distance of two streams of 1-D blocks at `sample_rate`, up to the shorter's end.

    Computed in pieces of 10 s, weighted by their length, so memory does not grow with the audio. 0 is equality.
    Raises AudioError if either stream is empty.
    """
    distance = _multi_scale_mel(sample_rate)
    total, samples = 0.0, 0
    for left, right in paired(decoded, original, round(CHUNK_S * sample_rate)):
        length = len(left)
        padding = (0, max(0, _SHORTEST - length))
        pair = [F.pad(torch.from_numpy(audio), padding)[None] for audio in (left, right)]
        total += length * distance(*pair, torch.tensor([length])).value().item()
        samples += length
    return total / samples


@cache
def _multi_scale_mel(sample_rate: int) -> MultiScaleMel:
    return MultiScaleMel(sample_rate)


@torch.no_grad()
def dac_mel_distance(decoded: Samples, original: Samples, sample_rate: int) -> float:
    """Mel distance as the public evaluation of Descript Audio Codec computes it, of two 1-D arrays of equal length.

    The sum over windows of 2048 and 512 samples (Hann, hop a quarter) with 150 and 80 Slaney bins, up to Nyquist, of
    the L1 distance of magnitudes plus that of log10 of their squares, not below 1e-5. That evaluation runs at 22.05
    and 44.1 kHz; values at other rates differ. 0 is equality. Needs `SHORTEST_DAC` samples.
    Source: descript-audio-codec, scripts/evaluate.py, and audiotools, metrics/spectral.py.
    """
    total = 0.0
    for window, n_mels in _DAC_SCALES:
        filters = mel_filterbank(window, n_mels, sample_rate)
        total += _dac_distance(*(spectrum @ filters for spectrum in _spectra(decoded, original, window)))
    return total


@torch.no_grad()
def stft_distance(decoded: Samples, original: Samples) -> float:
    """`dac_mel_distance` of the STFT magnitudes themselves, without mel filters."""
    return sum(_dac_distance(*_spectra(decoded, original, window)) for window, _ in _DAC_SCALES)


@torch.no_grad()
def normalised_stft_distance(decoded: Samples, original: Samples) -> float:
    """`stft_distance` of spectra under windows of unit energy, which raises the floor of the logarithm by 23 and 29 dB.

    Not a definition that anyone published: of those tried, the one that stands to `dac_mel_distance` about as the
    values of X-Codec's table 6 do (docs/models/differences.md). 0 is equality. Needs `SHORTEST_DAC` samples.
    """
    pairs = (_spectra(decoded, original, window, unit_energy=True) for window, _ in _DAC_SCALES)
    return sum(_dac_distance(*pair) for pair in pairs)


def _spectra(decoded: Samples, original: Samples, window: int, *, unit_energy: bool = False) -> tuple[Tensor, Tensor]:
    hann = torch.hann_window(window)
    if unit_energy:
        hann /= hann.norm()
    one, two = (magnitudes(torch.from_numpy(audio)[None], hann) for audio in (decoded, original))
    return one, two


def _dac_distance(decoded: Tensor, original: Tensor) -> float:
    one, two = (spectrum.square().clamp_min(1e-5).log10() for spectrum in (decoded, original))
    return F.l1_loss(decoded, original).item() + F.l1_loss(one, two).item()


@dataclass(frozen=True, eq=False)
class Moments:
    """Means and products of a decoding and its original, as sums that add up over pieces."""

    samples: int
    mean: NDArray[np.float64]
    """(2,): of the decoding, of the original."""
    products: NDArray[np.float64]
    """(2, 2): sums over samples of the products of both with both, each without its mean."""

    @staticmethod
    def of(decoded: Samples, original: Samples) -> "Moments":
        """Moments of two 1-D arrays of equal length."""
        pair = np.stack([decoded, original]).astype(np.float64)
        mean = pair.mean(axis=1)
        pair -= mean[:, None]
        return Moments(len(original), mean, pair @ pair.T)

    def __add__(self, other: "Moments") -> "Moments":
        samples, shift = self.samples + other.samples, other.mean - self.mean
        between = np.outer(shift, shift) * (self.samples * other.samples / samples)
        mean = self.mean + shift * (other.samples / samples)
        return Moments(samples, mean, self.products + other.products + between)

    @property
    def constant(self) -> tuple[bool, bool]:
        """Whether the decoding and the original vary by no more than float32 can tell from their mean."""
        least = self.samples * np.square(np.finfo(np.float32).eps * self.mean)
        decoded, original = self.products.diagonal() <= least
        return bool(decoded), bool(original)

    @property
    def si_sdr(self) -> float:
        """Scale-invariant signal-to-distortion ratio in dB (Le Roux 2019), means removed; neither may be `constant`.

        The decoding is a multiple of the original, chosen for the least energy of the rest, and that rest: the ratio
        of their energies, capped at `MOST_DB` either way.
        """
        (energy, product), (_, original) = self.products.tolist()
        signal = product**2 / original
        least = energy * 10 ** (-MOST_DB / 10)
        decibels = 10 * log10(max(signal, least) / max(energy - signal, least))
        return min(max(decibels, -MOST_DB), MOST_DB)


def paired(decoded: Iterable[Samples], original: Iterable[Samples], size: int) -> Iterator[tuple[Samples, Samples]]:
    """Two streams of 1-D blocks in pieces of `size` samples, the last one shorter, up to the shorter stream's end.

    Raises AudioError if either stream is empty.
    """
    empty = True
    for left, right in zip(regrouped(decoded, size), regrouped(original, size), strict=False):
        length = min(len(left), len(right))
        yield left[:length], right[:length]
        empty = False
    if empty:
        raise AudioError("nothing to compare: one of the two has no samples")
