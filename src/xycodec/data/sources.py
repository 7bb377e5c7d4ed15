"""Corpora as Lhotse cuts, whatever form they are kept in, read from their first cut to their last."""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from lhotse import CutSet
from lhotse.cut import Cut

from xycodec.data.config import SourceConfig
from xycodec.data.manifest import SUFFIXES, read_cuts
from xycodec.data.shards import WebDatasetCuts, open_shar
from xycodec.data.tars import members
from xycodec.errors import ConfigError


class Cuts(Protocol):
    """Anything that yields the same cuts, in the same order, each time it is iterated."""

    def __iter__(self) -> Iterator[Cut]:
        """Begin at the first cut."""


class Source(Cuts, Protocol):
    """The cuts of a corpus on disk."""

    files: list[Path]
    """The files that decide what it yields."""

    @property
    def parts(self) -> "Sequence[Source]":
        """Pieces that can be read apart from each other, in order."""


class ManifestCuts:
    """The cuts of a Lhotse manifest file, read line by line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = [path]

    @property
    def parts(self) -> "list[ManifestCuts]":
        """The file, which can only be read as a whole."""
        return [self]

    def __iter__(self) -> Iterator[Cut]:
        return read_cuts(self.path)


def open_source(config: SourceConfig) -> CutSet:
    """Open a corpus as a lazy CutSet: a Lhotse manifest, a Lhotse Shar folder, or WebDataset tars (a path or glob).

    Raises:
        ConfigError: nothing is there, it is none of these, or its first cut cannot be read.
    """
    cuts = opened(config.path)
    if next(iter(cuts), None) is None:
        raise ConfigError(f"{config.path}: holds no clips: check the path, or leave the source out")
    return CutSet(cuts)


def open_once(sources: Sequence[SourceConfig]) -> CutSet:
    """Open corpora one after the other, whatever their weights: every cut once. Raises as `open_source` does."""
    return CutSet(_Chain([open_source(source) for source in sources]))


class _Chain:
    def __init__(self, parts: Sequence[Cuts]) -> None:
        self.parts = parts

    def __iter__(self) -> Iterator[Cut]:
        for part in self.parts:
            yield from part


def opened(text: str) -> Source:
    """The source at a path or glob, before anything of it is read. Raises ConfigError if it is of no known form."""
    path = Path(text)
    if path.is_dir():
        return open_shar(path)
    if text.endswith(SUFFIXES):
        return ManifestCuts(path)
    if not text.endswith(".tar"):
        forms = "a Lhotse manifest (.jsonl, .jsonl.gz), a Shar folder, or WebDataset tars (*.tar)"
        raise ConfigError(f"{text}: not a source of data: give {forms}")
    # A name may hold the signs of a glob.
    tars = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(text, recursive=True))]
    if not tars:
        raise ConfigError(f"{text}: no such file: check the path")
    for tar in tars:
        next(members(tar), None)
    return WebDatasetCuts(tars)
