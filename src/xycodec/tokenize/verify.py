"""Whether the codes of a store are those of each clip alone: some clips are encoded again and compared."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from xycodec.errors import StoreError
from xycodec.io.tokens.read import TokenStore
from xycodec.tokenize.inputs.item import Item
from xycodec.tokenize.shard import Encoding, encode, load


@dataclass(frozen=True)
class Agreement:
    """Clips that were compared, the share of codes of each codebook that differ, and the clips that do."""

    clips: int
    rates: tuple[float, ...]
    differing: tuple[str, ...]

    @property
    def rate(self) -> float:
        """The share of all codes that differ."""
        return sum(self.rates) / len(self.rates)


def verify_codes(encoding: Encoding, store: TokenStore, items: Iterable[Item], clips: int) -> Agreement:
    """Encode random clips of a store again, each alone, and compare their codes.

    `items` are those that the store was made of; the same `clips` are drawn each time. Raises StoreError if the codec
    is another one, or a clip is no longer there.
    """
    if differs := store.description.difference(encoding.describe()):
        raise StoreError(f"{store.folder}: is of other codes ({differs})")
    count = min(clips, len(store))
    numbers = np.random.default_rng(0).choice(len(store), count, replace=False).tolist()
    wanted = {store.meta(number)["id"]: number for number in numbers}
    wrong, total = np.zeros(store.description.n_q, np.int64), 0
    differing = []
    for item in items:
        if item.error or item.id not in wanted:
            continue
        number = wanted.pop(item.id)
        codec = encoding.codec
        (made,) = encode(encoding, [load(item, codec.input_sample_rate, codec.window_samples)])
        if isinstance(made, str):
            raise StoreError(f"{item.id}: cannot be encoded again: {made}")
        known = store.codes(number)
        if known.shape != made[0].shape:
            raise StoreError(f"{item.id}: has {known.shape[1]} frames in the store and {made[0].shape[1]} alone")
        differ = (known != made[0]).sum(axis=1)
        wrong, total = wrong + differ, total + known.shape[1]
        if differ.any():
            differing.append(item.id)
        if not wanted:
            break
    if wanted:
        raise StoreError(f"{store.folder}: {next(iter(wanted))} is no longer in the input")
    return Agreement(count, tuple((wrong / max(1, total)).tolist()), tuple(differing))
