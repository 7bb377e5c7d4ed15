"""Codes of clips, computed once and kept on disk: what a probe learns from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from torch import Tensor

from xycodec.errors import AudioError
from xycodec.eval.corpus import Item
from xycodec.eval.identity import audio_digest
from xycodec.io.progress import Advance, unwatched
from xycodec.io.rate import SPEECH_RATE
from xycodec.models.base import Codec
from xycodec.models.longform import encode_long
from xycodec.tokenize.cache import open_cache


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
        advance: told the seconds of each clip that is done.

    Raises XycodecError if the cache cannot be read or written, or the codec fails.
    """
    store = open_cache(cache, codec)
    found: list[Tensor | AudioError] = []
    for item in items:
        try:
            key = audio_digest(item)
            if key not in store:
                store.add(key, _encode(codec, item))
            found.append(torch.from_numpy(store.codes(key).astype(np.int32, order="C")))
        except AudioError as error:
            found.append(error)
        advance(item.seconds)
    return found


def _encode(codec: Codec, item: Item) -> Any:
    samples, rate = item.load(), codec.input_sample_rate
    if rate != SPEECH_RATE:
        samples = soxr.resample(samples, SPEECH_RATE, rate)
    return encode_long(codec, samples).numpy()
