"""Audio of a part of each clip, so that most of a step's time does not go into sound (not in the papers)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from xycodec.data.batch import Batch
from xycodec.models.xy_tokenizer.model import XYTokenizer
from xycodec.nn.transformer import frame_mask


class Heard(NamedTuple):
    """Synthesised audio, and the audio it should be."""

    audio: Tensor
    """(B, T), zero past each clip's last frame."""
    target: Tensor
    """(B, T), zero past each clip's end."""
    lengths: Tensor
    """(B,), samples of the clips within T; on the CPU."""


def synthesise_excerpts(
    codec: XYTokenizer, features: Tensor, frames: Sequence[int], batch: Batch, seconds: float | None
) -> Heard:
    """Audio of acoustic features (B, n_mels, M): of all of the clips or of `seconds` of each, from a random place.

    `frames` are the codes of each clip. Places are drawn from torch's generator on the CPU.
    """
    # Not the longest of `frames`: a batch of nothing has a frame too.
    width = longest = features.shape[2] // (2 * codec.upsample.factor)
    if seconds is not None:
        width = min(longest, max(1, round(seconds * codec.frame_rate)))
    hop = codec.config.output_hop_length
    target = F.pad(batch.target, (0, longest * hop - batch.target.shape[1]))
    starts = [0] * len(frames)
    if width < longest:
        # Drawn on the CPU: the device need not be asked for them.
        draws = torch.rand(len(frames)).tolist()
        starts = [int(draw * (max(count - width, 0) + 1)) for draw, count in zip(draws, frames, strict=True)]
        features = _excerpts(features.transpose(1, 2), starts, width, features.shape[2] // longest).transpose(1, 2)
        target = _excerpts(target, starts, width, hop)
    mask = frame_mask([min(count - start, width) for count, start in zip(frames, starts, strict=True)], width)
    audio = codec.synthesise(features, None if mask is None else mask.to(features.device, non_blocking=True))
    lengths = (torch.tensor(batch.target_lengths) - hop * torch.tensor(starts)).clamp(0, width * hop)
    return Heard(audio, target, lengths)


def random_first_frame(codec: XYTokenizer, frames: Sequence[int]) -> int:
    """Draw the position of a batch's first code frame, so that clips of `frames` code frames fit into the window."""
    return int(torch.randint(codec.window_frames - max(1, *frames) + 1, ()))


def _excerpts(x: Tensor, starts: Sequence[int], width: int, unit: int) -> Tensor:
    """Cut `width` units from each item of (B, T, ...), from its start on: (B, width * unit, ...)."""
    index = (torch.tensor(starts)[:, None] * unit + torch.arange(width * unit)).to(x.device, non_blocking=True)
    return x[torch.arange(len(x), device=x.device)[:, None], index]
