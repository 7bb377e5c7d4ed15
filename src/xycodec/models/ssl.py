"""The self-supervised model that X-Codec reads: HuBERT or WavLM through Transformers (X-Codec's spec, 4.1)."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from xycodec.models.transformers_codec import transformers_library
from xycodec.nn.linear import Linear

KERNELS = (10, 3, 3, 3, 3, 2, 2)
STRIDES = (5, 2, 2, 2, 2, 2, 2)
FIELD = 400
"""Samples that one frame sees before the transformer: T samples give (T - FIELD) // 320 + 1 frames."""


class SelfSupervisedModel(nn.Module):
    """Audio to the mean of all hidden states; frozen, and in eval mode whatever the rest of a model is in.

    Built from its sizes with random weights: a checkpoint brings its own, nothing is fetched. The published training
    left the model in train mode, where dropout, layer drop and masking corrupt the features.

    Raises CheckpointError if transformers is not installed.
    """

    def __init__(
        self,
        *,
        kind: Literal["hubert", "wavlm"],
        d_model: int,
        layers: int,
        heads: int,
        ffn_dim: int,
        conv_dim: int,
        position_kernel: int,
        position_groups: int,
    ) -> None:
        super().__init__()
        library: Any = transformers_library()
        config_class, model_class = {
            "hubert": (library.HubertConfig, library.HubertModel),
            "wavlm": (library.WavLMConfig, library.WavLMModel),
        }[kind]
        self.model: nn.Module = model_class(
            config_class(
                hidden_size=d_model,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                intermediate_size=ffn_dim,
                conv_dim=(conv_dim,) * len(KERNELS),
                conv_kernel=KERNELS,
                conv_stride=STRIDES,
                num_conv_pos_embeddings=position_kernel,
                num_conv_pos_embedding_groups=position_groups,
            )
        )
        for module in self.model.modules():
            if type(module) is nn.Linear:
                module.__class__ = Linear  # the same weights, by products that threads do not matter to
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "SelfSupervisedModel":
        """Stay in eval mode."""
        return super().train(False)

    def fold_weight_norm(self) -> None:
        """Turn the weight-normed position convolution into a plain one."""
        # torch keeps a weight as a parameter only where it had a gradient.
        self.requires_grad_(True)
        for module in list(self.modules()):
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight")
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, audio: Tensor) -> Tensor:
        """Audio (B, T) at 16 kHz, T >= FIELD, as it is -> (B, (T - FIELD) // 320 + 1, d_model).

        The mean is over the output of every layer and the first one's input: 13 states of a base model.
        """
        states = self.model(audio, output_hidden_states=True).hidden_states
        return torch.stack(states).mean(dim=0)
