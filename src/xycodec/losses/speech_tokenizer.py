"""SpeechTokenizer's distances: of samples, of log-mels at finer resolutions, and what its first codebook is taught.

See docs/reproduce.md, SpeechTokenizer.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.losses.stft import LogMelDistance
from xycodec.nn.mean import Mean, masked_mean, sum_of

HOP = 240
"""Hop of the log-mel at 16 kHz under a window of 1024 samples."""


class SampleDistance(nn.Module):
    """L1 distance of samples."""

    def forward(self, decoded: Tensor, target: Tensor, lengths: Tensor) -> Mean:
        """Distance of (B, T) to (B, T) over `lengths` (B,) samples of each item; 1 entry."""
        inside = torch.arange(target.shape[1], device=target.device) < lengths.to(target.device)[:, None]
        return masked_mean((decoded.float() - target.float()).abs(), inside)


class FineLogMelDistance(nn.Module):
    """The sum of the log-mel distances at a half, a quarter and an eighth of the window of 1024 samples and its hop."""

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            LogMelDistance(sample_rate, n_fft=1024 // part, window=1024 // part, hop=HOP // part) for part in (2, 4, 8)
        )

    def forward(self, decoded: Tensor, target: Tensor, lengths: Tensor) -> Mean:
        """Distance of (B, T) to (B, T) over `lengths` (B,) samples of each item; 3 entries."""
        return sum_of([scale(decoded, target, lengths) for scale in self.scales])


def distillation_loss(features: Tensor, taught: Tensor, mask: Tensor | None = None) -> Mean:
    """-log sigmoid of the cosine over time of each channel of `features` with that of `taught`, both (B, L, D).

    The mean is over channels and items; `mask` (B, L) tells the frames that count. No gradient goes to `taught`.
    Source: SpeechTokenizer (arXiv 2308.16692), its "D-axis" distillation.
    """
    features, taught = features.float(), taught.detach().float()
    heard = torch.ones(len(features), device=features.device)
    if mask is not None:
        features, taught = features * mask[..., None], taught * mask[..., None]
        heard = mask.any(dim=1).float()
    likeness = F.cosine_similarity(features, taught, dim=1)
    return masked_mean(-F.logsigmoid(likeness).mean(dim=1), heard)
