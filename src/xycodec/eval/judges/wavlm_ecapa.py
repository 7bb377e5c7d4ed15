"""The speaker model of most papers: UniSpeech's WavLM-large with an ECAPA-TDNN head, from its published checkpoint.

The head (Desplanques et al. 2020) reads a weighted sum of WavLM's hidden states. Its layers have the sizes that the
checkpoint has.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.checkpoints.load import resolve_device
from xycodec.errors import CheckpointError, last_reason_of, reason_of
from xycodec.eval.judges.sources import need, samples_for

State = dict[str, Tensor]

_BLOCKS = 3
_SCALE = 8  # groups of channels in a block
_STRIDES = (5, 2, 2, 2, 2, 2, 2)
_BACKBONE, _HEAD = "feature_extract.model.", "head."
# The classifier of the speakers that it was trained on.
_TRAINING_ONLY = "loss_calculator."

# Published names -> ours, and Transformers' for WavLM; the first pattern that matches counts.
_NAMES = [
    (re.compile(rf"^{re.escape(_BACKBONE)}{pattern}"), f"wavlm.{name}")
    for pattern, name in (
        (r"mask_emb$", "masked_spec_embed"),
        (r"(feature_extractor\.conv_layers\.\d+)\.0\.", r"\1.conv."),
        (r"(feature_extractor\.conv_layers\.\d+)\.2\.1\.", r"\1.layer_norm."),
        (r"layer_norm\.", "feature_projection.layer_norm."),
        (r"post_extract_proj\.", "feature_projection.projection."),
        (r"encoder\.pos_conv\.0\.weight_g$", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
        (r"encoder\.pos_conv\.0\.weight_v$", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
        (r"encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
        (r"(encoder\.layers\.\d+)\.self_attn\.grep_linear\.", r"\1.attention.gru_rel_pos_linear."),
        (r"(encoder\.layers\.\d+)\.self_attn\.grep_a$", r"\1.attention.gru_rel_pos_const"),
        (r"(encoder\.layers\.\d+)\.self_attn\.relative_attention_bias\.", r"\1.attention.rel_attn_embed."),
        (r"(encoder\.layers\.\d+)\.self_attn\.", r"\1.attention."),
        (r"(encoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.layer_norm."),
        (r"(encoder\.layers\.\d+)\.fc1\.", r"\1.feed_forward.intermediate_dense."),
        (r"(encoder\.layers\.\d+)\.fc2\.", r"\1.feed_forward.output_dense."),
        ("", ""),
    )
] + [
    (re.compile(pattern), f"head.{name}")
    for pattern, name in (
        (r"^layer1\.", "first."),
        *((rf"^layer{2 + block}\.Conv1dReluBn1\.", f"blocks.{block}.enter.") for block in range(_BLOCKS)),
        *((rf"^layer{2 + block}\.Res2Conv1dReluBn\.", f"blocks.{block}.scales.") for block in range(_BLOCKS)),
        *((rf"^layer{2 + block}\.Conv1dReluBn2\.", f"blocks.{block}.leave.") for block in range(_BLOCKS)),
        *((rf"^layer{2 + block}\.SE_Connect\.", f"blocks.{block}.gate.") for block in range(_BLOCKS)),
        ("", ""),
    )
]


class WavlmEcapa:
    """A checkpoint in the layout of `wavlm_large_finetune.pth`, called with audio. Raises CheckpointError."""

    def __init__(self, path: Path, device: str) -> None:
        place = resolve_device(device)
        self._model = _load(path).to(place).eval()
        self.shortest = samples_for(2, self._model.wavlm.config)  # a norm over time takes two frames
        self.about = f"{path.name} (UniSpeech, WavLM with ECAPA-TDNN)"

    @torch.inference_mode()
    def __call__(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n,) at 16 kHz -> (256,)."""
        device = self._model.head.feature_weight.device
        embedding: NDArray[np.float32] = self._model(torch.from_numpy(audio)[None].to(device))[0].cpu().numpy()
        return embedding


class _Model(nn.Module):
    def __init__(self, wavlm: Any, head: "EcapaTdnn") -> None:
        super().__init__()
        self.wavlm = wavlm
        self.head = head

    def forward(self, audio: Tensor) -> Tensor:
        """(B, T) -> (B, E)."""
        made = self.wavlm(F.layer_norm(audio, audio.shape[1:]), output_hidden_states=True)
        # The input of every layer, and what leaves the last one after the norm that follows it.
        embedding: Tensor = self.head(torch.stack([*made.hidden_states[:-1], made.last_hidden_state]))
        return embedding


class EcapaTdnn(nn.Module):
    """Hidden states (S, B, L, D) -> speaker embeddings (B, E)."""

    def __init__(self, *, states: int, dim: int, channels: int, gate: int, wide: int, attention: int, out: int) -> None:
        super().__init__()
        self.feature_weight = nn.Parameter(torch.zeros(states))
        self.first = _Layer(dim, channels, kernel=5)
        self.blocks = nn.ModuleList([_Block(channels, gate, dilation=2 + number) for number in range(_BLOCKS)])
        self.conv = nn.Conv1d(_BLOCKS * channels, wide, 1)
        self.pooling = _AttentivePooling(wide, attention)
        self.bn = nn.BatchNorm1d(2 * wide)
        self.linear = nn.Linear(2 * wide, out)

    def forward(self, states: Tensor) -> Tensor:
        """L >= 2."""
        x = torch.einsum("s,sbld->bdl", self.feature_weight.softmax(0), states)
        x = self.first(F.instance_norm(x))
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        x = self.conv(torch.cat(outputs, dim=1)).relu()
        embedding: Tensor = self.linear(self.bn(self.pooling(x)))
        return embedding


