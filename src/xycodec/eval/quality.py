"""How near a decoding is to its original: STOI, PESQ and mel distance, with every choice that they leave open.

* Both are compared as mono at 16 kHz, up to the shorter's end; narrow-band PESQ at 8 kHz, resampled by soxr.
* Levels stay as they are, and no delay is searched for or taken out: a codec keeps time. (PESQ aligns within itself.)
* Values are means over pieces of 20 s, weighted by length, so that memory does not grow with the audio. A piece that
  a metric cannot take, such as a long pause, does not count in it.
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import soxr
from numpy.typing import NDArray

from xycodec.eval.metrics import mel_distance, paired

Samples = NDArray[np.float32]

RATE = 16_000
# PESQ's code has room for 50 stretches of speech, does not check it, and kills the process beyond. A stretch and the
# pause after it last 0.2 s each at least.
PIECE_S = 20.0
_SHORTEST_STOI_S = 0.41
_SHORTEST_PESQ_S = 0.25


@dataclass(frozen=True)
class Quality:
    """A decoding compared with its original; a metric is None where it cannot be computed."""

    stoi: float | None
    """Short-time objective intelligibility (Taal 2011), 1 is equality."""
    pesq_wb: float | None
    """PESQ at 16 kHz (ITU-T P.862.2), 1.0 to 4.64, which is equality."""
    pesq_nb: float | None
    """PESQ at 8 kHz (ITU-T P.862.1), 1.0 to 4.55, which is equality."""
    mel_distance: float | None
    """See `xycodec.losses.MultiScaleMel`; 0 is equality."""
    missing: dict[str, str]
    """Why a metric is None, in words, by its name."""


def measure_quality(decoded: Iterable[Samples], original: Iterable[Samples]) -> Quality:
    """Compare two streams of 1-D blocks at 16 kHz. Raises AudioError if either is empty."""
    means = {name: _PieceMean() for name in METRICS}
    for left, right in paired(decoded, original, round(PIECE_S * RATE)):
        for name, metric in METRICS.items():
            means[name].add(metric(left, right), len(right))
    values = {name: mean.value for name, mean in means.items()}
    missing = {name: means[name].reason for name, value in values.items() if value is None}
    return Quality(**values, missing=missing)


@dataclass
class _PieceMean:
    """The mean of the pieces that have a value, weighted by their samples, or why none has."""

    total: float = 0.0
    samples: int = 0
    reason: str = ""

    def add(self, value: float | str, samples: int) -> None:
        if isinstance(value, str):
            self.reason = self.reason or value
        else:
            self.total, self.samples = self.total + value * samples, self.samples + samples

    @property
    def value(self) -> float | None:
        return self.total / self.samples if self.samples else None


# ---- one piece: a value, or why there is none --------------------------------------------------


def _stoi(decoded: Samples, original: Samples) -> float | str:
    from pystoi import stoi

    if not original.any():
        return "silent"
    too_short = f"under {_SHORTEST_STOI_S} s of speech"
    if len(original) < _SHORTEST_STOI_S * RATE:
        return too_short
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Not enough STFT frames", RuntimeWarning)
        try:
            return float(stoi(original, decoded, RATE))
        except RuntimeWarning:  # too little is left without the pauses
            return too_short


def _pesq(decoded: Samples, original: Samples, band: Literal["wb", "nb"]) -> float | str:
    try:
        import pesq
    except ImportError:
        return "not installed: pip install 'xycodec[eval]'"
    if not original.any():
        return "silent"
    if not decoded.any():
        return "decoded to silence"
    if len(original) < _SHORTEST_PESQ_S * RATE:
        return f"under {_SHORTEST_PESQ_S} s"
    rate = RATE
    if band == "nb":
        rate = 8000
        decoded, original = (soxr.resample(audio, RATE, rate) for audio in (decoded, original))
    try:
        return float(pesq.pesq(rate, original, decoded, band))
    except pesq.NoUtterancesError:
        return "no speech found"


def _mel_distance(decoded: Samples, original: Samples) -> float:
    return mel_distance([decoded], [original], RATE)


METRICS: dict[str, Callable[[Samples, Samples], float | str]] = {
    "stoi": _stoi,
    "pesq_wb": partial(_pesq, band="wb"),
    "pesq_nb": partial(_pesq, band="nb"),
    "mel_distance": _mel_distance,
}
