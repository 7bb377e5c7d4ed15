"""Comparison of an exported codec with the one that it was made from."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from xycodec.checkpoints.build import OwnCodec
from xycodec.errors import CheckpointError
from xycodec.export.runtime import OnnxCodec
from xycodec.models.agreement import compare_codes

AUDIO = 1e-4
"""Largest difference of samples, of full scale 1."""


@dataclass(frozen=True)
class Parity:
    """Result of a comparison; `near_ties` of `frames` have another code, which is as near as the codec's own."""

    frames: int
    near_ties: int
    audio_error: float


def check_parity(codec: OwnCodec, exported: OnnxCodec, clip: Tensor) -> Parity:
    """Compare the codes of a clip (T,) of at most a window, and the audio of the codec's codes.

    Raises CheckpointError where a code differs without a near-tie, or samples by more than `AUDIO`.
    """
    codes = codec.encode(clip).codes
    agreement = compare_codes(codec, clip, torch.from_numpy(exported.encode(clip.numpy()).codes[0]))
    heard, audio = exported.decode(codes.numpy()).audio, codec.decode(codes).audio.numpy()
    error = float(np.abs(heard - audio).max(initial=0.0))
    if agreement.mistakes or not error <= AUDIO:
        raise CheckpointError(
            f"{codec.model_id}: what was exported does not compute the same: {agreement}; samples differ by "
            f"{error:.1e}: please report this"
        )
    return Parity(codes.shape[2], agreement.near_ties, error)
