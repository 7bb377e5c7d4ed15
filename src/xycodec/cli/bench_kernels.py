"""Measurement of the libraries that multiply a codec's matrices, on this machine: `xycodec bench --kernels`.

It proposes a row of `xycodec.nn.deterministic.kernels.TABLE`, where nothing stands that was not measured, and nothing
whose bits change with the number of threads, with what else is computed along, or with the place in memory.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from xycodec.nn.deterministic.attention import attend
from xycodec.nn.deterministic.kernels import Library, Part, by_library, has_onednn
from xycodec.nn.deterministic.linear import product
from xycodec.nn.deterministic.rows import add_product

# What the full-size models and xy-mini multiply: (rows, terms, columns); of attention (heads, frames, width).
SHAPES: dict[Part, tuple[tuple[int, int, int], ...]] = {
    "linear": (
        (100, 768, 768), (100, 768, 3072), (500, 3072, 768), (300, 384, 1536), (1500, 768, 768), (25, 3072, 512),
    ),
    "attention": ((12, 100, 64), (12, 500, 64), (12, 1500, 64), (6, 300, 64)),
    "taps": ((100, 768, 768), (500, 512, 256), (2000, 256, 128), (8000, 64, 64)),
}  # fmt: skip
THREADS = (1, 2, 3, 5, 8, 16)
_SECONDS, _ROUNDS = 0.05, 3


@dataclass(frozen=True)
class KernelRow:
    """One product by one library."""

    part: Part
    shape: tuple[int, int, int]
    library: Library
    gflops: float
    """GFLOP/s of the fastest of several calls, on torch's number of threads."""
    keeps_bits: bool
    """Whether its rows had the same bits among fewer rows, anywhere in memory, and with any number of threads."""


def measure_kernels() -> list[KernelRow]:
    """Every shape by every library that is here, in turns."""
    libraries: tuple[Library, ...] = ("mkl", "onednn") if has_onednn() else ("mkl",)
    rows = []
    for part, shapes in SHAPES.items():
        for shape in shapes:
            work, flops = _product(part, shape)
            best = dict.fromkeys(libraries, float("inf"))
            for _ in range(_ROUNDS):
                for library in libraries:
                    with by_library(library):
                        best[library] = min(best[library], _seconds(work))
            for library in libraries:
                with by_library(library):
                    keeps = _keeps_bits(work)
                rows.append(KernelRow(part, shape, library, flops / best[library] / 1e9, keeps))
    return rows


def proposed(rows: list[KernelRow]) -> dict[Part, Library | None]:
    """For each part the library that is the faster by the geometric mean of its shapes, of those that keep bits."""
    found: dict[Part, Library | None] = {}
    for part in SHAPES:
        speeds: dict[Library, float] = {}
        for library in {row.library for row in rows}:
            own = [row for row in rows if (row.part, row.library) == (part, library)]
            if all(row.keeps_bits for row in own):
                speeds[library] = prod(row.gflops for row in own)
        ranked = sorted(speeds, key=speeds.__getitem__)
        found[part] = ranked[-1] if ranked else None
    return found


class _Work(Protocol):
    def __call__(self, *, some: bool = False, place: int = 0) -> Tensor: ...


def _product(part: Part, shape: tuple[int, int, int]) -> tuple[_Work, int]:
    """A product and its number of operations; `some` of its rows only, from tensors at another `place` in memory."""
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    rows, terms, columns = shape
    if part == "attention":
        heads, frames, width = shape
        q, k, v = (random(2, heads, frames, width) for _ in range(3))

        def attention(*, some: bool = False, place: int = 0) -> Tensor:
            return attend(*(_moved(part[:1] if some else part, place) for part in (q, k, v)))

        return attention, 2 * 4 * heads * frames**2 * width
    x, weight, bias = random(rows, terms), random(columns, terms), random(columns)
    transposed, out = weight.t().contiguous(), random(rows, columns)
    fewer = rows // 8 * 4  # as convolutions cut their rows

    def linear(*, some: bool = False, place: int = 0) -> Tensor:
        return product(_moved(x[: fewer if some else rows], place), _moved(weight, place), bias)

    def taps(*, some: bool = False, place: int = 0) -> Tensor:
        count = fewer if some else rows
        sums = out[:count].clone()
        add_product(_moved(x[:count], place), _moved(transposed, place), sums)
        return sums

    return (linear if part == "linear" else taps), 2 * prod(shape)


def _moved(x: Tensor, place: int) -> Tensor:
    """The same numbers, `place` of them behind a boundary of 64 bytes; 0 leaves x where it is."""
    return x if place == 0 else torch.cat([x.new_zeros(place), x.flatten()])[place:].view(x.shape)


def _seconds(work: Callable[[], object]) -> float:
    """The fastest of as many calls as fit into `_SECONDS`, one at least."""
    best, end = float("inf"), time.perf_counter() + _SECONDS
    while True:
        start = time.perf_counter()
        work()
        now = time.perf_counter()
        best = min(best, now - start)
        if now > end:
            return best


def _keeps_bits(work: _Work) -> bool:
    expected, before = work(), torch.get_num_threads()
    try:
        for threads in THREADS:
            torch.set_num_threads(threads)
            for some, place in ((False, 0), (True, 0), (False, 1), (False, 4)):
                result = work(some=some, place=place)
                if not torch.equal(result, expected[: len(result)]):
                    return False
    finally:
        torch.set_num_threads(before)
    return True
