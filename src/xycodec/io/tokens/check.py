"""Integrity of a store: checksums of its files, and of single clips where a file differs."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from xycodec.errors import StoreError
from xycodec.io.tokens.layout import CODES, IDS, INDEX, META, SHARD, SHARDS, Description
from xycodec.io.tokens.read import Shard, TokenStore, read_counts
from xycodec.io.tokens.write import id_table, sha256_of


def damages(store: TokenStore, advance: Callable[[], None] = lambda: None) -> Iterator[str]:
    """Yield one line on each damage: the file, and the clips whose codes or metadata are not what was written.

    `advance` is called after each shard.
    """
    found = False
    folders = [store.folder / SHARDS / row["name"] for row in store.shards]
    for folder, row in zip(folders, store.shards, strict=True):
        broken = [name for name, digest in row["sha256"].items() if _digest(folder / name) != digest]
        broken += [] if _counts(folder) == row else [SHARD]
        if broken:
            found = True
            clips = ", ".join(_broken_clips(folder, store.description, row, broken)) or "no clip that is in the index"
            yield f"{folder}: {' and '.join(broken)} differ from what was written, which hits {clips}"
        advance()
    if not found and _digest(store.folder / IDS) != hashlib.sha256(id_table(folders)).hexdigest():
        yield f"{store.folder / IDS}: is not the table of the clips' ids: get a whole copy"


def _digest(path: Path) -> str | None:
    try:
        return sha256_of(path)
    except OSError:
        return None


def _counts(folder: Path) -> dict[str, Any] | None:
    try:
        return {"name": folder.name} | read_counts(folder)
    except StoreError:
        return None


def _broken_clips(folder: Path, description: Description, row: dict[str, Any], broken: list[str]) -> Iterator[str]:
    """Names of the clips that a damage hits."""
    try:
        shard = None if INDEX in broken else Shard(folder, description, row)
    except StoreError:
        shard = None
    if shard is None:
        yield f"all {row['clips']:,} clips"
        return
    for place in range(len(shard.index) if {CODES, META} & set(broken) else 0):
        if not shard.is_whole(place):
            yield _name(shard, place)


def _name(shard: Shard, place: int) -> str:
    try:
        return repr(shard.meta(place)["id"])
    except StoreError:
        return f"clip {place} of the shard"
