"""Reading a store of tokens: any clip by number or id, mapped from disk."""

import json
import mmap
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xycodec.errors import StoreError
from xycodec.io.files import os_error_line
from xycodec.io.tokens.layout import (
    CODES,
    FAILURES,
    IDS,
    INDEX,
    META,
    ROW,
    SHARD,
    SHARD_LIST,
    SHARDS,
    Codes,
    Description,
    Index,
    hash_of,
    read_description,
)

COUNTS = ("clips", "frames", "samples", "failures")
"""Numbers that a row of the list of shards, and `shard.json`, tell."""
_OPEN = 100  # shards that are held open: three files each, of the 1024 that a process may have


@dataclass(frozen=True)
class StoredClip:
    """A clip of a store: its codes (n_q, L), mapped and read-only; samples at the codec's input rate; metadata.

    `meta` has `id` and `seconds`, and what was known of the clip: `text`, `speaker`, `language`, `audio`, ...
    """

    id: str
    codes: Codes
    samples: int
    meta: dict[str, Any]


class TokenStore:
    """A finished store of tokens, read in place.

    Clips have the numbers 0 to N - 1, in the order of the corpus. Pickled, a store is its folder's name.

    Args:
        folder: what `xycodec tokenize` made.

    Raises:
        StoreError: it is not there, not finished, or a newer version wrote it; later, where a file is damaged.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.description: Description = read_description(self.folder)
        if not (self.folder / SHARD_LIST).is_file():
            raise StoreError(f"{self.folder}: not finished: run the command that began it again")
        self.shards: list[dict[str, Any]] = read_rows(self.folder / SHARD_LIST)
        """A row for each shard: `name`, `clips`, `frames`, `samples`, `failures`, and the SHA-256 of its files."""
        if not all(isinstance(row.get(key), int) for row in self.shards for key in COUNTS):
            raise StoreError(f"{self.folder / SHARD_LIST}: lacks counts of a shard: {_COPY}")
        if not all(isinstance(row.get("name"), str) for row in self.shards):
            raise StoreError(f"{self.folder / SHARD_LIST}: lacks the name of a shard: {_COPY}")
        self._starts: list[int] = list(accumulate((shard["clips"] for shard in self.shards), initial=0))
        self._shard = lru_cache(_OPEN)(self._opened)

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStore, (self.folder,)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, number: int) -> StoredClip:
        shard, place = self._find(number)
        shard.require_whole(place)
        meta = shard.meta(place)
        return StoredClip(meta["id"], shard.codes(place), int(shard.index["samples"][place]), meta)

    def __iter__(self) -> Iterator[StoredClip]:
        return (self[number] for number in range(len(self)))

    def __contains__(self, name: str) -> bool:
        return self._number(name) is not None

    @property
    def frames(self) -> int:
        """Frames of all clips."""
        return sum(shard["frames"] for shard in self.shards)

    @property
    def seconds(self) -> float:
        """Seconds of all clips."""
        return float(sum(shard["samples"] for shard in self.shards) / self.description.sample_rate)

    def codes(self, number: int) -> Codes:
        """The codes (n_q, L) of a clip, mapped and read-only."""
        shard, place = self._find(number)
        return shard.codes(place)

    def meta(self, number: int) -> dict[str, Any]:
        """The metadata of a clip."""
        shard, place = self._find(number)
        return shard.meta(place)

    def number_of(self, name: str) -> int:
        """The number of the clip with this id. Raises StoreError if there is none."""
        number = self._number(name)
        if number is None:
            raise StoreError(f"{self.folder}: holds no clip {name!r}: its failures.jsonl has the ones that failed")
        return number

    def lengths(self) -> NDArray[np.int64]:
        """Frames of every clip, (N,)."""
        columns = [self._shard(number).index["frames"] for number in range(len(self.shards))]
        return np.concatenate([np.zeros(0, np.int64), *columns]).astype(np.int64)

    def bounds(self) -> list[tuple[int, int]]:
        """The number of each shard's first clip, and of the one after its last."""
        return list(pairwise(self._starts))

    def failures(self) -> list[dict[str, Any]]:
        """A row for each clip of the corpus that could not be encoded: `id`, `audio` and `error`."""
        return read_rows(self.folder / FAILURES)

    def _find(self, number: int) -> "tuple[Shard, int]":
        if not 0 <= number < len(self):
            raise IndexError(f"{self.folder}: has clips 0 to {len(self) - 1}, not {number}")
        shard = bisect_right(self._starts, number) - 1
        return self._shard(shard), number - self._starts[shard]

    def _opened(self, number: int) -> "Shard":
        row = self.shards[number]
        return Shard(self.folder / SHARDS / row["name"], self.description, row)

    def _number(self, name: str) -> int | None:
        hashes, numbers = self._ids
        wanted = np.uint64(hash_of(name))
        place = int(np.searchsorted(hashes, wanted))
        while place < len(hashes) and hashes[place] == wanted:
            if self.meta(int(numbers[place]))["id"] == name:
                return int(numbers[place])
            place += 1
        return None

    @cached_property
    def _ids(self) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
        """Hashes in order, and the numbers of their clips."""
        path, count = self.folder / IDS, len(self)
        data = mapped(path)
        if len(data) != 12 * count:
            raise StoreError(f"{path}: has {len(data):,} bytes for {count:,} clips: {_COPY}")
        return np.frombuffer(data, "<u8", count), np.frombuffer(data, "<u4", count, offset=8 * count)


