"""The frames around a frame on which a codec's result depends, found by changing the input."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from xycodec.errors import XycodecError
from xycodec.models.base import Codec

_TRIES = 4
"""Changes tried at each place: one may by chance change nothing."""


@dataclass(frozen=True)
class ReceptiveField:
    """Frames before and after a frame on which its result depends, in a sequence of `frames`.

    Where `bounded` is false, a change was felt at an end of the sequence: a longer one may show more.
    """

    left: int
    right: int
    frames: int

    @property
    def bounded(self) -> bool:
        """Whether the field ends inside of the sequence on both sides."""
        reach = self.frames // 2
        return self.left < reach and self.right < self.frames - 1 - reach


@torch.no_grad()
def measure_receptive_field(
    codec: Codec, part: Literal["encode", "decode"], *, frames: int | None = None, tolerance: float = 0.0, seed: int = 0
) -> ReceptiveField:
    """Change the middle frame of a sequence and find what it changes.

    `part` is the direction: `decode` changes a frame of random codes and compares audio, `encode` changes a frame of
    noise and compares codes, which tells the least that the field can be: small changes flip no code. `frames` is the
    length of the sequence (default: a window), `tolerance` the share of the audio's level below which a change of it
    counts as none.

    Attention over a whole window hears all of it: the field is then not `bounded`, and no stream equals the
    computation in one piece. Raises XycodecError on other values.
    """
    frames = codec.window_frames if frames is None else frames
    if not 3 <= frames <= codec.window_frames or part not in ("encode", "decode"):
        raise XycodecError(f"part must be encode or decode, frames 3 to {codec.window_frames}, got {part!r}, {frames}")
    generator = torch.Generator().manual_seed(seed)
    changed = torch.zeros(frames, dtype=torch.bool)
    for _ in range(_TRIES):
        if part == "encode":
            changed |= _changed_codes(codec, frames, generator)
        else:
            changed |= _changed_audio(codec, frames, tolerance, generator)
    middle, felt = frames // 2, changed.nonzero().flatten().tolist()
    # What comes after the change hears it to its left.
    return ReceptiveField(max([0, *(f - middle for f in felt)]), max([0, *(middle - f for f in felt)]), frames)


def _changed_codes(codec: Codec, frames: int, generator: torch.Generator) -> Tensor:
    """(frames,) bool: frames whose codes change with the samples of the middle one."""
    hop, middle = codec.hop_length, frames // 2
    audio = torch.randn(2, frames * hop, generator=generator) * 0.1
    audio[1, : middle * hop], audio[1, (middle + 1) * hop :] = audio[0, : middle * hop], audio[0, (middle + 1) * hop :]
    before, after = codec.encode_windows(list(audio), codec.n_q)
    return (before != after).any(dim=0).cpu()


def _changed_audio(codec: Codec, frames: int, tolerance: float, generator: torch.Generator) -> Tensor:
    """(frames,) bool: frames in whose audio something changes with the codes of the middle one."""
    codes = torch.randint(codec.codebook_size, (codec.n_q, frames), generator=generator)
    other = codes.clone()
    other[:, frames // 2] = (other[:, frames // 2] + 1 + codec.codebook_size // 3) % codec.codebook_size
    before, after = (audio.reshape(frames, -1) for audio in codec.decode_windows([codes, other]))
    return ((before - after).abs() > tolerance * before.square().mean().sqrt()).any(dim=1).cpu()
