"""A run's weights without its optimizers, as files that are small enough to be handed around."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xycodec.errors import CheckpointError
from xycodec.folders import new_folder
from xycodec.pretrained import EXPORT_FILE, EXPORT_STEM, read_checkpoint
from xycodec.train.initialise import find_checkpoint
from xycodec.weights import MB, save_tensors, stored


@dataclass(frozen=True)
class Exported:
    """The step that was exported, and the files of weights with their bytes."""

    step: int
    files: tuple[Path, ...]
    bytes: int


def export_weights(
    run: Path, folder: Path, *, part_bytes: int = 15 * MB, dtype: torch.dtype = torch.float32
) -> Exported:
    """Write all networks of a run's newest checkpoint, or of one named, into a new folder, whole or not at all.

    `load_codec` and a recipe's `weights` take the folder as they take the checkpoint; a run cannot resume from it.
    With `dtype` float32 they get the same bits. Each file has `part_bytes` at most. Raises CheckpointError if `run` is
    no run, or `folder` exists or cannot be written.
    """
    checkpoint = find_checkpoint(run)
    if checkpoint is None:
        raise CheckpointError(f"{run}: no run and no checkpoint of one: name one that train has made")
    data = read_checkpoint(checkpoint)
    about: dict[str, Any] = {key: data.get(key) for key in ("format", "stage", "step", "codec", "recogniser")}
    tensors = {
        f"{network}/{key}": stored(key, tensor, dtype)
        for network, state in data["networks"].items()
        for key, tensor in state.items()
    }
    with new_folder(folder, CheckpointError) as made:
        (made / EXPORT_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        files = save_tensors(tensors, made, EXPORT_STEM, part_bytes)
        size = sum(file.stat().st_size for file in files)
    return Exported(data["step"], tuple(folder / file.name for file in files), size)
