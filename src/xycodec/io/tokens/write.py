"""Writing a store of tokens: shards that grow clip by clip and are whole again after a kill, and what joins them."""

import fcntl
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import FileIO
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from xycodec.errors import StoreError
from xycodec.io.files import atomic_path, is_scratch, new_folder, os_error_line
from xycodec.io.journal import Journal
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
    STORE,
    Description,
    hash_of,
    read_description,
    shard_name,
)
from xycodec.io.tokens.read import StoredClip, mapped, read_counts

SHARD_CLIPS = 4096
"""Clips of a shard, unless a corpus is small or somebody says otherwise."""


class ShardWriter:
    """A shard that is being written, in a folder of its own that takes its place in the store when it is done.

    Codes and metadata of a clip are written first and its row of the index last, so that the folder of a writer that
    was killed holds whole clips only, once the next writer has cut off what lacks its row. One process at a time may
    have the folder.

    Attributes:
        folder: of the shard.
        description: of its codes.
        frames: written so far.

    Raises:
        StoreError: the folder cannot be written.
    """

    def __init__(self, folder: Path, description: Description) -> None:
        self.folder, self.description = folder, description
        self._failures = Journal(folder / FAILURES)
        with self._told():
            folder.mkdir(parents=True, exist_ok=True)
            rows, meta_end = whole_rows(folder, description)
            self.frames = int(rows["frames"].sum())
            self._meta_end = meta_end
            frame = description.n_q * description.dtype.itemsize
            self._codes = _opened(folder / CODES, self.frames * frame)
            self._meta = _opened(folder / META, meta_end)
            self._index = _opened(folder / INDEX, len(rows) * ROW.itemsize)
        self._clips, self._samples = len(rows), int(rows["samples"].sum())
        self._ids: list[int] = rows["id"].tolist()
        self._failed = len(self._failures.rows())

    def go_on(self, names: Sequence[str]) -> int:
        """Count how many of these clips, in order, were written or failed before a kill.

        Where what is there is not their beginning, because a disk has lost a part of it, nothing is kept.
        """
        rows, failed = self._ids, [row.get("id") for row in self._failures.rows()]
        row = failure = 0
        for name in names:
            if failure < len(failed) and failed[failure] == name:
                failure += 1
            elif row < len(rows) and rows[row] == hash_of(name):
                row += 1
            else:
                break
        if (row, failure) != (len(rows), len(failed)):
            self._start_over()
        return self._clips + self._failed

    def _start_over(self) -> None:
        with self._told():
            for file in (self._codes, self._meta, self._index):
                file.truncate(0)
            (self.folder / FAILURES).unlink(missing_ok=True)
        self._clips = self._failed = self._samples = self.frames = self._meta_end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, name: str, codes: NDArray[Any], samples: int, meta: Mapping[str, Any]) -> None:
        """Add a clip: its codes (n_q, L), its samples at the codec's input rate, and what else is known of it.

        Raises StoreError if the codes have another shape or range than the description says, or the disk is full.
        """
        about = self.description
        if codes.ndim != 2 or codes.shape[0] != about.n_q:
            raise StoreError(f"{name}: codes of shape {codes.shape} do not fit a store of {about.n_q} codebooks")
        if not np.issubdtype(codes.dtype, np.integer):
            raise StoreError(f"{name}: its codes are {codes.dtype} numbers: give integers")
        if codes.size and (int(codes.min()) < 0 or int(codes.max()) >= about.codebook_size):
            raise StoreError(f"{name}: holds a code outside 0 to {about.codebook_size - 1}")
        own = {"id": name, "seconds": round(samples / about.sample_rate, 6)}
        line = json.dumps(own | {key: meta[key] for key in meta if key not in own}, ensure_ascii=False).encode() + b"\n"
        body = np.ascontiguousarray(codes.T.astype(about.dtype)).tobytes()
        crc = zlib.crc32(line, zlib.crc32(body))
        row = (self.frames, self._meta_end, samples, hash_of(name), codes.shape[1], crc)
        with self._told():
            _append(self._codes, body)
            _append(self._meta, line)
            _append(self._index, np.array([row], ROW).tobytes())
        self._clips, self._samples = self._clips + 1, self._samples + samples
        self.frames, self._meta_end = self.frames + codes.shape[1], self._meta_end + len(line)

    def fail(self, name: str, audio: str, error: str) -> None:
        """Note a clip that could not be encoded, and why."""
        self._failures.append({"id": name, "audio": audio, "error": error})
        self._failed += 1

    def close(self) -> None:
        """Leave the shard as it is, to go on later."""
        for file in (self._codes, self._meta, self._index):
            file.close()

    def finish(self, place: Path) -> None:
        """Complete the shard and move it to `place`."""
        with self._told():
            self.close()
            names = [name for name in (CODES, FAILURES, INDEX, META) if (self.folder / name).exists()]
            counts = {
                "clips": self._clips,
                "frames": self.frames,
                "samples": self._samples,
                "failures": self._failed,
                "sha256": {name: sha256_of(self.folder / name) for name in names},
            }
            (self.folder / SHARD).write_text(json.dumps(counts) + "\n", encoding="utf-8")
            for name in (*names, SHARD):
                with open(self.folder / name, "rb") as file:
                    os.fsync(file.fileno())
            place.parent.mkdir(parents=True, exist_ok=True)
            self.folder.rename(place)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(os_error_line(str(self.folder), "written", error)) from error


