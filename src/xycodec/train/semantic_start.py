"""The frozen half of an X-Codec from where it was trained: a HuBERT or WavLM of Transformers, or another X-Codec."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from xycodec.errors import CheckpointError, ConfigError, reason_of
from xycodec.hub import fetch, is_path
from xycodec.models.transformers_codec import transformers_library
from xycodec.models.xcodec import XCodec
from xycodec.pretrained import load_codec
from xycodec.registry import MODELS

KINDS = ("hubert", "wavlm")
# Of Transformers' configurations: what decides the shape of a tensor or what is computed with it.
DECISIVE = (
    "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "conv_dim",
    "conv_kernel", "conv_stride", "conv_bias", "num_conv_pos_embeddings", "num_conv_pos_embedding_groups",
    "feat_extract_norm", "feat_extract_activation", "feat_proj_layer_norm", "do_stable_layer_norm", "hidden_act",
    "layer_norm_eps", "num_buckets", "max_bucket_distance",
)  # fmt: skip
# A model that was never trained with masks lacks it; in eval mode nothing reads it.
UNREAD = {"masked_spec_embed"}


def start_semantic(codec: XCodec, source: str) -> None:
    """Give `codec`, built for training, the self-supervised model of `source`.

    `source` is a hub id or a folder of Transformers, or an X-Codec: a name, folder, run or checkpoint. Raises
    CheckpointError, one line, if it gives no such model, ConfigError if that differs from `codec.config.semantic`.
    """
    folder = _transformers_folder(source)
    own: Any = codec.semantic_model.model
    _adopt(own, _from_codec(codec, source) if folder is None else _from_transformers(own, folder, source), source)


def _transformers_folder(source: str) -> Path | None:
    """Where a model of Transformers lies, its configuration at least; None if `source` is something else."""
    folder = Path(source)
    if source in MODELS or folder.exists():
        return folder if _kind(folder) in KINDS else None
    if is_path(source) or source.count("/") != 1:
        raise CheckpointError(
            f"{source}: no such file or folder; semantic_weights is a hub id or a folder of Transformers, or an X-Codec"
        )
    return _transformers_folder(str(fetch(source, ["config.json"])))


def _kind(folder: Path) -> str | None:
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return settings.get("model_type") if isinstance(settings, dict) else None


def _from_transformers(own: Any, folder: Path, source: str) -> dict[str, Tensor]:
    theirs = type(own.config).from_pretrained(folder, local_files_only=True)
    for key in DECISIVE:
        wanted, given = (_plain(getattr(config, key, None)) for config in (own.config, theirs))
        if given != wanted:
            raise ConfigError(f"{source}: its {key} is {given}, model.semantic asks for {wanted}: make them equal")
    if not Path(source).exists():
        folder = fetch(source, ["config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*"])
    transformers_library().utils.logging.disable_progress_bar()
    try:
        model, report = type(own).from_pretrained(
            folder, config=own.config, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    # Transformers raises its own classes, its readers' and torch's: all mean the same here.
    except Exception as error:
        reason = reason_of(error)
        raise CheckpointError(f"{source}: the model cannot be loaded ({reason})") from None
    if lacking := sorted(set(report["missing_keys"]) - UNREAD):
        raise CheckpointError(f"{source}: lacks the weights of {lacking[0]}: get a whole copy")
    state: dict[str, Tensor] = model.state_dict()
    return state


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _from_codec(codec: XCodec, source: str) -> dict[str, Tensor]:
    loaded = load_codec(source, device="cpu")
    theirs = loaded.config.semantic if isinstance(loaded, XCodec) else None
    if not isinstance(loaded, XCodec) or theirs is None:
        raise CheckpointError(f"{source}: holds no HuBERT and no WavLM: name one of Transformers, or an X-Codec")
    for key, wanted in codec.config.semantic or ():
        if getattr(theirs, key) != wanted:
            raise ConfigError(
                f"{source}: its semantic.{key} is {getattr(theirs, key)}, model.semantic asks for {wanted}: "
                "make them equal"
            )
    return loaded.semantic_model.model.state_dict()


@torch.no_grad()
def _adopt(own: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Copy the weights, of which a weight-normed one may be folded."""
    for name, module in own.named_modules():
        if parametrize.is_parametrized(module, "weight") and f"{name}.weight" in state:
            module.weight = state.pop(f"{name}.weight")
            state |= {f"{name}.{key}": value for key, value in module.state_dict().items() if key.startswith("param")}
    try:
        own.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise CheckpointError(f"{source}: of another architecture than model.semantic ({reason})") from None
