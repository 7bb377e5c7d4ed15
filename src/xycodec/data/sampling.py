"""Batches of an epoch, drawn from buckets of similar duration, the same in every process, resumable at any batch.

Clips of like duration, and of one source where sources have weights, are a cell. Each cell has an order of its own for
every epoch, so that the number of clips taken of each cell says which ones have been: a stream goes on from these
numbers at once, whatever the number of processes.
"""

import hashlib
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from xycodec.data.batch import Position
from xycodec.data.config import DataConfig
from xycodec.data.corpus import Corpus, Numbers, shuffled
from xycodec.errors import ConfigError

_FOR_EDGES = 1_000_000  # clips, spread over the corpus, whose durations set the buckets

Draw = tuple[int, int]
"""Number of a clip, and how often its cell has been gone through before: what is random about the clip follows both."""


@dataclass
class _Cell:
    """Clips of one bucket, and of one source where sources have weights."""

    bucket: int
    numbers: Numbers
    share: float
    """Weight of its clips in a draw of a mix, all together."""
    facts: tuple[int, ...]
    """The seed and the cell's place, which decide its orders."""
    _turn: int = -1
    _order: Numbers = field(init=False)

    def at(self, place: int, epoch: int) -> Draw:
        """The clip at a place of the order; past its end, the order of the next pass follows."""
        turns, place = divmod(place, len(self.numbers))
        turn = epoch + turns
        if turn != self._turn:
            self._turn, self._order = turn, shuffled(self.numbers, "order", *self.facts, turn)
        return int(self._order[place]), turn


