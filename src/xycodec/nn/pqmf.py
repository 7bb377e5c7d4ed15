"""Six bands of audio at a sixth of its rate: a pseudo-quadrature mirror filter bank.

See docs/models/x_codec.md, Training.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

BANDS = 6
TAPS = 62
CUTOFF = 0.10032791  # of the prototype, where 1 is Nyquist: with it, bands add up to the audio again
BETA = 9.0


class SubbandAnalysis(nn.Module):
    """Splits audio into `BANDS` bands of equal width, lowest first.

    Each filter is a low-pass (a sinc under a Kaiser window) moved to its band by a cosine. They overlap with their
    neighbours only, and so that what aliases in one band cancels that in the next. Source: Lin and Vaidyanathan, "A
    Kaiser window approach for the design of prototype filters of cosine modulated filterbanks", 1998.
    """

    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Derived, so not in checkpoints.
        self.register_buffer("filters", torch.from_numpy(_filters().astype(np.float32))[:, None], persistent=False)

    @staticmethod
    def num_samples(samples: Tensor) -> Tensor:
        """The length of each band of audio of so many samples."""
        return (samples + BANDS - 1) // BANDS

    def forward(self, audio: Tensor) -> Tensor:
        """(B, T) -> (B, BANDS, ceil(T / BANDS)), float32; beyond its ends the audio is silent."""
        with torch.autocast(audio.device.type, enabled=False):
            return F.conv1d(audio.float()[:, None], self.filters, stride=BANDS, padding=TAPS // 2)


def _filters() -> np.ndarray:
    """(BANDS, TAPS + 1), in float64."""
    n = np.arange(TAPS + 1) - TAPS / 2
    low_pass = CUTOFF * np.sinc(CUTOFF * n) * np.kaiser(TAPS + 1, BETA)
    band = np.arange(BANDS)[:, None]
    centres, phases = (2 * band + 1) * np.pi / (2 * BANDS), (-1.0) ** band * np.pi / 4
    filters: np.ndarray = 2 * low_pass * np.cos(centres * n + phases)
    return filters
