"""Token stores as PyTorch datasets: clip by clip, or packed into sequences of one length."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from xycodec.errors import XycodecError
from xycodec.io.tokens.read import StoredClip, TokenStore
from xycodec.lm.patterns import Pattern

Render = Callable[[StoredClip], tuple[Tensor, Tensor]]
"""A clip as rows (S, channels) int64 of a model, and the mask (S, channels) bool of those that a loss counts."""


class Clips(Dataset[dict[str, Any]]):
    """The clips of a store: `id`, `codes` (n_q, L) int64, `samples` and `meta`, one at a time."""

    def __init__(self, store: TokenStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, number: int) -> dict[str, Any]:
        clip = self.store[number]
        return {"id": clip.id, "codes": codes_of(clip), "samples": clip.samples, "meta": clip.meta}


def codes_of(clip: StoredClip) -> Tensor:
    """The codes (n_q, L) int64 of a clip, in memory of their own."""
    return torch.from_numpy(clip.codes.astype(np.int64))


def rendered(pattern: Pattern, end: int | None = None) -> Render:
    """Clips as the rows of a pattern, and after them one row of `end` in every channel if there is one."""

    def render(clip: StoredClip) -> tuple[Tensor, Tensor]:
        codes = codes_of(clip)
        rows, mask = pattern.apply(codes), pattern.mask(codes.shape[1])
        if end is not None:
            rows = torch.cat([rows, torch.full_like(rows[:1], end)])
            mask = torch.cat([mask, torch.ones_like(mask[:1])])
        return rows, mask

    return render


@dataclass(frozen=True)
class Pack:
    """A sequence of `context` rows, filled with clips one after the other.

    Attributes:
        rows: (context, channels) int64.
        mask: (context, channels) bool, where a loss counts.
        documents: (context,) int64, the clip of each row: 0, 1, ...; attention must not cross from one to another.
        positions: (context,) int64, the place of each row in its clip, also where the clip began in an earlier pack.
    """

    rows: Tensor
    mask: Tensor
    documents: Tensor
    positions: Tensor


class PackedTokens(IterableDataset[Pack]):
    """Clips of stores in a random order, packed to sequences of one length.

    A clip that does not fit goes on in the next sequence of the same process. Processes (`rank` of `world_size`, and
    the workers of a DataLoader) have clips of their own. Without weights every clip comes once, and `epoch` decides the
    order; rows at the end that fill no sequence are left out. With weights the draws go on without end, and each
    comes from store i with probability weight_i / sum of weights, in which all clips come before one comes again.

    `state_dict` tells how far the newest iteration is; after `load_state_dict` the next one begins there, exactly. With
    workers of a DataLoader that is for a loader that asks them (torchdata's); reading is mapped and needs none.

    Args:
        stores: one or more, of one shape of codes.
        render: what becomes of a clip, such as `rendered(pattern)`.
        context: rows of a sequence.
        weights: one for each store, or None.
        seed: decides the order, with `epoch`.
        rank, world_size: which share of the clips is this process's.
    """

    def __init__(
        self,
        stores: Sequence[TokenStore],
        render: Render,
        context: int,
        *,
        weights: Sequence[float] | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not stores or not sum(map(len, stores)) or (weights is not None and not all(map(len, stores))):
            raise XycodecError("no clips to draw: give stores that hold some")
        if weights is not None and (len(weights) != len(stores) or not min(weights) > 0):
            raise XycodecError(f"weights {list(weights)}: give a positive one for each of {len(stores)} stores")
        if context < 1 or not 0 <= rank < world_size:
            raise XycodecError(
                f"context {context}, rank {rank} of {world_size}: give a context, and a rank below its size"
            )
        shapes = {(store.description.n_q, store.description.codebook_size) for store in stores}
        if len(shapes) > 1:
            raise XycodecError(f"stores of codes of different shapes, {sorted(shapes)}: give stores of one")
        self._stores, self._render, self._context = tuple(stores), render, context
        self._weights, self._seed, self._rank, self._world = weights, seed, rank, world_size
        self.epoch = 0
        self._draws, self._row = 0, 0
        self._begin = (0, 0)

    def state_dict(self) -> dict[str, int]:
        """State of the iteration: its epoch, the clips that are used up, and how many rows of the next one are."""
        return {"epoch": self.epoch, "draws": self._draws, "row": self._row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration go on from a state."""
        self.epoch, self._begin = state["epoch"], (state["draws"], state["row"])

    def __iter__(self) -> Iterator[Pack]:
        (self._draws, self._row), self._begin = self._begin, (0, 0)
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        split, splits = self._rank * workers + number, self._world * workers
        parts: list[tuple[Tensor, Tensor, int]] = []
        held = 0
        for store, clip in self._drawn(split, splits):
            rows, mask = self._render(store[clip])
            first = self._row
            while first < len(rows):
                end = min(len(rows), first + self._context - held)
                parts.append((rows[first:end], mask[first:end], first))
                held, first = held + end - first, end
                if held == self._context:
                    self._row = end
                    yield _pack(parts)
                    parts, held = [], 0
            self._draws, self._row = self._draws + 1, 0

    def _drawn(self, split: int, splits: int) -> Iterator[tuple[TokenStore, int]]:
        """The clips of a share from `_draws` on."""
        if self._weights is None:
            sizes = np.cumsum([0, *map(len, self._stores)])
            order = _order(int(sizes[-1]), self._seed, self.epoch, 0)
            for place in range(split + splits * self._draws, len(order), splits):
                clip = int(order[place])
                store = int(np.searchsorted(sizes, clip, side="right")) - 1
                yield self._stores[store], clip - int(sizes[store])
            return
        chosen = self._choices(split)
        counts = [0] * len(self._stores)
        for _ in range(self._draws):
            counts[next(chosen)] += 1
        while True:
            store = next(chosen)
            epoch, place = divmod(counts[store] * splits + split, len(self._stores[store]))
            counts[store] += 1
            yield self._stores[store], int(_order(len(self._stores[store]), self._seed, epoch, store)[place])

    def _choices(self, split: int) -> Iterator[int]:
        """The store of each draw of a share."""
        weights = np.asarray(self._weights, np.float64)
        edges = np.cumsum(weights / weights.sum())[:-1]
        generator = np.random.default_rng([self._seed, split])
        while True:
            yield from np.searchsorted(edges, generator.random(1024), side="right").tolist()


@lru_cache(8)
def _order(clips: int, seed: int, epoch: int, store: int) -> NDArray[np.uint32]:
    """An order of so many clips: four bytes each, once in a process."""
    # The raw numbers of a generator are the same in every version of numpy; its permutations need not be.
    keys = np.random.default_rng([seed, epoch, store, 1]).bit_generator.random_raw(clips)
    return np.argsort(np.asarray(keys), kind="stable").astype(np.uint32)


def _pack(parts: Sequence[tuple[Tensor, Tensor, int]]) -> Pack:
    return Pack(
        torch.cat([rows for rows, _, _ in parts]),
        torch.cat([mask for _, mask, _ in parts]),
        torch.cat([torch.full((len(rows),), number) for number, (rows, _, _) in enumerate(parts)]),
        torch.cat([torch.arange(first, first + len(rows)) for rows, _, first in parts]),
    )
