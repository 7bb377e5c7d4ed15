"""Windows into which long audio and codes are cut, and which are joined again, for arrays of torch and of numpy.

Each window keeps its middle, so that every kept frame has context on both sides; the first keeps its beginning and the
last its end, and the last always reaches back into its neighbour. Decoded windows, which may disagree where they meet,
fade into each other. In `reference` mode each window keeps its beginning only, as published (see Long audio in
docs/models/xy_tokenizer.md).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from xycodec.errors import XycodecError
from xycodec.io.progress import Advance, unwatched

Block = TypeVar("Block", bound=Any)
BATCH = 4
"""Windows computed in one call: enough to keep the threads of a CPU busy, small enough for any memory."""
FADE = 1
"""Code frames over which a decoded window takes over from the one before."""


class Arrays(NamedTuple):
    """Functions that the windows need of a library of arrays."""

    join: Callable[[Sequence[Any]], Any]
    """Concatenate along the last axis."""
    lerp: Callable[[Any, Any, Any], Any]
    """Move from the first array to the second, by a weight from 0 to 1."""


class Windowed(Protocol):
    """A codec that computes clips of up to one window."""

    hop_length: int
    window_frames: int
    reference: bool

    @property
    def frame_rate(self) -> float:
        """Code frames a second."""

    def num_frames(self, num_samples: int) -> int:
        """Code frames of so many input samples."""

    def num_output_samples(self, num_samples: int) -> int:
        """Output samples that last as long as so many input samples."""


@dataclass(frozen=True)
class Plan:
    """Positions of windows over a sequence, in code frames."""

    arrays: Arrays
    window: int
    step: int
    left: int
    """Frames at a window's start that only serve as context (never those of the first window)."""
    fade: int
    """Frames after a window's kept ones over which the next window takes over."""
    reference: bool

    @classmethod
    def of(cls, codec: Windowed, overlap_s: float | None, arrays: Arrays) -> "Plan":
        """The plan of a codec whose windows share `overlap_s` seconds, by default a third of one."""
        overlap = overlap_frames(codec, overlap_s)
        left, fade = (0, 0) if codec.reference else (overlap // 2, min(FADE, overlap - overlap // 2))
        return cls(arrays, codec.window_frames, codec.window_frames - overlap, left, fade, codec.reference)

    def encoded(self, blocks: Iterable[Block], hop: int, encode: Callable[[list[Block]], list[Any]]) -> Iterator[Any]:
        """Codes (n_q, n) of a stream of samples (n,), in consecutive pieces."""
        windows = self._windows(blocks, hop)
        while batch := list(islice(windows, BATCH)):
            for item, (_, first, last) in zip(encode([one for one, _, _ in batch]), batch, strict=True):
                yield item[:, self.kept(first, last)]

    def decoded(
        self, codes: Block, hop: int, samples: int, rise: Any, decode: Callable[[list[Block]], list[Any]]
    ) -> Iterator[Any]:
        """The first `samples` samples of codes (k, L), in consecutive blocks (n,) of `hop` samples a frame.

        `rise` holds the weights of the later window, one a sample of the fade.
        """
        windows = self._windows([codes], 1)
        beyond = rise[:0]  # what the window before goes on with beyond its frames
        while batch := list(islice(windows, BATCH)):
            for item, (_, first, last) in zip(decode([one for one, _, _ in batch]), batch, strict=True):
                kept = self.kept(first, last)
                end = len(item) if kept.stop is None else kept.stop * hop
                block = item[kept.start * hop : end]
                shared = len(beyond)
                faded = self.arrays.lerp(beyond, block[:shared], rise[:shared])
                block = self.arrays.join([faded, block[shared:]])[:samples]
                beyond = item[end : end + len(rise)]
                samples -= block.shape[0]
                yield block

    def cut(self, codes: Block) -> Iterator[tuple[Block, slice]]:
        """Windows of codes (k, L), each with the frames of its result that belong to the whole."""
        for window, first, last in self._windows([codes], 1):
            yield window, self.kept(first, last)

    def _windows(self, blocks: Iterable[Block], unit: int) -> Iterator[tuple[Block, bool, bool]]:
        """Cut a stream of (..., n) blocks, `unit` items a frame, into (window, is first, is last)."""
        source = iter(blocks)
        buffer = next(source, None)
        first = True
        while buffer is not None:
            # One item more than a window tells that this is not the last.
            parts = [buffer]
            held = buffer.shape[-1]
            while held <= self.window * unit and (block := next(source, None)) is not None:
                parts.append(block)
                held += block.shape[-1]
            buffer = self.arrays.join(parts) if len(parts) > 1 else buffer
            last = held <= (self.step if self.reference else self.window) * unit
            yield buffer[..., : self.window * unit], first, last
            if last:
                return
            buffer = buffer[..., self.step * unit :]
            first = False

    def kept(self, first: bool, last: bool) -> slice:
        """The frames of a window's result that belong to the whole."""
        start = 0 if first else self.left
        whole_end = last and not self.reference
        return slice(start, None if whole_end else self.left + self.step)


def overlap_frames(codec: Windowed, overlap_s: float | None) -> int:
    """Code frames that neighbouring windows share; raises XycodecError if that is not from 0 to under a window."""
    if overlap_s is None:
        overlap_s = codec.window_frames / codec.frame_rate / 3
    overlap = round(overlap_s * codec.frame_rate) if isfinite(overlap_s) else -1
    if not 0 <= overlap < codec.window_frames:
        most = codec.window_frames / codec.frame_rate
        raise XycodecError(f"overlap_s must be from 0 to under {most:g} s, got {overlap_s:g}")
    return overlap


def samples_to_decode(codec: Windowed, frames: int, num_samples: int | None) -> int:
    """Output samples of `frames` frames, which are of `num_samples` input samples if that is known.

    Raises XycodecError where so many samples have another number of frames.
    """
    if num_samples is None:
        return frames * codec.num_output_samples(codec.hop_length)
    if codec.num_frames(num_samples) != frames:
        raise XycodecError(
            f"{frames} frames do not belong to {num_samples} samples "
            f"({codec.num_frames(num_samples)} frames at a hop of {codec.hop_length})"
        )
    return codec.num_output_samples(num_samples)


class CountedBlocks(Generic[Block]):
    """Blocks of one clip that are passed on, their samples counted and `advance` told their seconds."""

    def __init__(self, blocks: Iterable[Block], rate: int = 1, advance: Advance = unwatched) -> None:
        self.blocks: Iterable[Block] = blocks
        self.rate, self.advance, self.samples = rate, advance, 0

    def __iter__(self) -> Iterator[Block]:
        for block in self.blocks:
            self.samples += block.shape[0]
            self.advance(block.shape[0] / self.rate)
            yield block
