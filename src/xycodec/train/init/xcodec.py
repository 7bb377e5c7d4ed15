"""Starting weights of an X-Codec: another one's, or for its frozen half those of the model it was trained as."""

import json
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from xycodec.checkpoints.load import load_codec
from xycodec.checkpoints.whisper import FoundTower, find_whisper
from xycodec.errors import CheckpointError, ConfigError, last_reason_of, reason_of
from xycodec.io.config import Config
from xycodec.io.hub import fetch, is_path
from xycodec.io.libraries import transformers_library
from xycodec.models.registry import MODELS
from xycodec.models.xcodec.config import SemanticTowerConfig
from xycodec.models.xcodec.model import XCodec
from xycodec.models.xcodec.semantic import SemanticTower
from xycodec.models.xy_tokenizer.model import XYTokenizer
from xycodec.train.init.weights import find_checkpoint, find_hubert, find_recogniser

KINDS = ("hubert", "wavlm", "whisper")
# Of Transformers' configurations: what decides the shape of a tensor or what is computed with it.
DECISIVE = (
    "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "conv_dim",
    "conv_kernel", "conv_stride", "conv_bias", "num_conv_pos_embeddings", "num_conv_pos_embedding_groups",
    "feat_extract_norm", "feat_extract_activation", "feat_proj_layer_norm", "do_stable_layer_norm", "hidden_act",
    "layer_norm_eps", "num_buckets", "max_bucket_distance",
)  # fmt: skip
# A model that was never trained with masks lacks it; in eval mode nothing reads it.
UNREAD = {"masked_spec_embed"}
_SEMANTIC = "semantic_weights is a hub id or a folder of Transformers, or an X-Codec"


def start_codec(codec: XCodec, source: str) -> None:
    """Give `codec`, built for training, all weights of another X-Codec.

    `source` is a name, hub id, folder, file, run or checkpoint. Raises CheckpointError, one line, if it holds
    none or one of another architecture.
    """
    loaded = load_codec(find_checkpoint(Path(source)) or source, device="cpu")
    if not isinstance(loaded, XCodec):
        raise CheckpointError(f"{source}: holds {type(loaded).__name__}, weights is to name an X-Codec")
    _adopt(codec, loaded.state_dict(), source, "the recipe's model")


def start_semantic(codec: XCodec, source: str) -> None:
    """Give `codec`, built for training, the frozen model of `source`.

    `source` is a hub id or a folder of Transformers, a run of stage `hubert`, or an X-Codec: a name, folder, run or
    checkpoint. A tower may also be that of a recogniser's run or the semantic one of an XY-Tokenizer. Raises
    CheckpointError, one line, if it gives no such model, ConfigError if that differs from `codec.config.semantic`.
    """
    if isinstance(codec.config.semantic, SemanticTowerConfig):
        _start_tower(codec, codec.config.semantic, source)
        return
    folder = _transformers_folder(source, _SEMANTIC)
    own: Any = codec.semantic_model.model
    _adopt(
        own,
        _from_codec(codec, source) if folder is None else _from_transformers(own, folder, source, "model.semantic"),
        source,
        "model.semantic",
    )


def fill_self_supervised(own: Any, source: str, setting: str = "model.encoder") -> None:
    """Give a HuBERT or WavLM of Transformers, of the size that `setting` of a recipe says, the weights of `source`.

    `source` is a hub id or a folder of Transformers, or a run of stage `hubert`. Raises CheckpointError, one line, if
    it holds no such model, ConfigError if it is of another size.
    """
    checkpoint = find_checkpoint(Path(source))
    if checkpoint and (found := find_hubert(checkpoint)):
        state = found[1]
    elif folder := _transformers_folder(source, "name a hub id or a folder of Transformers"):
        state = _from_transformers(own, folder, source, setting)
    else:
        raise CheckpointError(f"{source}: holds no HuBERT and no WavLM: name one of Transformers")
    _adopt(own, state, source, setting)


