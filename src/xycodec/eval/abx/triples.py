"""Triples of ABX: which items are compared, and how the comparisons become one number, as in Libri-light.

A and X are the same phone in the same context (the phones before and after), B is another phone in it. Within
speakers all three have one speaker; across speakers, A and B have one and X another.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from xycodec.eval.abx.items import PhoneItem

Drawn = TypeVar("Drawn")
Mode = Literal["within", "across"]
Groups = dict[str, dict[str, list[int]]]
"""Items of one context by speaker and phone."""

_TIE = 1e-6  # equal codes at other places of a batch give embeddings that differ in their last bit


@dataclass(frozen=True)
class Block:
    """All triples of one context in which A and X are one phone and one speaker says A and B.

    A cell, in which triples are averaged, has one speaker of X and one phone of B.
    """

    phone: str
    speaker: str
    x: tuple[tuple[int, ...], ...]
    """Items that are X, by speaker."""
    a: tuple[int, ...]
    """Items that are A; within speakers the same as X, and none is compared with itself."""
    b: dict[str, tuple[int, ...]]
    """Items that are B, by phone."""

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Items of the rows of its matrix of distances: X."""
        return np.array([item for group in self.x for item in group])

    @cached_property
    def columns(self) -> NDArray[np.int64]:
        """Items of the columns: A, then B."""
        return np.array([*self.a, *(item for group in self.b.values() for item in group)])

    @property
    def cells(self) -> int:
        """Number of distances to compute."""
        return len(self.x) * len(self.b)

    @property
    def triples(self) -> int:
        """Number of triples."""
        same = len(self.a) if self.x == (self.a,) else 0
        return (len(self.rows) * len(self.a) - same) * (len(self.columns) - len(self.a))

    def errors(self, distances: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean error of each cell, 0 to 1, (speakers of X, phones of B), from d(rows, columns)."""
        to_a, to_b = distances[:, : len(self.a), None], distances[:, None, len(self.a) :]
        # A triple is wrong if X is nearer to B than to A, and half wrong if both are as near.
        wrong = 0.5 * (to_a > to_b + _TIE) + 0.5 * (to_a >= to_b - _TIE)
        others = self.rows[:, None] != self.columns[: len(self.a)]
        wrong = np.einsum("xab,xa->xb", wrong, others / others.sum(axis=1, keepdims=True))
        heights, widths = [len(group) for group in self.x], [len(group) for group in self.b.values()]
        sums = np.add.reduceat(np.add.reduceat(wrong, _starts(heights), axis=0), _starts(widths), axis=1)
        return np.asarray(sums / np.outer(heights, widths))


def _starts(sizes: Sequence[int]) -> NDArray[np.int64]:
    return np.cumsum([0, *sizes[:-1]])


def plan_triples(items: Sequence[PhoneItem], mode: Mode, *, seed: int, max_group: int, max_x: int) -> list[Block]:
    """All blocks that have a triple, in an order that does not depend on that of the items.

    Of more than `max_group` items of one phone, context and speaker so many are drawn, once for all their triples;
    of more than `max_x` other speakers, so many are X. Each draw depends on `seed` and on what it draws from alone.
    """
    blocks = []
    for context, groups in sorted(_drawn(items, seed, max_group).items()):
        for speaker, phones in sorted(groups.items()):
            for phone, own in sorted(phones.items()):
                a = tuple(own)
                b = {other: tuple(found) for other, found in sorted(phones.items()) if other != phone}
                if mode == "within":
                    of_x = [speaker] if len(a) > 1 else []
                else:
                    others = [one for one in sorted(groups) if one != speaker and phone in groups[one]]
                    of_x = _draw(others, max_x, f"{seed} X {context} {speaker} {phone}")
                x = tuple(tuple(groups[one][phone]) for one in of_x)
                if x and b:
                    blocks.append(Block(phone, speaker, x, a, b))
    return blocks


def _drawn(items: Sequence[PhoneItem], seed: int, max_group: int) -> dict[tuple[str, str], Groups]:
    contexts: dict[tuple[str, str], Groups] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for index in sorted(range(len(items)), key=lambda index: (items[index].file, items[index].onset)):
        item = items[index]
        contexts[item.context][item.speaker][item.phone].append(index)
    for context, groups in contexts.items():
        for speaker, phones in groups.items():
            for phone, found in phones.items():
                phones[phone] = _draw(found, max_group, f"{seed} {context} {speaker} {phone}")
    return contexts


def _draw(population: list[Drawn], most: int, seed: str) -> list[Drawn]:
    return population if len(population) <= most else Random(seed).sample(population, most)


def error_rate(cells: Iterable[tuple[Block, NDArray[np.float64]]]) -> float | None:
    """Percent: the mean over cells of each (A, B, speaker), then over speakers, then over pairs of phones.

    `cells` are blocks with their `errors`; None without any.
    """
    pairs: defaultdict[tuple[str, str], defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for block, errors in cells:
        for other, column in zip(block.b, errors.T, strict=True):
            pairs[block.phone, other][block.speaker].extend(column.tolist())
    means = [np.mean([np.mean(values) for values in speakers.values()]) for speakers in pairs.values()]
    return 100 * float(np.mean(means)) if means else None
