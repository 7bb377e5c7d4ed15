"""Features of clips on disk, computed once: arrays of float32 in one file, with a journal of what is whole."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xycodec.errors import StoreError
from xycodec.io.files import os_error_line
from xycodec.io.journal import Journal

Rows = NDArray[np.float32]
ITEM = 4  # bytes of a number


class FeatureStore:
    """Arrays (n, D) of clips by their keys, each n its own. What a kill left behind is cut off and made again.

    Raises StoreError if the folder cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._data, self._journal = folder / "features.f32", Journal(folder / "clips.jsonl")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._data.touch()
            self.rows: dict[str, dict[str, Any]] = {row["key"]: row for row in self._journal.rows()}
            """Facts on each clip: `seconds`, or `error` where it has no features."""
            self._end = max((row["first"] + row["count"] for row in self.rows.values() if "first" in row), default=0)
            if self._data.stat().st_size < self._end * ITEM:
                raise StoreError(f"{self._data}: shorter than {self._journal.path.name} says: remove the folder")
            with open(self._data, "r+b") as file:
                file.truncate(self._end * ITEM)
        except OSError as error:
            raise StoreError(os_error_line(str(folder), "written", error)) from error

    def __contains__(self, key: str) -> bool:
        return "first" in self.rows.get(key, {})

    def add(self, key: str, features: Rows, seconds: float) -> None:
        """Keep the features (n, D) of a clip. Raises StoreError if the disk does not take them."""
        flat = np.ascontiguousarray(features, dtype="<f4")
        try:
            with open(self._data, "ab") as file:
                file.write(flat.tobytes())
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