def _start_tower(codec: XCodec, wanted: SemanticTowerConfig, source: str) -> None:
    found = _find_tower(source)
    found.require(
        "semantic", wanted, n_mels=wanted.n_mels, positions=wanted.positions, setting="model.semantic.positions"
    )
    own: Any = codec.semantic_model
    found.fill(own.tower)


def _find_tower(source: str) -> FoundTower:
    checkpoint = find_checkpoint(Path(source))
    if checkpoint and (recogniser := find_recogniser(checkpoint)):
        return recogniser
    if checkpoint is None and (folder := _transformers_folder(source, _SEMANTIC)) is not None:
        return find_whisper(str(folder) if Path(source).exists() else source)
    loaded = load_codec(checkpoint or source, device="cpu")
    config: Any = loaded.config
    if isinstance(loaded, XYTokenizer) and loaded.semantic_encoder is not None:
        size, n_mels, positions = config.semantic_encoder, config.n_mels, config.tower_positions
        return FoundTower(source, size, n_mels, positions, loaded.semantic_encoder.state_dict)
    if isinstance(loaded, XCodec) and isinstance(config.semantic, SemanticTowerConfig):
        size, frozen = config.semantic, cast(SemanticTower, loaded.semantic_model)
        return FoundTower(source, size, size.n_mels, size.positions, frozen.tower.state_dict)
    raise CheckpointError(
        f"{source}: holds no tower: name a Whisper, a run of stage ctc, or a codec with a semantic tower"
    )


def _transformers_folder(source: str, known: str) -> Path | None:
    """Folder of a model of Transformers, its configuration at least; None if `source` is something else.

    `known` tells in words what the source may be.
    """
    folder = Path(source)
    if source in MODELS or folder.exists():
        return folder if _kind(folder) in KINDS else None
    if is_path(source) or source.count("/") != 1:
        raise CheckpointError(f"{source}: no such file or folder; {known}")
    return _transformers_folder(str(fetch(source, ["config.json"])), known)


def _kind(folder: Path) -> str | None:
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return settings.get("model_type") if isinstance(settings, dict) else None


def _from_transformers(own: Any, folder: Path, source: str, ours: str) -> dict[str, Tensor]:
    theirs = type(own.config).from_pretrained(folder, local_files_only=True)
    for key in DECISIVE:
        wanted, given = (_plain(getattr(config, key, None)) for config in (own.config, theirs))
        if given != wanted:
            raise ConfigError(f"{source}: its {key} is {given}, {ours} asks for {wanted}: make them equal")
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
    theirs, state = _trained_here(source)
    for key, wanted in codec.config.semantic or ():
        if (given := getattr(theirs, key, None)) != wanted:
            raise ConfigError(
                f"{source}: its semantic.{key} is {given}, model.semantic asks for {wanted}: make them equal"
            )
    return state


def _trained_here(source: str) -> tuple[Config, dict[str, Tensor]]:
    """Size and weights of what stage `hubert` trained, or of an X-Codec's frozen model."""
    checkpoint = find_checkpoint(Path(source))
    if checkpoint and (found := find_hubert(checkpoint)):
        return found
    loaded = load_codec(source, device="cpu")
    theirs = loaded.config.semantic if isinstance(loaded, XCodec) else None
    if not isinstance(loaded, XCodec) or theirs is None:
        raise CheckpointError(f"{source}: holds no HuBERT and no WavLM: name one of Transformers, or an X-Codec")
    own: Any = loaded.semantic_model
    return theirs, getattr(own, "model", own).state_dict()


@torch.no_grad()
def _adopt(own: nn.Module, state: dict[str, Tensor], source: str, ours: str) -> None:
    """Copy the weights, of which a weight-normed one may be folded."""
    for name, module in own.named_modules():
        if parametrize.is_parametrized(module, "weight") and f"{name}.weight" in state:
            module.weight = state.pop(f"{name}.weight")
            state |= {f"{name}.{key}": value for key, value in module.state_dict().items() if key.startswith("param")}
    try:
        own.load_state_dict(state)
    except RuntimeError as error:
        reason = last_reason_of(error)
        raise CheckpointError(f"{source}: of another architecture than {ours} ({reason})") from None
