"""The frames that items of ABX have a part in: recordings encoded once, and looked up from then on."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from xycodec.eval.abx.distances import item_frames
from xycodec.eval.abx.items import Omissions, PhoneItem
from xycodec.io.xyc import CodecFile
from xycodec.models.base import Codec
from xycodec.models.files import encode_file
from xycodec.models.longform import embed_long


def encode_recordings(
    codec: Codec,
    recordings: Mapping[str, Path],
    items: Sequence[PhoneItem],
    folder: Path,
    omissions: Omissions,
    advance: Callable[[float], None],
) -> dict[str, CodecFile]:
    """All codes of each recording, by its name; from `folder` where they are there, of this very file.

    Items of a recording that cannot be encoded are left out.
    """
    codes = {}
    for name, source in recordings.items():
        try:
            # A file of this name elsewhere, or another one here tomorrow, is another recording.
            stat = source.stat()
            place = f"{source.resolve()} {stat.st_size} {stat.st_mtime_ns}"
            target = folder / f"{name}-{hashlib.blake2b(place.encode(), digest_size=8).hexdigest()}.xyc"
            if not target.exists():
                encode_file(codec, str(source), str(target))
            codes[name] = CodecFile.read(str(target))
        except Exception as error:  # whatever somebody's codec raises: the other recordings are still worth having
            why = " ".join(str(error).split())
            omissions.add("its recording cannot be encoded", why, sum(item.file == name for item in items))
            continue
        advance(codes[name].duration)
    return codes


class ItemFrames:
    """The frames that items have a part in, recording by recording, each once."""

    def __init__(self, items: Sequence[PhoneItem], codes: dict[str, CodecFile], rate: float, repeat: int) -> None:
        self.of_items: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * len(items)
        """Of each item, numbers of rows of the features."""
        self._codes: list[NDArray[np.uint16]] = []
        self._kept: list[NDArray[np.int64]] = []
        self._rows = 0
        by_file = defaultdict(list)
        for index, item in enumerate(items):
            by_file[item.file].append(index)
        for file, indices in by_file.items():
            self._add(indices, [items[index] for index in indices], codes[file].codes, rate, repeat)

    def _add(
        self, indices: Sequence[int], items: Sequence[PhoneItem], codes: NDArray[np.uint16], rate: float, repeat: int
    ) -> None:
        length = codes.shape[1]
        frames = [item_frames(item.onset, item.offset, rate, length, repeat) for item in items]
        kept = np.unique(np.concatenate(frames))
        for index, one in zip(indices, frames, strict=True):
            self.of_items[index] = self._rows + np.searchsorted(kept, one)
        self._rows += len(kept)
        self._codes.append(codes)
        self._kept.append(kept)

    def codes(self, n_q: int) -> NDArray[np.uint16]:
        """(F, n_q)."""
        return np.concatenate([codes[:n_q, kept].T for codes, kept in zip(self._codes, self._kept, strict=True)])

    def embeddings(self, codec: Codec, n_q: int, folder: Path, branch: str | None = None) -> NDArray[np.float32]:
        """(F, D) on disk, because a corpus of them may be larger than the memory."""
        path = folder / f"{n_q}.f32"
        with path.open("wb") as file:
            for codes, kept in zip(self._codes, self._kept, strict=True):
                embeddings = embed_long(codec, torch.from_numpy(codes[:n_q].astype(np.int64)), branch=branch)
                file.write(embeddings.T.cpu().numpy()[kept].tobytes())
        return np.memmap(path, np.float32, "r").reshape(self._rows, -1)
