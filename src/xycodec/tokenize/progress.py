"""Progress of a store that is being written, read from its files, whichever processes write them."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from xycodec.io.tokens.layout import FAILURES, INDEX, ROW, SHARDS, Description
from xycodec.io.tokens.read import read_counts
from xycodec.tokenize.plan import WORK


class Progress:
    """Clips and seconds of a begun store that are done; finished shards are read once."""

    def __init__(self, folder: Path, description: Description) -> None:
        self._folder, self._rate = folder, description.sample_rate
        self._finished: dict[str, _Done] = {}
        self._told = (0, 0.0)

    def done(self) -> tuple[int, float]:
        """Clips, failures among them, and seconds."""
        counts = self._counts()
        return sum(one.clips + one.failures for one in counts), sum(one.samples for one in counts) / self._rate

    def encoded(self) -> int:
        """Clips that have codes."""
        return sum(one.clips for one in self._counts())

    def _counts(self) -> "list[_Done]":
        for name in _names(self._folder / SHARDS) - self._finished.keys():
            row = read_counts(self._folder / SHARDS / name)
            self._finished[name] = _Done(row["clips"], row["failures"], row["samples"])
        parts = {name: self._part(name) for name in _names(self._folder / WORK) if name.startswith("shard-")}
        return [*self._finished.values(), *(parts[name] for name in parts if name[6:] not in self._finished)]

    def news(self) -> tuple[int, float]:
        """Clips and seconds done since the last call, or since the beginning."""
        now, before = self.done(), self._told
        self._told = now
        return now[0] - before[0], now[1] - before[1]

    def _part(self, name: str) -> "_Done":
        part = self._folder / WORK / name
        index, failures = _read(part / INDEX), _read(part / FAILURES)
        rows = np.frombuffer(index, ROW, len(index) // ROW.itemsize)
        return _Done(len(rows), failures.count(b"\n"), int(rows["samples"].sum()))


class _Done(NamedTuple):
    clips: int
    failures: int
    samples: int


def _names(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has just been finished, or is no shard
        return b""
