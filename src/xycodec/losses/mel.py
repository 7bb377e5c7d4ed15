"""Multi-scale mel distance between waveforms (docs/models/xy_tokenizer.md, Pre-training)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from xycodec.errors import ConfigError
from xycodec.nn.mean import Mean, masked_mean, plain_mean, sum_of
from xycodec.nn.mel import magnitudes, mel_filterbank


class MultiScaleMel(nn.Module):
    """Sum over window lengths of the L1 distance between log10 mel magnitudes (paper, L_recon).

    Windows 32 to 2048, hop a quarter; 5 to 320 Slaney bins up to Nyquist. The paper leaves bins and logarithm open
    (docs/models/xy_tokenizer.md, Pre-training); these are the ones of the recipe that the weights were taken from.
    As a number, this is the *mel distance* that `xycodec roundtrip` prints. Raises ConfigError unless every window
    has its bins.
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
