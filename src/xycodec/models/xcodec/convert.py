"""X-Codec's published state dicts -> ours, as tables, and the configuration they imply.

See docs/models/x_codec.md, Published checkpoints.

There are two layouts: the authors' and that of Transformers, into whose names the authors' are turned first. Both hold
the weights of the self-supervised model. Ours stacks the quantizer's buffers over layers and folds weight norm.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from xycodec.errors import CheckpointError, last_reason_of, reason_of
from xycodec.models.config import CodebooksConfig
from xycodec.models.xcodec.config import SelfSupervisedConfig, XCodecConfig
from xycodec.models.xy_tokenizer.convert import State

Rule = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]


def _unit(match: re.Match[str]) -> str:
    """A part of a residual unit: the official encoder counts units from 0, its decoder from 2."""
    side, block, unit, part = match["side"], int(match["block"]), int(match["unit"]), int(match["part"])
    first = 0 if side == "encoder" else 2
    name = ("snake1", "conv1", "snake2", "conv2")[part]
    return f"acoustic_{side}.block.{block - 1}.res_unit{unit - first + 1}.{name}."


def _of_block(match: re.Match[str]) -> str:
    side, block, part = match["side"], int(match["block"]), int(match["part"])
    name = {("encoder", 3): "snake1", ("encoder", 4): "conv1", ("decoder", 0): "snake1", ("decoder", 1): "conv_t1"}
    return f"acoustic_{side}.block.{block - 1}.{name[side, part]}."


def _end(match: re.Match[str]) -> str:
    name = {"0": "conv1", "5": "snake1", "6": "conv2"}[match["part"]]
    return f"acoustic_{match['side']}.{name}."


_ACOUSTIC = r"^(?P<side>encoder|decoder)(?:_2)?\.(?:block|model)"
_OFFICIAL: list[Rule] = [
    (re.compile(_ACOUSTIC + r"\.(?P<block>[1-4])\.block\.(?P<unit>\d)\.block\.(?P<part>[0-3])\."), _unit),
    (re.compile(_ACOUSTIC + r"\.(?P<block>[1-4])\.block\.(?P<part>[0134])\.(?!block)"), _of_block),
    (re.compile(_ACOUSTIC + r"\.(?P<part>[056])\."), _end),
    (re.compile(r"^((?:en|de)coder_semantic\..*\bconv[12]?)\.conv\."), r"\1."),
    (re.compile(r"^((?:en|de)coder_semantic\.conv[12]?)\.conv\."), r"\1."),
    (re.compile(r"^quantizer\.vq\.layers\.(\d+)\._codebook\."), r"quantizer.quantizers.\1.codebook."),
    (re.compile(r"^fc_prior\."), "fc."),
    (re.compile(r"^fc_post([12])\."), r"fc\1."),
]
"""Official names -> Transformers'."""

_TRANSFORMERS: list[Rule] = [
    (re.compile(r"^(acoustic_..coder)\.conv1\."), r"\1.stem."),
    (re.compile(r"^(acoustic_..coder)\.snake1\."), r"\1.snake."),
    (re.compile(r"^(acoustic_..coder)\.conv2\."), r"\1.head."),
    (re.compile(r"^(acoustic_..coder)\.block\.(\d+)\.snake1\."), r"\1.blocks.\2.snake."),
    (re.compile(r"^(acoustic_..coder)\.block\.(\d+)\.conv(?:_t)?1\."), r"\1.blocks.\2.conv."),
    (
        re.compile(r"^(acoustic_..coder)\.block\.(\d+)\.res_unit(\d)\."),
        lambda match: f"{match[1]}.blocks.{match[2]}.units.{int(match[3]) - 1}.",
    ),
    (re.compile(r"^(..coder)_semantic\.conv1?\."), r"semantic_\1.stem."),
    (re.compile(r"^decoder_semantic\.conv2\."), "semantic_decoder.head."),
    (re.compile(r"^(..coder)_semantic\.conv_blocks\.(\d)\.res_units\."), r"semantic_\1.blocks.\2.units."),
    (re.compile(r"^(..coder)_semantic\.conv_blocks\."), r"semantic_\1.blocks."),
    (re.compile(r"^semantic_model\."), "semantic_model.model."),
    (re.compile(r"^fc\."), "fusion."),
    (re.compile(r"^fc1\."), "semantic_proj."),
    (re.compile(r"^fc2\."), "acoustic_proj."),
]
"""Transformers' names -> ours."""

# Both spellings of torch's weight norm: length, then direction.
_WEIGHT_NORMS = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))
# Buffers of a quantizer, ours and published.
_BUFFERS = {"codebook": "embed", "embed_avg": "embed_avg", "cluster_size": "cluster_size", "inited": "inited"}
_HEAD_DIM = 64  # of both base models; HuBERT's tensors do not tell

