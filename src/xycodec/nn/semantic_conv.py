"""Convolutions over the features of a self-supervised model, before and after the quantizer (X-Codec's spec, 4.2-4.3).

Every map keeps the width and the rate. A branch adds up without any norm, as published.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.nn.deterministic.linear import product
from xycodec.nn.deterministic.rows import convolved, plain_inference

BLOCKS = 2
UNITS = 2  # of a block


class _Chain(nn.Module):
    """Convolutions and units, one after the other as they are registered."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, L) -> (B, D, L)."""
        if plain_inference(self, x):
            return torch.stack([self._rows(item.t()) for item in x]).transpose(1, 2)
        for layer in _layers(self):
            x = layer(x)
        return x

    def _rows(self, x: Tensor) -> Tensor:
        for layer in _layers(self):
            x = layer.rows(x) if isinstance(layer, _Unit) else convolved(layer, x)
        return x


class SemanticEncoder(_Chain):
    """Features (B, D, L) -> the semantic half of the latents (B, D, L)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.stem = _conv(dim)
        self.blocks = nn.ModuleList(_EncoderBlock(dim) for _ in range(BLOCKS))


class SemanticDecoder(_Chain):
    """Quantized latents, mapped to D channels, -> an estimate of the features (B, D, L)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.stem = _conv(dim)
        self.blocks = nn.ModuleList(_DecoderBlock(dim) for _ in range(BLOCKS))
        self.head = _conv(dim)


class _EncoderBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(_Unit(dim) for _ in range(UNITS))
        self.conv = _conv(dim, bias=True)


class _DecoderBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = _conv(dim, bias=True)
        self.units = nn.ModuleList(_Unit(dim) for _ in range(UNITS))


class _Unit(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = _conv(dim)
        self.conv2 = nn.Conv1d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(F.elu(self.conv1(F.elu(x))))
        return out

    def rows(self, x: Tensor) -> Tensor:
        return x + product(F.elu(convolved(self.conv1, F.elu(x))), self.conv2.weight[..., 0])


def _conv(dim: int, bias: bool = False) -> nn.Conv1d:
    return nn.Conv1d(dim, dim, 3, padding=1, bias=bias)


def _layers(module: nn.Module) -> Iterator[_Unit | nn.Conv1d]:
    for child in module.children():
        if isinstance(child, _Unit | nn.Conv1d):
            yield child
        else:
            yield from _layers(child)
