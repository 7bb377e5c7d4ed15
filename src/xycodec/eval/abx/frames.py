"""Frames of ABX items: every recording is encoded once, and its items' frames are looked up."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xycodec.eval.abx.distances import item_frames
from xycodec.eval.abx.items import Omissions, PhoneItem
from xycodec.io.digests import digest_of, file_digest
from xycodec.io.progress import Advance
from xycodec.models.base import Codec
from xycodec.models.longform import embed_long
from xycodec.tokenize.cache import encode_once
from xycodec.tokenize.inputs.item import Item


@dataclass(frozen=True)
class Encoded:
    """The codes (n_q, L) of a recording, or features (D, L), and its seconds."""

    codes: NDArray[Any]
    seconds: float


def encode_recordings(
    codec: Codec,
    recordings: Mapping[str, Path],
    items: Sequence[PhoneItem],
    cache: Path,
    omissions: Omissions,
    advance: Advance,
) -> dict[str, Encoded]:
    """All codes of each recording, by its name; from `cache` where they are there, of this very file.

    Items of a recording that cannot be encoded are left out. Raises XycodecError if `cache` cannot be written.
    """
    keys, why = dict[str, str](), dict[str, str]()
    for name, source in recordings.items():
        try:
            keys[name] = digest_of(["recording", file_digest(source)])
        except OSError as error:
            why[name] = str(error)
    clips = (Item(key, {"kind": "file", "path": str(recordings[name])}) for name, key in keys.items())
    store = encode_once(cache, codec, clips, lambda count, seconds: advance(seconds))
    found = {}
    for name, key in keys.items():
        if key in store:
            found[name] = Encoded(store.codes(key), store.newest[key]["seconds"])
        else:
            why[name] = store.newest[key]["error"]
    for name, reason in why.items():
        omissions.add("its recording cannot be encoded", reason, sum(item.file == name for item in items))
    return found


class ItemFrames:
    """The frames of all items, recording by recording, each frame once."""

    def __init__(self, items: Sequence[PhoneItem], recordings: Mapping[str, Encoded], rate: float, repeat: int) -> None:
        self.of_items: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * len(items)
        """Rows of the features that belong to each item."""
        self._codes: list[NDArray[Any]] = []
        self._kept: list[NDArray[np.int64]] = []
        self._rows = 0
        by_file = defaultdict(list)
        for index, item in enumerate(items):
            by_file[item.file].append(index)
        for file, indices in by_file.items():
            self._add(indices, [items[index] for index in indices], recordings[file].codes, rate, repeat)

    def _add(
        self, indices: Sequence[int], items: Sequence[PhoneItem], codes: NDArray[Any], rate: float, repeat: int
    ) -> None:
        length = codes.shape[1]
        frames = [item_frames(item.onset, item.offset, rate, length, repeat) for item in items]
        kept = np.unique(np.concatenate(frames))
        for index, one in zip(indices, frames, strict=True):
            self.of_items[index] = self._rows + np.searchsorted(kept, one)
        self._rows += len(kept)
        self._codes.append(codes)
        self._kept.append(kept)

    def codes(self, n_q: int | None) -> NDArray[Any]:
        """(F, n_q); all of them for None."""
        return np.concatenate([codes[:n_q, kept].T for codes, kept in zip(self._codes, self._kept, strict=True)])

    def embeddings(self, codec: Codec, n_q: int, folder: Path, branch: str | None = None) -> NDArray[np.float32]:
        """(F, D) on disk, because a corpus of them may be larger than the memory."""
        path = folder / f"{n_q}.f32"
        with path.open("wb") as file:
            for codes, kept in zip(self._codes, self._kept, strict=True):
                embeddings = embed_long(codec, codes[:n_q], branch=branch)
                file.write(embeddings.T.cpu().numpy()[kept].tobytes())
        return np.memmap(path, np.float32, "r").reshape(self._rows, -1)
