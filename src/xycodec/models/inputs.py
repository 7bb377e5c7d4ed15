"""Clips of audio, codes and lengths as callers have them, checked and turned into tensors."""

from collections.abc import Sequence
from operator import index
from reprlib import repr as short
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from xycodec.errors import AudioError, XycodecError

Array = Tensor | NDArray[Any]
Audio = Array | Sequence[Array]
"""A clip (T,), a batch (B, T) or (B, 1, T), or a list of clips; of torch or numpy."""
Codes = Array | Sequence[Array]
"""Codes (k, L), a batch (B, k, L), or a list of codes (k, L); of torch or numpy."""
Lengths = Array | Sequence[int]

INT16_SCALE = 32768
_LOUDEST = 64  # far above what a float file of real sound holds, and below the peak of a quiet one of int16's scale
_CHANNELS = 8  # more clips than that, of so few samples each, are one clip's samples and its channels


def read_clips(audio: Audio, lengths: Lengths | None) -> list[Tensor]:
    """The clips (T,) float32 of a batch, each as long as `lengths` says: views where `audio` is float32 already.

    Raises AudioError on what is no audio, XycodecError on other lengths.
    """
    if isinstance(audio, list | tuple):
        clips = [_one_clip(clip, f"clip {i}") for i, clip in enumerate(audio)]
    else:
        batch = _audio_tensor(audio, "audio")
        shape = tuple(batch.shape)
        batch = batch[None] if batch.ndim == 1 else batch[:, 0] if batch.ndim == 3 and shape[1] == 1 else batch
        if batch.ndim != 2:
            raise AudioError(
                f"audio must be one clip (T,) or a batch (B, T) or (B, 1, T), got shape {shape}: add or drop an axis"
            )
        if batch.shape[1] <= _CHANNELS < len(batch):
            raise AudioError(f"audio of shape {shape} looks like (T, channels): give one channel, as audio[:, 0]")
        clips = list(batch)
    counts = read_lengths(lengths, [len(clip) for clip in clips])
    found = [_samples(clip[:count], f"item {i}") for i, (clip, count) in enumerate(zip(clips, counts, strict=True))]
    for i, clip in enumerate(found):
        if len(clip) and (peak := float(clip.abs().max())) > _LOUDEST:
            raise AudioError(
                f"item {i} has samples of {peak:.0f}, but floats lie in [-1, 1]: divide int16 by {INT16_SCALE}"
            )
    return found


def read_block(block: Array) -> Tensor:
    """A stretch (T,) float32 of one clip. Raises AudioError."""
    tensor = _audio_tensor(block, "audio")
    if tensor.ndim != 1:
        raise AudioError(f"a clip must be (T,), got shape {tuple(tensor.shape)}: encode one channel of one clip")
    return _samples(tensor, "the clip")


def read_codes(
    codes: Codes, lengths: Lengths | None, *, n_q: int, codebook_size: int, device: torch.device
) -> tuple[Tensor, list[int]]:
    """Codes (B, k, L) int64 on `device`, zero past each item's end, and the frames of each item.

    Raises XycodecError unless 1 <= k <= `n_q`, codes lie below `codebook_size`, and `lengths` fit.
    """
    if isinstance(codes, list | tuple):
        batch, longest = _joined([_codes_tensor(item, f"codes {i}") for i, item in enumerate(codes)])
    else:
        batch = _codes_tensor(codes, "codes")
        batch = batch[None] if batch.ndim == 2 else batch
        longest = [batch.shape[-1] if batch.ndim else 0] * len(batch) if batch.ndim == 3 else []
    if batch.ndim != 3 or not 1 <= batch.shape[1] <= n_q:
        raise XycodecError(f"codes must be (1..{n_q}, L) or (B, 1..{n_q}, L), got shape {tuple(batch.shape)}")
    counts = read_lengths(lengths, longest)
    batch = batch.to(device)
    if any(count < batch.shape[2] for count in counts):
        valid = torch.arange(batch.shape[2], device=device) < torch.tensor(counts, device=device)[:, None]
        batch = batch.where(valid[:, None], 0)
    if batch.numel() and not (batch.min() >= 0 and batch.max() < codebook_size):
        raise XycodecError(f"codes must lie in 0..{codebook_size - 1}, found {batch.min()}..{batch.max()}")
    return batch, counts


