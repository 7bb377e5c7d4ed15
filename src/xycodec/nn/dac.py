"""Convolutional encoder and decoder of audio with Snake activations, as DAC has them (X-Codec's spec, 2 and 3)."""

from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from xycodec.nn.linear import PointwiseConv

DILATIONS = (1, 3, 9)
EPSILON = 1e-9  # a channel whose alpha reaches 0 stays finite


class Snake(nn.Module):
    """x + sin(alpha x)^2 / alpha, with one learned alpha for each channel of (B, C, T)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        return torch.addcmul(x, (self.alpha + EPSILON).reciprocal(), torch.sin(self.alpha * x).square())


class ResidualUnit(nn.Module):
    """A dilated convolution of 7 taps and one of a single tap around their input (B, C, T)."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.snake1 = Snake(channels)
        self.conv1 = weight_norm(nn.Conv1d(channels, channels, 7, dilation=dilation, padding=3 * dilation))
        self.snake2 = Snake(channels)
        self.conv2 = weight_norm(PointwiseConv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        branch: Tensor = self.conv2(self.snake2(self.conv1(self.snake1(x))))
        return x + branch


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
        x = self.stem(audio)
        for block in self.blocks:
            x = block(x)
        latents: Tensor = self.head(self.snake(x))
        return latents


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
        x = self.stem(latents)
        for block in self.blocks:
            x = block(x)
        audio: Tensor = self.head(self.snake(x))
        return audio


class _EncoderBlock(nn.Module):
    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(ResidualUnit(channels, dilation) for dilation in DILATIONS)
        self.snake = Snake(channels)
        self.conv = weight_norm(nn.Conv1d(channels, 2 * channels, 2 * stride, stride, ceil(stride / 2)))

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.units:
            x = unit(x)
        latents: Tensor = self.conv(self.snake(x))
        return latents


class _DecoderBlock(nn.Module):
    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.snake = Snake(channels)
        # An odd stride pads half a sample too much, which output_padding gives back.
        self.conv = weight_norm(
            nn.ConvTranspose1d(channels, channels // 2, 2 * stride, stride, ceil(stride / 2), output_padding=stride % 2)
        )
        self.units = nn.ModuleList(ResidualUnit(channels // 2, dilation) for dilation in DILATIONS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.snake(x))
        for unit in self.units:
            x = unit(x)
        return x
