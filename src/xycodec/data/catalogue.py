"""Catalogues: the cuts of a source by their numbers, and facts of each, made in one pass and kept on disk.

A catalogue holds every cut's line compressed, so that any of them is read in microseconds whatever the source is; what
stays in memory are the pages that are in use, shared by all processes of a machine.
"""

import fcntl
import json
import mmap
import multiprocessing
import os
import shutil
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item

from xycodec.data.config import SourceConfig
from xycodec.data.facts import FACTS, Facts, facts_of
from xycodec.data.manifest import read_lines
from xycodec.data.sources import ManifestCuts, Source, opened
from xycodec.errors import ConfigError
from xycodec.io.cores import available_cores
from xycodec.io.digests import digest_of, file_stamp
from xycodec.io.files import new_folder, os_error_line

CACHE = "XYCODEC_CACHE"  # environment variable: the folder that keeps what can be made again
_FORMAT = 1
_DICTIONARY = 32_768  # bytes of lines that the compressor of each line knows
_TOLD = 500_000  # cuts after which a pass that goes on says so
_CHUNK = 10_000  # rows that are written at once
_LARGE = 4 << 30  # bytes of tars from which on several processes read them

_Record = tuple[bytes, tuple[float, int, bool, bool]]

Tell = Callable[[str], None]
"""Callback for a line to a person who waits."""


class Catalogue:
    """The cuts of a source by number, in the source's order; pickled, it is its folder's name.

    Attributes:
        facts: (N,) rows of FACTS, mapped from disk.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: Facts = np.memmap(folder / "facts.bin", FACTS, "r")
        self._dictionary = (folder / "dictionary.bin").read_bytes()
        with open(folder / "cuts.bin", "rb") as file:
            self._lines = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __reduce__(self) -> tuple[Any, ...]:
        return Catalogue, (self.folder,)

    def __len__(self) -> int:
        return len(self.facts)

    def __getitem__(self, number: int) -> Cut:
        begin = int(self.facts["end"][number - 1]) if number else 0
        packed = self._lines[begin : int(self.facts["end"][number])]
        line = zlib.decompressobj(-zlib.MAX_WBITS, self._dictionary).decompress(packed)
        return deserialize_item(json.loads(line))


def open_catalogue(config: SourceConfig, tell: Tell = lambda line: None) -> Catalogue:
    """Find the catalogue of a source, or make it: one pass over the source, whose every cut is checked.

    It is kept below the folder that the environment's XYCODEC_CACHE names (else `~/.cache/xycodec`) until a file of the
    source changes. Of several processes one makes it, and the others wait.

    Raises:
        ConfigError: the source cannot be read or holds no cuts, or the folder cannot be written.
    """
    source = opened(config.path)
    try:
        stamps = [file_stamp(path) for path in source.files]
    except OSError as error:
        raise ConfigError(os_error_line(config.path, "read", error)) from error
    home, name = _home(), digest_of(os.path.abspath(config.path))
    folder = home / f"{name}-{digest_of([_FORMAT, stamps])}"
    if not folder.is_dir():
        with _alone(home / f"{name}.lock"):
            if not folder.is_dir():
                _replace(home.glob(f"{name}-*"), folder, source, config.path, tell)
    return Catalogue(folder)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Context manager of one process at a time: waits for the others to leave it."""
    with ExitStack() as stack:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context(open(lock, "ab")), fcntl.LOCK_EX)
        except OSError as error:
            raise ConfigError(f"{os_error_line(str(lock.parent), 'written', error)}, or set {CACHE}") from error
        yield


def _replace(olds: Iterable[Path], folder: Path, source: Source, name: str, tell: Tell) -> None:
    for old in olds:  # processes that read one keep it open
        shutil.rmtree(old, ignore_errors=True)
    try:
        with new_folder(folder, ConfigError) as made:
            _make(source, name, made, tell)
    except BrokenProcessPool:
        raise ConfigError(f"{name}: a process that lists it died (out of memory?): try again") from None


def _make(source: Source, name: str, folder: Path, tell: Tell) -> None:
    records = _records(source)
    first: list[_Record] = []
    for record in records:
        first.append(record)
        if sum(len(line) for line, _ in first) >= _DICTIONARY:
            break
    if not first:
        raise ConfigError(f"{name}: holds no clips: check the path, or leave the source out")
    dictionary = b"".join(line for line, _ in first)[-_DICTIONARY:]
    (folder / "dictionary.bin").write_bytes(dictionary)
    (folder / "source.txt").write_text(f"{name}\n", encoding="utf-8")
    fresh = zlib.compressobj(1, wbits=-zlib.MAX_WBITS, zdict=dictionary)
    rows: list[tuple[Any, ...]] = []
    end = 0
    with open(folder / "cuts.bin", "wb") as lines, open(folder / "facts.bin", "wb") as facts:
        for number, (line, row) in enumerate(chain(first, records), 1):
            packer = fresh.copy()
            end += lines.write(packer.compress(line) + packer.flush())
            rows.append((*row, end))
            if len(rows) == _CHUNK:
                np.array(rows, FACTS).tofile(facts)
                rows.clear()
            if number % _TOLD == 0:
                tell(f"data: {name}: {number:,} clips listed, once for all runs")
        np.array(rows, FACTS).tofile(facts)


def _records(source: Source) -> Iterator[_Record]:
    """Every cut's line of JSON and its facts; of many large parts, several at once."""
    parts = source.parts
    processes = min(len(parts), available_cores())
    if processes == 1 or sum(path.stat().st_size for path in source.files) < _LARGE:
        for part in parts:
            yield from _records_of(part)
        return
    # Forking a process that has used torch's threads can hang, so fresh ones are started.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        waiting: deque[Future[list[_Record]]] = deque()
        for part in parts:
            waiting.append(pool.submit(_whole, part))
            if len(waiting) > 2 * processes:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _whole(part: Source) -> list[_Record]:
    return list(_records_of(part))


def _records_of(part: Source) -> Iterator[_Record]:
    if isinstance(part, ManifestCuts):
        yield from ((line.encode(), facts_of(cut)) for line, cut in read_lines(part.path))
    else:
        yield from ((json.dumps(cut.to_dict(), ensure_ascii=False).encode(), facts_of(cut)) for cut in part)


def _home() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get(CACHE) or Path(caches, "xycodec")).expanduser() / "catalogues"
