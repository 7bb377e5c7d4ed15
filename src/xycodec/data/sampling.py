"""Which clips make up the batches of an epoch: Lhotse's duration buckets, drawn alike in every process."""

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from lhotse.cut import Cut
from lhotse.dataset.sampling.base import SamplingConstraint
from lhotse.dataset.sampling.dynamic import DurationBatcher
from lhotse.dataset.sampling.dynamic_bucketing import DynamicBucketer, estimate_duration_buckets
from lhotse.utils import streaming_shuffle

from xycodec.errors import ConfigError
from xycodec.recipe import DataConfig

_FOR_ESTIMATE = 10_000  # cuts whose durations set the buckets


@dataclass
class BatchSize(SamplingConstraint):  # type: ignore[misc]  # lhotse ships no types
    """Lhotse's question when a batch is full, answered by its bucket: its longest possible clip sets the number.

    Asking the longest clip so far, as Lhotse's own constraint does, overshoots when a long one follows short ones.
    """

    edges: Sequence[float]
    """Longest clip of each bucket in seconds, ascending."""
    sizes: Sequence[int]
    """Clips of a batch from each bucket."""
    slowest: float
    """Factor of the slowest speed."""
    bucket: int = 0
    count: int = 0

    def measure_length(self, example: Cut) -> float:
        """Seconds of the clip that is made of a cut, at most."""
        return min(float(example.duration) / self.slowest, self.edges[-1])

    def add(self, example: Cut) -> None:
        """Count a clip."""
        self.bucket = self.select_bucket(self.edges, example)
        self.count += 1

    def close_to_exceeding(self) -> bool:
        """Whether the batch is full."""
        return self.count >= self.sizes[self.bucket]

    def exceeded(self) -> bool:
        """Whether the batch is more than full."""
        return self.count > self.sizes[self.bucket]

    def reset(self) -> None:
        """Begin another batch."""
        self.count = 0


class Sampler:
    """Draws an epoch's batches, reading manifests only: `cuts` must be the same, in the same order, in every process.

    Raises ConfigError if a batch may not hold even one clip, or there is no cut.
    """

    def __init__(self, cuts: Iterable[Cut], config: DataConfig, *, seed: int, rank: int, world_size: int) -> None:
        self.cuts, self.config, self.seed, self.rank, self.world_size = cuts, config, seed, rank, world_size
        self.constraint = _constraint(cuts, config)

    def epoch(self, epoch: int) -> Iterator[list[Cut]]:
        """Yield the cuts of this process's batches: as many batches as in every other process.

        Clips of one step come from one bucket in all processes, as long as there are enough. At the end of the
        epoch batches are split rather than clips repeated, and a process may be left with an empty one.
        """
        batches = self._batches(epoch)
        while step := [list(batch) for batch in islice(batches, self.world_size)]:
            yield _split(step, self.world_size)[self.rank]

    def _batches(self, epoch: int) -> Iterator[Iterable[Cut]]:
        # Not Lhotse's sampler objects around these two: their choice of buckets repeats every epoch, and they fill
        # the last step from several buckets, beyond what a batch may hold, or with repeated clips.
        shuffling, choosing = (random.Random(f"{self.seed} {epoch} {use}") for use in ("shuffle", "bucket"))
        cuts, buffer = iter(self.cuts), self.config.shuffle_buffer
        if len(self.constraint.edges) == 1:
            shuffled = streaming_shuffle(cuts, bufsize=buffer, rng=shuffling)
            return iter(DurationBatcher(shuffled, constraint=self.constraint.copy()))
        bucketer = DynamicBucketer(
            cuts,
            duration_bins=list(self.constraint.edges[:-1]),
            world_size=self.world_size,
            constraint=self.constraint.copy(),
            buffer_size=buffer,
            shuffle=True,
            rng=shuffling,
            bucket_rng=choosing,
        )
        return iter(bucketer)


def _constraint(cuts: Iterable[Cut], config: DataConfig) -> BatchSize:
    longest, limit = config.clip_seconds, config.batch_seconds or math.inf
    if limit < longest:
        raise ConfigError(f"data.batch_seconds {limit:g} is below data.clip_seconds {longest:g}: not a clip would fit")
    slowest = min(1.0, config.augment.speed_range[0]) if config.augment.speed else 1.0
    alone = BatchSize([longest], [1], slowest)
    first = list(islice(cuts, _FOR_ESTIMATE))
    if not first:
        raise ConfigError("data: no clip is left of those that are too short or below the rate: check the sources")
    buckets = min(config.buckets, len(first))
    bins = estimate_duration_buckets(first, buckets, alone) if buckets > 1 else []
    edges = [*sorted({float(edge) for edge in bins if edge < longest}), longest]
    return BatchSize(edges, [min(config.batch_clips, _whole(limit / edge)) for edge in edges], slowest)


def _whole(ratio: float) -> int:
    return int(min(ratio, 1 << 30) + 1e-6)


def _split(step: list[list[Cut]], parts: int) -> list[list[Cut]]:
    """`parts` batches of the same cuts, none larger than the largest of `step`."""
    while len(step) < parts:
        largest = max(step, key=len)
        half = (len(largest) + 1) // 2
        step.append(largest[half:])
        del largest[half:]
    return step
