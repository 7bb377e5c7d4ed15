"""Codes of clips, computed once and kept on disk: what a probe learns from."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from lhotse.cut import Cut
from torch import Tensor

from xycodec.data.clip import INPUT_RATE
from xycodec.data.shards import member_of
from xycodec.errors import AudioError
from xycodec.eval.corpus import Item
from xycodec.io.codes import digest_of, file_stamp
from xycodec.io.files import os_error_line
from xycodec.models.base import Codec
from xycodec.models.longform import encode_long
from xycodec.tokenize.cache import open_cache


def cached_codes(
    codec: Codec, items: Sequence[Item], cache: Path, *, advance: Callable[[float], None] = lambda seconds: None
) -> list[Tensor | AudioError]:
    """Codes (n_q, L) int32 of whole clips, with all layers, or why a clip has none; in the order of `items`.

    They are read from `cache` where they are there. What it holds is told apart by the codec's weights, and by the
    place, size and time of a clip's file: another model or recording never gets them. Codes rather than embeddings,
    because those of XY-Tokenizer take 400 times the room, and `Codec.embed` finds them again in a table.

    Args:
        codec: computes what is missing, at its own input rate.
        items: clips; those that cannot be read are tried again each time.
        cache: folder for all models and corpora, made if needed.
        advance: told the seconds of each clip that is done.

    Raises XycodecError if the cache cannot be read or written, or the codec fails.
    """
    store = open_cache(cache, codec)
    found: list[Tensor | AudioError] = []
    for item in items:
        try:
            key = _key(item)
            if key not in store:
                store.add(key, _encode(codec, item))
            found.append(torch.from_numpy(store.codes(key).astype(np.int32, order="C")))
        except AudioError as error:
            found.append(error)
        advance(item.seconds)
    return found


def _key(item: Item) -> str:
    """Key of a clip's audio, which no other audio has; its text may change."""
    if isinstance(item.cut, AudioError):
        raise item.cut
    place: dict[str, Any] = item.cut.to_dict() | {"supervisions": None}
    return digest_of([place, [_stamp(path) for path in _files(item.cut)]])


def _files(cut: Cut) -> Iterator[str]:
    """The files that hold a cut's audio."""
    if member := member_of(cut):
        yield member.path
    elif recording := getattr(cut, "recording", None):
        yield from (source.source for source in recording.sources if source.type == "file")


def _stamp(path: str) -> list[Any]:
    try:
        return file_stamp(Path(path))
    except OSError as error:
        raise AudioError(os_error_line(repr(path), "read", error)) from error


def _encode(codec: Codec, item: Item) -> Any:
    samples, rate = item.load(), codec.input_sample_rate
    if rate != INPUT_RATE:
        samples = soxr.resample(samples, INPUT_RATE, rate)
    return encode_long(codec, samples).numpy()
