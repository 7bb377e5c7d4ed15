"""Labels beside the audio of a cut, frame by frame: what a self-supervised model learns to predict (stage `hubert`).

They are a TemporalArray of Lhotse in the cut's custom field `targets`, at the rate of the codec they are codes of. All
labels of a corpus lie in one flat file, in order: Lhotse's own writers that need no further package make a file of
each array.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse.array import Array, TemporalArray
from lhotse.cut import Cut, MonoCut, MultiCut
from lhotse.features.io import FeaturesReader, register_reader
from numpy.typing import NDArray
from torch import Tensor

from xycodec.errors import AudioError
from xycodec.io.rate import SPEECH_RATE
from xycodec.models.xcodec.config import SEMANTIC_HOP

TARGETS = "targets"  # custom field of a cut: its TemporalArray, (frames, layers)
TARGETS_OF = "targets_of"  # custom field of a cut: the codec's name and how many codes a layer has
NO_LABEL = -1
CENTRE = 200  # samples from the beginning of what a HuBERT frame sees, 400 of them, to its middle

Labels = NDArray[np.uint16] | NDArray[np.uint32]


class FlatLabels(FeaturesReader):  # type: ignore[misc]  # Lhotse ships no types
    """Reads rows of a flat file of unsigned integers, little endian, such as the codes of a store of tokens.

    A key is `first,frames,layers,type`: the number of labels before the array, its shape, and numpy's name of its type.
    """

    name = "xycodec_flat_labels"

    def __init__(self, storage_path: str, *args: Any, **kwargs: Any) -> None:
        self.path = Path(storage_path)

    def read(self, key: str, left_offset_frames: int = 0, right_offset_frames: int | None = None) -> Labels:
        """Rows from the left offset to the right one, (frames, layers). Raises OSError where the file lacks them."""
        *numbers, name = key.split(",")
        first, frames, layers = map(int, numbers)
        rows = range(frames)[left_offset_frames:right_offset_frames]
        kind = np.dtype(name)
        count, offset = len(rows) * layers, (first + rows.start * layers) * kind.itemsize
        labels: Labels = np.fromfile(self.path, kind, count, offset=offset)
        if len(labels) < count:
            raise OSError(f"{self.path} ends before the labels of row {rows.stop - 1}")
        return labels.reshape(-1, layers)


# Lhotse finds the readers of its manifests by their names.
register_reader(FlatLabels)


def with_targets(
    cut: Cut, path: Path, first: int, shape: tuple[int, int], kind: np.dtype[Any], rate: float, of: dict[str, Any]
) -> Cut:
    """`cut` with labels of `shape` (frames, layers), `rate` frames a second from its beginning.

    They begin after `first` labels of type `kind` in the file at `path`; `of` tells `codec` and `size`.
    """
    key = ",".join(map(str, (first, *shape, kind.str)))
    array = Array(FlatLabels.name, str(path), key, list(shape))
    targets = TemporalArray(array, temporal_dim=0, frame_shift=1 / rate, start=cut.start)
    return cut.with_custom(TARGETS, targets).with_custom(TARGETS_OF, of)


def can_hold_targets(cut: Cut) -> bool:
    """Whether a cut can carry labels: mixed and padded ones cannot, since they show fields of one part only."""
    return isinstance(cut, (MonoCut, MultiCut))


def targets_of(cut: Cut) -> TemporalArray | None:
    """The labels of a cut as its manifest tells of them; None if it has none."""
    found = (cut.custom or {}).get(TARGETS) if can_hold_targets(cut) else None
    return found if isinstance(found, TemporalArray) else None


def load_labels(cut: Cut, start: float, samples: int) -> Tensor | None:
    """Labels (frames, layers) int64 of the part of `cut` that begins at `start` (s) and has `samples` at 16 kHz.

    Frames are HuBERT's, 20 ms apart; each has the label of the codec's frame that covers the middle of the 400 samples
    it sees, and there are as many as have their middle in the part. NO_LABEL where the cut's array has none. None if
    the cut has no labels. Raises AudioError if they cannot be read.
    """
    targets = targets_of(cut)
    if targets is None:
        return None
    frames = max(0, math.ceil((samples - CENTRE) / SEMANTIC_HOP))
    middles = (SEMANTIC_HOP * np.arange(frames) + CENTRE) / SPEECH_RATE
    # Arrays keep their place in the recording when a cut is made shorter.
    places = np.floor((cut.start + start + middles - targets.start) / targets.frame_shift).astype(np.int64)
    known = (places >= 0) & (places < targets.num_frames)
    labels = torch.full((frames, targets.shape[1]), NO_LABEL)
    if known.any():
        first, last = places[known][[0, -1]].tolist()
        rows = _read(cut, targets, first, last - first + 1)
        labels[torch.from_numpy(known)] = torch.from_numpy(rows[places[known] - first].astype(np.int64))
    return labels


def _read(cut: Cut, targets: TemporalArray, first: int, count: int) -> Labels:
    shift = targets.frame_shift
    try:
        rows: Labels = targets.load(targets.start + first * shift, count * shift)
    except Exception as error:  # whatever Lhotse's many readers raise
        why = f"{type(error).__name__}: {error}"
        raise AudioError(f"{cut.id}: its labels cannot be read ({why}): make them again") from error
    return rows


def moved(custom: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Custom fields of a cut whose audio now lies `seconds` later in its recording than before."""
    return {
        key: TemporalArray(value.array, value.temporal_dim, value.frame_shift, value.start + seconds)
        if isinstance(value, TemporalArray)
        else value
        for key, value in custom.items()
    }