class _Layer(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2)
        self.bn = nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.bn(self.conv(x).relu())
        return normed


class _Block(nn.Module):
    """Channels in groups, each convolved together with what the one before gave; then a gate on every channel."""

    def __init__(self, channels: int, gate: int, dilation: int) -> None:
        super().__init__()
        self.enter = _Layer(channels, channels, kernel=1)
        self.scales = _Scales(channels // _SCALE, dilation)
        self.leave = _Layer(channels, channels, kernel=1)
        self.gate = _Gate(channels, gate)

    def forward(self, x: Tensor) -> Tensor:
        gated: Tensor = self.gate(self.leave(self.scales(self.enter(x))))
        return x + gated


class _Scales(nn.Module):
    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation) for _ in range(_SCALE - 1)]
        )
        self.bns = nn.ModuleList([nn.BatchNorm1d(width) for _ in range(_SCALE - 1)])

    def forward(self, x: Tensor) -> Tensor:
        *groups, last = x.chunk(_SCALE, dim=1)
        made: list[Tensor] = []
        for group, conv, norm in zip(groups, self.convs, self.bns, strict=True):
            made.append(norm(conv(group + made[-1] if made else group).relu()))
        return torch.cat([*made, last], dim=1)


class _Gate(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, hidden)
        self.linear2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        opened: Tensor = self.linear2(self.linear1(x.mean(dim=2)).relu()).sigmoid()
        return x * opened[..., None]


class _AttentivePooling(nn.Module):
    """Mean and deviation over time of every channel, each weighted by its own attention."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Conv1d(channels, hidden, 1)
        self.linear2 = nn.Conv1d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.linear2(self.linear1(x).tanh()).softmax(dim=2)
        mean = (weights * x).sum(dim=2)
        variance = (weights * x.square()).sum(dim=2) - mean.square()
        return torch.cat([mean, variance.clamp_min(1e-9).sqrt()], dim=1)


# ---- loading -----------------------------------------------------------------------------------


def _load(path: Path) -> _Model:
    state = {_ours(key): value for key, value in _read(path).items() if not key.startswith(_TRAINING_ONLY)}
    try:
        # On `meta`: what the constructors would draw at random is replaced in whole.
        with torch.device("meta"):
            model = _Model(need("transformers").WavLMModel(_wavlm_config(state)), _empty_head(state))
        model.load_state_dict(state, assign=True)
    except KeyError as error:
        raise CheckpointError(f"{path}: not UniSpeech's WavLM with ECAPA-TDNN, it lacks {error.args[0]}") from None
    except (RuntimeError, IndexError, ValueError) as error:
        reason = last_reason_of(error)[:200]
        raise CheckpointError(f"{path}: not UniSpeech's WavLM with ECAPA-TDNN ({reason})") from None
    return model


def _read(path: Path) -> State:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        return {key: value.float() if value.is_floating_point() else value for key, value in saved["model"].items()}
    # Damaged files make torch raise almost anything.
    except Exception as error:
        raise CheckpointError(f"{path}: no checkpoint with a `model` in it ({reason_of(error)})") from None


def _ours(key: str) -> str:
    for pattern, name in _NAMES:
        if pattern.search(key):
            return pattern.sub(name, key, count=1)
    raise AssertionError("the last pattern matches everything")


def _wavlm_config(state: State) -> Any:
    """Configuration like microsoft/wavlm-large, with the sizes of the weights."""
    convolutions = [state[f"wavlm.feature_extractor.conv_layers.{layer}.conv.weight"] for layer in range(len(_STRIDES))]
    position = state["wavlm.encoder.pos_conv_embed.conv.parametrizations.weight.original1"]
    buckets, heads = state["wavlm.encoder.layers.0.attention.rel_attn_embed.weight"].shape
    intermediate, hidden = state["wavlm.encoder.layers.0.feed_forward.intermediate_dense.weight"].shape
    return need("transformers").WavLMConfig(
        hidden_size=hidden,
        num_hidden_layers=len(state["head.feature_weight"]) - 1,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        conv_dim=[weight.shape[0] for weight in convolutions],
        conv_kernel=[weight.shape[2] for weight in convolutions],
        conv_stride=_STRIDES,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        num_buckets=buckets,
        num_conv_pos_embeddings=position.shape[2],
        num_conv_pos_embedding_groups=position.shape[0] // position.shape[1],
    )


def _empty_head(state: State) -> EcapaTdnn:
    channels, dim, _ = state["head.first.conv.weight"].shape
    attention, wide, _ = state["head.pooling.linear1.weight"].shape
    return EcapaTdnn(
        states=len(state["head.feature_weight"]),
        dim=dim,
        channels=channels,
        gate=len(state["head.blocks.0.gate.linear1.weight"]),
        wide=wide,
        attention=attention,
        out=len(state["head.linear.weight"]),
    )
