"""X-Codec's discriminator: spectrograms at six resolutions (docs/models/x_codec.md, Discriminators).

Convolutions follow autocast; spectrograms are float32.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from xycodec.errors import ConfigError
from xycodec.nn.discriminators import DiscriminatorOutput, activations, convolve_normed, refuse_short
from xycodec.nn.mel import magnitudes, mel_filterbank

HOPS = (32, 64, 128, 256, 512, 1024)
NARROWER = (8, 4, 2, 1, 1, 1)  # than `channels`, at each hop
LAYERS = ((32, 1), (16, 2), (8, 1), (4, 2), (2, 1), (1, 2))  # narrower than the last layer, and the stride
FEWEST_FRAMES = 9  # three strides leave two of them, which a reflection by one needs


class MultiFrequencyDiscriminator(nn.Module):
    """One discriminator for each hop of `HOPS`.

    `channels` is the widest layer, a multiple of 8: 512 gives the published 5,256,372 parameters. All widths shrink
    with it, to no less than 2, which the narrowest published layer has. Raises ConfigError, one line, on others.
    """

    def __init__(self, sample_rate: int, *, channels: int = 512) -> None:
        super().__init__()
        if channels < 8 or channels % 8:
            raise ConfigError(f"discriminators: channels is {channels}, must be a positive multiple of 8")
        self.frequencies = nn.ModuleList(
            FrequencyDiscriminator(hop, sample_rate, channels // narrower)
            for hop, narrower in zip(HOPS, NARROWER, strict=True)
        )

    @property
    def min_samples(self) -> int:
        """The shortest audio that fits: the fewest frames of the longest hop."""
        return (FEWEST_FRAMES - 1) * max(HOPS)

    def forward(self, audio: Tensor) -> list[DiscriminatorOutput]:
        """Audio (B, T), T >= `min_samples`, else AudioError -> one output per discriminator."""
        refuse_short(audio, self.min_samples)
        return [part(audio) for part in self.frequencies]


class FrequencyDiscriminator(nn.Module):
    """Convolutions over the mel spectrogram of one hop, window four hops: its magnitudes and their decibels."""

    floor = 1e-7**0.5
    hann: Tensor
    filters: Tensor

    def __init__(self, hop: int, sample_rate: int, channels: int = 512) -> None:
        super().__init__()
        window, bins = 4 * hop, 2 * hop + 1
        # As many filters as bins: some of the lowest meet no bin, and the least weight keeps them from being zero.
        filters = mel_filterbank(window, bins, sample_rate, htk=True).clamp_min(1e-6)
        # Derived, so not in checkpoints.
        self.register_buffer("hann", torch.hann_window(window), persistent=False)
        self.register_buffer("filters", filters, persistent=False)
        layers, before = [], 2
        for narrower, stride in LAYERS:
            after = max(channels // narrower, 2)
            layers.append(weight_norm(nn.Conv2d(before, after, 3, stride, 1, padding_mode="reflect")))
            before = after
        self.layers = nn.ModuleList(layers)
        self.post = weight_norm(nn.Conv2d(before, 1, 3, padding=1, padding_mode="reflect"))

    def forward(self, audio: Tensor) -> DiscriminatorOutput:
        """(B, T), T >= 8 hops -> logits (B, 1, bins, frames) and 6 maps (B, channels, bins, frames).

        The maps are rectified, as in the published code, whose rectifiers write over what they are given.
        """
        with torch.autocast(audio.device.type, enabled=False):
            picture = self._picture(audio.float())
        features = activations(self.layers, picture, slope=0.2)
        return DiscriminatorOutput(convolve_normed(self.post, features[-1]), features)

    def _picture(self, audio: Tensor) -> Tensor:
        """(B, 2, bins, frames): mel magnitudes, and decibels with -80 at 0 and 20 at 1."""
        mel = (magnitudes(audio, self.hann, normalized=True).clamp_min(self.floor) @ self.filters).transpose(1, 2)
        decibels = 20 * mel.log10()
        # Both channels side by side in memory: 1.5 times as fast where layers are narrow, on a CPU.
        return torch.stack([mel, ((decibels + 80) / 100).clamp(0, 1)], dim=3).permute(0, 3, 1, 2)
