"""Intervals of an evaluation's numbers, and codecs compared on the clips both have.

An interval is Student's t around the value, its standard error that of the jackknife: how much the value moves when one
speaker is left out, all clips together since clips of one voice are alike; where fewer than 5 are named, one clip. A
clip whose speaker is not named counts as a speaker of its own. For a mean over equally many clips of each speaker this
is the t interval of the speakers' means, which keeps its promise for five as for a hundred; a percentile bootstrap over
five covers 84 % where it says 95 % (Efron and Tibshirani, An Introduction to the Bootstrap, chapters 11 and 12).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from xycodec.eval.results import METRICS, ClipResult, pooled

LEVEL = 0.95
FEWEST_SPEAKERS = 5

Array = NDArray[np.float64]
Clips = Sequence[ClipResult]


@dataclass(frozen=True)
class Estimate:
    """A metric over clips."""

    value: float
    """Value over all clips, as `pooled` gives it."""
    low: float | None
    """Bounds, with `high`, of the interval of 95 %; None for a single clip or speaker."""
    high: float | None
    clips: int
    """Clips that have the metric."""


@dataclass(frozen=True)
class Difference:
    """A codec less the one it is compared with, over the clips for which both have the metric."""

    value: float
    """Difference of the two pooled values: of means, the mean difference."""
    low: float | None
    high: float | None
    clips: int
    better: float
    """Share of these clips on which the codec is the better one, 0 to 1."""
    equal: float
    """Share of these clips on which both have the same value."""


class _Bounds(NamedTuple):
    low: float | None
    high: float | None


class Intervals:
    """Intervals over the units, clips or speakers, of an evaluation."""

    def __init__(self, clips: Clips) -> None:
        """Args: clips: every clip once, whatever its codec."""
        speakers = {(clip.source, clip.speaker) for clip in clips if clip.speaker is not None}
        self.unit: Literal["speaker", "clip"] = "speaker" if len(speakers) >= FEWEST_SPEAKERS else "clip"
        places: dict[tuple[str, ...], int] = {}
        self._place = {clip.clip: places.setdefault(self._unit_of(clip), len(places)) for clip in clips}
        self.units = len(places)

    def estimates(self, codecs: Mapping[str, Clips], metrics: Sequence[str]) -> dict[str, dict[str, Estimate]]:
        """Estimates of each codec for each metric for which it has a value."""
        found: dict[str, dict[str, Estimate]] = {name: {} for name in codecs}
        for name, clips in codecs.items():
            for metric in metrics:
                value = pooled(clips, metric)
                if value is not None:
                    count = sum(metric in clip.scores.values for clip in clips)
                    found[name][metric] = Estimate(value, *self._bounds(value, _Ratio(clips, metric)), count)
        return found

    def differences(
        self, codecs: Mapping[str, Clips], base: Clips, metrics: Sequence[str]
    ) -> dict[str, dict[str, Difference]]:
        """Differences of each codec to `base`, for each metric that both have of a clip."""
        found: dict[str, dict[str, Difference]] = {name: {} for name in codecs}
        for name, clips in codecs.items():
            for metric in metrics:
                ours, theirs = _shared(clips, base, metric)
                value, other = pooled(ours, metric), pooled(theirs, metric)
                if value is not None and other is not None:
                    bounds = self._bounds(value - other, _Ratio(ours, metric, theirs))
                    wins = _wins(ours, theirs, metric)
                    found[name][metric] = Difference(value - other, *bounds, len(ours), *wins)
        return found

    def _unit_of(self, clip: ClipResult) -> tuple[str, ...]:
        if self.unit == "clip" or clip.speaker is None:
            return ("clip", clip.clip)
        return ("speaker", clip.source, clip.speaker)

    def _bounds(self, value: float, ratio: "_Ratio") -> _Bounds:
        """Low and high of a ratio whose value is known."""
        columns = ratio.columns(self._place, self.units)
        columns = columns[columns.any(axis=1)]  # units that have the metric
        count = len(columns)
        without = ratio.values(columns.sum(axis=0) - columns)
        if count < 2 or not np.isfinite(without).all():
            return _Bounds(None, None)
        error = np.sqrt((count - 1) / count * np.square(without - without.mean()).sum())
        half = float(stdtrit(count - 1, (1 + LEVEL) / 2) * error)
        return _Bounds(value - half, value + half)


@dataclass(frozen=True)
class _Ratio:
    """A pooled metric, or the difference of two, as sums of totals and weights over units."""

    clips: Clips
    metric: str
    less: Clips | None = None

    def columns(self, place: Mapping[str, int], units: int) -> Array:
        """(units, 4): totals and weights, and those of `less`."""
        sides = (self.clips, self.less or ())
        return np.stack([sums for clips in sides for sums in self._sums(clips, place, units)], axis=1)

    def values(self, sums: Array) -> Array:
        """(N, 4) -> (N,): not a number where there is no weight."""
        value = self._pooled(sums[:, 0], sums[:, 1])
        return value if self.less is None else value - self._pooled(sums[:, 2], sums[:, 3])

    def _sums(self, clips: Clips, place: Mapping[str, int], units: int) -> tuple[Array, Array]:
        """(units,) each: totals and weights."""
        known = [clip for clip in clips if self.metric in clip.scores.values]
        where = np.array([place[clip.clip] for clip in known], dtype=np.int64)
        values = np.array([clip.scores.values[self.metric] for clip in known], dtype=np.float64)
        weights = np.array([clip.scores.weights.get(self.metric, 1.0) for clip in known], dtype=np.float64)
        total: Array = np.bincount(where, weights * values, units).astype(np.float64)
        weight: Array = np.bincount(where, weights, units).astype(np.float64)
        return total, weight

    def _pooled(self, total: Array, weight: Array) -> Array:
        mean = np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)
        # Sums with one unit taken off may lie a rounding below zero.
        return np.sqrt(np.maximum(mean, 0.0)) if METRICS[self.metric].pooling == "root" else mean


def _shared(clips: Clips, base: Clips, metric: str) -> tuple[list[ClipResult], list[ClipResult]]:
    """The clips for which both have the metric, in one order."""
    others = {clip.clip: clip for clip in base if metric in clip.scores.values}
    shared = [clip for clip in clips if metric in clip.scores.values and clip.clip in others]
    return shared, [others[clip.clip] for clip in shared]


def _wins(clips: Clips, base: Clips, metric: str) -> tuple[float, float]:
    """Shares of the clips that are better, and equal."""
    sign = 1 if METRICS[metric].better == "higher" else -1
    values, others = (np.array([clip.scores.values[metric] for clip in side]) for side in (clips, base))
    return float(np.mean(sign * values > sign * others)), float(np.mean(values == others))
