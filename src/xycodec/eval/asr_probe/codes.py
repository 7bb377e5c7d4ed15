"""Codes of clips, computed once and kept on disk: what a probe learns from."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from xycodec.errors import AudioError
from xycodec.eval.corpus import Item
from xycodec.eval.identity import audio_digest
from xycodec.io.progress import Advance, unwatched
from xycodec.models.base import Codec
from xycodec.tokenize.cache import encode_once
from xycodec.tokenize.inputs.item import Item as Source


def cached_codes(
    codec: Codec, items: Sequence[Item], cache: Path, *, advance: Advance = unwatched
) -> list[Tensor | AudioError]:
    """Codes (n_q, L) int32 of whole clips, with all layers, or why a clip has none; in the order of `items`.

    They are read from `cache` where they are there. What it holds is told apart by the codec's weights and the content
    of a clip's audio: another model or recording never gets them. Codes rather than embeddings,
    because those of XY-Tokenizer take 400 times the room, and `Codec.embed` finds them again in a table.

    Args:
        codec: computes what is missing, at its own input rate.
        items: clips; those that cannot be read are tried again each time.
        cache: folder for all models and corpora, made if needed.
        advance: told the seconds of clips as they are encoded, and at the end those of the others.

    Raises XycodecError if the cache cannot be read or written.
    """
    keys = [_key(item) for item in items]
    sources = [_source(key, item) for key, item in zip(keys, items, strict=True) if isinstance(key, str)]
    heard = [0.0]

    def hear(clips: int, seconds: float) -> None:
        heard.append(seconds)
        advance(seconds)

    store = encode_once(cache, codec, sources, hear)
    advance(sum(item.seconds for item in items) - sum(heard))
    found: list[Tensor | AudioError] = []
    for key, item in zip(keys, items, strict=True):
        if not isinstance(key, str):
            found.append(key)
        elif key in store:
            found.append(torch.from_numpy(store.codes(key).astype(np.int32, order="C")))
        else:
            found.append(AudioError(f"{item.clip}: {store.newest[key]['error']}"))
    return found


def _key(item: Item) -> str | AudioError:
    try:
        return audio_digest(item)
    except AudioError as error:
        return error


def _source(key: str, item: Item) -> Source:
    return Source(key, {"kind": "cut", "cut": {} if isinstance(item.cut, AudioError) else item.cut.to_dict()})
