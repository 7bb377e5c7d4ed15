"""Codes of many clips on disk: computed once, found again by a key, and whole again after a kill."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xycodec.errors import XycodecError
from xycodec.io.files import os_error_line
from xycodec.io.journal import Journal

JOURNAL, STEM = "codes.jsonl", "codes"
Codes = NDArray[np.uint16] | NDArray[np.uint32]


def digest_of(about: Any) -> str:
    """32 hexadecimal digits of what JSON can say; other objects count by their `repr`."""
    return hashlib.blake2b(json.dumps(about, default=repr).encode(), digest_size=16).hexdigest()


def file_stamp(path: Path) -> list[Any]:
    """Place, size and time of a file, which tell its contents from all others. Raises OSError."""
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def file_digest(path: Path) -> str:
    """32 hexadecimal digits of a file's bytes, read once while the file is not touched. Raises OSError."""
    stat = path.stat()
    # The time of a file's last change, unlike that of its last writing, cannot be set back.
    return _digest(str(path.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@lru_cache(maxsize=4096)
def _digest(path: str, *stamp: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


class CodeStore:
    """The codes of one codec for many clips, in a folder: one flat file, and a journal with a row for each clip.

    `codes.u2` (`codes.u4` where a codebook has over 65536 codes) holds one frame after another, little endian.
    `codes.jsonl` begins with a row of what the codes are of; a clip's row is written after its codes, so that what a
    kill interrupts is not there. Several processes may add to one folder.

    Args:
        folder: made if it is not there.
        about: what the codes are of, in plain types; `size`, the codes of a codebook, is required. None opens what
            there is, to read it.
        error: class of what is raised, one line: the folder holds codes of something else, is damaged, or cannot be
            written.
    """

    def __init__(
        self, folder: Path, about: Mapping[str, Any] | None = None, *, error: type[XycodecError] = XycodecError
    ) -> None:
        self.folder, self._error, self._journal = folder, error, Journal(folder / JOURNAL)
        self.newest: dict[str, dict[str, Any]] = {}
        """The last row of each key."""
        self.log: list[dict[str, Any]] = []
        """A row for each clip, in the order they came: `key`; of clips with codes `first` (codes before its own),
        `frames` and `layers`; and what else was said of it."""
        self.about = dict(about or {})
        if about is None and not self._journal.path.exists():
            return
        with self._locked():
            rows = self._journal.rows()
            if not rows:
                self._journal.append(self.about)
            elif about is None:
                self.about = rows[0]
            elif rows[0] != self.about:
                was = ", ".join(f"{key} {rows[0].get(key)}" for key in self.about if rows[0].get(key) != about[key])
                raise error(f"{folder}: was begun with other codes ({was}): choose another folder")
            self.log = rows[1:]
            self._mend()
        self.newest = {row["key"]: row for row in self.log}

    @property
    def path(self) -> Path:
        """The flat file; its suffix is the type of its numbers, as numpy writes it."""
        return self.folder / f"{STEM}.{self._kind.str[1:]}"

    def __contains__(self, key: str) -> bool:
        """Whether there are codes of `key`."""
        return "frames" in self.newest.get(key, {})

    def codes(self, key: str) -> Codes:
        """The codes (layers, frames) of a clip. Raises KeyError if there are none."""
        row = self.newest[key]
        flat: Codes = np.fromfile(self.path, self._kind, row["frames"] * row["layers"], offset=self._offset(row))
        return flat.reshape(row["frames"], row["layers"]).T

    def add(self, key: str, codes: NDArray[Any] | None = None, **more: Any) -> None:
        """Keep a clip's codes (layers, frames), or only `more` of it, such as why it has none."""
        row: dict[str, Any] = {"key": key}
        with self._locked():
            if codes is not None:
                row |= {"first": self._append(codes), "frames": codes.shape[1], "layers": codes.shape[0]}
            row |= more
            self._journal.append(row)
        self.log.append(row)
        self.newest[key] = row

    # ---- the files -----------------------------------------------------------------------------

    @property
    def _kind(self) -> np.dtype[Any]:
        return np.dtype("<u2" if self.about["size"] <= 1 << 16 else "<u4")

    def _offset(self, row: Mapping[str, Any]) -> int:
        return int(row["first"]) * self._kind.itemsize

    def _append(self, codes: NDArray[Any]) -> int:
        """Write codes, and tell how many come before them."""
        with open(self.path, "ab") as file:
            # Another process may have died after half a number.
            first = -(-file.tell() // self._kind.itemsize)
            file.truncate(first * self._kind.itemsize)
            file.write(codes.T.astype(self._kind).tobytes())
        return first

    def _mend(self) -> None:
        """Take what a kill left without its row off the flat file."""
        rows = [row for row in self.log if "frames" in row]
        whole = max((row["first"] + row["frames"] * row["layers"] for row in rows), default=0) * self._kind.itemsize
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < whole:
            raise self._error(f"{self.path}: lacks codes that {JOURNAL} has: remove the folder, and begin again")
        if size > whole:
            os.truncate(self.path, whole)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self._journal.path, "ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield
        except OSError as reason:
            raise self._error(os_error_line(str(self.folder), "written", reason)) from reason
