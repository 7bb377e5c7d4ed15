"""Overlapping windows over a long sequence, and their results joined: of files and of streams alike."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xycodec.errors import XycodecError

FADE = 1
"""Code frames over which a decoded window takes over from the one before."""


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

    items: Tensor
    kept: slice


@dataclass(frozen=True)
class Held:
    """State of a cutter: the number of the next window, and the items from its start on."""

    number: int = 0
    parts: tuple[Tensor, ...] = ()
    count: int = 0


class Cutter:
    """Cuts a sequence that comes in blocks (..., n), `unit` items a frame, into windows.

    `state` is all that it remembers; it is never changed, only replaced, so that it can be kept and put back.
    """

    def __init__(self, windows: Windows, unit: int) -> None:
        self._windows, self._unit = windows, unit
        self.state = Held()

    def cut(self, block: Tensor) -> Iterator[Piece]:
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

    def pieces(self, blocks: Iterable[Tensor]) -> Iterator[Piece]:
        """Yield the windows of a whole sequence."""
        for block in blocks:
            yield from self.cut(block)
        yield from self.end()

    def _size(self) -> int:
        number = self.state.number
        return (self._windows.end(number) - self._windows.start(number)) * self._unit

    def _cut(self, size: int, *, whole_end: bool) -> Piece:
        number, parts, windows = self.state.number, self.state.parts, self._windows
        held = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
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

    def __init__(self, windows: Windows, unit: int, fade: int = 0) -> None:
        fade = 0 if windows.published else min(fade, windows.right)
        self._published, self._unit = windows.published, unit
        self._rise = (torch.arange(fade * unit, dtype=torch.float32, device="cpu") + 0.5) / (max(1, fade) * unit)
        self.state: Tensor | None = None

    def join(self, result: Tensor, piece: Piece) -> Tensor:
        """Return the part that the result of a window adds to the whole, on the CPU."""
        stop = result.shape[-1] if piece.kept.stop is None else piece.kept.stop * self._unit
        result = result.cpu()
        block, tail = result[..., piece.kept.start * self._unit : stop], self.state
        if len(self._rise) and tail is not None:
            shared = min(len(self._rise), tail.shape[-1])
            faded = torch.lerp(tail[..., :shared], block[..., :shared], self._rise[:shared])
            block = torch.cat([faded, block[..., shared:]], dim=-1)
        self.state = None if self._published else result[..., stop:]
        return block

    def end(self) -> Tensor | None:
        """The end of the whole that no later window took over; None where there is none."""
        tail, self.state = self.state, None
        return tail if tail is not None and tail.shape[-1] else None

    def joined(self, results: Sequence[Tensor], pieces: Sequence[Piece]) -> list[Tensor]:
        """`join` of each window in turn."""
        return [self.join(result, piece) for result, piece in zip(results, pieces, strict=True)]
