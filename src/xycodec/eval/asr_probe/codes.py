"""Codes of clips, computed once and kept on disk: what a probe learns from."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import soxr
import torch
from lhotse.cut import Cut
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from xycodec.data.clip import INPUT_RATE
from xycodec.data.shards import member_of
from xycodec.errors import AudioError, XycodecError
from xycodec.eval.corpus import Item
from xycodec.io.files import os_error_line, write_whole
from xycodec.models.base import Codec, fingerprint
from xycodec.models.longform import encode_long

PART = 64  # clips of a file: so many are computed again at most where a run was killed


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
    folder = cache / f"{codec.model_id.replace('/', '_')}-{fingerprint(codec)}"
    known = _read(folder)
    found: list[Tensor | AudioError] = []
    fresh: dict[str, Tensor] = {}
    for item in items:
        try:
            key = _key(item)
            if key not in known:
                known[key] = fresh[key] = _encode(codec, item)
            found.append(known[key])
        except AudioError as error:
            found.append(error)
        if len(fresh) == PART:
            _write(folder, fresh)
            fresh = {}
        advance(item.seconds)
    if fresh:
        _write(folder, fresh)
    return found


def _key(item: Item) -> str:
    """What tells a clip's audio from all others; its text may change."""
    if isinstance(item.cut, AudioError):
        raise item.cut
    place: dict[str, Any] = item.cut.to_dict() | {"supervisions": None}
    stamps = [(path, stat.st_size, stat.st_mtime_ns) for path in _files(item.cut) if (stat := _stat(path))]
    return hashlib.blake2b(json.dumps([place, stamps], default=repr).encode(), digest_size=16).hexdigest()


def _files(cut: Cut) -> Iterator[str]:
    """The files that hold a cut's audio."""
    if member := member_of(cut):
        yield member.path
    elif recording := getattr(cut, "recording", None):
        yield from (source.source for source in recording.sources if source.type == "file")


def _stat(path: str) -> Any:
    try:
        return Path(path).stat()
    except OSError as error:
        raise AudioError(os_error_line(repr(path), "read", error)) from error


def _encode(codec: Codec, item: Item) -> Tensor:
    samples, rate = item.load(), codec.input_sample_rate
    if rate != INPUT_RATE:
        samples = soxr.resample(samples, INPUT_RATE, rate)
    # A copy, because a window's codes are a view of a batch's.
    return encode_long(codec, samples).to(torch.int32).contiguous()


# ---- files -------------------------------------------------------------------------------------


def _read(folder: Path) -> dict[str, Tensor]:
    known: dict[str, Tensor] = {}
    for path in sorted(folder.glob("[!.]*.safetensors")):
        try:
            known |= load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise XycodecError(f"{path}: damaged ({error}): remove it, and its clips are encoded again") from error
    return known


def _write(folder: Path, codes: dict[str, Tensor]) -> None:
    # Named by its first clip, so that two runs that share a cache do not take the same name for unlike files.
    path = folder / f"{next(iter(codes))}.safetensors"
    write_whole(path, lambda scratch: scratch.write_bytes(save(codes)))