# What every published model has and our model takes for granted, by part of Transformers' configuration.
_FIXED: dict[str, dict[str, Any]] = {
    "": {"sample_rate": 16000, "channel_ratios": [1, 1], "strides": [1, 1], "block_dilations": [1, 1]},
    "semantic_model_config": {
        "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
        "conv_stride": [5, 2, 2, 2, 2, 2, 2],
        "feat_extract_norm": "group",
        "feat_extract_activation": "gelu",
        "feat_proj_layer_norm": True,
        "hidden_act": "gelu",
        "do_stable_layer_norm": False,
        "layer_norm_eps": 1e-5,
        "max_bucket_distance": 800,
    },
}


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a published X-Codec, in either layout."""
    return "acoustic_decoder.conv2.weight" in state or "fc_prior.weight" in state


def to_ours(state: State, name: str) -> State:
    """Rename and reshape a published state dict of either layout; `state` is emptied on the way.

    Raises CheckpointError if a part of it is missing or misshapen.
    """
    ours: State = {}
    try:
        for key in list(state):
            ours[_ours(key)] = state.pop(key)
        fold_weight_norms(ours)
        stack_codebooks(ours, "quantizer.quantizers.{}.codebook.")
        return ours
    except KeyError as error:
        raise CheckpointError(f"{name}: the checkpoint lacks {error.args[0]!r}") from None
    except RuntimeError as error:
        reason = reason_of(error)
        raise CheckpointError(f"{name}: a tensor has the wrong shape ({reason})") from None


def _ours(key: str) -> str:
    for rules in (_OFFICIAL, _TRANSFORMERS):
        for pattern, replacement in rules:
            key, found = pattern.subn(replacement, key)
            if found:
                break
    return key


def stack_codebooks(state: State, prefix: str) -> None:
    """Replace the buffers of each layer's codebook by ours, stacked; `prefix` has a place for the layer's number."""
    layers = 0
    while prefix.format(layers) + "embed" in state:
        layers += 1
    for buffer, published in _BUFFERS.items():
        parts = [state.pop(prefix.format(i) + published) for i in range(layers)]
        # A float of one element, which says whether k-means has run.
        parts = [part.reshape(()).bool() for part in parts] if buffer == "inited" else parts
        state[f"quantizer.{buffer}"] = torch.stack(parts)


def fold_weight_norms(state: State) -> None:
    """Replace length and direction of every weight-normed weight by the weight, in either spelling of torch."""
    for length, direction in _WEIGHT_NORMS:
        for prefix in [key.removesuffix(direction) for key in state if key.endswith(f".{direction}")]:
            g, v = state.pop(prefix + length), state.pop(prefix + direction)
            state[f"{prefix}weight"] = _fold(v, g)


def _fold(v: Tensor, g: Tensor) -> Tensor:
    """Lengths `g` along the first axis of `v` or, of a semantic model's position convolution, the last."""
    for dim in (0, 2)[: v.ndim - 1]:
        if g.shape == tuple(size if axis == dim else 1 for axis, size in enumerate(v.shape)):
            return torch._weight_norm(v, g, dim)
    # The fused operation does not look, and would read past the end.
    raise RuntimeError(f"weight norm of {tuple(v.shape)} by {tuple(g.shape)}")


# ---- the configuration -------------------------------------------------------------------------


def config_from_ours(
    state: Mapping[str, Tensor], name: str, model_id: str, settings: Mapping[str, Any]
) -> XCodecConfig:
    """The configuration that a converted state dict has the shapes of.

    `settings` is Transformers' `config.json`, or empty: it adds the number of HuBERT's heads, which is else one for 64
    channels, and is checked for what is fixed here. Raises CheckpointError.
    """
    _check(settings, name)
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}

    def count(pattern: str) -> int:
        return len({match[1] for key in shapes if (match := re.match(pattern, key))})

    try:
        n_q, size, _ = shapes["quantizer.codebook"]
        blocks = count(r"acoustic_encoder\.blocks\.(\d+)\.")
        strides = tuple(shapes[f"acoustic_encoder.blocks.{i}.conv.weight"][2] // 2 for i in range(blocks))
        return XCodecConfig(
            model_id=model_id,
            strides=strides,
            encoder_width=shapes["acoustic_encoder.stem.weight"][0],
            decoder_width=shapes["acoustic_decoder.stem.weight"][0],
            acoustic_dim=shapes["acoustic_encoder.head.weight"][0],
            semantic=_semantic(shapes, count(r"semantic_model\.model\.encoder\.layers\.(\d+)\."), settings),
            quantizer=CodebooksConfig(n_q=n_q, codebook_size=size, kmeans_iterations=50),
        )
    except KeyError as error:
        raise CheckpointError(f"{name}: the checkpoint lacks {error.args[0]!r}") from None
    except (ValueError, IndexError) as error:
        reason = last_reason_of(error)
        raise CheckpointError(f"{name}: not a complete X-Codec checkpoint ({reason})") from None


def _semantic(shapes: Mapping[str, tuple[int, ...]], layers: int, settings: Mapping[str, Any]) -> SelfSupervisedConfig:
    prefix = "semantic_model.model"
    ffn_dim, d_model = shapes[f"{prefix}.encoder.layers.0.feed_forward.intermediate_dense.weight"]
    _, group, kernel = shapes[f"{prefix}.encoder.pos_conv_embed.conv.weight"]
    gate = shapes.get(f"{prefix}.encoder.layers.0.attention.gru_rel_pos_const")
    told = (settings.get("semantic_model_config") or {}).get("num_attention_heads")
    return SelfSupervisedConfig(
        kind="wavlm" if gate else "hubert",
        d_model=d_model,
        layers=layers,
        heads=gate[1] if gate else told or max(1, d_model // _HEAD_DIM),
        ffn_dim=ffn_dim,
        conv_dim=shapes[f"{prefix}.feature_extractor.conv_layers.0.conv.weight"][0],
        position_kernel=kernel,
        position_groups=d_model // group,
    )


def _check(settings: Mapping[str, Any], name: str) -> None:
    for part, wanted in _FIXED.items():
        given = settings.get(part) or {} if part else settings
        for key, value in wanted.items():
            if given.get(key, value) != value:
                where = f"{part}.{key}" if part else key
                raise CheckpointError(f"{name}: config.json: {where} is {given[key]!r}, only {value!r} is supported")
