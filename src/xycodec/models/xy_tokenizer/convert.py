"""Published state dicts -> ours, as tables, and the configuration they imply.

See docs/models/xy_tokenizer.md, Published checkpoints.

Ours differs from the published layout in four places: queries, keys and values are one matrix; convolutions
whose kernel equals their stride are plain matrices; the quantizer's buffers are stacked over layers; its
weight norm is folded.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from xycodec.errors import CheckpointError, reason_of
from xycodec.io.config import parse_config
from xycodec.models.config import TowerConfig
from xycodec.models.xy_tokenizer.config import CONFIGS, QuantizerConfig, VocosConfig, XYTokenizerConfig
from xycodec.nn.resample import convolution_as_product, transposed_convolution_as_product

State = dict[str, Tensor]

# Spellings of the other published layouts -> the official one.
_SPELLINGS = [
    (re.compile(r"^enhanced_vocos\."), "vocos."),
    (re.compile(r"\.mlp\.(fc[12])\."), r".\1."),
    (re.compile(r"\.positional_embedding\.weight$"), ".positional_embedding"),
    (re.compile(r"\.parametrizations\.weight\.original0$"), ".weight_g"),
    (re.compile(r"\.parametrizations\.weight\.original1$"), ".weight_v"),
]
CUSTOM = "custom"
"""Model id of an architecture that was never published."""

_QUANTIZER_BUFFERS = ("codebook", "inited", "cluster_size", "embed_avg")
_HEAD_DIM = 64  # of every published model; a lone state dict does not tell


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a published XY-Tokenizer, in any of its layouts."""
    return "quantizer.quantizers.0.codebook" in state and "upsample.up_conv.weight" in state


def to_ours(state: State, name: str) -> State:
    """Rename and reshape a published state dict; `state` is emptied on the way, so nothing is held twice.

    Raises CheckpointError if a part of it is missing or misshapen.
    """
    ours: State = {}
    try:
        for key in list(state):
            ours[_official(key)] = state.pop(key)
        fuse_attention(ours)
        for side in ("input_proj", "output_proj"):
            g, v = (ours.pop(f"quantizer.{side}.weight_{part}") for part in "gv")
            ours[f"quantizer.{side}.weight"] = _fold(v, g)
        for gate in ("gate_proj", "up_proj"):
            key = f"downsample.{gate}.weight"
            ours[key] = convolution_as_product(ours[key]).contiguous()
        up = ours.pop("upsample.up_conv.weight")
        ours["upsample.proj.weight"] = transposed_convolution_as_product(up).contiguous()
        layers = _count(ours, r"quantizer\.quantizers\.(\d+)\.codebook")
        for buffer in _QUANTIZER_BUFFERS:
            parts = [ours.pop(f"quantizer.quantizers.{i}.{buffer}") for i in range(layers)]
            ours[f"quantizer.{buffer}"] = torch.stack([p.squeeze() if buffer == "inited" else p for p in parts])
        return ours
    except KeyError as error:
        raise CheckpointError(f"{name}: the checkpoint lacks {error.args[0]!r}") from None
    except (RuntimeError, IndexError) as error:
        raise CheckpointError(f"{name}: a tensor has the wrong shape ({reason_of(error)})") from None


def _official(key: str) -> str:
    for pattern, official in _SPELLINGS:
        key = pattern.sub(official, key)
    return key


def fuse_attention(state: State) -> None:
    """Join the published query, key and value maps of every layer into our one, in place."""
    suffix = ".q_proj.weight"
    for prefix in [key.removesuffix(suffix) for key in state if key.endswith(suffix)]:
        state[f"{prefix}.qkv_weight"] = torch.cat([state.pop(f"{prefix}.{p}_proj.weight") for p in "qkv"])
        state[f"{prefix}.q_bias"] = state.pop(f"{prefix}.q_proj.bias")
        state[f"{prefix}.v_bias"] = state.pop(f"{prefix}.v_proj.bias")


def _fold(v: Tensor, g: Tensor) -> Tensor:
    """Weight norm of a convolution with kernel 1: (out, in, 1) and (out, 1, 1) -> (out, in)."""
    if v.ndim != 3 or v.shape[2] != 1 or g.shape != (v.shape[0], 1, 1):
        # Checked because the fused operation does not, and would read past the end.
        raise RuntimeError(f"weight norm of {tuple(v.shape)} by {tuple(g.shape)}")
    return torch._weight_norm(v, g, 0)[..., 0]


def _count(state: Mapping[str, Any], pattern: str) -> int:
    return len({m[1] for key in state if (m := re.fullmatch(pattern, key))})


# ---- configuration from shapes, for a state dict that comes alone -----------------------------


