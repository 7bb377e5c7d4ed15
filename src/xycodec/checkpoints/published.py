"""Codecs from published checkpoints, whose tensors and settings have other names than ours."""

import zlib
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from xycodec.checkpoints.build import OwnCodec, assemble
from xycodec.checkpoints.training import read_mapping, read_state
from xycodec.errors import CheckpointError
from xycodec.models.presets import CodecConfig
from xycodec.models.speech_tokenizer import convert as convert_speech_tokenizer
from xycodec.models.xcodec import convert as convert_xcodec
from xycodec.models.xy_tokenizer import convert
from xycodec.models.xy_tokenizer.config import XYTokenizerConfig


def load_published(
    files: list[Path], config_file: Path, known: str | None = None, settings: dict[str, Any] | None = None
) -> OwnCodec:
    """The codec of a published checkpoint, in one file or several.

    `config_file` is read if it is there; `known` is the name of the published model, where that is sure; `settings`
    are those of a config.json. Raises CheckpointError on anything else.
    """
    name = str(files[0])
    state: dict[str, Tensor] = {}
    for file in files:
        state.update(read_state(file))
    if convert_xcodec.is_published(state):
        ours = convert_xcodec.to_ours(state, name)
        config: CodecConfig = convert_xcodec.config_from_ours(ours, name, known or convert.CUSTOM, settings or {})
    elif convert_speech_tokenizer.is_published(state):
        ours = convert_speech_tokenizer.to_ours(state, name)
        config = convert_speech_tokenizer.config_from_ours(ours, name, known or convert.CUSTOM)
    elif convert.is_published(state):
        config = _published_config(state, config_file, name)
        ours = convert.to_ours(state, name)
    else:
        raise CheckpointError(f"{name}: holds no XY-Tokenizer, X-Codec or SpeechTokenizer that is known here")
    if config.model_id == convert.CUSTOM:
        # Code files name their model: two models of one's own must not share a name.
        fingerprint = zlib.crc32(ours["quantizer.codebook"].float().contiguous().numpy().tobytes())
        config = config.model_copy(update={"model_id": f"{convert.CUSTOM}-{fingerprint:08x}"})
    return assemble(config, ours, name)


def _published_config(state: dict[str, Tensor], config_file: Path, name: str) -> XYTokenizerConfig:
    if config_file.is_file():
        data = read_mapping(config_file, yaml.safe_load)
        return convert.config_from_published_yaml(data, str(config_file))
    return convert.config_from_state(state, name)
