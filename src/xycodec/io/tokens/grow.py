"""A store that grows: codes of clips that are added one by one, found again by their ids, and whole after a kill."""

import fcntl
import json
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from xycodec.errors import StoreError
from xycodec.io.files import os_error_line
from xycodec.io.tokens.layout import CODES, META, SHARDS, STORE, Codes, Description, read_description, shard_name
from xycodec.io.tokens.write import ShardWriter, begin_store, whole_rows


class GrowingStore:
    """The codes of one codec for clips that come one by one, in any order and over many calls.

    It has the description and the shards of a store of tokens (docs/token_store.md), but is never finished. Each
    process that adds to it has a shard of its own; what others add later is not seen. A clip that is added again
    replaces itself.

    Args:
        folder: made if it is not there.
        description: of the codes. None opens what there is, to read it.

    Raises:
        StoreError: the folder holds other codes or something else, or cannot be written.
    """

    def __init__(self, folder: Path, description: Description | None = None) -> None:
        self.folder = folder
        self.newest: dict[str, dict[str, Any]] = {}
        """Newest row by the id of its clip: `id`, `seconds`, and what else was said; `error` if it has no codes."""
        self._places: dict[str, tuple[Path, int, int]] = {}
        self._writer: ShardWriter | None = None
        self._lock: BinaryIO | None = None
        if description is not None:
            begin_store(folder, description)
        self.description = description or (read_description(folder) if (folder / STORE).exists() else None)
        if self.description is not None:
            for shard in sorted(path for path in (folder / SHARDS).glob("*") if path.is_dir()):
                self._read(shard, self.description)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __contains__(self, name: str) -> bool:
        """Whether there are codes of this clip."""
        return name in self.newest and "error" not in self.newest[name]

    def codes(self, name: str) -> Codes:
        """The codes (n_q, L) of a clip. Raises KeyError if there are none."""
        about = self.description
        if about is None or name not in self:
            raise KeyError(name)
        shard, first, frames = self._places[name]
        size = about.n_q * about.dtype.itemsize
        flat: Codes = np.fromfile(shard / CODES, about.dtype, frames * about.n_q, offset=first * size)
        return flat.reshape(frames, about.n_q).T

    def add(self, name: str, codes: NDArray[Any], samples: int, meta: Mapping[str, Any]) -> None:
        """Keep a clip's codes (n_q, L), its samples at the codec's input rate, and what else is known of it.

        Raises StoreError if the codes do not fit the description, or the disk does not take them.
        """
        writer, shard = self._own()
        first = writer.frames
        writer.add(name, codes, samples, meta)
        self._places[name] = (shard, first, codes.shape[1])
        rate = writer.description.sample_rate
        self.newest[name] = {**meta, "id": name, "seconds": round(samples / rate, 6)}

    def fail(self, name: str, audio: str, error: str, **more: Any) -> None:
        """Note why a clip has no codes; it may have some another time."""
        n_q = self.description.n_q if self.description else 0
        self.add(name, np.zeros((n_q, 0), np.int64), 0, {**({"audio": audio} if audio else {}), **more, "error": error})

    def close(self) -> None:
        """Let others go on with this process's shard."""
        if self._writer is not None:
            self._writer.close()
        if self._lock is not None:
            self._lock.close()
        self._writer = self._lock = None

    def _read(self, shard: Path, about: Description) -> None:
        rows, end = whole_rows(shard, about)
        if not len(rows):
            return
        lines = (shard / META).read_bytes()[:end].splitlines()
        for row, line in zip(rows, lines, strict=True):
            known = json.loads(line)
            self.newest[known["id"]] = known
            self._places[known["id"]] = (shard, int(row["first"]), int(row["frames"]))

    def _own(self) -> tuple[ShardWriter, Path]:
        """The writer of the first shard that no other process is writing."""
        if self.description is None:
            raise StoreError(f"{self.folder}: was opened to be read")
        if self._writer is None:
            self._lock, shard = _free_shard(self.folder / SHARDS)
            self._writer = ShardWriter(shard, self.description)
        return self._writer, self._writer.folder


def _free_shard(folder: Path) -> tuple[BinaryIO, Path]:
    """The lock of a shard, held, and its folder."""
    try:
        folder.mkdir(exist_ok=True)
        for number in count():
            shard = folder / shard_name(number)
            lock = open(shard.with_suffix(".lock"), "ab")  # noqa: SIM115 - held until the store is closed
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
            else:
                return lock, shard
    except OSError as error:
        raise StoreError(os_error_line(str(folder), "written", error)) from error
    raise AssertionError("numbers do not end")
