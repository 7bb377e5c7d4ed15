"""Codes of whole clips with all layers, encoded once and kept for whatever needs them next: a folder for each codec."""

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from xycodec.io.tokens.grow import GrowingStore
from xycodec.models.base import Codec, codes_fingerprint
from xycodec.tokenize.inputs.item import Item
from xycodec.tokenize.shard import AdvanceClips, Encoding, encode_into


def encode_once(
    parent: Path, codec: Codec, items: Iterable[Item], advance: AdvanceClips = lambda clips, seconds: None
) -> GrowingStore:
    """The codes that `parent` keeps of a codec, of these clips too; those that it lacks are encoded first.

    The ids of `items` have to tell their audio. Codes of other weights are in another folder. A clip that cannot be
    encoded has its `error` in the store, and is tried again each time. `advance` is told of what is encoded.

    Raises StoreError if the folder cannot be read or written.
    """
    encoding = Encoding(codec)
    folder = parent / f"{codec.model_id.replace('/', '_')}-{codes_fingerprint(codec)}"
    store = GrowingStore(folder, encoding.describe())
    with closing(store):
        missing = {item.id: item for item in items if item.id not in store}
        encode_into(store, encoding, missing.values(), advance)
    return store
