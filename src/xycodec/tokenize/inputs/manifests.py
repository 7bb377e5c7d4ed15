"""Clips of manifests: rows of JSON that name files, Lhotse cuts, and Lhotse Shar."""

import gzip
import io
import json
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xycodec.errors import XycodecError
from xycodec.tokenize.inputs.item import Item, is_url, open_binary, plain, require_package

if TYPE_CHECKING:
    from lhotse.cut import Cut


def first_row(name: str) -> dict[str, Any]:
    """The first row of a manifest; empty if it is none."""
    with closing(_lines(name)) as lines:
        _, line = next(lines, (0, ""))
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def row_items(name: str) -> Iterator[Item]:
    """Yield an item for each row `{"audio": ..., "id": ..., "text": ..., ...}`; a path is relative to the manifest.

    Without an `id` a clip is called as its `audio`. A row that is none becomes an item that says so.
    """
    folder = name.rpartition("/")[0]
    for number, line in _lines(name):
        where = f"{name}:{number}"
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        audio = row.get("audio") if isinstance(row, dict) else None
        if not isinstance(row, dict) or not isinstance(audio, str):
            yield Item(where, {}, {"audio": where}, "is not an object of JSON with audio: write one a line")
            continue
        path = audio if is_url(audio) or audio.startswith("/") or not folder else f"{folder}/{audio}"
        meta = plain((key, row[key]) for key in row if key not in ("id", "audio"))
        clip = audio if row.get("id") is None else str(row["id"])
        yield Item(clip, {"kind": "file", "path": path}, {"audio": audio, **meta})


def cut_items(name: str) -> Iterator[Item]:
    """Yield an item for each Lhotse cut of a manifest. Raises XycodecError, with the line, where there is no cut."""
    require_package("lhotse", "train")
    from xycodec.data.manifest import read_cuts

    for cut in read_cuts(Path(name)):
        yield cut_item(cut)


def shar_items(folder: str) -> Iterator[Item]:
    """Yield an item for each cut of a folder of Lhotse Shar."""
    require_package("lhotse", "train")
    from xycodec.data.config import SourceConfig
    from xycodec.data.sources import open_source

    for cut in open_source(SourceConfig(path=folder)):
        yield cut_item(cut)


def cut_item(cut: "Cut") -> Item:
    """The item of a cut: what its supervisions agree on, its custom fields, and its supervisions if it has several."""
    from xycodec.data.shards import MEMBER

    place = {"kind": "cut", "cut": cut.to_dict()}
    meta: dict[str, Any] = {}
    if (recording := getattr(cut, "recording", None)) is not None:
        if recording.sources[0].type == "memory":
            return Item(
                cut.id, error=f"{cut.id}: its audio lies in memory, not in a file: save the cuts with their audio"
            )
        if recording.sources[0].type == "file":
            meta["audio"] = str(recording.sources[0].source)
    if text := " ".join(words.text.strip() for words in cut.supervisions if words.text):
        meta["text"] = text
    for name in ("speaker", "language"):
        named = {getattr(words, name) for words in cut.supervisions} - {None}
        if len(named) == 1:
            meta[name] = named.pop()
    if len(cut.supervisions) > 1:
        meta["supervisions"] = [
            plain((key, getattr(words, key)) for key in ("start", "duration", "text", "speaker", "language"))
            for words in cut.supervisions
        ]
    for custom in (*(words.custom for words in cut.supervisions), getattr(cut, "custom", None)):
        meta |= plain((key, value) for key, value in (custom or {}).items() if key != MEMBER)
    return Item(cut.id, place, meta)


def _lines(name: str) -> Generator[tuple[int, str], None, None]:
    number = 0
    try:
        with open_binary(name) as file:
            unpacked: Any = gzip.GzipFile(fileobj=file) if name.endswith(".gz") else file
            with io.TextIOWrapper(unpacked, encoding="utf-8") as text:
                for number, line in enumerate(text, 1):
                    if line.strip():
                        yield number, line
    except (OSError, EOFError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise XycodecError(f"{name}:{number + 1}: cannot be read ({why}): check the path and the file") from error
