"""Encoder and decoder of audio in the form of SEANet with LSTMs, as EnCodec introduced them (arXiv 2210.13438)."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.nn.folding import weight_norm


class ReflectConv1d(nn.Conv1d):
    """A convolution (B, C, T) -> (B, O, ceil(T / stride)) whose input is reflected at both ends."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, O, ceil(T / stride))."""
        (taps,), (stride,) = self.kernel_size, self.stride
        margin = taps - stride
        right = margin // 2
        missing = -x.shape[-1] % stride
        out: Tensor = super().forward(_reflected(x, margin - right, right + missing))
        return out


def _reflected(x: Tensor, left: int, right: int) -> Tensor:
    """(B, C, T) -> (B, C, left + T + right); what is too short to be reflected is silent past its end first."""
    silence = max(0, max(left, right) + 1 - x.shape[-1])
    padded = F.pad(F.pad(x, (0, silence)), (left, right), "reflect")
    return padded[..., : padded.shape[-1] - silence]


class TrimmedUpConv1d(nn.ConvTranspose1d):
    """A transposed convolution of twice as many taps as its stride: (B, C, T) -> (B, O, T * stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, 2 * stride, stride)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, C, T) -> (B, O, T * stride)."""
        (stride,) = self.stride
        right = stride // 2
        out: Tensor = super().forward(x, output_size)
        return out[..., stride - right : out.shape[-1] - right]


class SeanetUnit(nn.Module):
    """Two convolutions through half of the channels beside a map of a single tap."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = weight_norm(ReflectConv1d(channels, channels // 2, 3))
        self.conv2 = weight_norm(ReflectConv1d(channels // 2, channels, 1))
        self.shortcut = weight_norm(ReflectConv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        out: Tensor = self.shortcut(x) + self.conv2(F.elu(self.conv1(F.elu(x))))
        return out


class ResidualLstm(nn.Module):
    """LSTM layers around their input: (B, C, T) -> (B, C, T), or (B, 2 C, T) where they are bidirectional."""

    def __init__(self, channels: int, layers: int, *, bidirectional: bool = False) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, layers, bidirectional=bidirectional)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C or 2 C, T)."""
        steps = x.permute(2, 0, 1)
        out: Tensor = self.lstm(steps)[0]
        out = out + steps.repeat(1, 1, out.shape[-1] // steps.shape[-1])
        return out.permute(1, 2, 0)


class _Block(nn.Module):
    """A unit and the convolution that changes the rate."""

    def __init__(self, channels: int, conv: nn.Module) -> None:
        super().__init__()
        self.unit = SeanetUnit(channels)
        self.conv = weight_norm(conv)


class SeanetEncoder(nn.Module):
    """Audio to latents: a stem of `width` channels, which every stride doubles, LSTMs, and a map to `output_dim`."""

    def __init__(
        self, *, width: int, strides: Sequence[int], output_dim: int, lstm_layers: int, bidirectional: bool
    ) -> None:
        super().__init__()
        top = width << len(strides)
        self.stem = weight_norm(ReflectConv1d(1, width, 7))
        self.blocks = nn.ModuleList(
            _Block(width << i, ReflectConv1d(width << i, width << (i + 1), 2 * stride, stride))
            for i, stride in enumerate(strides)
        )
        self.lstm = ResidualLstm(top, lstm_layers, bidirectional=bidirectional)
        self.head = weight_norm(ReflectConv1d(2 * top if bidirectional else top, output_dim, 7))

    def forward(self, audio: Tensor) -> Tensor:
        """(B, 1, T) -> (B, output_dim, ceil(T / product of the strides))."""
        x = self.stem(audio)
        for block in cast(list[_Block], list(self.blocks)):
            x = block.conv(F.elu(block.unit(x)))
        latents: Tensor = self.head(F.elu(self.lstm(x)))
        return latents


class SeanetDecoder(nn.Module):
    """Latents to audio: a stem of `width << len(strides)` channels, LSTMs, and channels that every stride halves."""

    def __init__(self, *, input_dim: int, width: int, strides: Sequence[int], lstm_layers: int) -> None:
        super().__init__()
        top = width << len(strides)
        self.stem = weight_norm(ReflectConv1d(input_dim, top, 7))
        self.lstm = ResidualLstm(top, lstm_layers)
        self.blocks = nn.ModuleList(
            _Block(top >> (i + 1), TrimmedUpConv1d(top >> i, top >> (i + 1), stride))
            for i, stride in enumerate(strides)
        )
        self.head = weight_norm(ReflectConv1d(width, 1, 7))

    def forward(self, latents: Tensor) -> Tensor:
        """(B, input_dim, L) -> (B, 1, L * product of the strides)."""
        x = self.lstm(self.stem(latents))
        for block in cast(list[_Block], list(self.blocks)):
            x = block.unit(block.conv(F.elu(x)))
        audio: Tensor = self.head(F.elu(x))
        return audio
