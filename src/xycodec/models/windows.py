"""Overlapping windows over a long sequence, cut and joined again: of files and streams, arrays of torch and of numpy.

By default each window keeps its middle, so that every kept frame has context on both sides; the first keeps its
beginning and the last its end, and the last always reaches back into its neighbour. Decoded windows, which may
disagree where they meet, fade into each other. A codec in `reference` mode follows the published rule: each window
keeps its beginning only (see Long audio in docs/models/xy_tokenizer.md).
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
    """Functions of a library of arrays that windows are cut and joined with."""

    join: Callable[[Sequence[Any]], Any]
    """Concatenate along the last axis."""
    lerp: Callable[[Any, Any, Any], Any]
    """Go from the first array to the second, by weights from 0 to 1."""
    rise: Callable[[int], Any]
    """Return n weights that rise evenly from just above 0 to just below 1."""


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
class Windows:
    """Positions of overlapping windows over a sequence, in code frames.

    The first window keeps its first `first` frames (default: `step`), each later one the next `step`. A window begins
    `left` frames before what it keeps, where there are as many, and ends `right` frames after it. The last window ends
    where the sequence ends, and keeps all to there. A small `step` and `right` make a short latency: a frame is
    known as soon as the `right` frames after its window's kept ones are there.

    Raises XycodecError where a number is not in its range.
    """

    step: int
    left: int = 0
    right: int = 0
    first: int = 0
    published: bool = False
    """Whether the last window is, as published, the one whose `step` frames reach the end."""

    def __post_init__(self) -> None:
        if not self.first:
            object.__setattr__(self, "first", self.step)
        if self.step < 1 or self.left < 0 or self.right < 0 or self.first < 1:
            raise XycodecError(f"windows need a step of 1 frame or more, and left and right of 0 or more, got {self}")

    @classmethod
    def around(cls, left: int, right: int, step: int) -> "Windows":
        """Windows that hear `left` and `right` frames around each frame, also where one fades into the next."""
        return cls(step, left, right + FADE)

    @property
    def longest(self) -> int:
        """Frames of the longest window."""
        return max(self.left + self.step, self.first) + self.right

    @property
    def latency(self) -> int:
        """Frames from the beginning of a frame to when its result is known, at most."""
        return max(self.step, self.first) + self.right

    @property
    def cost(self) -> float:
        """Times that each frame is computed."""
        return (self.left + self.step + self.right) / self.step

    def kept(self, number: int) -> tuple[int, int]:
        """The first frame that window `number` keeps, and the first that it does not."""
        end = self.first + number * self.step
        return (end - self.step if number else 0), end

    def start(self, number: int) -> int:
        """The first frame of window `number`."""
        return max(0, self.kept(number)[0] - self.left)

    def end(self, number: int) -> int:
        """The first frame after window `number`, where the sequence is that long."""
        return self.kept(number)[1] + self.right


@dataclass(frozen=True)
class Piece:
    """One window to compute: its items, and the frames of its result that belong to the whole."""

    items: Any
    kept: slice


@dataclass(frozen=True)
class Held:
    """State of a cutter: the number of the next window, and the items from its start on."""

    number: int = 0
    parts: tuple[Any, ...] = ()
    count: int = 0


class Cutter:
    """Cuts a sequence that comes in blocks (..., n), `unit` items a frame, into windows.

    `state` is all that it remembers; it is never changed, only replaced, so that it can be kept and put back.
    """

    def __init__(self, windows: Windows, unit: int, arrays: Arrays) -> None:
        self._windows, self._unit, self._arrays = windows, unit, arrays
        self.state = Held()

    def cut(self, block: Any) -> Iterator[Piece]:
        """Take the next block, and yield the windows that are whole."""
        state = self.state
        self.state = Held(state.number, (*state.parts, block), state.count + block.shape[-1])
        while self.state.count >= (size := self._size()):
            yield self._cut(size, whole_end=False)

    def end(self) -> Iterator[Piece]:
        """Yield what is left when the sequence has ended: nothing where the last window ended with it."""
        windows = self._windows
        if windows.published:
            while self.state.count > 0:
                yield self._cut(self.state.count, whole_end=False)
            return
        number = self.state.number
        computed = (windows.end(number - 1) - windows.start(number)) * self._unit if number else 0
        if self.state.count > computed:
            yield self._cut(self.state.count, whole_end=True)

    def pieces(self, blocks: Iterable[Any]) -> Iterator[Piece]:
        """Yield the windows of a whole sequence."""
        for block in blocks:
            yield from self.cut(block)
        yield from self.end()

    def _size(self) -> int:
        number = self.state.number
        return (self._windows.end(number) - self._windows.start(number)) * self._unit

    def _cut(self, size: int, *, whole_end: bool) -> Piece:
        number, parts, windows = self.state.number, self.state.parts, self._windows
        held = self._arrays.join(parts) if len(parts) > 1 else parts[0]
        start = windows.start(number)
        first, stop = (frame - start for frame in windows.kept(number))
        rest = held[..., (windows.start(number + 1) - start) * self._unit :]
        self.state = Held(number + 1, (rest,), rest.shape[-1])
        return Piece(held[..., :size], slice(first, None if whole_end else stop))


class Joiner:
    """Joins the results (..., n) of windows, `unit` items a frame, fading over `fade` frames where two meet.

    `state` holds the results after the kept ones of the last window: the next fades in over them, or the sequence ends
    with them. It is never changed, only replaced.
    """

    def __init__(self, windows: Windows, unit: int, arrays: Arrays, fade: int = 0) -> None:
        fade = 0 if windows.published else min(fade, windows.right)
        self._published, self._unit, self._arrays = windows.published, unit, arrays
        self._rise = arrays.rise(fade * unit)
        self.state: Any = None

    def join(self, result: Any, piece: Piece) -> Any:
        """Return the part that the result of a window, on the CPU, adds to the whole."""
        stop = result.shape[-1] if piece.kept.stop is None else piece.kept.stop * self._unit
        block, tail = result[..., piece.kept.start * self._unit : stop], self.state
        if len(self._rise) and tail is not None:
            shared = min(len(self._rise), tail.shape[-1])
            faded = self._arrays.lerp(tail[..., :shared], block[..., :shared], self._rise[:shared])
            block = self._arrays.join([faded, block[..., shared:]])
        self.state = None if self._published else result[..., stop:]
        return block

    def joined(self, results: Sequence[Any], pieces: Sequence[Piece]) -> list[Any]:
        """`join` of each window in turn."""
        return [self.join(result, piece) for result, piece in zip(results, pieces, strict=True)]

    def end(self) -> Any:
        """The end of the whole that no later window took over; None where there is none."""
        tail, self.state = self.state, None
        return tail if tail is not None and tail.shape[-1] else None

    def computed(self, pieces: Iterator[Piece], compute: Callable[[list[Any]], list[Any]]) -> Iterator[Any]:
        """Yield the whole in consecutive blocks; `compute` gives the results of a few windows at a time."""
        while batch := list(islice(pieces, BATCH)):
            yield from self.joined(compute([piece.items for piece in batch]), batch)
        if (tail := self.end()) is not None:
            yield tail


# ---- a codec's windows, and the lengths that go through them -----------------------------------


def overlap_frames(codec: Windowed, overlap_s: float | None) -> int:
    """Code frames that neighbouring windows share; raises XycodecError if that is not from 0 to under a window."""
    if overlap_s is None:
        overlap_s = codec.window_frames / codec.frame_rate / 3
    overlap = round(overlap_s * codec.frame_rate) if isfinite(overlap_s) else -1
    if not 0 <= overlap < codec.window_frames:
        most = codec.window_frames / codec.frame_rate
        raise XycodecError(f"overlap_s must be from 0 to under {most:g} s, got {overlap_s:g}")
    return overlap


def choose_windows(codec: Windowed, overlap_s: float | None = None, windows: Windows | None = None) -> Windows:
    """The windows of a codec that share `overlap_s` seconds (default: a third), or `windows` if it can compute them.

    Raises XycodecError if it cannot.
    """
    if windows is None:
        overlap = overlap_frames(codec, overlap_s)
        step = codec.window_frames - overlap
        if codec.reference:
            return Windows(step, right=overlap, published=True)
        left = overlap // 2
        return Windows(step, left, overlap - left, first=left + step)
    if overlap_s is not None:
        raise XycodecError("windows say what they share: leave overlap_s out")
    if codec.reference or windows.published:
        raise XycodecError("the published rule has windows of its own: leave windows out, or load without reference")
    if windows.longest > codec.window_frames:
        raise XycodecError(f"windows of {windows.longest} frames are too long: at most {codec.window_frames} at once")
    return windows


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


def first_samples(blocks: Iterable[Block], count: int) -> Iterator[Block]:
    """Yield blocks (n,) up to `count` samples in all."""
    for block in blocks:
        yield block[:count]
        count -= min(count, block.shape[0])
        if not count:
            return


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
