"""Pretrained towers: the encoder of a Whisper checkpoint in Transformers' layout.

See docs/models/xy_tokenizer.md, Transformer.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from xycodec.errors import CheckpointError, ConfigError, reason_of
from xycodec.io.hub import fetch, is_path
from xycodec.models.config import TowerConfig
from xycodec.models.xy_tokenizer.convert import fuse_attention
from xycodec.nn.whisper import WhisperEncoder

_CONFIG, _WEIGHTS = "config.json", ("model.safetensors", "model-*-of-*.safetensors")
# With and without the language model's head around it.
_PREFIXES = ("model.encoder.", "encoder.")


@dataclass(frozen=True)
class FoundTower:
    """A Whisper-style encoder in `source`; its weights are read once its size is known to fit."""

    source: str
    size: TowerConfig
    n_mels: int
    positions: int
    read: Callable[[], Mapping[str, Tensor]]
    """Function that reads the weights under the names of `nn.whisper.WhisperEncoder`."""

    def require(self, name: str, size: TowerConfig, *, n_mels: int, positions: int, setting: str) -> None:
        """Raise ConfigError unless the tower `name` of a model can start from it; `setting` decides its `positions`."""
        if self._facts(size) != self._facts(self.size) or n_mels != self.n_mels:
            raise ConfigError(
                f"{self.source} has {_describe(self.size, self.n_mels)}, model.{name} has {_describe(size, n_mels)}: "
                "change one of the two, or start at random (null)"
            )
        if self.positions < positions:
            raise ConfigError(
                f"{self.source} has {self.positions} positions, a window of the model {positions}: lower {setting}"
            )

    def fill(self, tower: WhisperEncoder) -> None:
        """Copy the weights; of the positions, the first rows. Raises CheckpointError where shapes differ."""
        state = dict(self.read())
        state["positional_embedding"] = state["positional_embedding"][: len(tower.positional_embedding)]
        expected = {key: value.shape for key, value in tower.state_dict().items()}
        if expected != {key: value.shape for key, value in state.items()}:
            raise CheckpointError(f"{self.source}: the weights are not those of the size in its configuration")
        tower.load_state_dict(state)

    @staticmethod
    def _facts(size: TowerConfig) -> tuple[int, int, int, int]:
        return size.d_model, size.layers, size.heads, size.ffn_dim


def find_whisper(source: str) -> FoundTower:
    """The encoder of a Whisper of Transformers, a hub id or a folder. Raises CheckpointError, one line, if none."""
    settings = _settings(source)
    try:
        size = TowerConfig(
            d_model=settings["d_model"],
            layers=settings["encoder_layers"],
            heads=settings["encoder_attention_heads"],
            ffn_dim=settings["encoder_ffn_dim"],
        )
        n_mels, positions = settings["num_mel_bins"], settings["max_source_positions"]
    except (KeyError, ValueError):
        raise CheckpointError(f"{source}: its {_CONFIG} does not tell the encoder's size") from None
    return FoundTower(source, size, n_mels, positions, lambda: load_whisper_encoder(source))


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
    """Folder of the `wanted` files: `source` itself, or the hub's snapshot of it."""
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


def _describe(size: TowerConfig, n_mels: int) -> str:
    return f"{size.layers} layers of {size.d_model} ({size.heads} heads, FFN {size.ffn_dim}, {n_mels} mel bins)"
