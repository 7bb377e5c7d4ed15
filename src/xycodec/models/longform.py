"""Audio and codes of any length, in overlapping windows and bounded memory (`xycodec.models.windows` has the windows).

A codec in `reference` mode follows the published rule for windows and lengths. Other windows may be given;
`xycodec.models.streaming` computes the same from blocks as they come.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from xycodec.errors import XycodecError
from xycodec.models.inputs import Array, read_block, read_codes
from xycodec.models.windows import (
    FADE,
    Arrays,
    CountedBlocks,
    Cutter,
    Joiner,
    Windowed,
    Windows,
    choose_windows,
    first_samples,
    samples_to_decode,
)


def _rise(count: int) -> Tensor:
    return (torch.arange(count, dtype=torch.float32, device="cpu") + 0.5) / max(1, count)


TENSORS = Arrays(join=partial(torch.cat, dim=-1), lerp=torch.lerp, rise=_rise)


class WindowCodec(Windowed, Protocol):
    """A codec that computes tensors of up to one window; `xycodec.Codec` explains its members."""

    n_q: int
    codebook_size: int

    def reference_frames(self, num_samples: int) -> int:
        """Code frames of so many input samples under the published rule."""

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

    def encode(clips: list[Tensor]) -> list[Tensor]:
        return [item.cpu() for item in codec.encode_windows(clips, layers, width)]

    pieces = Cutter(windows, codec.hop_length, TENSORS).pieces(counted)
    none = torch.zeros(layers, 0, dtype=torch.int64, device="cpu")
    whole = torch.cat([none, *Joiner(windows, 1, TENSORS).computed(pieces, encode)], dim=1)
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
    samples = samples_to_decode(codec, clip.shape[1], num_samples)
    windows = choose_windows(codec, overlap_s, windows)
    hop = codec.num_output_samples(codec.hop_length)

    def decode(parts: list[Tensor]) -> list[Tensor]:
        return [item.cpu() for item in codec.decode_windows(parts)]

    pieces = Cutter(windows, 1, TENSORS).pieces([clip])
    yield from first_samples(Joiner(windows, hop, TENSORS, FADE).computed(pieces, decode), samples)


@torch.no_grad()
def embed_long(
    codec: WindowCodec, codes: Array, overlap_s: float | None = None, *, branch: str | None = None
) -> Tensor:
    """Quantized embeddings (D, L) of codes (k, L) of any length, from the windows that `encode_long` has.

    They are those of `codec.embed`, which explains `branch`. Raises XycodecError as it does.
    """
    windows = choose_windows(codec, overlap_s)

    def embed(parts: list[Tensor]) -> list[Tensor]:
        return [codec.embed_window(part, branch) for part in parts]

    clip = read_one_item(codec, codes)
    parts = Joiner(windows, 1, TENSORS).computed(Cutter(windows, 1, TENSORS).pieces([clip]), embed)
    return torch.cat(list(parts) or embed([clip]), dim=1)


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
