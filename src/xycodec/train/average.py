"""A moving average of a codec's weights over the steps of its training, which is what a run gives away."""

from copy import deepcopy
from typing import Generic, TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from xycodec.checkpoints.build import OwnCodec


def decay_of(step: int, decay: float) -> float:
    """Decay of the average at step `step` (from 0): small at first, so that the initial weights are soon forgotten."""
    return min(decay, (1 + step) / (10 + step))


CodecT = TypeVar("CodecT", bound=OwnCodec)


class WeightAverage(nn.Module, Generic[CodecT]):
    """The exponential moving average of a codec, itself a codec in training form.

    It begins as a copy of `codec`, which must not be wrapped by an engine yet. All that is no parameter, such as the
    codebooks, which are averages already, is the newest.
    """

    def __init__(self, codec: CodecT, decay: float) -> None:
        super().__init__()
        self.codec: CodecT = deepcopy(codec)
        self.codec.requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, codec: CodecT, step: int) -> None:
        """Follow `codec` as it is after step `step` (from 0). The host waits for nothing."""
        pairs = zip(self.codec.parameters(), codec.parameters(), strict=True)
        # What is frozen is equal already.
        own, theirs = zip(*(pair for pair in pairs if pair[1].requires_grad), strict=True)
        get_ema_multi_avg_fn(decay_of(step, self.decay))(own, theirs, None)  # type: ignore[no-untyped-call]
        for mine, newest in zip(self.codec.buffers(), codec.buffers(), strict=True):
            mine.copy_(newest)
