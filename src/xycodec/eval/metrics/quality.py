"""Signal metrics of a decoding against its original, with every choice that they leave open (`PROTOCOL`)."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, partial
from math import isfinite
from operator import attrgetter
from typing import Any, Literal, Protocol

import numpy as np
import soxr

from xycodec.errors import AudioError, XycodecError, reason_of
from xycodec.eval.metrics.distances import (
    MOST_DB,
    SHORTEST_DAC,
    Moments,
    dac_mel_distance,
    mel_distance,
    normalised_stft_distance,
    paired,
    stft_distance,
)
from xycodec.eval.metrics.pitch import (
    CEILING_HZ,
    FLOOR_HZ,
    SHORTEST_S,
    STEP_S,
    SWIFT_STEP_S,
    PitchErrors,
    Track,
    compare_pitch,
    pitch_track,
    swift_track,
)
from xycodec.eval.results import ROUNDTRIP, Scores
from xycodec.io.audio import Samples
from xycodec.io.rate import SPEECH_RATE

# PESQ's code has room for 50 stretches of speech, does not check it, and kills the process beyond. A stretch and the
# pause after it last 0.2 s each at least.
PIECE_S = 20.0
_SHORTEST_STOI_S = 0.41
_SHORTEST_PESQ_S = 0.25

PROTOCOL = {
    "sample rate": f"Both are compared as mono at {SPEECH_RATE} Hz, resampled by soxr's HQ; "
    "narrow-band PESQ at 8000 Hz.",
    "alignment": "No delay is searched for or taken out; PESQ aligns within itself.",
    "cropping": "Both are compared up to the end of the shorter one.",
    "level": "Levels stay as they are; SI-SDR and pitch ignore a gain, and PESQ sets its own level.",
    "pieces": f"Values are means over pieces of {PIECE_S:g} s, weighted by length, unless said otherwise here.",
    "silence": "Pauses stay in. A piece that a metric cannot take does not count in it; a clip without such a piece "
    "has no value, which is counted and shown with its reason.",
    "STOI": "pystoi, not extended; it leaves out frames 40 dB below the loudest of the original.",
    "PESQ": "The package pesq (ITU-T P.862.2 wide-band, P.862.1 narrow-band), the original as reference.",
    "mel": "Windows 32 to 2048, hop a quarter, 5 to 320 Slaney bins, L1 of log10 of magnitudes not below 1e-5.",
    "DAC mel, STFT": "Descript Audio Codec's public evaluation (windows 2048 and 512, 150 and 80 bins) at this rate.",
    "normalised STFT": "The same STFT distance under windows of unit energy; fits the ratios of X-Codec's table 6.",
    "SI-SDR": f"Means removed, energies over the whole clip, capped at {MOST_DB:g} dB either way.",
    "pitch": f"Praat's autocorrelation, {FLOOR_HZ:g} to {CEILING_HZ:g} Hz every {STEP_S * 1000:g} ms, octave errors "
    "left in; frames count alike over all pieces and clips.",
    "SwiftF0": f"The same by the network of swift-f0, every {SWIFT_STEP_S * 1000:g} ms; it hears each piece at a peak "
    "of a half.",
}
"""Every choice in one sentence, as reports print it."""


def measure_quality(
    decoded: Iterable[Samples], original: Iterable[Samples], metrics: Iterable[str] = ROUNDTRIP
) -> Scores:
    """Compare two streams of 1-D blocks at 16 kHz, in memory that does not grow with them.

    Args:
        decoded: float32, as is `original`; where it is cut into blocks does not matter.
        original: what `decoded` should be.
        metrics: names in `METERS`. Of `f0_error` and `swift_f0_error` the value is the mean square in cents^2.

    Raises:
        XycodecError: there is no metric of a name.
        AudioError: a stream is empty, or holds a NaN or an infinity.
    """
    meters = {name: _meter(name) for name in metrics}
    for left, right in paired(decoded, original, round(PIECE_S * SPEECH_RATE)):
        piece = _Piece(left, right)
        for meter in meters.values():
            meter.add(piece)
    scores = Scores()
    for name, meter in meters.items():
        scores |= meter.scores(name)
    return scores


def require_metrics(names: Iterable[str]) -> None:
    """Raise XycodecError, which names the nearest one, unless all are names in `METERS`."""
    for name in names:
        _meter(name)


def plain(scores: Scores) -> dict[str, Any]:
    """Scores as one row of JSON: each metric by its name, None where it is missing, and `missing`, which says why."""
    return {**scores.values, **dict.fromkeys(scores.missing), "missing": scores.missing}


def _meter(name: str) -> "_Meter":
    if name not in METERS:
        near = get_close_matches(name, METERS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known ones are {', '.join(METERS)}"
        raise XycodecError(f"{name}: no such metric of quality; {hint}")
    return METERS[name]()


@dataclass(frozen=True, eq=False)
class _Piece:
    """At most `PIECE_S` of both, of equal length, and what several metrics share."""

    decoded: Samples
    original: Samples

    def __post_init__(self) -> None:
        for name, audio in (("decoded", self.decoded), ("original", self.original)):
            if not np.isfinite(audio).all():
                raise AudioError(f"the {name} audio holds a NaN or an infinity: it cannot be compared")

    @cached_property
    def praat(self) -> PitchErrors | str:
        return self._pitch(pitch_track)

    @cached_property
    def swift(self) -> PitchErrors | str:
        return self._pitch(swift_track)

    def _pitch(self, track: Callable[[Samples, int], Track]) -> PitchErrors | str:
        if len(self.original) < SHORTEST_S * SPEECH_RATE:
            return f"under {SHORTEST_S:g} s"
        try:
            return compare_pitch(track(self.decoded, SPEECH_RATE), track(self.original, SPEECH_RATE))
        except ImportError:
            return _NOT_INSTALLED


# ---- many pieces: what adds up over them -------------------------------------------------------


class _Meter(Protocol):
    """One metric of one clip."""

    def add(self, piece: _Piece) -> None: ...

    def scores(self, name: str) -> Scores: ...


class _Mean:
    """The mean of the pieces that have a value, weighted by their samples, or why none has."""

    def __init__(self, metric: Callable[[Samples, Samples], float | str]) -> None:
        self.metric, self.total, self.samples, self.reason = metric, 0.0, 0, ""

    def add(self, piece: _Piece) -> None:
        value, samples = self.metric(piece.decoded, piece.original), len(piece.original)
        if isinstance(value, float) and not isfinite(value):
            value = "levels beyond float32"
        if isinstance(value, str):
            self.reason = self.reason or value
        else:
            self.total, self.samples = self.total + value * samples, self.samples + samples

    def scores(self, name: str) -> Scores:
        return Scores({name: self.total / self.samples}) if self.samples else Scores(missing={name: self.reason})


class _SiSdr:
    """Energies over the whole clip: a ratio of sums, so that quiet pieces weigh what they hold."""

    def __init__(self) -> None:
        self.moments: Moments | None = None

    def add(self, piece: _Piece) -> None:
        moments = Moments.of(piece.decoded, piece.original)
        self.moments = self.moments + moments if self.moments else moments

    def scores(self, name: str) -> Scores:
        assert self.moments  # `paired` yields a piece or raises
        decoded_silent, original_silent = self.moments.constant
        if decoded_silent or original_silent:
            return Scores(missing={name: _SILENT if original_silent else _DECODED_TO_SILENCE})
        return Scores({name: self.moments.si_sdr})


class _Pitch:
    """A mean over the frames of a tracker, given as its total and the number of frames, or why there is none."""

    def __init__(
        self, found: Callable[[_Piece], PitchErrors | str], mean: Callable[[PitchErrors], tuple[float, int]]
    ) -> None:
        self.found, self.mean, self.errors, self.reason = found, mean, PitchErrors(), ""

    def add(self, piece: _Piece) -> None:
        found = self.found(piece)
        if isinstance(found, str):
            self.reason = self.reason or found
        else:
            self.errors += found

    def scores(self, name: str) -> Scores:
        total, frames = self.mean(self.errors)
        if frames:
            return Scores({name: total / frames}, weights={name: frames})
        return Scores(missing={name: "no frame is voiced in both" if self.errors.frames else self.reason})


# ---- one piece: a value, or why there is none --------------------------------------------------

_SILENT, _DECODED_TO_SILENCE = "silent", "decoded to silence"
_NOT_INSTALLED = "not installed: pip install 'xycodec[eval]'"


def _stoi(decoded: Samples, original: Samples) -> float | str:
    from pystoi import stoi

    if not original.any():
        return _SILENT
    too_short = f"under {_SHORTEST_STOI_S} s of speech"
    if len(original) < _SHORTEST_STOI_S * SPEECH_RATE:
        return too_short
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Not enough STFT frames", RuntimeWarning)
        try:
            return float(stoi(original, decoded, SPEECH_RATE))
        except RuntimeWarning:  # too little is left without the pauses
            return too_short


def _pesq(decoded: Samples, original: Samples, band: Literal["wb", "nb"]) -> float | str:
    try:
        import pesq
    except ImportError:
        return _NOT_INSTALLED
    if not original.any():
        return _SILENT
    if not decoded.any():
        return _DECODED_TO_SILENCE
    if len(original) < _SHORTEST_PESQ_S * SPEECH_RATE:
        return f"under {_SHORTEST_PESQ_S} s"
    rate = SPEECH_RATE
    if band == "nb":
        rate = 8000
        decoded, original = (soxr.resample(audio, SPEECH_RATE, rate) for audio in (decoded, original))
    try:
        return float(pesq.pesq(rate, original, decoded, band))
    except pesq.NoUtterancesError:
        return "no speech found"
    except pesq.PesqError as error:
        return f"not computed: {reason_of(error)}"
    except ValueError:  # a NaN: in float32, its energy beside the original's is 0
        return _DECODED_TO_SILENCE


def _mel_distance(decoded: Samples, original: Samples) -> float:
    return mel_distance([decoded], [original], SPEECH_RATE)


def _dac_mel_distance(decoded: Samples, original: Samples) -> float | str:
    return _DAC_TOO_SHORT if len(original) < SHORTEST_DAC else dac_mel_distance(decoded, original, SPEECH_RATE)


def _stft_distance(decoded: Samples, original: Samples) -> float | str:
    return _DAC_TOO_SHORT if len(original) < SHORTEST_DAC else stft_distance(decoded, original)


def _normalised_stft_distance(decoded: Samples, original: Samples) -> float | str:
    return _DAC_TOO_SHORT if len(original) < SHORTEST_DAC else normalised_stft_distance(decoded, original)


_DAC_TOO_SHORT = f"under {SHORTEST_DAC} samples"

METERS: dict[str, Callable[[], _Meter]] = {
    "stoi": partial(_Mean, _stoi),
    "pesq_wb": partial(_Mean, partial(_pesq, band="wb")),
    "pesq_nb": partial(_Mean, partial(_pesq, band="nb")),
    "mel_distance": partial(_Mean, _mel_distance),
    "dac_mel_distance": partial(_Mean, _dac_mel_distance),
    "stft_distance": partial(_Mean, _stft_distance),
    "normalised_stft_distance": partial(_Mean, _normalised_stft_distance),
    "si_sdr": _SiSdr,
    "f0_error": partial(_Pitch, attrgetter("praat"), attrgetter("square_cents", "voiced")),
    "voicing_error": partial(_Pitch, attrgetter("praat"), attrgetter("flipped", "frames")),
    "swift_f0_error": partial(_Pitch, attrgetter("swift"), attrgetter("square_cents", "voiced")),
    "swift_voicing_error": partial(_Pitch, attrgetter("swift"), attrgetter("flipped", "frames")),
}
"""Makers of the meters of `measure_quality`, by metric; a meter adds up over the pieces of a clip."""
