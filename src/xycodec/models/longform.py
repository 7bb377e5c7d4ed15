"""Audio and codes of any length, in overlapping windows and bounded memory.

By default windows overlap and each keeps its middle, so that every kept frame has context on both sides; the
first keeps its beginning and the last its end, and the last always reaches back into its neighbour. Decoded windows,
which may disagree where they meet, fade into each other. A codec in `reference` mode follows the
published rule: each window keeps its beginning only (see Long audio in docs/models/xy_tokenizer.md).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xycodec.errors import XycodecError
from xycodec.io.progress import Advance, unwatched
from xycodec.models.inputs import Array, read_block, read_codes

Block = TypeVar("Block", Tensor, NDArray[np.float32])
BATCH = 4
"""Windows computed in one call: enough to keep the threads of a CPU busy, small enough for any memory."""
FADE = 1
"""Code frames over which a decoded window takes over from the one before."""


class WindowCodec(Protocol):
    """A codec that computes clips of up to one window; `xycodec.Codec` explains its members."""

    n_q: int
    codebook_size: int
    hop_length: int
    window_frames: int
    reference: bool

    @property
    def frame_rate(self) -> float:
        """Code frames a second."""

    def num_frames(self, num_samples: int) -> int:
        """Code frames of so many input samples."""

    def reference_frames(self, num_samples: int) -> int:
        """Code frames of so many input samples under the published rule."""

    def num_output_samples(self, num_samples: int) -> int:
        """Output samples that last as long as so many input samples."""

    def check_layers(self, n_q: int | None) -> int:
        """Number of layers that `n_q` asks for."""

    def check_search(self, search: int) -> int:
        """Width of the search over codes."""

    def encode_windows(self, clips: list[Tensor], n_q: int, search: int) -> list[Tensor]:
        """Codes (n_q, L) of clips (n,)."""

    def decode_windows(self, codes: list[Tensor]) -> list[Tensor]:
        """Audio (n,) of codes (k, L)."""

    def embed_window(self, codes: Tensor, branch: str | None) -> Tensor:
        """Embeddings (D, L) of codes (k, L)."""


@dataclass(frozen=True)
class _Plan:
    """Positions of windows over a sequence, in code frames."""

    window: int
    step: int
    left: int
    """Frames at a window's start that only serve as context (never those of the first window)."""
    fade: int
    """Frames after a window's kept ones over which the next window takes over."""
    reference: bool

    @classmethod
    def of(cls, codec: WindowCodec, overlap_s: float | None) -> "_Plan":
        overlap = overlap_frames(codec, overlap_s)
        left, fade = (0, 0) if codec.reference else (overlap // 2, min(FADE, overlap - overlap // 2))
        return cls(codec.window_frames, codec.window_frames - overlap, left, fade, codec.reference)

    def windows(self, blocks: Iterable[Tensor], unit: int) -> Iterator[tuple[Tensor, bool, bool]]:
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
            buffer = torch.cat(parts, dim=-1) if len(parts) > 1 else buffer
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


def overlap_frames(codec: WindowCodec, overlap_s: float | None) -> int:
    """Code frames that neighbouring windows share; raises XycodecError if that is not from 0 to under a window."""
    if overlap_s is None:
        overlap_s = codec.window_frames / codec.frame_rate / 3
    overlap = round(overlap_s * codec.frame_rate) if isfinite(overlap_s) else -1
    if not 0 <= overlap < codec.window_frames:
        most = codec.window_frames / codec.frame_rate
        raise XycodecError(f"overlap_s must be from 0 to under {most:g} s, got {overlap_s:g}")
    return overlap


@torch.no_grad()
def encode_long(
    codec: WindowCodec,
    audio: Array | Iterable[Array],
    overlap_s: float | None = None,
    *,
    n_q: int | None = None,
    search: int = 1,
) -> Tensor:
    """Codes (n_q, L) int64 on the CPU of one clip of any length, which may be a stream.

    `audio` is one clip (T,) at the codec's input rate, of floats in [-1, 1] or int16, or an iterable of consecutive
    blocks of it (such as `xycodec.io.audio.stream_audio` gives); the codes are the same, those of `codec.encode`, and
    only a few windows are in memory at a time. `overlap_s` is how much neighbouring windows share, rounded to whole
    code frames; by default a third of the window, which is 10 s of the published 30. `search` is that of `encode`.

    Raises AudioError and XycodecError as `encode` does.
    """
    plan = _Plan.of(codec, overlap_s)
    layers, width = codec.check_layers(n_q), codec.check_search(search)
    counted = CountedBlocks(_blocks(audio))
    windows = plan.windows(counted, codec.hop_length)
    codes = [torch.zeros(layers, 0, dtype=torch.int64, device="cpu")]
    while batch := list(islice(windows, BATCH)):
        made = codec.encode_windows([window for window, _, _ in batch], layers, width)
        for item, (_, first, last) in zip(made, batch, strict=True):
            codes.append(item[:, plan.kept(first, last)].cpu())
    whole = torch.cat(codes, dim=1)
    # The published rule drops the last partial frame of the clip, even where its window kept it.
    return whole[:, : codec.reference_frames(counted.samples)] if codec.reference else whole


def decode_long(
    codec: WindowCodec, codes: Array, overlap_s: float | None = None, num_samples: int | None = None
) -> Tensor:
    """Audio (T,) float32 on the CPU of codes (k, L) of any length and integer type.

    `num_samples` is the length of the original at the codec's *input* rate, as `CodecFile` stores it; the audio
    is cut to what lasts as long at the output rate. To write a long file without holding it, use `decode_blocks`.
    """
    blocks = decode_blocks(codec, codes, overlap_s, num_samples)
    return torch.cat([torch.zeros(0, dtype=torch.float32, device="cpu"), *blocks])


@torch.no_grad()
def decode_blocks(
    codec: WindowCodec, codes: Array, overlap_s: float | None = None, num_samples: int | None = None
) -> Iterator[Tensor]:
    """Decode as `decode_long` does, and yield the audio in consecutive blocks (n,)."""
    clip = _one_item(codec, codes)
    if num_samples is not None and codec.num_frames(num_samples) != clip.shape[1]:
        raise XycodecError(
            f"{clip.shape[1]} frames do not belong to {num_samples} samples "
            f"({codec.num_frames(num_samples)} frames at a hop of {codec.hop_length})"
        )
    plan = _Plan.of(codec, overlap_s)
    hop = codec.num_output_samples(codec.hop_length)
    remaining = clip.shape[1] * hop if num_samples is None else codec.num_output_samples(num_samples)
    windows = plan.windows([clip], 1)
    beyond = torch.zeros(0, dtype=torch.float32, device="cpu")  # what the window before goes on with beyond its frames
    rise = (torch.arange(plan.fade * hop, dtype=torch.float32, device="cpu") + 0.5) / (max(1, plan.fade) * hop)
    while batch := list(islice(windows, BATCH)):
        decoded = codec.decode_windows([window for window, _, _ in batch])
        for item, (_, first, last) in zip(decoded, batch, strict=True):
            kept = plan.kept(first, last)
            end = len(item) if kept.stop is None else kept.stop * hop
            block = item[kept.start * hop : end].cpu()
            shared = len(beyond)
            block = torch.cat([torch.lerp(beyond, block[:shared], rise[:shared]), block[shared:]])[:remaining]
            beyond = item[end : end + len(rise)].cpu()
            remaining -= block.shape[0]
            yield block


@torch.no_grad()
def embed_long(
    codec: WindowCodec, codes: Array, overlap_s: float | None = None, *, branch: str | None = None
) -> Tensor:
    """Quantized embeddings (D, L) of codes (k, L) of any length, from the windows that `encode_long` has.

    They are those of `codec.embed`, which explains `branch`. Raises XycodecError as it does.
    """
    plan = _Plan.of(codec, overlap_s)
    windows = plan.windows([_one_item(codec, codes)], 1)
    return torch.cat(
        [codec.embed_window(window, branch)[:, plan.kept(first, last)] for window, first, last in windows], dim=1
    )


def _one_item(codec: WindowCodec, codes: Array) -> Tensor:
    """Codes (k, L) int64 on the CPU. Raises XycodecError."""
    if not isinstance(codes, Tensor | np.ndarray) or codes.ndim != 2:
        what = tuple(codes.shape) if isinstance(codes, Tensor | np.ndarray) else type(codes).__name__
        raise XycodecError(f"codes must be one array (n_q, L), got {what}")
    batch, _ = read_codes(codes, None, n_q=codec.n_q, codebook_size=codec.codebook_size, device=torch.device("cpu"))
    return batch[0]


def _blocks(audio: Array | Iterable[Array]) -> Iterator[Tensor]:
    if isinstance(audio, Tensor | np.ndarray | str | bytes) or not isinstance(audio, Iterable):
        yield read_block(audio)
    else:
        yield from map(read_block, audio)


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
