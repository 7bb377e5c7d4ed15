"""The frozen model whose features X-Codec reads: HuBERT or WavLM through Transformers, or a tower.

See docs/models/x_codec.md, Semantic model.

Frames are 20 ms: audio of T samples has (T + 240) // 320 of them.
"""

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.io.libraries import transformers_library
from xycodec.io.rate import SPEECH_RATE
from xycodec.nn.deterministic.attention import attend
from xycodec.nn.deterministic.linear import Linear, gelu
from xycodec.nn.deterministic.rows import plain_inference
from xycodec.nn.folding import fold_weight_norms
from xycodec.nn.mel import LogMel
from xycodec.nn.whisper import WhisperEncoder

HOP = 320  # samples of a frame
KERNELS = (10, 3, 3, 3, 3, 2, 2)
STRIDES = (5, 2, 2, 2, 2, 2, 2)
FIELD = 400  # samples that one frame of HuBERT sees before the transformer
MARGIN = HOP // 2  # of silence on both sides, so that whole frames of audio give as many


def frames_of(samples: int) -> int:
    """Frames of `samples` samples at 50 Hz: whole ones of 320 samples, and one more for a rest of 80 or more."""
    return max(0, (samples + 2 * MARGIN - FIELD) // HOP + 1)


def transformers_model(
    *,
    kind: Literal["hubert", "wavlm"],
    d_model: int,
    layers: int,
    heads: int,
    ffn_dim: int,
    conv_dim: int,
    position_kernel: int,
    position_groups: int,
    **more: Any,
) -> nn.Module:
    """A HuBERT or a WavLM of Transformers with random weights: a checkpoint brings its own, nothing is fetched.

    `more` is of its configuration. Raises CheckpointError if transformers is not installed.
    """
    library: Any = transformers_library()
    config_class, model_class = {
        "hubert": (library.HubertConfig, library.HubertModel),
        "wavlm": (library.WavLMConfig, library.WavLMModel),
    }[kind]
    config = config_class(
        hidden_size=d_model,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=ffn_dim,
        conv_dim=(conv_dim,) * len(KERNELS),
        conv_kernel=KERNELS,
        conv_stride=STRIDES,
        num_conv_pos_embeddings=position_kernel,
        num_conv_pos_embedding_groups=position_groups,
        **more,
    )
    model: nn.Module = model_class(config)
    return model


class FrozenModel(nn.Module):
    """A model that computes without a gradient, and in eval mode whatever the rest is in.

    The published training left the model in train mode, where dropout, layer drop and masking corrupt the features.
    """

    def train(self, mode: bool = True) -> "FrozenModel":
        """Stay in eval mode."""
        return super().train(False)


class Gelu(nn.Module):
    """GELU in place: nothing else in a HuBERT or a WavLM reads its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        return gelu(x)


class SelfAttention(nn.Module):
    """HuBERT's attention over clips that are whole, by products that threads do not matter to."""

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    out_proj: nn.Linear
    head_dim: int

    def forward(self, hidden_states: Tensor, attention_mask: None = None, **_: Any) -> tuple[Tensor, None]:
        """(B, T, D) -> (B, T, D), and no weights."""
        return _attend_whole(self, hidden_states, attention_mask)


def _attend_whole(attention: Any, x: Tensor, mask: None, bias: Tensor | None = None) -> tuple[Tensor, None]:
    """Attention of x (B, T, D) to itself with the projections of a module of Transformers; bias: (B * H, T, T).

    A WavLM's own method has this signature. Clips are computed whole, so a mask is refused (ValueError).
    """
    # Transformers makes a mask that hides nothing where its models are traced.
    if mask is not None and not torch.compiler.is_exporting():
        raise ValueError("clips are computed whole, without a mask")
    heads = (*x.shape[:2], -1, attention.head_dim)
    q, k, v = (part(x).view(heads).transpose(1, 2) for part in (attention.q_proj, attention.k_proj, attention.v_proj))
    out = attend(q, k, v, bias=None if bias is None else bias.view(*q.shape[:3], -1))
    return attention.out_proj(out.transpose(1, 2).flatten(2)), None


class NormedConvolution(nn.Module):
    """The first convolution of the audio with the norm of its channels over time and the activation behind it.

    Mean and variance of a channel follow from those of the audio's patches, so that the norm takes no pass of its own
    over what is the largest map of the model. Without a bias, which such a norm takes out.
    """

    conv: nn.Conv1d
    layer_norm: nn.GroupNorm
    activation: nn.Module

    def forward(self, audio: Tensor) -> Tensor:
        """(B, 1, T) -> (B, C, L)."""
        if not plain_inference(self, audio):
            out: Tensor = self.activation(self.layer_norm(self.conv(audio)))
            return out
        return torch.stack([gelu(self._normed(item)) for item in audio[:, 0]])

    def _normed(self, audio: Tensor) -> Tensor:
        taps = self.conv.kernel_size[0]
        patches = audio.unfold(0, taps, self.conv.stride[0]).t()
        frames = patches.shape[1]
        patches = torch.cat([patches, patches.new_ones(1, frames)])
        # Sums of 512 terms each, which threads do not divide.
        blocks = F.pad(patches, (0, -frames % 512)).double().view(taps + 1, -1, 512).transpose(0, 1)
        moments = (blocks @ blocks.mT).sum(dim=0) / frames
        mean = moments[:taps, taps]
        weight = self.conv.weight[:, 0].double()
        variance = ((weight @ (moments[:taps, :taps] - mean.outer(mean))) * weight).sum(dim=1)
        scale = self.layer_norm.weight / (variance.clamp(min=0.0) + self.layer_norm.eps).sqrt()
        shift = self.layer_norm.bias - weight @ mean * scale
        return torch.cat([weight * scale[:, None], shift[:, None]], dim=1).float() @ patches


class SelfSupervisedModel(FrozenModel):
    """Audio to the mean of all hidden states of a HuBERT or a WavLM.

    Its sizes are those of `transformers_model`, and it raises as that does.
    """

    def __init__(self, **sizes: Any) -> None:
        super().__init__()
        library: Any = transformers_library()
        self.sizes = sizes
        self.model = transformers_model(**sizes)
        for module in self.model.modules():
            if type(module) is nn.Linear:
                module.__class__ = Linear  # the same weights, by products that threads do not matter to
            elif type(module) is library.activations.GELUActivation:
                module.__class__ = Gelu
            elif type(module) is library.models.hubert.modeling_hubert.HubertAttention:
                module.__class__ = SelfAttention
            elif type(module) is library.models.wavlm.modeling_wavlm.WavLMAttention:
                module.torch_multi_head_self_attention = partial(_attend_whole, module)  # type: ignore[assignment]
        first = self.model.get_submodule("feature_extractor.conv_layers.0")
        if isinstance(first.layer_norm, nn.GroupNorm):
            first.__class__ = NormedConvolution
        self.requires_grad_(False).eval()

    def fold_weight_norm(self) -> None:
        """Turn the weight-normed position convolution into a plain one."""
        # torch keeps a weight as a parameter only where it had a gradient.
        self.requires_grad_(True)
        fold_weight_norms(self)
        self.requires_grad_(False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy or pickle sizes and weights: a model of Transformers does not work again once it was pickled."""
        return _restored, (self.sizes, self.state_dict())

    @torch.no_grad()
    def forward(self, audio: Tensor) -> Tensor:
        """Audio (B, T) at 16 kHz, as it is -> (B, frames_of(T), d_model), of which there must be one.

        The mean is over the output of every layer and the first one's input: 13 states of a base model.
        """
        states = self.model(F.pad(audio, (MARGIN, MARGIN)), output_hidden_states=True).hidden_states
        return torch.stack(states).mean(dim=0)


def _restored(sizes: dict[str, Any], state: dict[str, Tensor]) -> SelfSupervisedModel:
    with torch.device("meta"):
        model = SelfSupervisedModel(**sizes).float()
        if not any("parametrizations" in key for key in state):
            model.fold_weight_norm()
    model.load_state_dict(state, assign=True)
    return model


class SemanticTower(FrozenModel):
    """Audio to the mean of all states of a Whisper-style tower, of a recogniser say (ours: not in the paper).

    Such a tower norms what its layers read and not what they give: before the mean, every state is brought to one size,
    that the last ones may not drown the others.
    """

    def __init__(
        self,
        *,
        kind: Literal["tower"],
        d_model: int,
        layers: int,
        heads: int,
        ffn_dim: int,
        n_mels: int,
        positions: int,
    ) -> None:
        super().__init__()
        self.mel = LogMel(n_mels, SPEECH_RATE)
        self.tower = WhisperEncoder(
            n_mels=n_mels, d_model=d_model, layers=layers, heads=heads, ffn_dim=ffn_dim, max_positions=positions
        )
        self.requires_grad_(False).eval()

    def fold_weight_norm(self) -> None:
        """Do nothing: a tower has no weight norm."""

    @torch.no_grad()
    def forward(self, audio: Tensor) -> Tensor:
        """Audio (B, T) at 16 kHz -> (B, frames_of(T), d_model), no more than the tower has positions."""
        frames = frames_of(audio.shape[1])
        # As an XY-Tokenizer does it: two more log-mel frames than the tower's need, where the window has room for them.
        margin = 0 if frames == len(self.tower.positional_embedding) else 2
        padded = (2 * frames + margin) * self.mel.hop_length
        mel = self.mel(F.pad(audio, (0, padded - audio.shape[1])))
        states = self.tower.states(self.tower.stem(mel, frames))
        return torch.stack([F.layer_norm(state, state.shape[-1:]) for state in states]).mean(dim=0)
