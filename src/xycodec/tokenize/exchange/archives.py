"""Clips in archives: a WebDataset tar, and Lhotse Shar with codes as a TemporalArray."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xycodec.errors import StoreError, reason_of
from xycodec.io.files import new_folder, write_whole
from xycodec.io.tokens.layout import Description
from xycodec.io.tokens.read import StoredClip, TokenStore
from xycodec.tokenize.exchange.rows import clip_of, codes_of
from xycodec.tokenize.inputs.item import require_package

FIELD = "codes"
_SHAR_CLIPS = 4096


def write_tar(store: TokenStore, target: Path) -> None:
    """Write a tar with NUMBER.npy, codes (frames, n_q), and NUMBER.json for each clip. Raises StoreError."""

    def write(scratch: Path) -> None:
        with tarfile.open(scratch, "w") as tar:
            for number, clip in enumerate(store):
                codes = io.BytesIO()
                np.save(codes, clip.codes.T)
                row = json.dumps(clip.meta | {"samples": clip.samples}, ensure_ascii=False)
                for suffix, data in (("npy", codes.getvalue()), ("json", row.encode())):
                    entry = tarfile.TarInfo(f"{number:09}.{suffix}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))

    write_whole(target, write, StoreError)


def read_tar(source: Path, about: Description) -> Iterator[StoredClip]:
    """Yield the clips of such a tar. Raises StoreError if it is damaged, or a clip lacks one of its files."""
    held: dict[str, dict[str, bytes]] = {}
    try:
        with tarfile.open(source, "r:") as tar:
            for entry in tar:
                key, _, suffix = entry.name.rpartition(".")
                file = tar.extractfile(entry)
                held.setdefault(key, {})[suffix] = file.read() if file else b""
                if {"npy", "json"} <= held[key].keys():
                    clip = held.pop(key)
                    codes = codes_of(np.load(io.BytesIO(clip["npy"])), about, f"{source}: {key}")
                    yield clip_of(json.loads(clip["json"]), about, codes, source)
    except StoreError:
        raise
    except (tarfile.TarError, OSError, ValueError) as error:
        raise StoreError(f"{source}: not a plain tar of codes, or damaged ({reason_of(error)})") from error
    if held:
        raise StoreError(f"{source}: {next(iter(held))} lacks its .npy or its .json")


def write_shar(store: TokenStore, folder: Path) -> None:
    """Write a folder of Lhotse Shar: a cut for each clip, with a TemporalArray `codes` (frames, n_q).

    Raises StoreError if the folder exists, XycodecError without lhotse.
    """
    require_package("lhotse", "train")
    from lhotse.shar import SharWriter

    with (
        new_folder(folder, StoreError) as made,
        SharWriter(str(made), fields={FIELD: "numpy"}, shard_size=_SHAR_CLIPS) as writer,
    ):
        for clip in store:
            writer.write(_cut(store.description, clip))


def read_shar(folder: Path, about: Description) -> Iterator[StoredClip]:
    """Yield the clips of such a folder. Raises StoreError if it is none, XycodecError without lhotse."""
    require_package("lhotse", "train")
    from lhotse.serialization import deserialize_item
    from lhotse.shar.readers.tar import iterate_tarfile_pairwise
    from lhotse.shar.utils import fill_shar_placeholder

    from xycodec.data.manifest import read_cuts

    manifests, tars = sorted(folder.glob("cuts.*")), sorted(folder.glob(f"{FIELD}.*.tar"))
    if not manifests or len(manifests) != len(tars):
        raise StoreError(f"{folder}: not a folder of Shar with codes: it has as many cuts.* as {FIELD}.*.tar")
    try:
        for manifest, path in zip(manifests, tars, strict=True):
            with tarfile.open(path, "r:") as tar:  # Lhotse's own reader leaves it open
                arrays = iterate_tarfile_pairwise(tar)
                for cut, ((data, name), (meta, _)) in zip(read_cuts(manifest), arrays, strict=True):
                    array = deserialize_item(json.loads(meta))
                    fill_shar_placeholder(array, data, name)
                    codes = codes_of(array.load(), about, f"{path}: {cut.id}")
                    yield clip_of(dict(cut.custom["meta"]), about, codes, path)
    except StoreError:
        raise
    except (tarfile.TarError, OSError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{folder}: not Shar of codes, or damaged ({reason_of(error)})") from error


def _cut(about: Description, clip: StoredClip) -> Any:
    from lhotse import MonoCut, SupervisionSegment

    seconds = max(clip.samples, 1) / about.sample_rate
    words = {key: clip.meta[key] for key in ("text", "speaker", "language") if isinstance(clip.meta.get(key), str)}
    cut = MonoCut(clip.id, 0.0, seconds, 0, [SupervisionSegment(clip.id, clip.id, 0.0, seconds, **words)])
    cut.custom = {"meta": clip.meta | {"samples": clip.samples}}
    return cut.attach_tensor(FIELD, clip.codes.T, frame_shift=1 / about.frame_rate, temporal_dim=0)
