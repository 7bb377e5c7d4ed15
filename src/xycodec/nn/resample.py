"""Between the towers' 50 and the codes' 12.5 frames a second: a code's tower frames are stacked, then mixed.

Both published convolutions have kernel = stride, so they are plain matrix products on stacked frames.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.nn.deterministic.linear import Linear


class GatedDownsample(nn.Module):
    """A gated linear unit over `factor` stacked frames, with the stack itself as residual.

    See docs/models/xy_tokenizer.md, Sampling.
    """

    def __init__(self, *, d_model: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        dim = d_model * factor
        self.gate_proj = Linear(dim, dim, bias=False)
        self.up_proj = Linear(dim, dim, bias=False)
        self.down_proj = Linear(dim, dim, bias=False)
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T // factor, factor * D); frames past the last whole stack are dropped."""
        b, t, d = x.shape
        length = t // self.factor
        stacked = x[:, : length * self.factor].reshape(b, length, self.factor * d)
        h = self.down_proj(F.silu(self.gate_proj(stacked)) * self.up_proj(stacked))
        out: Tensor = self.layer_norm(h + stacked)
        return out


class Upsample(nn.Module):
    """One linear map from a code's vector to its `factor` tower frames (docs/models/xy_tokenizer.md, Sampling)."""

    def __init__(self, *, input_dim: int, output_dim: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.proj = Linear(input_dim, output_dim * factor, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, input_dim) -> (B, factor * T, output_dim)."""
        out: Tensor = self.proj(x)
        return out.reshape(x.shape[0], x.shape[1] * self.factor, -1)


def convolution_as_product(weight: Tensor) -> Tensor:
    """(out, in, k) of a convolution with stride k -> (out, k * in) on stacked frames."""
    return weight.transpose(1, 2).flatten(1)


def transposed_convolution_as_product(weight: Tensor) -> Tensor:
    """(in, out, k) of a transposed convolution with stride k -> (k * out, in)."""
    return torch.permute(weight, (2, 1, 0)).flatten(0, 1)
