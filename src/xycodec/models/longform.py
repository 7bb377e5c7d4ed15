"""Audio and codes of any length, in overlapping windows and bounded memory.

By default windows overlap and each keeps its middle, so that every kept frame has context on both sides; the
first keeps its beginning and the last its end, and the last always reaches back into its neighbour. Decoded windows,
which may disagree where they meet, fade into each other. A codec in `reference` mode follows the
published rule: each window keeps its beginning only (see Long audio in docs/models/xy_tokenizer.md). Other windows
may be given; `xycodec.models.streaming` computes the same from blocks as they come.
"""

from collections.abc import Iterable, Iterator
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
from xycodec.models.windows import FADE, Cutter, Joiner, Windows

Block = TypeVar("Block", Tensor, NDArray[np.float32])
BATCH = 4
"""Windows computed in one call: enough to keep the threads of a CPU busy, small enough for any memory."""


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


def overlap_frames(codec: WindowCodec, overlap_s: float | None) -> int:
    """Code frames that neighbouring windows share; raises XycodecError if that is not from 0 to under a window."""
    if overlap_s is None:
        overlap_s = codec.window_frames / codec.frame_rate / 3
    overlap = round(overlap_s * codec.frame_rate) if isfinite(overlap_s) else -1
    if not 0 <= overlap < codec.window_frames:
        most = codec.window_frames / codec.frame_rate
        raise XycodecError(f"overlap_s must be from 0 to under {most:g} s, got {overlap_s:g}")
    return overlap


def choose_windows(codec: WindowCodec, overlap_s: float | None = None, windows: Windows | None = None) -> Windows:
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


@torch.no_grad()
def encode_long(
    codec: WindowCodec,
    audio: Array | Iterable[Array],
    overlap_s: float | None = None,
    *,
    n_q: int | None = None,
    search: int = 1,
    windows: Windows | None = None,
) -> Tensor:
    """Codes (n_q, L) int64 on the CPU of one clip of any length, which may be a stream.

    `audio` is one clip (T,) at the codec's input rate, of floats in [-1, 1] or int16, or an iterable of consecutive
    blocks of it (such as `xycodec.io.audio.stream_audio` gives); the codes are the same, those of `codec.encode`, and
    only a few windows are in memory at a time. `overlap_s` is how much neighbouring windows share, rounded to whole
    code frames; by default a third of the window, which is 10 s of the published 30. `windows` says where they lie
    instead. `search` is that of `encode`.

    Raises AudioError and XycodecError as `encode` does.
    """
    windows = choose_windows(codec, overlap_s, windows)
    layers, width = codec.check_layers(n_q), codec.check_search(search)
    counted = CountedBlocks(_blocks(audio))
    pieces, joiner = Cutter(windows, codec.hop_length).pieces(counted), Joiner(windows, 1)
    codes = [torch.zeros(layers, 0, dtype=torch.int64, device="cpu")]
    while batch := list(islice(pieces, BATCH)):
        codes += joiner.joined(codec.encode_windows([piece.items for piece in batch], layers, width), batch)
    if (tail := joiner.end()) is not None:
        codes.append(tail)
    whole = torch.cat(codes, dim=1)
    # The published rule drops the last partial frame of the clip, even where its window kept it.
    return whole[:, : codec.reference_frames(counted.samples)] if codec.reference else whole


def decode_long(
    codec: WindowCodec,
    codes: Array,
    overlap_s: float | None = None,
    num_samples: int | None = None,
    *,
    windows: Windows | None = None,
) -> Tensor:
    """Audio (T,) float32 on the CPU of codes (k, L) of any length and integer type.

    `num_samples` is the length of the original at the codec's *input* rate, as `CodecFile` stores it; the audio
    is cut to what lasts as long at the output rate. `overlap_s` and `windows` are those of `encode_long`.
    To write a long file without holding it, use `decode_blocks`.
    """
    blocks = decode_blocks(codec, codes, overlap_s, num_samples, windows=windows)
    return torch.cat([torch.zeros(0, dtype=torch.float32, device="cpu"), *blocks])


@torch.no_grad()
def decode_blocks(
    codec: WindowCodec,
    codes: Array,
    overlap_s: float | None = None,
    num_samples: int | None = None,
    *,
    windows: Windows | None = None,
) -> Iterator[Tensor]:
    """Decode as `decode_long` does, and yield the audio in consecutive blocks (n,)."""
    clip = read_one_item(codec, codes)
    if num_samples is not None and codec.num_frames(num_samples) != clip.shape[1]:
        raise XycodecError(
            f"{clip.shape[1]} frames do not belong to {num_samples} samples "
            f"({codec.num_frames(num_samples)} frames at a hop of {codec.hop_length})"
        )
    windows = choose_windows(codec, overlap_s, windows)
    hop = codec.num_output_samples(codec.hop_length)
    remaining = clip.shape[1] * hop if num_samples is None else codec.num_output_samples(num_samples)
    pieces, joiner = Cutter(windows, 1).pieces([clip]), Joiner(windows, hop, FADE)
    while batch := list(islice(pieces, BATCH)):
        for block in joiner.joined(codec.decode_windows([piece.items for piece in batch]), batch):
            yield block[:remaining]
            remaining -= min(remaining, block.shape[0])
    if remaining and (tail := joiner.end()) is not None:
        yield tail[:remaining]


@torch.no_grad()
def embed_long(
    codec: WindowCodec, codes: Array, overlap_s: float | None = None, *, branch: str | None = None
) -> Tensor:
    """Quantized embeddings (D, L) of codes (k, L) of any length, from the windows that `encode_long` has.

    They are those of `codec.embed`, which explains `branch`. Raises XycodecError as it does.
    """
    windows = choose_windows(codec, overlap_s)
    pieces, joiner = Cutter(windows, 1).pieces([read_one_item(codec, codes)]), Joiner(windows, 1)
    parts = [joiner.join(codec.embed_window(piece.items, branch), piece) for piece in pieces]
    tail = joiner.end()
    return torch.cat(parts if tail is None else [*parts, tail], dim=1)


def read_one_item(codec: WindowCodec, codes: Array) -> Tensor:
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
