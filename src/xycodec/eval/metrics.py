"""Distances between an original and its decoding."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from xycodec.errors import AudioError
from xycodec.losses import MultiScaleMel

Samples = NDArray[np.float32]

CHUNK_S = 10.0
_SHORTEST = 2048  # the longest window of the distance


@torch.no_grad()
def mel_distance(decoded: Iterable[Samples], original: Iterable[Samples], sample_rate: int) -> float:
    """Multi-scale log10 mel distance of two streams of 1-D blocks at `sample_rate`, up to the shorter's end.

    Computed in pieces of 10 s, weighted by their length, so memory does not grow with the audio. 0 is equality.
    Raises AudioError if either stream is empty.
    """
    distance = MultiScaleMel(sample_rate)
    total, samples = 0.0, 0
    for left, right in paired(decoded, original, round(CHUNK_S * sample_rate)):
        length = len(left)
        padding = (0, max(0, _SHORTEST - length))
        pair = [F.pad(torch.from_numpy(audio), padding)[None] for audio in (left, right)]
        total += length * distance(*pair, torch.tensor([length])).value().item()
        samples += length
    return total / samples


def paired(decoded: Iterable[Samples], original: Iterable[Samples], size: int) -> Iterator[tuple[Samples, Samples]]:
    """Two streams of 1-D blocks in pieces of `size` samples, the last one shorter, up to the shorter stream's end.

    Raises AudioError if either stream is empty.
    """
    empty = True
    for left, right in zip(_regroup(decoded, size), _regroup(original, size), strict=False):
        length = min(len(left), len(right))
        yield left[:length], right[:length]
        empty = False
    if empty:
        raise AudioError("nothing to compare: one of the two has no samples")


def _regroup(blocks: Iterable[Samples], size: int) -> Iterator[Samples]:
    """The same samples in blocks of `size`, the last one shorter."""
    held: list[Samples] = []
    count = 0
    for block in blocks:
        held.append(block)
        count += len(block)
        if count >= size:
            joined = np.concatenate(held)
            for start in range(0, count - count % size, size):
                yield joined[start : start + size]
            held, count = [joined[count - count % size :]], count % size
    if count:
        yield np.concatenate(held)
