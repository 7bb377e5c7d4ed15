"""Discriminators of waveforms: by period, by scale and by spectrogram (docs/models/xy_tokenizer.md, Discriminators).

All channel widths are multiples of one base width, `channels`: 32 gives the published sizes. Convolutions follow
autocast; spectrograms are float32.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from xycodec.errors import AudioError, ConfigError

PERIODS = (2, 3, 5, 7, 11)
POOLINGS = (0, 1, 2)
WINDOWS = (1024, 2048, 512, 256, 128)


@dataclass(frozen=True)
class DiscriminatorOutput:
    """Logits and inner features of one discriminator for a batch."""

    logits: Tensor
    """Near 1 where it takes the audio for real, near 0 for decoded: (B, n), or (B, 1, frames, bins)."""
    features: list[Tensor]
    """The maps of its layers, first to last, as feature matching compares them."""


class Discriminators(nn.Module):
    """Five by period, three by scale and five by spectrogram, in this order; each family can be left out.

    `channels` is a multiple of 4 (the scales have convolutions of 16 groups). At 32 the families have
    41,105,770, 29,618,821 and 472,330 parameters. Raises ConfigError, one line, on other settings.
    """

    def __init__(
        self, *, period: bool = True, scale: bool = True, spectrogram: bool = True, channels: int = 32
    ) -> None:
        super().__init__()
        if channels < 4 or channels % 4:
            raise ConfigError(f"discriminators: channels is {channels}, must be a positive multiple of 4")
        if not (period or scale or spectrogram):
            raise ConfigError("discriminators: every family is left out, keep at least one")
        self.periods = nn.ModuleList(PeriodDiscriminator(p, channels) for p in PERIODS if period)
        self.scales = nn.ModuleList(ScaleDiscriminator(n, channels) for n in POOLINGS if scale)
        self.spectrograms = nn.ModuleList(SpectrogramDiscriminator(w, channels) for w in WINDOWS if spectrogram)

    @property
    def min_samples(self) -> int:
        """The shortest audio that fits: the longest window, or else the longest period."""
        return max(WINDOWS) if self.spectrograms else max(PERIODS)

    def forward(self, audio: Tensor) -> list[DiscriminatorOutput]:
        """Audio (B, T) at any rate, T >= `min_samples`, else AudioError -> one output per discriminator."""
        refuse_short(audio, self.min_samples)
        return [part(audio) for family in (self.periods, self.scales, self.spectrograms) for part in family]


class PeriodDiscriminator(nn.Module):
    """Convolutions along every `period`-th sample: the audio folded into rows of `period`."""

    def __init__(self, period: int, channels: int = 32) -> None:
        super().__init__()
        self.period = period
        widths = (1, *(n * channels for n in (1, 4, 16, 32, 32)))
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(before, after, (5, 1), (stride, 1), (2, 0)))
            for before, after, stride in zip(widths[:-1], widths[1:], (3, 3, 3, 3, 1), strict=True)
        )
        self.post = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, audio: Tensor) -> DiscriminatorOutput:
        """(B, T), T >= period -> logits (B, n) and 6 maps (B, channels, rows, period)."""
        missing = -audio.shape[1] % self.period
        padded = F.pad(audio[:, None], (0, missing), mode="reflect")
        folded = padded.view(len(audio), 1, -1, self.period)
        features = activations(self.layers, folded, slope=0.1)
        features.append(convolve_normed(self.post, features[-1]))
        return DiscriminatorOutput(features[-1].flatten(1), features)


class ScaleDiscriminator(nn.Module):
    """Grouped convolutions along the audio after `poolings` halvings of its rate.

    Spectral norm at the full rate, weight norm below. Spectral norm moves its estimate at every pass in training
    mode: what is to be compared under the same weights goes through in one batch.
    """

    def __init__(self, poolings: int, channels: int = 32) -> None:
        super().__init__()
        self.poolings = poolings
        norm: Callable[[nn.Module], nn.Module] = weight_norm if poolings else spectral_norm
        layers, before = [], 1
        for multiple, kernel, stride, groups in (
            (4, 15, 1, 1),
            (4, 41, 2, 4),
            (8, 41, 2, 16),
            (16, 41, 4, 16),
            (32, 41, 4, 16),
            (32, 41, 1, 16),
            (32, 5, 1, 1),
        ):
            after = multiple * channels
            layers.append(norm(nn.Conv1d(before, after, kernel, stride, kernel // 2, groups=groups)))
            before = after
        self.layers = nn.ModuleList(layers)
        self.post = norm(nn.Conv1d(before, 1, 3, padding=1))

    def forward(self, audio: Tensor) -> DiscriminatorOutput:
        """(B, T) -> logits (B, n) and 8 maps (B, channels, frames)."""
        pooled = audio[:, None]
        for _ in range(self.poolings):
            pooled = F.avg_pool1d(pooled, 4, 2, padding=2)
        features = activations(self.layers, pooled, slope=0.1)
        features.append(convolve_normed(self.post, features[-1]))
        return DiscriminatorOutput(features[-1].flatten(1), features)


class SpectrogramDiscriminator(nn.Module):
    """Convolutions over the complex spectrogram of one window length, hop a quarter; real and imaginary channels."""

    hann: Tensor

    def __init__(self, window: int, channels: int = 32) -> None:
        super().__init__()
        self.window = window
        hann = torch.hann_window(window)
        # Of unit energy, so that every window length gives the same loudness. Derived, so not in checkpoints.
        self.register_buffer("hann", hann / hann.norm(), persistent=False)
        dilated = [
            weight_norm(nn.Conv2d(channels, channels, (3, 9), (1, 2), padding=(dilation, 4), dilation=(dilation, 1)))
            for dilation in (1, 2, 4)
        ]
        # The published first layer has no weight norm.
        first = nn.Conv2d(2, channels, (3, 9), padding=(1, 4))
        last = weight_norm(nn.Conv2d(channels, channels, 3, padding=1))
        self.layers = nn.ModuleList([first, *dilated, last])
        self.post = weight_norm(nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, audio: Tensor) -> DiscriminatorOutput:
        """(B, T), T >= window -> logits (B, 1, frames, bins) and 5 maps (B, channels, frames, bins)."""
        with torch.autocast(audio.device.type, enabled=False):
            spectrum = torch.stft(
                audio.float(), self.window, self.window // 4, window=self.hann, center=False, return_complex=True
            )
        picture = torch.view_as_real(spectrum).permute(0, 3, 2, 1)
        features = activations(self.layers, picture, slope=0.2)
        return DiscriminatorOutput(convolve_normed(self.post, features[-1]), features)


def refuse_short(audio: Tensor, shortest: int) -> None:
    """Raise AudioError if audio (B, T) has fewer than `shortest` samples."""
    if audio.shape[1] < shortest:
        raise AudioError(
            f"audio of {audio.shape[1]} samples is too short for the discriminators: give at least {shortest}"
        )


def activations(layers: nn.ModuleList, x: Tensor, slope: float) -> list[Tensor]:
    """The output of every layer after its leaky rectifier, first to last; `x` as the first layer takes it."""
    features = []
    for layer in layers:
        # In place: no gradient needs what went into the rectifier, and these maps are most of the memory.
        x = F.leaky_relu(convolve_normed(layer, x), slope, inplace=True)
        features.append(x)
    return features


def convolve_normed(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a convolution whose weight is computed from its norm in float32: autocast would round the estimate."""
    with torch.autocast(x.device.type, enabled=False):
        weight = layer.weight
    convolved: Tensor = layer._conv_forward(x, weight, layer.bias)  # type: ignore[operator]
    return convolved
