"""Both towers from the encoder of a Whisper checkpoint of Transformers (spec section 4.3)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from xycodec.config import TowerConfig
from xycodec.convert import fuse_attention
from xycodec.errors import CheckpointError, ConfigError, reason_of
from xycodec.hub import fetch, is_path
from xycodec.models.xy_tokenizer import XYTokenizer
from xycodec.nn.whisper import WhisperEncoder

_CONFIG, _WEIGHTS = "config.json", ("model.safetensors", "model-*-of-*.safetensors")
# With and without the language model's head around it.
_PREFIXES = ("model.encoder.", "encoder.")


def initialise_towers(codec: XYTokenizer, source: str) -> None:
    """Copy the Whisper encoder of `source`, a hub id or a folder, into the codec's one or two towers.

    Positions are the first rows of Whisper's table. Raises CheckpointError, one line, if `source` gives no Whisper
    encoder, and ConfigError, before any weight is read, if its size is not that of the towers.
    """
    _check_sizes(codec, _settings(source), source)
    state = load_whisper_encoder(source)
    for tower in (codec.semantic_encoder, codec.acoustic_encoder):
        if tower is not None:
            fill_tower(tower, state, source)


def fill_tower(tower: WhisperEncoder, state: Mapping[str, Tensor], source: str) -> None:
    """Copy an encoder's weights; of its positions, the first rows. Raises CheckpointError where shapes differ."""
    state = dict(state)
    state["positional_embedding"] = state["positional_embedding"][: len(tower.positional_embedding)]
    expected = {key: value.shape for key, value in tower.state_dict().items()}
    if expected != {key: value.shape for key, value in state.items()}:
        raise CheckpointError(f"{source}: the weights are not those of the size in its configuration")
    tower.load_state_dict(state)


def check_tower(codec: XYTokenizer, name: str, size: TowerConfig, *, n_mels: int, positions: int, source: str) -> None:
    """Raise ConfigError unless the codec's tower `name` can start from an encoder of that size in `source`."""
    ours = codec.config
    wanted: TowerConfig = getattr(ours, name)
    if wanted != size or n_mels != ours.n_mels:
        raise ConfigError(
            f"{source} has {_describe(size, n_mels)}, model.{name} has {_describe(wanted, ours.n_mels)}: "
            "change one of the two, or set towers to null"
        )
    if positions < ours.tower_positions:
        raise ConfigError(
            f"{source} has {positions} positions, a window of the model {ours.tower_positions}: "
            "lower model.window_frames"
        )


def load_whisper_encoder(source: str) -> dict[str, Tensor]:
    """The encoder's weights under the names of `nn.whisper.WhisperEncoder`, in float32, positions in full.

    `source`: a hub id, or a folder with the safetensors weights that `save_pretrained` writes; of those, the
    encoder's tensors only are read. Raises CheckpointError, one line.
    """
    folder = _folder(source, *_WEIGHTS)
    files = next((found for pattern in _WEIGHTS if (found := sorted(folder.glob(pattern)))), [])
    if not files:
        raise CheckpointError(f"{source}: holds no {_WEIGHTS[0]}; save it again with Transformers")
    state: dict[str, Tensor] = {}
    try:
        for file in files:
            state.update(_encoder_tensors(file))
        fuse_attention(state)
        state["positional_embedding"] = state.pop("embed_positions.weight")
    except KeyError as error:
        raise CheckpointError(f"{source}: the encoder lacks {error.args[0]!r}") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{source}: damaged weights ({reason_of(error)})") from None
    return state


def _encoder_tensors(file: Path) -> dict[str, Tensor]:
    with safe_open(file, framework="pt") as tensors:
        return {
            key.removeprefix(prefix): tensors.get_tensor(key).float()
            for key in tensors.keys()  # noqa: SIM118  # not a mapping
            for prefix in _PREFIXES
            if key.startswith(prefix)
        }


def _folder(source: str, *wanted: str) -> Path:
    """Where the `wanted` files lie: `source` itself, or the hub's snapshot of it."""
    if Path(source).is_dir():
        return Path(source)
    if is_path(source):
        raise CheckpointError(f"{source}: no such folder; towers is a hub id or a folder of Transformers")
    return fetch(source, wanted)


def _settings(source: str) -> dict[str, Any]:
    file = _folder(source, _CONFIG) / _CONFIG
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CheckpointError(f"{source}: has no readable {_CONFIG}, so it is no model of Transformers") from None
    if not isinstance(settings, dict) or settings.get("model_type") != "whisper":
        raise CheckpointError(f"{source}: not a Whisper; towers start from one, or from null (at random)")
    return settings


def _check_sizes(codec: XYTokenizer, settings: dict[str, Any], source: str) -> None:
    try:
        theirs = TowerConfig(
            d_model=settings["d_model"],
            layers=settings["encoder_layers"],
            heads=settings["encoder_attention_heads"],
            ffn_dim=settings["encoder_ffn_dim"],
        )
        n_mels, positions = settings["num_mel_bins"], settings["max_source_positions"]
    except (KeyError, ValueError):
        raise CheckpointError(f"{source}: its {_CONFIG} does not tell the encoder's size") from None
    for name in ("semantic_encoder", "acoustic_encoder"):
        if getattr(codec.config, name) is not None:
            check_tower(codec, name, theirs, n_mels=n_mels, positions=positions, source=source)


def _describe(size: TowerConfig, n_mels: int) -> str:
    return f"{size.layers} layers of {size.d_model} ({size.heads} heads, FFN {size.ffn_dim}, {n_mels} mel bins)"