class Shard:
    """The files of one shard, mapped.

    Attributes:
        index: rows of ROW, (clips,).
    """

    def __init__(self, folder: Path, description: Description, row: Mapping[str, Any]) -> None:
        self._folder = folder
        sizes = {
            CODES: row["frames"] * description.n_q * description.dtype.itemsize,
            INDEX: row["clips"] * ROW.itemsize,
        }
        files = {name: mapped(folder / name) for name in (CODES, INDEX, META)}
        for name, size in sizes.items():
            if len(files[name]) != size:
                raise StoreError(
                    f"{folder / name}: has {len(files[name]):,} bytes where {SHARD} says {size:,}: {_COPY}"
                )
        self.index: Index = np.frombuffer(files[INDEX], ROW)
        self._codes = np.frombuffer(files[CODES], description.dtype).reshape(-1, description.n_q)
        self._meta = files[META]

    def codes(self, place: int) -> Codes:
        """Codes (n_q, L) of a clip by its place in the shard."""
        row = self.index[place]
        first, frames = int(row["first"]), int(row["frames"])
        found: Codes = self._codes[first : first + frames].T
        if found.shape[1] != frames:
            raise StoreError(f"{self._folder}: clip {place} lies beyond the end of {CODES}: {_COPY}")
        return found

    def is_whole(self, place: int) -> bool:
        """Whether a clip's codes and metadata have the checksum of its row."""
        row = self.index[place]
        first, frames = int(row["first"]), int(row["frames"])
        body = self._codes[first : first + frames].tobytes()
        return bool(zlib.crc32(self.line(place), zlib.crc32(body)) == row["crc"])

    def require_whole(self, place: int) -> None:
        """Raise StoreError if a clip's codes or metadata are damaged."""
        self.codes(place)
        if not self.is_whole(place):
            raise StoreError(f"{self._folder}: {self.meta(place)['id']}: its codes or metadata are damaged: {_COPY}")

    def line(self, place: int) -> bytes:
        """The line of metadata of a clip."""
        end = int(self.index["meta"][place + 1]) if place + 1 < len(self.index) else len(self._meta)
        return bytes(self._meta[int(self.index["meta"][place]) : end])

    def meta(self, place: int) -> dict[str, Any]:
        """The metadata of a clip."""
        try:
            found = json.loads(self.line(place))
        except ValueError:
            found = None
        if not isinstance(found, dict) or not isinstance(found.get("id"), str):
            raise StoreError(f"{self._folder}: the metadata of clip {place} are damaged: {_COPY}")
        return found


_COPY = "get a whole copy of the store (xycodec tokens verify names what is damaged)"


def mapped(path: Path) -> "mmap.mmap | bytes":
    """The bytes of a file, mapped to be read. Raises StoreError if it cannot be."""
    try:
        with open(path, "rb") as file:
            if file.seek(0, 2) == 0:  # which cannot be mapped
                return b""
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise StoreError(os_error_line(str(path), "read", error)) from error


def read_counts(folder: Path) -> dict[str, Any]:
    """Read the numbers of a shard from its `shard.json`. Raises StoreError if it is damaged."""
    rows = read_rows(folder / SHARD)
    if len(rows) != 1 or not all(isinstance(rows[0].get(key), int) for key in COUNTS):
        raise StoreError(f"{folder / SHARD}: does not hold what a shard's has to: {_COPY}")
    return rows[0]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Every object of a file of JSON lines. Raises StoreError, with the line, where there is none."""
    rows = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise StoreError(os_error_line(str(path), "read", error)) from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise StoreError(f"{path}:{number}: not a row of JSON: get a whole copy of the file")
        rows.append(row)
    return rows