class Sampler:
    """Draws the batches of one process; every process of a run has to have the same corpus and seed.

    Without weights an epoch has every clip once: a bucket is chosen in proportion to the steps it can still give, so
    that all end together. (Lhotse's own sampler chooses all alike: buckets of long clips, of which few fill a batch,
    run dry early and an epoch ends on short ones alone.) With weights the stream has no end: every clip comes from
    source i with probability `weight_i / sum of weights`, and each source's clips come equally often.

    Raises ConfigError if a batch may not hold even one clip, or there is no usable clip.
    """

    def __init__(
        self,
        corpus: Corpus,
        config: DataConfig,
        *,
        output_sample_rate: int,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.endless = corpus.weights is not None
        limit = config.batch_seconds or math.inf
        if limit < config.clip_seconds:
            raise ConfigError(
                f"data.batch_seconds {limit:g} is below data.clip_seconds {config.clip_seconds:g}: not a clip would fit"
            )
        numbers = corpus.usable(config, output_sample_rate)
        if not len(numbers):
            raise ConfigError("data: no clip is left of those that are too short or below the rate: check the sources")
        # The longest that a clip can become.
        slowest = min(1.0, config.augment.speed_range[0]) if config.augment.speed else 1.0
        seconds = corpus.facts["seconds"][numbers]
        lengths, longest = np.minimum(seconds / slowest, config.clip_seconds), config.clip_seconds
        if config.batch_places is not None:
            limit, lengths = config.batch_places, corpus.places[numbers].astype(np.float64)
            longest = float(lengths.max())
            if limit < longest:
                raise ConfigError(f"data.batch_places {limit:g}: the longest clip has {longest:g}: raise it")
        sources, weights = _sources(corpus, numbers)
        self.edges = [*_edges(lengths, weights[sources], config.buckets, longest), longest]
        """Longest clip of each bucket in seconds, or in places of `batch_places`, ascending."""
        self.sizes = [min(config.batch_clips, _whole(limit / edge)) for edge in self.edges]
        """Clips of a batch of each bucket: its longest possible clip sets the number."""
        self._cells = list(_cells(numbers, np.searchsorted(self.edges, lengths), sources, weights, seed))
        self._of_bucket = [
            [place for place, cell in enumerate(self._cells) if cell.bucket == bucket]
            for bucket in range(len(self.edges))
        ]
        self._shares = [sum(self._cells[cell].share for cell in cells) for cells in self._of_bucket]
        self.order = _digest(self._cells, seconds)
        """Name of the orders: equal for the same seed, durations and buckets."""

    def resumed(self, position: Position) -> Position:
        """The place from which a stream goes on that stood at `position`.

        It is `position` itself, unless that is of another order or of an earlier version: then the next epoch begins.
        """
        if position.batch and position.order != self.order:
            return Position(position.epoch + 1, 0)
        return position

    def steps(self, start: Position) -> Iterator[tuple[list[Draw], Position]]:
        """Yield this process's batches after `start`, epoch after epoch, and where the stream stands after each.

        Clips of one step come from one bucket in all processes. At the end of an epoch batches are split rather than
        clips repeated, and a process may be left with an empty one.
        """
        start = self.resumed(start)
        epoch, batch = start.epoch, start.batch
        taken = list(start.taken) if batch else [0] * len(self._cells)
        while True:
            while cells := self._step(taken, random.Random(f"{self.seed} {epoch} {batch}")):
                draws = []
                for cell in cells:
                    draws.append(self._cells[cell].at(taken[cell], epoch))
                    taken[cell] += 1
                batch += 1
                share = _split(draws, self.sizes[self._cells[cells[0]].bucket], self.world_size)[self.rank]
                yield share, Position(epoch, batch, tuple(taken), self.order)
            epoch, batch, taken = epoch + 1, 0, [0] * len(self._cells)

    def batches_per_epoch(self) -> int | None:
        """Batches of each process in an epoch; None for a mix without end."""
        if self.endless:
            return None
        return sum(math.ceil(self._steps(cell, len(cell.numbers))) for cell in self._cells)

    def _step(self, taken: list[int], rng: random.Random) -> list[int]:
        """The cell of every clip of a step, all of one bucket; none at the end of an epoch."""
        if self.endless:
            steps = [share / size for share, size in zip(self._shares, self.sizes, strict=True)]
            bucket = rng.choices(range(len(steps)), weights=steps)[0]
            cells = self._of_bucket[bucket]
            weights = [self._cells[cell].share for cell in cells]
            return rng.choices(cells, weights=weights, k=self.sizes[bucket] * self.world_size)
        left = [len(cell.numbers) - count for cell, count in zip(self._cells, taken, strict=True)]
        if not any(left):
            return []
        steps = [self._steps(cell, clips) for cell, clips in zip(self._cells, left, strict=True)]
        full = [math.floor(count) for count in steps]
        # Among cells with a full step, if there are any.
        cell = rng.choices(range(len(left)), weights=full if any(full) else steps)[0]
        return [cell] * min(left[cell], self.sizes[self._cells[cell].bucket] * self.world_size)

    def _steps(self, cell: _Cell, clips: int) -> float:
        return clips / (self.sizes[cell.bucket] * self.world_size)


def _sources(corpus: Corpus, numbers: Numbers) -> tuple[NDArray[np.uint8 | np.int64], NDArray[np.float64]]:
    """The source (N,) of every clip, and how much one clip of each source weighs in a draw.

    Without weights all sources are one.
    """
    if corpus.weights is None:
        return np.zeros(len(numbers), dtype=np.uint8), np.ones(1)
    sources = np.searchsorted(corpus.starts, numbers, side="right") - 1
    counts = np.bincount(sources, minlength=len(corpus.weights))
    return sources, np.array(corpus.weights) / np.maximum(counts, 1)


def _edges(lengths: NDArray[np.float64], weights: NDArray[np.float64], buckets: int, longest: float) -> list[float]:
    """Upper ends of all buckets but the last, such that each is drawn for as many seconds."""
    every = 1 + len(lengths) // _FOR_EDGES
    lengths, weights = lengths[::every], weights[::every]
    ascending = np.argsort(lengths, kind="stable")
    passed = np.cumsum(lengths[ascending] * weights[ascending])
    ends = np.searchsorted(passed, passed[-1] * np.arange(1, buckets) / max(1, buckets))
    edges = np.unique(lengths[ascending][ends])
    return [float(edge) for edge in edges if edge < longest]


def _cells(
    numbers: Numbers,
    buckets: NDArray[np.int64],
    sources: NDArray[np.uint8 | np.int64],
    weights: NDArray[np.float64],
    seed: int,
) -> Iterator[_Cell]:
    """Clips by bucket and, in it, by source; none is empty."""
    keys = buckets * len(weights) + sources
    counts = np.bincount(keys)
    # Numbers of 16 bits are sorted by counting them.
    by_key = np.argsort(keys.astype(np.min_scalar_type(len(counts))), kind="stable")
    kinds = np.flatnonzero(counts)
    parts = np.split(numbers[by_key], np.cumsum(counts[kinds])[:-1])
    for place, (kind, part) in enumerate(zip(kinds.tolist(), parts, strict=True)):
        bucket, source = divmod(kind, len(weights))
        yield _Cell(bucket, part, float(weights[source]) * len(part), (seed, place))


def _digest(cells: list[_Cell], seconds: NDArray[np.float64]) -> str:
    found = hashlib.blake2b(seconds.tobytes(), digest_size=16)
    for cell in cells:
        found.update(f"{cell.facts} {len(cell.numbers)} ".encode())
        found.update(cell.numbers.tobytes())
    return found.hexdigest()


def _whole(ratio: float) -> int:
    return int(min(ratio, 1 << 30) + 1e-6)


def _split(draws: list[Draw], size: int, parts: int) -> list[list[Draw]]:
    """`parts` batches of at most `size`; where there are too few, the largest are halved."""
    batches = [draws[first : first + size] for first in range(0, len(draws), size)]
    while len(batches) < parts:
        largest = max(batches, key=len)
        half = (len(largest) + 1) // 2
        batches.append(largest[half:])
        del largest[half:]
    return batches
