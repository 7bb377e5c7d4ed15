"""Features of clips on disk, computed once: arrays of float32 in one file, with a journal of what is whole."""

import fcntl
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from xycodec.errors import StoreError
from xycodec.io.files import os_error_line
from xycodec.io.journal import Journal

Rows = NDArray[np.float32]
ITEM = 4  # bytes of a number


class FeatureStore:
    """Arrays (n, D) of clips by their keys, each n its own. What a kill left behind is cut off and made again.

    One process has it at a time, until it is closed. Raises StoreError if another has it, or the folder cannot be read
    or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._data, self._journal = folder / "features.f32", Journal(folder / "clips.jsonl")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self._data, "ab+")  # noqa: SIM115  # held until `close`, and the lock with it
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.rows: dict[str, dict[str, Any]] = {row["key"]: row for row in self._journal.rows()}
            """Facts on each clip: `seconds`, or `error` where it has no features."""
            self._end = max((row["first"] + row["count"] for row in self.rows.values() if "first" in row), default=0)
            if self._data.stat().st_size < self._end * ITEM:
                self._file.close()
                raise StoreError(f"{self._data}: shorter than {self._journal.path.name} says: remove the folder")
            self._file.truncate(self._end * ITEM)
        except BlockingIOError:
            self._file.close()
            raise StoreError(f"{folder}: another process has it: wait for its end, or choose another cache") from None
        except OSError as error:
            raise StoreError(os_error_line(str(folder), "written", error)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others have it."""
        self._file.close()

    def __contains__(self, key: str) -> bool:
        return "first" in self.rows.get(key, {})

    def add(self, key: str, features: Rows, seconds: float) -> None:
        """Keep the features (n, D) of a clip. Raises StoreError if the disk does not take them."""
        flat = np.ascontiguousarray(features, dtype="<f4")
        try:
            self._file.write(flat.tobytes())
            self._file.flush()
        except OSError as error:
            raise StoreError(os_error_line(str(self._data), "written", error)) from error
        # After the data: a kill between the two loses a clip and nothing else.
        self._note(key, {"seconds": seconds, "first": self._end, "count": flat.size, "width": flat.shape[1]})
        self._end += flat.size

    def fail(self, key: str, error: str) -> None:
        """Note why a clip has no features; it is tried again next time."""
        self._note(key, {"error": error})

    def features(self, key: str) -> Rows:
        """The features (n, D) of a clip. Raises KeyError if there are none."""
        row = self.rows[key]
        if "first" not in row:
            raise KeyError(key)
        flat = np.fromfile(self._data, "<f4", row["count"], offset=row["first"] * ITEM)
        return flat.reshape(-1, row["width"])

    def _note(self, key: str, about: dict[str, Any]) -> None:
        row = {"key": key, **about}
        self._journal.append(row)
        self.rows[key] = row
