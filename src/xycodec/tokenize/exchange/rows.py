"""Clips as JSON lines, with their codes or beside files of them; and names of files for ids."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from xycodec.errors import StoreError, reason_of
from xycodec.io.files import write_whole
from xycodec.io.tokens.layout import Codes, Description
from xycodec.io.tokens.read import StoredClip, TokenStore, read_rows

CLIPS = "clips.jsonl"
"""The file of a folder of codes that tells what is known of each clip."""


def write_jsonl(store: TokenStore, target: Path) -> None:
    """Write a line for each clip: its metadata, `samples`, and `codes` as a list of frames, each of n_q codes."""
    rows = (clip.meta | {"samples": clip.samples, "codes": clip.codes.T.tolist()} for clip in store)
    write_rows(target, rows)


def read_jsonl(source: Path, about: Description) -> Iterator[StoredClip]:
    """Yield the clips of such a file. Raises StoreError at a row without `id` or `codes`."""
    for row in read_rows(source):
        yield clip_of(row, about, codes_of(row.pop("codes", None), about, f"{source}: {row.get('id')}"), source)


def codes_of(values: Any, about: Description, where: str) -> NDArray[np.int64]:
    """Codes (n_q, L) of frames of codes, or of codes frame after frame. Raises StoreError if they are none."""
    try:
        flat = np.asarray(values if values is not None else [])
        if flat.size and not np.issubdtype(flat.dtype, np.integer):
            raise ValueError(f"{flat.dtype} numbers")
        return flat.reshape(-1, about.n_q).T.astype(np.int64)
    except ValueError as error:
        raise StoreError(f"{where}: its codes are not frames of {about.n_q} ({reason_of(error)})") from error


def write_rows(target: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows of JSON to a file that appears when it is complete. Raises StoreError if it cannot be written."""

    def write(scratch: Path) -> None:
        with open(scratch, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    write_whole(target, write, StoreError)


def clip_of(row: dict[str, Any], about: Description, codes: Codes | NDArray[np.int64], source: Path) -> StoredClip:
    """A clip of its row, which may lack `samples`. Raises StoreError if it has no `id`."""
    name = row.get("id") if isinstance(row, dict) else None
    if not isinstance(name, str):
        raise StoreError(f"{source}: a row without id: give every clip one")
    samples = row.get("samples", codes.shape[-1] * about.hop_length)
    if not isinstance(samples, int) or samples < 0:
        raise StoreError(f"{source}: {name} has {samples!r} samples: give a number")
    # Its writer compares shape and range with the description.
    return StoredClip(
        name, cast(Codes, codes), samples, {key: row[key] for key in row if key not in ("samples", "file")}
    )


def file_name(name: str, suffix: str) -> str:
    """A path below a folder for a clip's id: its own slashes stay, what a file system minds is written as %XX."""
    parts = [quote(part, safe=" ") or "%2F" for part in name.split("/")]  # an empty one would lead out of the folder
    return "/".join(part.replace(".", "%2E") if part.strip(".") == "" else part for part in parts) + suffix
