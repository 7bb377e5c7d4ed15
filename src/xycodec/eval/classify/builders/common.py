"""Steps that several data sets share: tables, and clips divided at random."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from xycodec.errors import ConfigError
from xycodec.eval.classify.clips import LabelledClip, Split
from xycodec.io.files import open_input

Builder = Callable[[Path], list[LabelledClip]]
SEED = 42  # ARCH's, though its generator draws others


def table_rows(path: Path, columns: Sequence[str], delimiter: str = ",") -> Iterator[dict[str, str]]:
    """Yield the rows of a table with a header. Raises ConfigError where it cannot be read or lacks a column."""
    reader = csv.DictReader(io.StringIO(text_of(path)), delimiter=delimiter)
    if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
        raise ConfigError(f"{path}: has no column {missing[0]!r}: take the data set's own file")
    for row in reader:
        if any(row[name] is None for name in columns):
            raise ConfigError(
                f"{path}:{reader.line_num}: has fewer columns than the header: take the data set's own file"
            )
        yield row


def text_of(path: Path) -> str:
    """The text of a file. Raises ConfigError."""
    with open_input(path, ConfigError) as file:
        return file.read().decode("utf-8", errors="replace")


def named_files(folder: Path, pattern: str) -> list[Path]:
    """The files below a folder that match, in order. Raises ConfigError if there are none."""
    found = sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))
    if not found:
        raise ConfigError(f"{folder}: holds no {pattern}: give the folder that the data set was unpacked into")
    return found


def divided(clips: Sequence[LabelledClip], shares: dict[Split, float]) -> list[LabelledClip]:
    """The clips with splits drawn at random, in shares that add up to 1, the same each time."""
    order = np.random.default_rng(SEED).permutation(len(clips))
    ends = np.cumsum([round(share * len(clips)) for share in shares.values()])
    ends[-1] = len(clips)
    places = np.searchsorted(ends, np.argsort(order), side="right")
    names: list[Any] = list(shares)
    return [replace(clip, split=names[place]) for clip, place in zip(clips, places, strict=True)]
