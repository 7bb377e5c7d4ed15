"""A run's weights without its optimizers: as files that are small enough to be handed around, or for Transformers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xycodec.checkpoints.training import CHECKPOINT_FORMAT, EXPORT_FILE, EXPORT_STEM, read_checkpoint
from xycodec.checkpoints.weights import MB, save_tensors, stored
from xycodec.errors import CheckpointError
from xycodec.io.files import new_folder
from xycodec.io.libraries import transformers_library
from xycodec.lm.loading import join_valle
from xycodec.models.xcodec.semantic import transformers_model
from xycodec.train.init.weights import find_checkpoint, find_hubert


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
    With `dtype` float32 they get the same bits. `save_tensors` explains `part_bytes`. Raises CheckpointError if `run`
    is no run, or `folder` exists or cannot be written.
    """
    data = read_checkpoint(_checkpoint(run))
    return save_weights(data, data["networks"], folder, part_bytes=part_bytes, dtype=dtype)


def save_weights(
    about: Mapping[str, Any],
    networks: Mapping[str, Mapping[str, Tensor]],
    folder: Path,
    *,
    part_bytes: int = 15 * MB,
    dtype: torch.dtype = torch.float32,
    exact: tuple[str, ...] = ("embed_avg", "cluster_size"),  # they move by small steps
) -> Exported:
    """Write `networks` as `export_weights` does; `about` is the checkpoint that they are of, or a mapping like it.

    Names that end in one of `exact` keep their type. Raises CheckpointError if `folder` exists or cannot be written.
    """
    kept = ("format", "stage", "step", "codec", "recogniser", "self_supervised", "autoencoder", "language_model")
    told = {key: about.get(key) for key in kept}
    tensors = {
        f"{network}/{key}": stored(key, tensor, dtype, exact=exact)
        for network, state in networks.items()
        for key, tensor in state.items()
    }
    with new_folder(folder, CheckpointError) as made:
        (made / EXPORT_FILE).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        files = save_tensors(tensors, made, EXPORT_STEM, part_bytes)
        size = sum(file.stat().st_size for file in files)
    return Exported(about["step"], tuple(folder / file.name for file in files), size)


def export_transformers(run: Path, folder: Path) -> Exported:
    """Write the HuBERT of a run of stage `hubert`, or of a checkpoint, as a new folder of Transformers, in float32.

    `HubertModel.from_pretrained` reads it, and so does `semantic_weights` of stage `xcodec`. Raises CheckpointError if
    `run` holds none, or `folder` exists or cannot be written.
    """
    checkpoint = _checkpoint(run)
    found = find_hubert(checkpoint)
    if found is None:
        raise CheckpointError(f"{checkpoint}: holds no HuBERT for Transformers to read: name a run of stage hubert")
    size, state = found
    transformers_library().utils.logging.disable_progress_bar()
    model: Any = transformers_model(**size.model_dump())
    model.load_state_dict(state)
    with new_folder(folder, CheckpointError) as made:
        model.save_pretrained(made)
        files = sorted(made.glob("*.safetensors"))
        written = sum(file.stat().st_size for file in files)
    return Exported(read_checkpoint(checkpoint)["step"], tuple(folder / file.name for file in files), written)


def export_valle(
    ar: Path, nar: Path, folder: Path, *, part_bytes: int = 15 * MB, dtype: torch.dtype = torch.float32
) -> Exported:
    """Write both stages of a VALL-E, from a run or checkpoint of each, as one model that `xycodec.lm.load` reads.

    Raises CheckpointError if one is of another stage, they do not fit each other, or `folder` cannot be written.
    """
    settings, weights = join_valle(ar, nar)
    step = read_checkpoint(_checkpoint(ar))["step"]
    about = {"format": CHECKPOINT_FORMAT, "stage": "valle", "step": step, "language_model": settings}
    return save_weights(about, {"model": weights}, folder, part_bytes=part_bytes, dtype=dtype)


def _checkpoint(run: Path) -> Path:
    checkpoint = find_checkpoint(run)
    if checkpoint is None:
        raise CheckpointError(f"{run}: no run and no checkpoint of one: name one that train has made")
    return checkpoint
