"""Bootstrap intervals of an evaluation's numbers, and codecs compared on the clips both have.

Speakers are drawn anew, all clips of one together, since clips of one voice are alike; where fewer than 5 are named,
clips are drawn. A clip whose speaker is not named is drawn as a speaker of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from xycodec.eval.results import METRICS, ClipResult, pooled

LEVEL = 0.95
RESAMPLES = 2000
FEWEST_SPEAKERS = 5
_BLOCK = 200  # resamples at a time: memory does not grow with their number

Array = NDArray[np.float64]
Clips = Sequence[ClipResult]


@dataclass(frozen=True)
class Estimate:
    """A metric over clips."""

    value: float
    """Value over all clips, as `pooled` gives it."""
    low: float | None
    """Bounds, with `high`, of 95 % of the resamples; None for a single clip or speaker."""
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


class Resamples:
    """Random draws of as many units, clips or speakers, as there are, with replacement.

    Every codec and metric sees the same draws, so differences are paired.
    """

    def __init__(self, clips: Clips, *, seed: int = 0) -> None:
        """Args: clips: every clip once, whatever its codec. seed: equal seeds give equal draws."""
        speakers = {(clip.source, clip.speaker) for clip in clips if clip.speaker is not None}
        self.unit: Literal["speaker", "clip"] = "speaker" if len(speakers) >= FEWEST_SPEAKERS else "clip"
        places: dict[tuple[str, ...], int] = {}
        self._place = {clip.clip: places.setdefault(self._unit_of(clip), len(places)) for clip in clips}
        self.units = len(places)
        self._seed = seed

    def estimates(self, codecs: Mapping[str, Clips], metrics: Sequence[str]) -> dict[str, dict[str, Estimate]]:
        """Estimates of each codec for each metric for which it has a value."""
        intervals = self._intervals([_Ratio(clips, metric) for clips in codecs.values() for metric in metrics])
        found: dict[str, dict[str, Estimate]] = {name: {} for name in codecs}
        for name, clips in codecs.items():
            for metric in metrics:
                interval, value = next(intervals), pooled(clips, metric)
                if value is not None:
                    count = sum(metric in clip.scores.values for clip in clips)
                    found[name][metric] = Estimate(value, *interval, count)
        return found

    def differences(
        self, codecs: Mapping[str, Clips], base: Clips, metrics: Sequence[str]
    ) -> dict[str, dict[str, Difference]]:
        """Differences of each codec to `base`, for each metric that both have of a clip."""
        pairs = [(name, metric, *_shared(clips, base, metric)) for name, clips in codecs.items() for metric in metrics]
        intervals = self._intervals([_Ratio(clips, metric, less) for _, metric, clips, less in pairs])
        found: dict[str, dict[str, Difference]] = {name: {} for name in codecs}
        for (name, metric, clips, less), interval in zip(pairs, intervals, strict=True):
            value, other = pooled(clips, metric), pooled(less, metric)
            if value is not None and other is not None:
                found[name][metric] = Difference(value - other, *interval, len(clips), *_wins(clips, less, metric))
        return found

    def _unit_of(self, clip: ClipResult) -> tuple[str, ...]:
        if self.unit == "clip" or clip.speaker is None:
            return ("clip", clip.clip)
        return ("speaker", clip.source, clip.speaker)

    def _intervals(self, ratios: "Sequence[_Ratio]") -> Iterator[tuple[float | None, float | None]]:
        """Low and high of each ratio, in order."""
        columns = np.concatenate([ratio.columns(self._place, self.units) for ratio in ratios], axis=1)
        drawn = self._draw(columns)
        for index, ratio in enumerate(ratios):
            values = ratio.values(drawn[:, 4 * index : 4 * index + 4])
            # A draw may hold no clip that has the metric.
            values = values[np.isfinite(values)]
            if self.units < 2 or not len(values):
                yield None, None
            else:
                low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
                yield float(low), float(high)

    def _draw(self, columns: Array) -> Array:
        """(units, K) -> (RESAMPLES, K): the sums of each draw."""
        random = np.random.default_rng(self._seed)
        shares = np.full(self.units, 1 / self.units)
        blocks = range(RESAMPLES // _BLOCK)
        counts = (random.multinomial(self.units, shares, size=_BLOCK).astype(np.float64) for _ in blocks)
        return np.concatenate([block @ columns for block in counts])


@dataclass(frozen=True)
class _Ratio:
    """A pooled metric as sums over units: totals by weights, less those of other clips."""

    clips: Clips
    metric: str
    less: Clips | None = None

    def columns(self, place: Mapping[str, int], units: int) -> Array:
        """(units, 4): totals and weights, and those of `less`."""
        sides = (self.clips, self.less or ())
        return np.stack([sums for clips in sides for sums in self._sums(clips, place, units)], axis=1)

    def values(self, sums: Array) -> Array:
        """(draws, 4) -> (draws,): not a number where a draw has no weight."""
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
        return np.sqrt(mean) if METRICS[self.metric].pooling == "root" else mean


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