def config_from_state(state: Mapping[str, Tensor], name: str) -> XYTokenizerConfig:
    """The published configuration that a state dict (published layout, any spelling) has the shapes of.

    Shapes do not tell the number of attention heads, so only published architectures are recognised; others
    need their `config.yaml` in the same folder. Raises CheckpointError.
    """
    shapes = {_official(key): tuple(tensor.shape) for key, tensor in state.items()}

    def tower(prefix: str) -> TowerConfig:
        ffn_dim, d_model = shapes[f"{prefix}.layers.0.fc1.weight"]
        layers = _count(shapes, rf"{prefix}\.layers\.(\d+)\.fc1\.weight")
        return TowerConfig(d_model=d_model, layers=layers, heads=max(1, d_model // _HEAD_DIM), ffn_dim=ffn_dim)

    try:
        books = _count(shapes, r"quantizer\.quantizers\.(\d+)\.codebook")
        size, dim = shapes["quantizer.quantizers.0.codebook"]
        intermediate, width = shapes["vocos.backbone.convnext.0.pwconv1.weight"]
        rate = 100 * ((shapes["vocos.head.out.weight"][0] - 2) // 4)
        vocoder_layers = _count(shapes, r"vocos\.backbone\.convnext\.(\d+)\.pwconv1\.weight")
        config = XYTokenizerConfig(
            model_id="unknown",
            output_sample_rate=rate,  # type: ignore[arg-type]  # pydantic checks it
            n_mels=shapes["acoustic_encoder.conv1.weight"][1],
            window_frames=shapes["post_rvq_adapter.positional_embedding"][0],
            semantic_encoder=tower("semantic_encoder"),
            semantic_encoder_adapter=tower("semantic_encoder_adapter"),
            acoustic_encoder=tower("acoustic_encoder"),
            pre_rvq_adapter=tower("pre_rvq_adapter"),
            quantizer=QuantizerConfig(n_q=books, codebook_size=size, codebook_dim=dim),
            post_rvq_adapter=tower("post_rvq_adapter"),
            acoustic_decoder=tower("acoustic_decoder"),
            vocos=VocosConfig(dim=width, intermediate_dim=intermediate, layers=vocoder_layers),
        )
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"{name}: not a complete XY-Tokenizer checkpoint ({reason_of(error)})") from None
    known = published_name(config)
    if known is None:
        raise CheckpointError(f"{name}: not a published architecture, put its config.yaml in the same folder")
    return config.model_copy(update={"model_id": known})


def published_name(config: XYTokenizerConfig) -> str | None:
    """The name of the published model with this architecture, or None."""
    for name, known in CONFIGS.items():
        if config.model_copy(update={"model_id": name}) == known:
            return name
    return None


# ---- configuration from the published config.yaml ----------------------------------------------


def config_from_published_yaml(data: Any, name: str) -> XYTokenizerConfig:
    """Translate a published `config.yaml`. Raises CheckpointError naming the setting that is absent or odd."""
    try:
        params = data["generator_params"]
        output_rate = data.get("output_sample_rate") or params.get("output_sample_rate", data.get("sample_rate"))

        def tower(part: str, stack: str = "encoder") -> dict[str, Any]:
            given = params[f"{part}_kwargs"]
            return {
                "d_model": given["d_model"],
                "layers": given[f"{stack}_layers"],
                "heads": given[f"{stack}_attention_heads"],
                "ffn_dim": given[f"{stack}_ffn_dim"],
            }

        quantizer, vocos = params["quantizer_kwargs"], params["vocos_kwargs"]
        if quantizer["codebook_dim"] != quantizer["rvq_dim"]:
            raise CheckpointError(f"{name}: codebook_dim differs from rvq_dim, which no published model has")
        settings = {
            "model_id": CUSTOM,
            "output_sample_rate": output_rate,
            "n_mels": params["acoustic_encoder_kwargs"]["num_mel_bins"],
            "window_frames": params["post_rvq_adapter_kwargs"]["max_source_positions"],
            "downsample_factor": params["downsample_kwargs"]["avg_pooler"],
            "semantic_encoder": tower("semantic_encoder"),
            "semantic_encoder_adapter": tower("semantic_encoder_adapter"),
            "acoustic_encoder": tower("acoustic_encoder"),
            "pre_rvq_adapter": tower("pre_rvq_adapter"),
            "quantizer": {
                "n_q": quantizer["num_quantizers"],
                "codebook_size": quantizer["codebook_size"],
                "codebook_dim": quantizer["codebook_dim"],
            },
            "post_rvq_adapter": tower("post_rvq_adapter"),
            "acoustic_decoder": tower("acoustic_decoder", "decoder"),
            "vocos": {
                "dim": vocos["dim"],
                "intermediate_dim": vocos["intermediate_dim"],
                "layers": vocos["num_layers"],
            },
        }
    except KeyError as error:
        raise CheckpointError(f"{name}: the published configuration lacks {error.args[0]!r}") from None
    except (TypeError, AttributeError):
        raise CheckpointError(f"{name}: not a published XY-Tokenizer configuration") from None
    config = parse_config(XYTokenizerConfig, settings, name, CheckpointError)
    return config.model_copy(update={"model_id": published_name(config) or CUSTOM})
