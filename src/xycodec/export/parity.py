"""Comparison of an exported codec with the one that it was made from."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from xycodec.checkpoints.build import OwnCodec
from xycodec.errors import CheckpointError
from xycodec.export.runtime import OnnxCodec
from xycodec.models.xcodec.model import XCodec

NEAR = 1e-5
"""Relative difference of a residual's distances to two codes below which rounding may choose either."""
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
    gaps = other_choices(codec, clip, exported.encode(clip.numpy()).codes[0])
    heard, audio = exported.decode(codes.numpy()).audio, codec.decode(codes).audio.numpy()
    error = float(np.abs(heard - audio).max(initial=0.0))
    if max(gaps, default=0.0) > NEAR or not error <= AUDIO:
        raise CheckpointError(
            f"{codec.model_id}: what was exported does not compute the same: distances of other codes differ by "
            f"{max(gaps, default=0.0):.1e}, samples by {error:.1e}: please report this"
        )
    return Parity(codes.shape[2], len(gaps), error)


def other_choices(codec: OwnCodec, clip: Tensor, codes: NDArray[Any]) -> list[float]:
    """Gaps between the codec's own code and that in `codes` (n_q, L), for every frame in which they differ.

    A gap is the relative difference of their distances to the residual, in the first layer that differs: later ones
    quantize another residual.
    """
    own = codec.encode(clip).codes[0].numpy()
    frames = np.flatnonzero((codes != own).any(axis=0))
    if not len(frames):
        return []
    vectors, books = _vectors(codec, clip).double(), codec.quantizer.codebook.double()
    gaps = []
    for frame in frames.tolist():
        layer = int(np.argmax(codes[:, frame] != own[:, frame]))
        residual = vectors[frame] - sum(books[i][own[i, frame]] for i in range(layer))
        one, two = (float((residual - books[layer][choice[layer, frame]]).square().sum()) for choice in (own, codes))
        gaps.append(abs(one - two) / max(one, two))
    return gaps


@torch.no_grad()
def _vectors(codec: OwnCodec, clip: Tensor) -> Tensor:
    """Vectors (L, D) that the first layer compares with its codebook."""
    if isinstance(codec, XCodec):
        return codec.encode_latents(F.pad(clip, (0, -len(clip) % codec.hop_length))[None])[0]
    vectors: Tensor = codec.quantizer.input_proj(codec.encode_latents(clip[None], [len(clip)]).latents)[0]
    return vectors
