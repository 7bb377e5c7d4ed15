"""Durations of symbols, learned from nothing but the lengths of clips, and attention that goes by them.

A convolution predicts for how many frames each symbol is spoken; their running sum is the frame at which it is. Every
head attends to text less the further it is from the frame that comes next, by a width of its own. A loss holds the sum
of all durations to the length of the clip. Donahue (2021) aligns so, with a kernel in the place of attention.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SYMBOLS_A_SECOND = 15  # about as many as English has
_NARROWEST, _WIDEST = 1.5, 12.0  # frames, of heads at the start
_CONTEXT = 7  # symbols


class Alignment(nn.Module):
    """Durations of symbols, and the penalty of attention away from them."""

    def __init__(self, d_model: int, layers: int, heads: int, frame_rate: float) -> None:
        super().__init__()
        self.durations = nn.Conv1d(d_model, 1, _CONTEXT, padding=_CONTEXT // 2)
        nn.init.zeros_(self.durations.weight)
        usual = frame_rate / SYMBOLS_A_SECOND
        assert self.durations.bias is not None
        nn.init.constant_(self.durations.bias, math.log(math.expm1(usual)))
        log_widths = torch.linspace(math.log(_NARROWEST), math.log(_WIDEST), heads)
        self.log_widths = nn.Parameter(log_widths.expand(layers, heads).clone())

    def centres(self, symbols: Tensor, said: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (B, S) at which symbols (B, S, D) are spoken, where `said` (B, S) is true; and frames (B,) in all."""
        with torch.autocast(symbols.device.type, enabled=False):
            x = (symbols.float() * said[..., None]).transpose(1, 2)
            # Embeddings are small; Adam's steps are not.
            durations = F.softplus(self.durations(x / 0.02)[:, 0]) * said
        ends = durations.cumsum(dim=1)
        return ends - durations / 2, ends[:, -1]

    def masks(self, mask: Tensor, late: Tensor, centres: Tensor, said: Tensor, first: int = 0) -> list[Tensor]:
        """Additive masks (B, heads, rows, S), one for each layer, of the bool `mask` (B, 1, rows, S).

        `late` (B, S): frame that comes after a row, below 0 for text. Rows are those from `first` on.
        """
        rows = late[:, first:, None]
        away = (rows - centres[:, None]).square() * (said[:, None] & (rows >= 0))
        weights = torch.exp(-2 * self.log_widths)[:, None, :, None, None] / 2
        barred = torch.zeros_like(mask, dtype=away.dtype).masked_fill(~mask, -torch.inf)
        return [barred - weight * away[:, None] for weight in weights]
