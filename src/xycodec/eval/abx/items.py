"""Item files of ABX: which stretches of which recordings are which phones, as Libri-light writes them.

    #file onset offset #phone prev-phone next-phone speaker
    6295-64301-0000 0.31 0.4 AH N DH 6295

Columns are separated by blanks; times are in seconds. What cannot be used is left out and counted, with its place.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from xycodec.errors import ConfigError, XycodecError
from xycodec.io.audio import audio_files
from xycodec.io.files import open_input

COLUMNS = "#file onset offset #phone prev-phone next-phone speaker"
_SLACK_S = 0.1  # aligners round, and pad the end of a recording


@dataclass(frozen=True)
class PhoneItem:
    """One phone in a recording."""

    file: str
    """Name of the recording, without folder and suffix."""
    onset: float
    """Seconds, as is `offset`."""
    offset: float
    phone: str
    context: tuple[str, str]
    """The phones before and after."""
    speaker: str


@dataclass(frozen=True)
class LeftOut:
    """Items that cannot be used, all for one reason."""

    reason: str
    items: int
    places: tuple[str, ...]
    """Places to look at: lines of the item file, or recordings."""


class Omissions:
    """Counts what is left out: places and their items by reason."""

    def __init__(self) -> None:
        self._places: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def add(self, reason: str, place: str, items: int = 1) -> None:
        """Leave out `items`."""
        self._places[reason][place] += items

    def listed(self) -> tuple[LeftOut, ...]:
        """List all reasons, in the order in which they came up."""
        return tuple(LeftOut(reason, places.total(), tuple(places)) for reason, places in self._places.items())


def read_items(path: Path, omissions: Omissions) -> list[PhoneItem]:
    """Read an item file; a stretch that does not end after it begins is left out.

    Raises ConfigError if the file cannot be read, holds no item, or a line has not the seven columns.
    """
    items = []
    for number, line in enumerate(_lines(path), 1):
        columns = line.split()
        if not columns or (number == 1 and line.startswith("#")):
            continue
        where = f"{path}:{number}"
        if len(columns) != len(COLUMNS.split()):
            raise ConfigError(f"{where}: {len(columns)} columns, not {len(COLUMNS.split())}: give {COLUMNS}")
        file, onset, offset, phone, before, after, speaker = columns
        item = PhoneItem(file, _seconds(onset, where), _seconds(offset, where), phone, (before, after), speaker)
        if item.onset < item.offset:
            items.append(item)
        else:
            omissions.add("it does not end after it begins", where)
    if not items:
        raise ConfigError(f"{path}: it holds no item: give lines of {COLUMNS}")
    return items


def _lines(path: Path) -> list[str]:
    with open_input(path, ConfigError) as file:
        try:
            return file.read().decode("utf-8").splitlines()
        except OSError as error:
            raise ConfigError(f"{path}: it cannot be read ({error.strerror}): give an item file") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: it is not text in UTF-8: give an item file") from error


def _seconds(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (isfinite(value) and value >= 0):
        raise ConfigError(f"{where}: {text!r} is not a time in seconds: give {COLUMNS}")
    return value


def find_audio(
    folder: Path, items: Sequence[PhoneItem], omissions: Omissions
) -> tuple[dict[str, Path], list[PhoneItem]]:
    """The recordings of items, by name, wherever below `folder` they are, and the items that have one.

    Raises XycodecError if `folder` is not one or has none of them.
    """
    if not folder.is_dir():
        raise XycodecError(f"{folder}: not a folder: give the one that holds the recordings")
    wanted = {item.file for item in items}
    found: defaultdict[str, list[Path]] = defaultdict(list)
    for path in audio_files(folder):
        if path.stem in wanted:
            found[path.stem].append(path)
    if not found:
        example = items[0].file
        raise XycodecError(f"{folder}: no recording of the item file is in it, such as {example!r}: give its folder")
    kept = []
    for item in items:
        match len(found.get(item.file, ())):
            case 0:
                omissions.add("there is no recording of its name", item.file)
            case 1:
                kept.append(item)
            case _:
                omissions.add("several recordings have its name", item.file)
    return {item.file: found[item.file][0] for item in kept}, kept


def within_audio(items: Sequence[PhoneItem], seconds: Mapping[str, float], omissions: Omissions) -> list[PhoneItem]:
    """Items of recordings whose length is in `seconds`, without those that end more than 0.1 s after it."""
    kept = []
    for item in items:
        if item.file in seconds:
            end = seconds[item.file]
            if item.onset < end and item.offset <= end + _SLACK_S:
                kept.append(item)
            else:
                omissions.add("it lies beyond the end of the recording", f"{item.file} ({end:.2f} s)")
    return kept