def whole_rows(folder: Path, description: Description) -> tuple[NDArray[Any], int]:
    """The rows of a shard's index up to the first clip that is not whole, and where the last one's metadata end."""
    paths = [folder / name for name in (CODES, META, INDEX)]
    if not all(path.exists() for path in paths):
        return np.zeros(0, ROW), 0
    codes, meta, index = map(mapped, paths)
    rows = np.frombuffer(index, ROW, len(index) // ROW.itemsize)
    frame, end = description.n_q * description.dtype.itemsize, 0
    for number, row in enumerate(rows):
        first = int(row["first"]) * frame
        line = meta[end : meta.find(b"\n", end) + 1]
        body = codes[first : first + int(row["frames"]) * frame]
        if not line or int(row["meta"]) != end or zlib.crc32(line, zlib.crc32(body)) != row["crc"]:
            return rows[:number].copy(), end
        end += len(line)
    return rows.copy(), end


def _append(file: FileIO, data: bytes) -> None:
    """Write all of it: a disk that fills takes a part first, and says so at the next write only."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _opened(path: Path, size: int) -> FileIO:
    """A file to append to after its first `size` bytes, unbuffered."""
    file = open(path, "ab", buffering=0)  # noqa: SIM115 - the writer closes it
    file.truncate(size)
    return file


def sha256_of(path: Path) -> str:
    """Hexadecimal digits of a file's SHA-256. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- whole stores ------------------------------------------------------------------------------


def begin_store(folder: Path, description: Description) -> None:
    """Make a store's folder and describe its codes there; a store that was begun with the same is left as it is.

    Raises StoreError, which says what differs, if it was begun with other codes, or if it cannot be written.
    """
    path = folder / STORE
    if path.exists():
        if differs := read_description(folder).difference(description):
            raise StoreError(f"{folder}: was begun with other codes ({differs}): choose another folder")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(not is_scratch(path) for path in folder.iterdir()):
            raise StoreError(f"{folder}: holds other files: choose a new folder for the store")
        with atomic_path(path, StoreError) as scratch:
            scratch.write_text(description.to_json(), encoding="utf-8")
    except OSError as error:
        raise StoreError(os_error_line(str(folder), "written", error)) from error


def finish_store(folder: Path) -> None:
    """Join the shards that are there: list them, order their ids, gather their failures. Raises StoreError."""
    try:
        shards = sorted((folder / SHARDS).iterdir())
        rows = [{"name": path.name} | read_counts(path) for path in shards]
        with atomic_path(folder / FAILURES, StoreError) as scratch, open(scratch, "wb") as file:
            for path in shards:
                if (path / FAILURES).exists():
                    file.write((path / FAILURES).read_bytes())
        with atomic_path(folder / IDS, StoreError) as scratch:
            scratch.write_bytes(id_table(shards))
        with atomic_path(folder / SHARD_LIST, StoreError) as scratch:
            scratch.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    except OSError as error:
        raise StoreError(os_error_line(str(folder), "written", error)) from error


def id_table(shards: Iterable[Path]) -> bytes:
    """The bytes of IDS: hashes of all ids in order, then the numbers of their clips. Raises OSError."""
    hashes = np.concatenate([np.zeros(0, "<u8"), *(np.fromfile(shard / INDEX, ROW)["id"] for shard in shards)])
    order = np.argsort(hashes, kind="stable")
    return hashes[order].astype("<u8").tobytes() + order.astype("<u4").tobytes()


def write_store(
    folder: Path, description: Description, clips: Iterable[StoredClip], shard_clips: int = SHARD_CLIPS
) -> None:
    """Write clips as a new store, which appears only when it is complete.

    Raises StoreError if `folder` exists or cannot be written, two clips have one id, or one does not fit.
    """
    with new_folder(folder, StoreError) as made:
        begin_store(made, description)
        (made / SHARDS).mkdir()
        left = iter(clips)
        seen: set[int] = set()
        for number in count():
            some = list(islice(left, 1))
            if not some:
                break
            with ShardWriter(made / "writing", description) as writer:
                for clip in chain(some, islice(left, shard_clips - 1)):
                    if hash_of(clip.id) in seen:
                        raise StoreError(f"{folder}: two clips are called {clip.id!r}: leave one of them out")
                    seen.add(hash_of(clip.id))
                    writer.add(clip.id, clip.codes, clip.samples, clip.meta)
                writer.finish(made / SHARDS / shard_name(number))
        finish_store(made)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait until no other process holds this lock, and hold it. Raises StoreError if the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")  # noqa: SIM115
    except OSError as error:
        raise StoreError(os_error_line(str(path), "written", error)) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
