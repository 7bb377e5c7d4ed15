"""Distances between items of ABX: frames compared, then aligned in time."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor, pi
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from xycodec.eval.abx.dtw import dtw
from xycodec.eval.abx.triples import Block

_PAIRS = 20_000  # of items, gathered from several blocks: small ones cost little then
_CELLS = 1 << 19  # of the matrices that are aligned at a time


@dataclass(frozen=True)
class Features:
    """Frames of items."""

    rows: NDArray[Any]
    """(F, D), distinct frames; it may be on disk."""
    frames: Sequence[NDArray[np.int64]]
    """Row numbers of each item, at least one; repeated where a frame lasts longer than a step in time."""
    metric: Literal["angle", "share"]
    """Distance of frames: their angle over pi (Libri-light's cosine distance), where the zero vector is at 1 from all
    others; or the share of their numbers that differ."""


def item_frames(onset: float, offset: float, rate: float, frames: int, repeat: int = 1) -> NDArray[np.int64]:
    """Numbers of the frames of a recording that belong to [onset, offset) in seconds; never none.

    Each frame stands `repeat` times, so that steps last 1 / (rate * repeat). Step i belongs if
    rate * repeat * onset - 0.5 <= i < floor(rate * repeat * offset - 0.5), which is Libri-light's rule: centres lie
    inside, and the last of them is dropped. Where that leaves none, as it does in short phones, Libri-light passes
    the item over; here it has the step at its middle.
    """
    steps = rate * repeat
    first, end = max(0, ceil(steps * onset - 0.5)), min(frames * repeat, floor(steps * offset - 0.5))
    if first >= end:
        first = min(frames * repeat - 1, int(steps * (onset + offset) / 2))
        end = first + 1
    return np.arange(first, end) // repeat


def frame_distances(x: NDArray[Any], y: NDArray[Any], metric: str) -> Tensor:
    """(X, Y) float64, 0 to 1, between frames (X, D) and (Y, D)."""
    if metric == "share":
        return torch.from_numpy((x[:, None] != y).mean(axis=-1))
    # In float64, because the arc cosine of a float32 near 1 is wrong by 1e-4.
    left, right = (torch.from_numpy(rows.astype(np.float64)) for rows in (x, y))
    angles = (F.normalize(left) @ F.normalize(right).T).clamp(-1, 1).acos() / pi
    zero, other = (~rows.any(dim=1) for rows in (left, right))
    angles[zero[:, None] ^ other] = 1
    angles[zero[:, None] & other] = 0
    return angles


def block_distances(features: Features, blocks: Iterable[Block]) -> Iterator[tuple[Block, NDArray[np.float64]]]:
    """Every block with the distances of its rows and columns, (rows, columns)."""
    gathered: list[Block] = []
    pairs = 0
    for block in blocks:
        gathered.append(block)
        pairs += len(block.rows) * len(block.columns)
        if pairs >= _PAIRS:
            yield from _together(features, gathered)
            gathered, pairs = [], 0
    yield from _together(features, gathered)


def _together(features: Features, blocks: Sequence[Block]) -> Iterator[tuple[Block, NDArray[np.float64]]]:
    tables, pairs, places = [], [], []
    entries = numbers = 0
    for block in blocks:
        rows, columns = _Frames.of(features, block.rows), _Frames.of(features, block.columns)
        table = frame_distances(features.rows[rows.distinct], features.rows[columns.distinct], features.metric)
        # In the tables, put one after another, frame i of x and j of y are at places[x + i] + places[y + j].
        places += [rows.places * table.shape[1] + entries, columns.places]
        pairs.append(_pairs(rows, columns, numbers))
        tables.append(table.flatten())
        entries, numbers = entries + table.numel(), numbers + len(rows.places) + len(columns.places)
    if not blocks:
        return
    distances = _aligned(torch.cat(tables), torch.from_numpy(np.concatenate(places)), np.concatenate(pairs))
    start = 0
    for block in blocks:
        shape = len(block.rows), len(block.columns)
        yield block, distances[start : start + shape[0] * shape[1]].reshape(shape)
        start += shape[0] * shape[1]


@dataclass(frozen=True)
class _Frames:
    """Frames of several items without repetition, and the places of each item's frames among them."""

    distinct: NDArray[np.int64]
    places: NDArray[np.int64]
    """Row numbers of all items, one item after another."""
    sizes: NDArray[np.int64]
    """Number of rows of each item."""

    @classmethod
    def of(cls, features: Features, items: Iterable[int]) -> "_Frames":
        frames = [features.frames[item] for item in items]
        distinct, places = np.unique(np.concatenate(frames), return_inverse=True)
        return cls(distinct, places, np.array([len(one) for one in frames]))

    @property
    def starts(self) -> NDArray[np.int64]:
        """Place in `places` where each item begins."""
        return np.cumsum(self.sizes) - self.sizes


def _pairs(rows: _Frames, columns: _Frames, start: int) -> NDArray[np.int64]:
    """(pairs, 4), row by row: where the places of both items start, counted from `start`, and how many they are."""
    pairs = np.empty((len(rows.sizes), len(columns.sizes), 4), np.int64)
    pairs[..., 0], pairs[..., 1] = rows.starts[:, None] + start, columns.starts + start + len(rows.places)
    pairs[..., 2], pairs[..., 3] = rows.sizes[:, None], columns.sizes
    return pairs.reshape(-1, 4)


def _aligned(table: Tensor, places: Tensor, pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """DTW distances of all pairs, in batches of similar sizes, so that memory is bounded."""
    distances = np.empty(len(pairs))
    shorter, longer = pairs[:, 2:].min(axis=1), pairs[:, 2:].max(axis=1)
    order = np.lexsort((-shorter, -longer))
    start = 0
    while start < len(order):
        chosen = order[start : start + max(1, _CELLS // int(longer[order[start]]) ** 2)]
        x, y, rows, columns = torch.from_numpy(pairs[chosen]).unbind(1)
        left, right = places[_spread(x, rows)], places[_spread(y, columns)]
        distances[chosen] = dtw(table[left[:, :, None] + right[:, None]], rows, columns).numpy()
        start += len(chosen)
    return distances


def _spread(starts: Tensor, sizes: Tensor) -> Tensor:
    """Indices (P, longest) start, start + 1, ... of each sequence, its last one repeated."""
    steps = torch.arange(int(sizes.max()))
    return starts[:, None] + torch.minimum(steps, sizes[:, None] - 1)