def read_lengths(lengths: Lengths | None, longest: Sequence[int]) -> list[int]:
    """Counts of valid samples or frames, by default `longest`. Raises XycodecError where one is less than 0 or more."""
    if lengths is None:
        return list(longest)
    items: Any = lengths.tolist() if isinstance(lengths, Tensor | np.ndarray) else lengths
    try:
        counts = [_integer(item) for item in items]
    except (TypeError, RuntimeError):
        counts = [-1]
    fits = len(counts) == len(longest) and all(0 <= n <= most for n, most in zip(counts, longest, strict=True))
    if not fits:
        most = max(longest, default=0)
        raise XycodecError(
            f"lengths must be {len(longest)} integers, each from 0 to its item's (at most {most}), got {short(items)}"
        )
    return counts


def read_integer(value: Any, least: int, most: int, name: str) -> int:
    """`value` as an int. Raises XycodecError unless it is an integer from `least` to `most`."""
    try:
        number = _integer(value)
    except (TypeError, RuntimeError):
        number = least - 1
    if not least <= number <= most:
        raise XycodecError(f"{name} must be an integer from {least} to {most}, got {value!r}")
    return number


def _integer(number: Any) -> int:
    """Return an integer of any type as an int. Raises TypeError or RuntimeError on anything else, a bool too."""
    number = number.item() if isinstance(number, Tensor) else number
    if isinstance(number, bool):
        raise TypeError("a bool counts nothing")
    return index(number)


def _one_clip(clip: Array, name: str) -> Tensor:
    tensor = _audio_tensor(clip, name)
    tensor = tensor[0] if tensor.ndim == 2 and len(tensor) == 1 else tensor
    if tensor.ndim != 1:
        raise AudioError(f"{name} of the list must be (T,), got shape {tuple(tensor.shape)}: give one channel")
    return tensor


def _audio_tensor(array: Audio, name: str) -> Tensor:
    if isinstance(array, str | bytes) or hasattr(array, "__fspath__"):
        raise AudioError(f"{name} must be samples, not {short(array)}: for a file, use encode_file or read_audio")
    tensor = _tensor(array)
    if tensor is None:
        what = f"{array.dtype} numbers" if isinstance(array, Tensor | np.ndarray) else type(array).__name__
        raise AudioError(f"{name} must be a torch or numpy array of floats or int16, or a list of them, not {what}")
    if not (tensor.is_floating_point() or tensor.dtype == torch.int16):
        raise AudioError(f"{name} must be floats in [-1, 1] or int16, got {tensor.dtype}: scale it to one of them")
    return tensor


def _samples(clip: Tensor, name: str) -> Tensor:
    """(T,) of any type that `_audio_tensor` lets through -> float32."""
    samples = clip.to(torch.float32)
    if clip.dtype == torch.int16:
        return samples / INT16_SCALE
    if not torch.isfinite(samples).all():
        raise AudioError(f"{name} holds NaN or Inf, or what is too large for float32")
    return samples


def _codes_tensor(array: Codes, name: str) -> Tensor:
    tensor = _tensor(array)
    if tensor is None or tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex():
        what = array.dtype if isinstance(array, Tensor | np.ndarray) else type(array).__name__
        hint = "" if isinstance(array, Tensor | np.ndarray) else "; for a .xyc file, use decode_file"
        raise XycodecError(f"{name} must be a torch or numpy array of integers, not {what}{hint}")
    return tensor.to(torch.int64)


def _joined(items: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """Codes (k, L) of different L -> (B, k, longest L), and each L."""
    shapes = [tuple(item.shape) for item in items]
    if not items or any(item.ndim != 2 or len(item) != len(items[0]) for item in items):
        raise XycodecError(f"a list of codes must hold arrays (k, L) of one k, got shapes {shapes}")
    longest = [item.shape[1] for item in items]
    return torch.stack([F.pad(item, (0, max(longest) - item.shape[1])) for item in items]), longest


def _tensor(array: Any) -> Tensor | None:
    """A torch or numpy array of numbers as a tensor that shares its memory where it can; None of anything else."""
    if isinstance(array, Tensor):
        return array.detach() if array.layout is torch.strided and not array.is_meta else None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        return None
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    # torch takes the machine's byte order and forward strides only, and warns of arrays that it could not write to.
    array = np.require(array.astype(array.dtype.newbyteorder("="), copy=False), requirements="W")
    if any(stride < 0 for stride in array.strides):
        array = array.copy()
    return torch.from_numpy(array)
