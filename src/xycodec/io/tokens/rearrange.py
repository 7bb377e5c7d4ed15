"""Stores made of stores: several as one, and parts of one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from xycodec.errors import StoreError
from xycodec.io.tokens.layout import hash_of
from xycodec.io.tokens.read import StoredClip, TokenStore
from xycodec.io.tokens.write import SHARD_CLIPS, write_store


def merge_stores(stores: Sequence[TokenStore], target: Path, shard_clips: int = SHARD_CLIPS) -> None:
    """Write the clips of several stores, one store after the other, as a new one.

    Raises StoreError if their codes are of different codecs, two clips have one id, or `target` exists.
    """
    first = stores[0]
    for other in stores[1:]:
        if differs := first.description.difference(other.description):
            raise StoreError(
                f"{first.folder} and {other.folder} hold other codes ({differs}): they cannot be one store"
            )
    write_store(target, first.description, (clip for store in stores for clip in store), shard_clips)


def split_store(
    store: TokenStore, target: Path, part_of: Callable[[int, StoredClip], str], shard_clips: int = SHARD_CLIPS
) -> dict[str, int]:
    """Write the clips of a store as several new ones below `target`; clips of each, by name.

    `part_of` names the part of a clip, from its number and itself. Raises StoreError if a part exists, or there are
    over a thousand.
    """
    numbers: dict[str, list[int]] = {}
    for number, clip in enumerate(store):
        numbers.setdefault(part_of(number, clip), []).append(number)
        if len(numbers) > _MOST_PARTS:
            raise StoreError(f"{store.folder}: would become over {_MOST_PARTS:,} parts: split it by something else")
    target.mkdir(parents=True, exist_ok=True)
    for name, own in sorted(numbers.items()):
        write_store(target / name, store.description, _clips(store, own), shard_clips)
    return {name: len(own) for name, own in sorted(numbers.items())}


_MOST_PARTS = 1000


def _clips(store: TokenStore, numbers: Sequence[int]) -> Iterator[StoredClip]:
    return (store[number] for number in numbers)


def equal_parts(clips: int, parts: int) -> Callable[[int, StoredClip], str]:
    """Cut a store of so many clips into consecutive parts of equal size: `0`, `1`, ..."""
    return lambda number, clip: str(number * parts // clips)


def by_field(store: TokenStore, field: str) -> Callable[[int, StoredClip], str]:
    """Put clips with one value of a metadata field together; those without the field are `none`.

    What a file system minds is written as %XX. Raises StoreError if no clip of the store has the field.
    """
    if not any(field in clip.meta for clip in store):
        known = sorted({key for clip in store for key in clip.meta})
        raise StoreError(f"{store.folder}: no clip has a field {field!r}: fields are {', '.join(known) or 'none'}")
    return lambda number, clip: _file_name(clip.meta, field)


def held_out(share: float) -> Callable[[int, StoredClip], str]:
    """Hold out a share of the clips, those whose id's hash is lowest: `held_out`, and the others `rest`.

    A clip stays on its side when a corpus grows.
    """
    return lambda number, clip: "held_out" if hash_of(clip.id) < share * 2.0**64 else "rest"


def _file_name(meta: Mapping[str, Any], field: str) -> str:
    value = quote(str(meta.get(field, "")), safe="")
    return value.replace(".", "%2E") if value.startswith(".") else value or "none"
