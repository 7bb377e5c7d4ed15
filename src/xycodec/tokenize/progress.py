"""Progress of a store that is being written, read from its files, whichever processes write them."""

import json
import os
from pathlib import Path

import numpy as np

from xycodec.io.tokens.layout import FAILURES, INDEX, ROW, SHARD, SHARDS, Description
from xycodec.tokenize.plan import WORK


class Progress:
    """Clips and seconds of a begun store that are done; finished shards are read once."""

    def __init__(self, folder: Path, description: Description) -> None:
        self._folder, self._rate = folder, description.sample_rate
        self._finished: dict[str, tuple[int, int]] = {}
        self._told = (0, 0.0)

    def done(self) -> tuple[int, float]:
        """Clips done, failures included, and their seconds."""
        for name in _names(self._folder / SHARDS) - self._finished.keys():
            row = json.loads((self._folder / SHARDS / name / SHARD).read_bytes())
            self._finished[name] = (row["clips"] + row["failures"], row["samples"])
        parts = {name: self._part(name) for name in _names(self._folder / WORK) if name.startswith("shard-")}
        counts = [*self._finished.values(), *(parts[name] for name in parts if name[6:] not in self._finished)]
        return sum(clips for clips, _ in counts), sum(samples for _, samples in counts) / self._rate

    def news(self) -> tuple[int, float]:
        """Clips and seconds done since the last call, or since the beginning."""
        now, before = self.done(), self._told
        self._told = now
        return now[0] - before[0], now[1] - before[1]

    def _part(self, name: str) -> tuple[int, int]:
        part = self._folder / WORK / name
        index, failures = _read(part / INDEX), _read(part / FAILURES)
        rows = np.frombuffer(index, ROW, len(index) // ROW.itemsize)
        return len(rows) + failures.count(b"\n"), int(rows["samples"].sum())


def _names(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has just been finished, or is no shard
        return b""
