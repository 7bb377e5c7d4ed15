"""Features of the clips of a labelled set, from a cache where they are there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

from xycodec.errors import AudioError, XycodecError, described
from xycodec.eval.classify.clips import LabelledClip, LabelledSet
from xycodec.eval.classify.features import Features
from xycodec.eval.classify.store import FeatureStore, Rows
from xycodec.io.audio import ignore, read_audio
from xycodec.io.digests import digest_of, file_digest

Pooling = Literal["mean", "padded", "attention"]


@dataclass(frozen=True)
class Embedded:
    """The clips that have features, the features of each, and the clips that have none with the reason."""

    labelled: LabelledSet
    features: tuple[Rows, ...]
    """(1, D) of each clip, pooled; (L, D) for attention."""
    failed: tuple[tuple[str, str], ...]


def embed_clips(
    features: Features,
    labelled: LabelledSet,
    cache: Path,
    *,
    pooling: Pooling = "mean",
    max_seconds: float | None = None,
    advance: Callable[[int], None] = lambda clips: None,
) -> Embedded:
    """Features of each clip, cut to `max_seconds`; those that `cache` lacks are computed first.

    `mean` pools over the clip alone; `padded` over the clip and the silence that completes it to `max_seconds`, which
    has to be given then, as ARCH's code does; `attention` keeps all frames, which take much more room. `advance` is
    told the number of clips that are done.

    Raises XycodecError if no clip can be read, StoreError if the cache cannot be written.
    """
    if pooling == "padded" and max_seconds is None:
        raise XycodecError("padded means need a length to pad to: give max_seconds")
    name = features.name.replace("/", "_").replace(":", "_")
    kind = "frames" if pooling == "attention" else pooling
    folder = cache / f"{name}-{digest_of([features.identity, kind, max_seconds])[:16]}"
    kept: list[LabelledClip] = []
    arrays: list[Rows] = []
    failed: list[tuple[str, str]] = []
    with FeatureStore(folder) as store:
        for number, clip in enumerate(labelled.clips):
            advance(number)
            try:
                key = file_digest(clip.audio)
            except OSError as error:
                failed.append((str(clip.audio), f"{clip.audio}: {error.strerror or error}"))
                continue
            if key not in store:
                _compute(features, store, key, clip.audio, pooling, max_seconds)
            row = store.rows[key]
            if "error" in row:
                failed.append((str(clip.audio), row["error"]))
                continue
            kept.append(replace(clip, duration=row["seconds"]))
            arrays.append(store.features(key))
    if not kept:
        raise XycodecError(f"none of {len(failed)} clips can be read, first: {failed[0][1]}")
    return Embedded(LabelledSet(tuple(kept), labelled.several), tuple(arrays), tuple(failed))


def _compute(
    features: Features, store: FeatureStore, key: str, path: Path, pooling: Pooling, max_seconds: float | None
) -> None:
    try:
        audio = torch.from_numpy(read_audio(path, features.sample_rate, tell=ignore))
    except AudioError as error:
        store.fail(key, described(error))
        return
    seconds = round(len(audio) / features.sample_rate, 3)
    if max_seconds is not None:
        most = round(max_seconds * features.sample_rate)
        audio = audio[:most]
        if pooling == "padded":
            audio = F.pad(audio, (0, most - len(audio)))
    frames = features.frames(audio)
    made = frames if pooling == "attention" else features.pooled(frames)[None]
    store.add(key, made.numpy(), seconds)


def stacked(features: Sequence[Rows]) -> torch.Tensor:
    """Vectors (1, D) of clips -> (N, D)."""
    return torch.from_numpy(np.concatenate(features))
