"""A codec as a folder: `config.json` and `model.safetensors`."""

import json
from pathlib import Path

import torch
from torch.nn.utils import parametrize

from xycodec.checkpoints.build import SUMS, OwnCodec
from xycodec.checkpoints.weights import save_tensors, stored
from xycodec.errors import CheckpointError
from xycodec.io.files import new_folder

FORMAT_VERSION = 1
CONFIG_FILE, WEIGHTS_STEM = "config.json", "model"
WEIGHTS_FILE = f"{WEIGHTS_STEM}.safetensors"


def save_codec(
    codec: OwnCodec,
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
    part_bytes: int | None = None,
) -> Path:
    """Write `config.json` and `model.safetensors` into a new folder, whole or not at all.

    `dtype` is what floating-point weights are stored in; they run in float32 again once loaded. In a lower precision
    the codebooks' running sums, which only training reads, are left out and follow from counts again. The codec must be
    folded (as `load_codec` returns it). `overwrite` replaces a folder that holds a codec. `part_bytes` makes
    files of at most so many bytes of the weights, model-00001-of-0000N.safetensors. Raises CheckpointError if the
    folder exists or cannot be made.
    """
    target = Path(folder)
    if any(parametrize.is_parametrized(module) for module in codec.modules()):
        raise CheckpointError(f"{target}: fold the codec's weight norm before saving it (fold_weight_norm)")
    state = {key: stored(key, tensor, dtype) for key, tensor in codec.state_dict().items()}
    if dtype != torch.float32:
        del state[SUMS]
    settings = {"format_version": FORMAT_VERSION, **codec.config.model_dump(mode="json")}
    with new_folder(target, CheckpointError, replace=overwrite and (target / CONFIG_FILE).is_file()) as made:
        (made / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        save_tensors(state, made, WEIGHTS_STEM, part_bytes)
    return target
