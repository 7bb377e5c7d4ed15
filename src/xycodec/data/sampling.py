"""Batches of an epoch, drawn from buckets of like duration, alike in every process."""

import math
import random
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from lhotse.cut import Cut

from xycodec.data.config import DataConfig
from xycodec.errors import ConfigError

_FOR_ESTIMATE = 10_000  # cuts whose durations set the buckets


class Sampler:
    """Draws an epoch's batches, reading manifests only: `cuts` must be the same, in the same order, in every process.

    A bucket is chosen in proportion to the steps it can still give. Lhotse's own sampler chooses all alike, so that
    buckets of long clips, of which few fill a batch, run dry early and an epoch ends on short ones alone; it also
    repeats its choice in every epoch, and fills the last step with repeated clips. Raises ConfigError if a batch may
    not hold even one clip, or there is no cut.
    """

    def __init__(self, cuts: Iterable[Cut], config: DataConfig, *, seed: int, rank: int, world_size: int) -> None:
        self.cuts, self.config, self.seed, self.rank, self.world_size = cuts, config, seed, rank, world_size
        self.slowest = min(1.0, config.augment.speed_range[0]) if config.augment.speed else 1.0
        limit = config.batch_seconds or math.inf
        if limit < config.clip_seconds:
            raise ConfigError(
                f"data.batch_seconds {limit:g} is below data.clip_seconds {config.clip_seconds:g}: not a clip would fit"
            )
        first = sorted(self._length(cut) for cut in islice(cuts, _FOR_ESTIMATE))
        if not first:
            raise ConfigError("data: no clip is left of those that are too short or below the rate: check the sources")
        self.edges = [*_edges(first, config.buckets, config.clip_seconds), config.clip_seconds]
        """Longest clip of each bucket in seconds, ascending."""
        self.sizes = [min(config.batch_clips, _whole(limit / edge)) for edge in self.edges]
        """Clips of a batch of each bucket: its longest possible clip sets the number."""

    def epoch(self, epoch: int) -> Iterator[list[Cut]]:
        """Yield the cuts of this process's batches: as many batches as in every other process.

        Clips of one step come from one bucket in all processes. At the end of the epoch batches are split rather
        than clips repeated, and a process may be left with an empty one.
        """
        for step in self._steps(random.Random(f"{self.seed} {epoch}")):
            yield _split(step, self.world_size)[self.rank]

    def _steps(self, rng: random.Random) -> Iterator[list[list[Cut]]]:
        """Yield a step's batches, one for each process, fewer when a bucket ends."""
        cuts = iter(self.cuts)
        buckets: list[list[Cut]] = [[] for _ in self.edges]
        self._fill(buckets, islice(cuts, self.config.shuffle_buffer))
        while any(buckets):
            number = self._choose(buckets, rng)
            bucket, size = buckets[number], self.sizes[number]
            step = [batch for _ in range(self.world_size) if (batch := _draw(bucket, size, rng))]
            yield step
            self._fill(buckets, islice(cuts, sum(map(len, step))))

    def _fill(self, buckets: list[list[Cut]], cuts: Iterable[Cut]) -> None:
        for cut in cuts:
            buckets[bisect_left(self.edges, self._length(cut))].append(cut)

    def _choose(self, buckets: Sequence[Sequence[Cut]], rng: random.Random) -> int:
        """Among buckets with a full step, if there are any."""
        steps = [len(bucket) / (size * self.world_size) for bucket, size in zip(buckets, self.sizes, strict=True)]
        full = [math.floor(count) for count in steps]
        return rng.choices(range(len(buckets)), weights=full if any(full) else steps)[0]

    def _length(self, cut: Cut) -> float:
        """Seconds of the clip that is made of a cut, at most."""
        return min(float(cut.duration) / self.slowest, self.config.clip_seconds)


def _edges(lengths: Sequence[float], buckets: int, longest: float) -> list[float]:
    """Upper ends of all buckets but the last, such that each holds as many seconds of the sorted `lengths`."""
    total, passed, edges = math.fsum(lengths), 0.0, list[float]()
    for length in lengths:
        passed += length
        if buckets > 1 and passed >= total * (len(edges) + 1) / buckets and length < longest:
            edges.append(length)
    return sorted(set(edges))


def _draw(bucket: list[Cut], size: int, rng: random.Random) -> list[Cut]:
    """Take `size` random cuts out of a bucket, or what is left."""
    drawn = []
    for _ in range(min(size, len(bucket))):
        place = rng.randrange(len(bucket))
        bucket[place], bucket[-1] = bucket[-1], bucket[place]
        drawn.append(bucket.pop())
    return drawn


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
