"""Clips of WebDataset tars, which are never unpacked."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from xycodec.errors import AudioError, XycodecError
from xycodec.io.audio import audio_extensions
from xycodec.tokenize.inputs.item import Item, open_binary, plain, stem_of


def tar_items(name: str) -> Iterator[Item]:
    """Yield an item for each KEY.flac (or another suffix of audio) of a tar, with KEY.json and KEY.txt as its metadata.

    A clip is called by the tar's name and its key. Raises XycodecError if the tar is damaged or compressed.
    """
    found: dict[str, dict[str, Any]] = {}
    try:
        with open_binary(name) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for entry in tar:
                path = PurePosixPath(entry.name)
                key, _, suffix = path.name.rpartition(".")
                if not entry.isfile() or not key:
                    continue
                clip = found.setdefault(str(path.with_name(key)), {})
                if f".{suffix.lower()}" in audio_extensions():
                    clip["audio"] = f"{name}/{entry.name}"
                    clip["place"] = {"kind": "tar", "path": name, "offset": entry.offset_data, "size": entry.size}
                elif suffix in ("json", "txt"):
                    data = tar.extractfile(entry)
                    clip[suffix] = data.read() if data else b""
    except (tarfile.TarError, OSError) as error:
        raise XycodecError(f"{name}: not a plain tar, or damaged ({error}): get a whole copy, uncompressed") from error
    except AudioError as error:
        raise XycodecError(str(error)) from error
    for key, clip in found.items():
        if "place" in clip:
            yield _item(f"{stem_of(name)}/{key}", clip)


def _item(name: str, clip: dict[str, Any]) -> Item:
    audio = {"audio": clip["audio"]}
    try:
        row = json.loads(clip.get("json", "{}"))
        text = {"text": clip["txt"].decode().strip()} if "txt" in clip else {}
        return Item(name, clip["place"], audio | text | plain((key, row[key]) for key in row if key != "audio"))
    except (ValueError, TypeError) as error:
        return Item(name, {}, audio, f"{clip['audio']}: its JSON or text is damaged ({error}): repair the tar")
