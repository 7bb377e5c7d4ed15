"""Losses and distances between waveforms, and between what discriminators make of them (spec sections 8 and 9).

Each is a `Mean` that is still open, so that micro-batches and processes of uneven size join exactly.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from xycodec.errors import ConfigError
from xycodec.nn.discriminators import DiscriminatorOutput
from xycodec.nn.mean import Mean, average_of, masked_mean, plain_mean, sum_of
from xycodec.nn.mel import magnitudes, mel_filterbank


class MultiScaleMel(nn.Module):
    """Sum over window lengths of the L1 distance between log10 mel magnitudes (paper, L_recon).

    Windows 32 to 2048, hop a quarter; 5 to 320 Slaney bins up to Nyquist (spec section 8). The paper leaves bins
    and logarithm open; these are the ones of the recipe that the weights were taken from. As a number, this is
    the *mel distance* that `xycodec roundtrip` prints. Raises ConfigError unless every window has its bins.
    """

    def __init__(
        self,
        sample_rate: int,
        *,
        windows: Sequence[int] = (32, 64, 128, 256, 512, 1024, 2048),
        bins: Sequence[int] = (5, 10, 20, 40, 80, 160, 320),
    ) -> None:
        super().__init__()
        if len(windows) != len(bins):
            raise ConfigError(f"mel loss: {len(windows)} windows but {len(bins)} numbers of bins, give one for each")
        self.scales = nn.ModuleList(
            _MelDistance(window, n_mels, sample_rate) for window, n_mels in zip(windows, bins, strict=True)
        )

    def forward(self, decoded: Tensor, target: Tensor, lengths: Tensor | None = None) -> Mean:
        """Distance of (B, T) to (B, T), T over half the longest window: one mean over frames per window, float32.

        With `lengths` (B,), what lies past an item's length is silence, and frames that start there do not count.
        """
        with torch.autocast(decoded.device.type, enabled=False):
            decoded, target = decoded.float(), target.float()
            if lengths is not None:
                lengths = lengths.to(target.device, non_blocking=True)
                valid = torch.arange(target.shape[1], device=target.device) < lengths[:, None]
                decoded, target = decoded * valid, target * valid
            return sum_of([scale(decoded, target, lengths) for scale in self.scales])


class _MelDistance(nn.Module):
    """The distance at one window length."""

    floor = 1e-5
    hann: Tensor
    filters: Tensor

    def __init__(self, window: int, n_mels: int, sample_rate: int) -> None:
        super().__init__()
        self.hop_length = window // 4
        # Derived, so not in checkpoints.
        self.register_buffer("hann", torch.hann_window(window), persistent=False)
        self.register_buffer("filters", mel_filterbank(window, n_mels, sample_rate), persistent=False)

    def forward(self, decoded: Tensor, target: Tensor, lengths: Tensor | None) -> Mean:
        difference = (self._log_mel(decoded) - self._log_mel(target)).abs().mean(dim=2)
        if lengths is None:
            return plain_mean(difference)
        starts = torch.arange(difference.shape[1], device=target.device) * self.hop_length
        return masked_mean(difference, starts < lengths[:, None])

    def _log_mel(self, audio: Tensor) -> Tensor:
        """(B, T) -> (B, frames, bins)."""
        mel = magnitudes(audio, self.hann, normalized=True) @ self.filters
        return mel.clamp_min(self.floor).log10()


def discriminator_loss(real: Sequence[DiscriminatorOutput], fake: Sequence[DiscriminatorOutput]) -> Mean:
    """Least squares: (1 - D(x))^2 + D(decoded)^2, mean over logits, then over discriminators; one entry for each.

    `fake` comes from decoded audio that was detached.
    """
    return average_of(
        [plain_mean((1 - r.logits.float()).square() + f.logits.float().square()) for r, f in _pairs(real, fake)]
    )


def adversarial_loss(fake: Sequence[DiscriminatorOutput]) -> Mean:
    """What the decoder lessens: (1 - D(decoded))^2, mean over logits, then over discriminators; one entry for each."""
    return average_of([plain_mean((1 - f.logits.float()).square()) for f in fake])


def feature_matching(real: Sequence[DiscriminatorOutput], fake: Sequence[DiscriminatorOutput]) -> Mean:
    """Mean |real - fake| over mean |real| of every map, mean over a discriminator's maps, then over discriminators.

    One entry per map. No gradient goes to `real`. Of several batches it is the ratio of their sums, map by map.
    """
    return average_of(
        [
            average_of([_relative(x, y) for x, y in zip(r.features, f.features, strict=True)])
            for r, f in _pairs(real, fake)
        ]
    )


def plain_feature_matching(real: Sequence[DiscriminatorOutput], fake: Sequence[DiscriminatorOutput]) -> Mean:
    """Mean |real - fake| of every map, mean over all maps, as X-Codec is trained; one entry per map.

    No gradient goes to `real`.
    """
    maps = [pair for r, f in _pairs(real, fake) for pair in zip(r.features, f.features, strict=True)]
    return average_of([plain_mean((x.detach().float() - y.float()).abs()) for x, y in maps])


def semantic_distance(decoded: Tensor, target: Tensor, mask: Tensor | None = None) -> Mean:
    """Mean squared difference of decoded features (B, L, D) from true ones, over the frames of `mask` (B, L).

    Over all frames without a mask. No gradient goes to `target`. Source: X-Codec, its semantic loss.
    """
    difference = (decoded.float() - target.detach().float()).square().mean(dim=2)
    return plain_mean(difference) if mask is None else masked_mean(difference, mask)


def _relative(real: Tensor, fake: Tensor) -> Mean:
    real = real.detach().float()
    return Mean((real - fake.float()).abs().sum()[None], real.abs().sum()[None])


def _pairs(
    real: Sequence[DiscriminatorOutput], fake: Sequence[DiscriminatorOutput]
) -> "zip[tuple[DiscriminatorOutput, DiscriminatorOutput]]":
    return zip(real, fake, strict=True)
