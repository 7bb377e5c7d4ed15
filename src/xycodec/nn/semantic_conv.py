"""Convolutions over the features of a self-supervised model, before and after the quantizer (X-Codec's spec, 4.2-4.3).

Every map keeps the width and the rate. A branch adds up without any norm, as published.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.nn.convolution import Conv1d, PointwiseConv

BLOCKS = 2
UNITS = 2  # of a block


class SemanticEncoder(nn.Module):
    """Features (B, D, L) -> the semantic half of the latents (B, D, L)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.stem = _conv(dim)
        self.blocks = nn.ModuleList(_EncoderBlock(dim) for _ in range(BLOCKS))

    def forward(self, features: Tensor) -> Tensor:
        """(B, D, L) -> (B, D, L)."""
        x: Tensor = self.stem(features)
        for block in self.blocks:
            x = block(x)
        return x


class SemanticDecoder(nn.Module):
    """Quantized latents, mapped to D channels, -> an estimate of the features (B, D, L)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.stem = _conv(dim)
        self.blocks = nn.ModuleList(_DecoderBlock(dim) for _ in range(BLOCKS))
        self.head = _conv(dim)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, D, L) -> (B, D, L)."""
        x = self.stem(latents)
        for block in self.blocks:
            x = block(x)
        features: Tensor = self.head(x)
        return features


class _EncoderBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(_Unit(dim) for _ in range(UNITS))
        self.conv = _conv(dim, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.units:
            x = unit(x)
        out: Tensor = self.conv(x)
        return out


class _DecoderBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = _conv(dim, bias=True)
        self.units = nn.ModuleList(_Unit(dim) for _ in range(UNITS))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        for unit in self.units:
            x = unit(x)
        return x


class _Unit(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = _conv(dim)
        self.conv2 = PointwiseConv(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2.onto(x, F.elu(self.conv1(F.elu(x))))
        return out


def _conv(dim: int, bias: bool = False) -> Conv1d:
    return Conv1d(dim, dim, 3, padding=1, bias=bias)
