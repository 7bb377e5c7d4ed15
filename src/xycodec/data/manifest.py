"""Manifests, one JSON object a line: Lhotse's cuts are read, and ours are made into them."""

import gzip
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from lhotse import AudioSource, Recording, SupervisionSegment
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item

from xycodec.errors import AudioError, ConfigError
from xycodec.io.audio import audio_info
from xycodec.io.files import atomic_path, os_error_line

SUFFIXES = (".jsonl", ".jsonl.gz")
_REQUIRED: dict[str, type | tuple[type, ...]] = {"audio": str, "duration": (int, float)}
_OPTIONAL = ("text", "speaker", "language", "source", "licence")


@dataclass(frozen=True)
class ImportReport:
    """Report on an imported manifest: clips, their seconds, those with text, and (audio, reason) of those left out."""

    clips: int
    seconds: float
    with_text: int
    left_out: tuple[tuple[str, str], ...]


def import_manifest(
    manifest: Path, target: Path, *, advance: Callable[[int], None] = lambda clips: None
) -> ImportReport:
    """Write the clips of our JSONL `manifest` as Lhotse cuts to `target`, which appears only when it is complete.

    A row has `audio` (path, relative to the manifest's folder), `duration` (seconds) and, where known, `text`,
    `speaker`, `language`, `source` and `licence`. A cut's id is its path as in the row; its rate and length are
    what the audio's header says. Audio that cannot be read is left out and reported.

    Args:
        manifest: file to read.
        target: file to write, `.jsonl` or `.jsonl.gz`.
        advance: called with 1 after each row.

    Raises:
        ConfigError: one line with `file:line` for a row that is not valid; or `target` has another suffix or
            cannot be written; or no clip is left.
    """
    if not target.name.endswith(SUFFIXES):
        raise ConfigError(f"{target}: cuts are written to {' or '.join(SUFFIXES)}: choose such a name")
    try:
        with atomic_path(target, ConfigError) as temporary, open_text(temporary, "wt") as file:
            return _write(manifest, file, advance)
    except OSError as error:  # reading raises errors of ours
        raise ConfigError(os_error_line(str(target), "written", error)) from error


def read_cuts(path: Path) -> Iterator[Cut]:
    """Yield the cuts of a Lhotse manifest, `.jsonl` or `.jsonl.gz`. Raises ConfigError with `file:line`."""
    yield from (cut for _, cut in read_lines(path))


def read_lines(path: Path) -> Iterator[tuple[str, Cut]]:
    """Yield the lines of a Lhotse manifest with the cuts that they are. Raises as `read_cuts` does."""
    for number, line in _lines(path):
        yield line, _parsed(line, f"{path}:{number}")


def is_ours(path: Path) -> bool:
    """Whether a manifest is of our rows rather than Lhotse's. Raises ConfigError if it cannot be read."""
    _, first = next(_lines(path), (0, ""))
    try:
        row = json.loads(first)
    except ValueError:
        return False
    return isinstance(row, dict) and "audio" in row and "type" not in row


def row_cut(folder: Path, row: dict[str, Any]) -> Cut:
    """The cut of a row of our manifest in `folder`. Raises AudioError if its audio's header cannot be read."""
    path = (folder / row["audio"]).resolve()
    info = audio_info(path)
    if not info.num_samples:
        raise AudioError(f"{str(path)!r} holds no samples: give a recording that is not empty")
    name = row["audio"]
    source = AudioSource(type="file", channels=list(range(info.channels)), source=str(path))
    cut = Recording(name, [source], info.sample_rate, info.num_samples, info.duration).to_cut()
    words = {key: row.get(key) for key in ("text", "speaker", "language")}
    origin = {key: row[key] for key in ("source", "licence") if row.get(key)}
    cut.supervisions = [SupervisionSegment(name, name, 0.0, cut.duration, custom=origin or None, **words)]
    return cut


def open_text(path: Path, mode: str) -> IO[str]:
    """Open a text file to read ("rt") or write ("wt"), compressed if its name ends in .gz."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    return cast(IO[str], opener(path, mode, encoding="utf-8"))


def _write(manifest: Path, file: IO[str], advance: Callable[[int], None]) -> ImportReport:
    clips, seconds, with_text, left_out = 0, 0.0, 0, []
    for row in read_rows(manifest):
        try:
            cut = row_cut(manifest.parent, row)
        except AudioError as error:
            left_out.append((row["audio"], str(error)))
        else:
            file.write(json.dumps(cut.to_dict(), ensure_ascii=False) + "\n")
            clips, seconds, with_text = clips + 1, seconds + cut.duration, with_text + bool(row.get("text"))
        advance(1)
    if not clips:
        why = f"none of its {len(left_out)} clips can be read, first: {left_out[0][1]}" if left_out else "it is empty"
        raise ConfigError(f"{manifest}: {why}")
    return ImportReport(clips, seconds, with_text, tuple(left_out))


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of our JSONL manifest, checked. Raises ConfigError with `file:line`."""
    seen: dict[str, int] = {}
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if problem := _problem(row):
            raise ConfigError(f"{path}:{number}: {problem}")
        first = seen.setdefault(row["audio"], number)
        if first != number:
            raise ConfigError(f"{path}:{number}: {row['audio']!r} is also on line {first}: name a file once")
        yield row


def _problem(row: Any) -> str | None:
    if not isinstance(row, dict):
        return "not a JSON object: write one object a line"
    for key, kind in _REQUIRED.items():
        if key not in row:
            return f"no {key}: give audio (a path) and duration (seconds)"
        if not isinstance(row[key], kind) or isinstance(row[key], bool):
            return f"{key} is {row[key]!r}: give audio (a path) and duration (seconds)"
    if not 0 < row["duration"] < math.inf:
        return f"duration is {row['duration']!r}: give a positive number of seconds"
    for key in _OPTIONAL:
        if not isinstance(row.get(key), str | None):
            return f"{key} is {row[key]!r}: give a string or null"
    return None


def _parsed(line: str, where: str) -> Cut:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: not a line of JSON: give a Lhotse manifest of cuts") from error
    if isinstance(row, dict) and "audio" in row and "type" not in row:
        raise ConfigError(f"{where}: this is not yet a manifest of cuts: convert it with xycodec data import")
    if isinstance(row, dict) and "sources" in row:
        raise ConfigError(f"{where}: this holds recordings, not cuts: make cuts of them with lhotse cut simple")
    try:
        cut = deserialize_item(row)
    except Exception as error:  # whatever Lhotse's classes raise at fields that are missing or of another type
        why = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{where}: not a Lhotse cut ({why}): write the manifest again") from error
    if not isinstance(cut, Cut):
        raise ConfigError(f"{where}: not a cut but a {type(cut).__name__}: give a Lhotse manifest of cuts")
    return cut


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        with open_text(path, "rt") as file:
            for number, line in enumerate(file, 1):
                yield number, line
    except (OSError, EOFError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}:{number + 1}: cannot be read ({why}): check the path and the file") from error
