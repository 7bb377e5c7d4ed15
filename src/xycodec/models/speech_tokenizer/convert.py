"""SpeechTokenizer's published state dicts -> ours, and the configuration they imply.

They are the authors' `SpeechTokenizer.pt`: a flat state dict whose parts are numbered in the order of the data. Sizes
follow from shapes, so that the `config.json` beside it is not needed.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from xycodec.errors import CheckpointError, last_reason_of, reason_of
from xycodec.models.config import CodebooksConfig
from xycodec.models.speech_tokenizer.config import SpeechTokenizerConfig
from xycodec.models.xcodec.convert import fold_weight_norms, stack_codebooks
from xycodec.models.xy_tokenizer.convert import State

_CODEBOOK = "quantizer.vq.layers.{}._codebook."
_PART = re.compile(r"^(encoder|decoder)\.model\.(\d+)\.(.*)")
_WITHIN = {"block.1.conv.conv": "unit.conv1", "block.3.conv.conv": "unit.conv2", "shortcut.conv.conv": "unit.shortcut"}
# Of a coder's numbered parts, those of a block: unit, activation and convolution in the encoder.
_BLOCK = 3


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a published SpeechTokenizer."""
    return "transform.weight" in state and _CODEBOOK.format(0) + "embed" in state


def to_ours(state: State, name: str) -> State:
    """Rename and reshape a published state dict; `state` is emptied on the way.

    Raises CheckpointError if a part of it is missing or misshapen.
    """
    ours: State = {}
    last = {side: max((int(m[2]) for key in state if (m := _PART.match(key)) and m[1] == side), default=0)
            for side in ("encoder", "decoder")}  # fmt: skip
    try:
        for key in list(state):
            ours[_ours(key, last)] = state.pop(key)
        fold_weight_norms(ours)
        stack_codebooks(ours, _CODEBOOK)
        return ours
    except KeyError as error:
        raise CheckpointError(f"{name}: the checkpoint lacks {error.args[0]!r}") from None
    except RuntimeError as error:
        reason = reason_of(error)
        raise CheckpointError(f"{name}: a tensor has the wrong shape ({reason})") from None


def _ours(key: str, last: Mapping[str, int]) -> str:
    match = _PART.match(key)
    if match is None:
        return re.sub(r"^transform\.", "semantic_proj.", key)
    side, number, rest = match[1], int(match[2]), match[3]
    inner, _, leaf = rest.rpartition(".")
    if inner == "lstm":
        return f"{side}.lstm.lstm.{leaf}"
    if number in (0, last[side]):
        return f"{side}.{'stem' if number == 0 else 'head'}.{leaf}"
    # The decoder's blocks begin after its LSTM and the activation of the first one.
    block = (number - 1) // _BLOCK if side == "encoder" else (number - 3) // _BLOCK
    return f"{side}.blocks.{block}.{_WITHIN.get(inner, 'conv')}.{leaf}"


def config_from_ours(state: Mapping[str, Tensor], name: str, model_id: str) -> SpeechTokenizerConfig:
    """The configuration that a converted state dict has the shapes of. Raises CheckpointError."""
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    try:
        blocks = len({match[1] for key in shapes if (match := re.match(r"decoder\.blocks\.(\d+)\.", key))})
        n_q, size, dim = shapes["quantizer.codebook"]
        return SpeechTokenizerConfig(
            model_id=model_id,
            strides=tuple(shapes[f"decoder.blocks.{i}.conv.weight"][2] // 2 for i in range(blocks)),
            width=shapes["encoder.stem.weight"][0],
            dim=dim,
            semantic_dim=shapes["semantic_proj.weight"][0],
            lstm_layers=len([key for key in shapes if re.fullmatch(r"decoder\.lstm\.lstm\.weight_ih_l\d+", key)]),
            bidirectional="encoder.lstm.lstm.weight_ih_l0_reverse" in shapes,
            quantizer=CodebooksConfig(n_q=n_q, codebook_size=size, kmeans_iterations=50),
        )
    except KeyError as error:
        raise CheckpointError(f"{name}: the checkpoint lacks {error.args[0]!r}") from None
    except (ValueError, IndexError) as error:
        reason = last_reason_of(error)
        raise CheckpointError(f"{name}: not a complete SpeechTokenizer checkpoint ({reason})") from None
