"""Distances of decoded speech from the true one beside the sound: of log-mels, and of what a Whisper hears in them."""

import torch
from torch import Tensor

from xycodec.data.batch import Batch
from xycodec.models.xy_tokenizer.model import RAISE, XYTokenizer
from xycodec.nn.mean import Mean, masked_mean


def feature_distance(codec: XYTokenizer, features: Tensor, batch: Batch) -> Mean:
    """L1 distance of acoustic features (B, n_mels, M) from the clips' own log-mels, mean over valid frames."""
    with torch.autocast(features.device.type, enabled=False):
        ideal = codec.ideal_features(batch.audio, [max(n, 1) for n in batch.lengths])
        distance = (features.float() - ideal).abs().mean(dim=1)
        starts = torch.arange(distance.shape[1]) * codec.mel.hop_length
        valid = starts < torch.tensor(batch.lengths)[:, None]
        return masked_mean(distance, valid.to(distance.device, non_blocking=True))


def state_distance(decoded: Tensor, target: Tensor) -> Mean:
    """Relative L1 distance of the semantic tower's output (B, L, D) for decoded speech from that for the true one.

    Sum of |decoded - target| over the sum of |target|; frames that are zero in both (padding) count nothing. `target`
    gets no gradient. Not in the papers.
    """
    target = target.detach().float()
    return Mean((decoded.float() - target).abs().sum()[None], target.abs().sum()[None])


def states_of_features(codec: XYTokenizer, features: Tensor, mask: Tensor | None, first_frame: int = 0) -> Tensor:
    """States of the semantic tower for acoustic features (B, n_mels, 2 * L) read as log-mels: (B, L, D).

    `mask` (B, L) is True on valid frames; frame 0 has the position of code frame `first_frame`.
    """
    return _states(codec, features - RAISE, features.shape[2] // 2, mask, first_frame)


def states_of_audio(codec: XYTokenizer, audio: Tensor, mask: Tensor | None, first_frame: int = 0) -> Tensor:
    """States of the semantic tower for audio (B, T) at 16 kHz, T a multiple of 320: (B, T // 320, D)."""
    # One hop of silence, which the last frame's convolution sees.
    log_mel = codec.mel(torch.nn.functional.pad(audio.float(), (0, codec.mel.hop_length)))
    return _states(codec, log_mel, audio.shape[1] // (2 * codec.mel.hop_length), mask, first_frame)


def _states(codec: XYTokenizer, log_mel: Tensor, frames: int, mask: Tensor | None, first_frame: int) -> Tensor:
    assert codec.semantic_encoder is not None
    states: Tensor = codec.semantic_encoder(log_mel, frames, mask, first_frame * codec.downsample.factor)
    return states
