"""A codec as a folder, or as a repository of the model hub: `config.json`, `model.safetensors` and a model card."""

import json
import os
import tempfile
from pathlib import Path

import torch
from torch.nn.utils import parametrize

from xycodec.checkpoints.build import SUMS, OwnCodec
from xycodec.checkpoints.card import CARD_FILE, model_card
from xycodec.checkpoints.weights import save_tensors, shard_files, stored
from xycodec.errors import CheckpointError
from xycodec.io.files import new_folder, os_error_line
from xycodec.io.hub import upload
from xycodec.models.base import Codec
from xycodec.models.pretrained import register

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
    source: str | None = None,
) -> Path:
    """Write `config.json`, `model.safetensors` and a model card into a new folder, whole or not at all.

    `dtype` is what floating-point weights are stored in; they run in float32 again once loaded. In a lower precision
    the codebooks' running sums, which only training reads, are left out and follow from counts again. The codec must be
    folded (as `load_codec` returns it). `overwrite` replaces a folder that holds a codec. `part_bytes` makes
    several files of the weights, as `save_tensors` says. `source` is what the card tells to load (default: the folder's
    name). Raises CheckpointError if the folder exists or cannot be made.
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
        (made / CARD_FILE).write_text(model_card(codec, source or target.name), encoding="utf-8")
    return target


@register("save_pretrained")
def save_pretrained(codec: Codec, folder: str | os.PathLike[str]) -> Path:
    """Write `codec` into a folder, new or not, as `Codec.save_pretrained` says."""
    target = Path(folder)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            return save_codec(_own(codec), target)
        if not target.is_dir():
            raise CheckpointError(f"{target}: is a file: give the name of a folder")
        with tempfile.TemporaryDirectory(dir=target, prefix=".") as scratch:
            made = save_codec(_own(codec), Path(scratch) / "made", source=target.name)
            # What is left of weights in parts would be read in place of these.
            stale = shard_files(target, WEIGHTS_STEM)
            for file in made.iterdir():
                if file.name != CARD_FILE or not (target / CARD_FILE).exists():
                    file.replace(target / file.name)
            for file in stale:
                file.unlink()
    except OSError as error:
        raise CheckpointError(os_error_line(str(target), "written", error)) from error
    return target


@register("push_to_hub")
def push_to_hub(codec: Codec, repo: str, *, private: bool | None, token: str | None, message: str) -> str:
    """Upload `codec`, as `Codec.push_to_hub` says, and return the repository's address."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_codec(_own(codec), Path(scratch) / "model", source=repo)
        return upload(folder, repo, private=private, token=token, message=message, once=[CARD_FILE])


def _own(codec: Codec) -> OwnCodec:
    if not isinstance(codec, OwnCodec):
        raise CheckpointError(f"{codec.model_id}: a {type(codec).__name__} has no layout here: save what it came from")
    return codec
