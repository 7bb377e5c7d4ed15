"""A corpus through a codec once: what a self-supervised model is to predict, in a store of tokens beside the audio."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lhotse.cut import Cut

from xycodec.data.manifest import open_text
from xycodec.data.sources import Cuts
from xycodec.data.targets import can_hold_targets, with_targets
from xycodec.errors import ConfigError, StoreError
from xycodec.io.digests import digest_of
from xycodec.io.files import atomic_path
from xycodec.io.rate import SPEECH_RATE
from xycodec.io.tokens.layout import CODES, INDEX, ROW, SHARDS
from xycodec.io.tokens.read import TokenStore
from xycodec.models.base import Codec
from xycodec.tokenize.corpus import tokenize_corpus
from xycodec.tokenize.inputs.item import Item
from xycodec.tokenize.inputs.manifests import cut_item
from xycodec.tokenize.local import LocalEngine
from xycodec.tokenize.shard import AdvanceClips, Encoding

MANIFEST, STORE = "cuts.jsonl.gz", "codes"


@dataclass(frozen=True)
class TargetsReport:
    """Clips with labels, their seconds, how many are new, and one line for each clip that was left out."""

    clips: int
    seconds: float
    made: int
    left_out: tuple[str, ...]


def extract_targets(
    cuts: Cuts,
    codec: Codec,
    folder: Path,
    *,
    layers: int = 1,
    advance: AdvanceClips = lambda clips, seconds: None,
) -> TargetsReport:
    """Write the codes of the first `layers` of `codec` for every cut into `folder`, and cuts that name them.

    `codes` is a store of tokens; `cuts.jsonl.gz` has the same cuts, in order, each with the custom fields that
    `data.targets` explains. Codes are those of the clip alone, at the codec's frame rate. A call goes on where another
    was interrupted; the manifest appears when all is done, and names the store by its absolute path.

    Args:
        cuts: read three times.
        codec: at any rate; audio is resampled to it.
        folder: made if it is not there.
        layers: of the codec.
        advance: told clips and seconds as they are done.

    Raises:
        StoreError: `folder` was begun with another codec or other cuts, or cannot be written; or there are no cuts.
        ConfigError: no clip could be labelled.
        XycodecError: the codec has not so many layers, a manifest is not valid.
    """
    encoding = Encoding(codec, layers)
    about = encoding.describe()
    named = f"cuts {digest_of([cut.id for cut in cuts])}"
    engine = LocalEngine(lambda: encoding, {}, advance=advance)
    place = folder.resolve() / STORE
    report = tokenize_corpus([named], place, about, engine, items=map(_item, cuts))
    store = TokenStore(place)
    left_out = {row["id"]: row["error"] for row in store.failures()}
    if not len(store):
        raise ConfigError(f"{folder}: no clip could be labelled, first: {next(iter(left_out.values()))}")
    with atomic_path(folder / MANIFEST, ConfigError) as scratch, open_text(scratch, "wt") as file:
        for cut in _with_labels(cuts, store, left_out):
            file.write(json.dumps(cut.to_dict(), ensure_ascii=False) + "\n")
    return TargetsReport(len(store), store.seconds, report.made, tuple(left_out.values()))


def _item(cut: Cut) -> Item:
    if not can_hold_targets(cut):
        return Item(cut.id, error=f"{cut.id}: a {type(cut).__name__} holds no labels: leave it out, or pack the corpus")
    item = cut_item(cut)
    return Item(item.id, {**item.place, "lowest": SPEECH_RATE}, error=item.error)


def _with_labels(cuts: Cuts, store: TokenStore, left_out: dict[str, str]) -> Iterator[Cut]:
    """The cuts of a store's clips, in order, each with the place of its labels."""
    about = store.description
    of = {"codec": about.model, "size": about.codebook_size}
    places = _places(store)
    name, path, first, frames = next(places, ("", Path(), 0, 0))
    for cut in cuts:
        if cut.id == name:
            shape = (frames, about.n_q)
            yield with_targets(cut, path, first * about.n_q, shape, about.dtype, about.frame_rate, of)
            name, path, first, frames = next(places, ("", Path(), 0, 0))
        elif cut.id not in left_out:
            raise StoreError(f"{store.folder}: has no labels of {cut.id}: the cuts have changed, choose another folder")


def _places(store: TokenStore) -> Iterator[tuple[str, Path, int, int]]:
    """(id, file, first frame in it, frames) of every clip."""
    number = 0
    for shard in store.shards:
        folder = store.folder / SHARDS / shard["name"]
        for row in np.fromfile(folder / INDEX, ROW):
            yield store.meta(number)["id"], folder / CODES, int(row["first"]), int(row["frames"])
            number += 1
