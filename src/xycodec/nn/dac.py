"""Convolutional encoder and decoder of audio with Snake activations, as DAC has them (X-Codec's spec, 2 and 3)."""

from collections.abc import Sequence
from math import ceil
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from xycodec.nn.deterministic.residual_filter import EPSILON, ResidualFilter, UnitWeights, filtered
from xycodec.nn.deterministic.rows import convolved, plain_inference, upsampled
from xycodec.nn.folding import weight_norm

DILATIONS = (1, 3, 9)


class Snake(nn.Module):
    """x + sin(alpha x)^2 / alpha, with one learned alpha for each channel of (B, C, T) or (C, T)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        if torch.is_grad_enabled() and (x.requires_grad or self.alpha.requires_grad):
            out: Tensor = _Snake.apply(x, self.alpha)  # type: ignore[no-untyped-call]
            return out
        return _snake(x, self.alpha[0])

    def rows(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """(T, C) -> (T, C), in `out` if it is given."""
        return _snake(x, self.alpha[0, :, 0], out)


def _snake(x: Tensor, alpha: Tensor, out: Tensor | None = None) -> Tensor:
    # In place, since fresh memory costs more than the arithmetic.
    sine = (alpha * x).sin_()
    return torch.addcmul(x, (alpha + EPSILON).reciprocal(), sine.square_(), out=sine if out is None else out)


class _Snake(torch.autograd.Function):
    """Snake whose backward pass needs its input alone, where torch's own would keep a tensor for each operation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(x, alpha)
        return _snake(x, alpha)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The slope in x is 1 + sin(2 alpha x), in alpha (x sin(2 alpha x) - sin(alpha x)^2 / alpha) / alpha."""
        x, alpha = ctx.saved_tensors
        inverse = (alpha + EPSILON).reciprocal()
        by_x, by_alpha = torch.empty_like(grad), torch.zeros_like(alpha)
        # One item at a time stays in a CPU's cache.
        parts = zip(*(tensor.split(1) for tensor in (x, grad, by_x)), strict=True)
        for values, given, out in parts if x.device.type == "cpu" else [(x, grad, by_x)]:
            wide = values.to(alpha.dtype)  # under autocast, values are narrower than alpha
            angle = 2 * alpha * wide
            wave = angle.sin() * given
            torch.addcmul(given, alpha * inverse, wave, out=out)
            slope = torch.linalg.vecdot(wave, wide) * inverse[..., 0]
            bend = torch.linalg.vecdot(angle.mul_(0.5).sin_().mul_(inverse).square_(), given)
            by_alpha += (slope - bend).sum(dim=0)[None, :, None]
        return by_x, by_alpha


class UpConv1d(nn.ConvTranspose1d):
    """A transposed convolution of twice as many taps as its stride: (B, C, T) -> (B, O, T * stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        # An odd stride pads half a sample too much, which output_padding gives back.
        super().__init__(in_channels, out_channels, 2 * stride, stride, -(-stride // 2), output_padding=stride % 2)


class ResidualUnit(nn.Module):
    """A dilated convolution of 7 taps and one of a single tap around their input (B, C, T)."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.snake1 = Snake(channels)
        self.conv1 = weight_norm(nn.Conv1d(channels, channels, 7, dilation=dilation, padding=3 * dilation))
        self.snake2 = Snake(channels)
        self.conv2 = weight_norm(nn.Conv1d(channels, channels, 1))
        self._filter: ResidualFilter | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        out: Tensor = x + self.conv2(self.snake2(self.conv1(self.snake1(x))))
        return out

    def __getstate__(self) -> dict[str, Any]:
        """State of copies and pickles: without the filter, which is made again."""
        return {**self.__dict__, "_filter": None}

    def filter(self) -> ResidualFilter:
        """The unit for inference on a CPU; made again whenever weights have changed or may change."""
        first, second = (self.snake1.alpha, self.conv1), (self.snake2.alpha, self.conv2)
        weights = UnitWeights(*(w for alpha, conv in (first, second) for w in (alpha, conv.weight, conv.bias)))
        if self._filter is None or not self._filter.made_of(weights):
            self._filter = ResidualFilter(weights, self.dilation)
        return self._filter


class ResidualUnits(nn.ModuleList):
    """Units of growing dilation."""

    def __init__(self, channels: int) -> None:
        super().__init__(ResidualUnit(channels, dilation) for dilation in DILATIONS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        for unit in self:
            x = unit(x)
        return x

    def rows(self, x: Tensor, snake: Snake) -> Tensor:
        """The units and the snake behind them, (T, C) -> (T, C)."""
        return filtered([unit.filter() for unit in cast(list[ResidualUnit], list(self))], x, snake.rows)


class DacEncoder(nn.Module):
    """Audio to latents: a stem of `width` channels, which every stride doubles, and a map to `output_dim`."""

    def __init__(self, *, width: int, strides: Sequence[int], output_dim: int) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.stem = weight_norm(nn.Conv1d(1, width, 7, padding=3))
        self.blocks = nn.ModuleList(_EncoderBlock(width << i, stride) for i, stride in enumerate(strides))
        self.snake = Snake(width << len(strides))
        self.head = weight_norm(nn.Conv1d(width << len(strides), output_dim, 3, padding=1))

    def num_frames(self, num_samples: int) -> int:
        """Frames of `num_samples` samples, the last one sometimes partly of padding: no more than whole ones and 1."""
        for stride in self.strides:
            num_samples = (num_samples + 2 * ceil(stride / 2)) // stride - 1
        return max(0, num_samples)

    def forward(self, audio: Tensor) -> Tensor:
        """(B, 1, T) -> (B, output_dim, num_frames(T))."""
        if plain_inference(self, audio):
            return torch.stack([self._rows(item.t()) for item in audio]).transpose(1, 2)
        x = self.stem(audio)
        for block in self.blocks:
            x = block(x)
        latents: Tensor = self.head(self.snake(x))
        return latents

    def _rows(self, audio: Tensor) -> Tensor:
        x = convolved(self.stem, audio)
        for block in cast(list[_EncoderBlock], list(self.blocks)):
            x = block.rows(x)
        return convolved(self.head, self.snake.rows(x))


class DacDecoder(nn.Module):
    """Latents to audio: a stem of `width` channels, which every stride halves, and a map to one.

    Nothing bounds the output: the published model has no tanh.
    """

    def __init__(self, *, input_dim: int, width: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.stem = weight_norm(nn.Conv1d(input_dim, width, 7, padding=3))
        self.blocks = nn.ModuleList(_DecoderBlock(width >> i, stride) for i, stride in enumerate(strides))
        self.snake = Snake(width >> len(strides))
        self.head = weight_norm(nn.Conv1d(width >> len(strides), 1, 7, padding=3))

    def forward(self, latents: Tensor) -> Tensor:
        """(B, input_dim, L) -> (B, 1, L * product of the strides), exactly."""
        if plain_inference(self, latents):
            return torch.stack([self._rows(item.t()) for item in latents]).transpose(1, 2)
        x = self.stem(latents)
        for block in self.blocks:
            x = block(x)
        audio: Tensor = self.head(self.snake(x))
        return audio

    def _rows(self, latents: Tensor) -> Tensor:
        blocks = cast(list[_DecoderBlock], list(self.blocks))
        snakes = [*(block.snake for block in blocks), self.snake]
        x = snakes[0].rows(convolved(self.stem, latents))
        for block, snake in zip(blocks, snakes[1:], strict=True):
            x = block.units.rows(upsampled(block.conv, x), snake)
        return convolved(self.head, x)


class _EncoderBlock(nn.Module):
    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.units = ResidualUnits(channels)
        self.snake = Snake(channels)
        self.conv = weight_norm(nn.Conv1d(channels, 2 * channels, 2 * stride, stride, ceil(stride / 2)))

    def forward(self, x: Tensor) -> Tensor:
        latents: Tensor = self.conv(self.snake(self.units(x)))
        return latents

    def rows(self, x: Tensor) -> Tensor:
        return convolved(self.conv, self.units.rows(x, self.snake))


class _DecoderBlock(nn.Module):
    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.snake = Snake(channels)
        self.conv = weight_norm(UpConv1d(channels, channels // 2, stride))
        self.units = ResidualUnits(channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.units(self.conv(self.snake(x)))
        return out
