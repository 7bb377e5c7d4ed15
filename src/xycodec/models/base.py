"""The interface every codec shares, and how a batch is computed so that codes depend on the clip alone."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import log2
from numbers import Real
from typing import ClassVar, Self, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.errors import AudioError, XycodecError
from xycodec.io.audio import Source, stream_audio, write_audio
from xycodec.io.files import FilePath
from xycodec.io.xyc import CodecFile
from xycodec.models.facts import CodecFacts
from xycodec.models.inputs import Array, Audio, Codes, Lengths, read_clips, read_codes, read_integer
from xycodec.models.longform import decode_blocks, decode_long, embed_long, encode_long
from xycodec.models.precision import own_precision
from xycodec.models.pretrained import Pretrained
from xycodec.models.windows import CountedBlocks
from xycodec.nn.nearest import WIDEST


@dataclass(frozen=True)
class EncoderOutput:
    """codes (B, n_q, L) int64, zero past each item's end; lengths (B,) int64 valid frames; num_samples (B,) int64.

    `num_samples` are the input samples that the codes are of: `decode` gives as many back.
    """

    codes: Tensor
    lengths: Tensor
    num_samples: Tensor | None = None


@dataclass(frozen=True)
class DecoderOutput:
    """audio (B, T) float32, zero past each item's end; lengths (B,) int64 valid samples."""

    audio: Tensor
    lengths: Tensor


if hasattr(os, "register_at_fork"):
    # A forked process has none of its parent's OpenMP threads, and would wait for them forever.
    os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))


class Codec(Pretrained, CodecFacts, nn.Module, ABC):
    """Speech to discrete codes and back.

    Audio is (B, T) float32 in [-1, 1] at `input_sample_rate`, codes are (B, n_q, L) int64 at `frame_rate`, and
    decoded audio is at `output_sample_rate`. Each clip, of any length, is computed at its own shape, as if alone:
    products of another shape round differently, and a near-tie in the quantizer would flip. On a CPU, clips
    run side by side and divide the threads, which is also faster than taking turns.

    `share_batches` trades that for speed on a GPU: clips of a batch share padded, masked products. Codes then
    agree with the exact ones except for near-ties.

    `reference` follows the published length and windowing rules instead of the length-true ones.
    """

    can_search: ClassVar[bool] = False
    """Whether `encode` takes a `search` above 1."""
    decoder_parts: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the names of tensors that encoding does not read."""

    def __init__(
        self,
        *,
        model_id: str,
        input_sample_rate: int,
        output_sample_rate: int,
        n_q: int,
        codebook_size: int,
        hop_length: int,
        window_frames: int,
    ) -> None:
        super().__init__()
        self.model_id = model_id
        self.input_sample_rate, self.output_sample_rate = input_sample_rate, output_sample_rate
        self.n_q, self.codebook_size = n_q, codebook_size
        self.hop_length, self.window_frames = hop_length, window_frames
        self.reference = False
        self.share_batches = False

    # ---- what follows from the numbers above --------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def reference_frames(self, num_samples: int) -> int:
        """Code frames of a clip under the published rule: of most codecs the whole ones."""
        return num_samples // self.hop_length

    def payload_bits(self, codes: Tensor) -> int:
        """Bits that the codes (k, L) of one clip take, without any container."""
        return round(codes.numel() * log2(self.codebook_size))

    # ---- the interface -------------------------------------------------------------------------

    def forward(
        self, audio: Audio, lengths: Lengths | None = None, *, sample_rate: int | None = None, n_q: int | None = None
    ) -> DecoderOutput:
        """Encode and decode: what is heard of `audio` after the codec, in as many samples."""
        return self.decode(self.encode(audio, lengths, sample_rate=sample_rate, n_q=n_q))

    def encode(
        self,
        audio: Audio,
        lengths: Lengths | None = None,
        *,
        sample_rate: int | None = None,
        n_q: int | None = None,
        search: int = 1,
    ) -> EncoderOutput:
        """Turn audio of any length into codes (B, n_q, L).

        `audio`: one clip (T,), a batch (B, T) or (B, 1, T), or a list of clips of any lengths; torch or numpy; floats
        of any width in [-1, 1], or int16, which is divided by 32768; at `input_sample_rate`. `lengths` (B,) counts each
        item's valid samples (default: all); what lies beyond is ignored. `sample_rate` says at which rate `audio` is,
        to be sure. `n_q` keeps the first layers only (default: all). `search` above 1, to 256, looks for codes with a
        smaller error by a beam of that width over the layers (`xycodec.nn.nearest.search`): better audio for the same
        bits, encoded more slowly, and other codes than the published greedy ones.

        Raises AudioError on another shape, type or rate, and on NaN or Inf; XycodecError on other lengths or layers,
        and where a codec cannot search.
        """
        if sample_rate is not None and not (isinstance(sample_rate, Real) and sample_rate == self.input_sample_rate):
            raise AudioError(
                f"audio is at {sample_rate!r} Hz, {self.model_id} takes {self.input_sample_rate} Hz: resample it first"
            )
        clips = read_clips(audio, lengths)
        layers, width = self.check_layers(n_q), self.check_search(search)
        codes = _by_length(
            clips, self.window_samples, lambda short: self.encode_windows(short, layers, width),
            lambda long: encode_long(self, long, n_q=layers, search=width),
        )  # fmt: skip
        frames = [item.shape[-1] for item in codes]
        samples = [min(len(clip), n * self.hop_length) for clip, n in zip(clips, frames, strict=True)]
        return EncoderOutput(
            _pad(codes, (layers, 0), torch.int64, self.device), self._counts(frames), self._counts(samples)
        )

    def decode(self, codes: Codes | EncoderOutput, lengths: Lengths | None = None) -> DecoderOutput:
        """Turn codes of the first k <= n_q layers, of any length, into audio (B, T).

        `codes`: what `encode` gave, which decodes to as many samples as went in; or codes (k, L) or (B, k, L), or a
        list of codes (k, L), of any integer type, torch or numpy, which decode to whole frames. `lengths` (B,) counts
        each item's valid frames (default: all). Raises XycodecError on a wrong shape or type and codes out of range.
        """
        batch, counts, samples = self._read_codes(codes, lengths)
        items = [item[:, :count] for item, count in zip(batch, counts, strict=True)]
        audio = _by_length(items, self.window_frames, self.decode_windows, lambda long: decode_long(self, long))
        if samples is not None:
            ends = map(self.num_output_samples, samples)
            audio = [item[:end] for item, end in zip(audio, ends, strict=True)]
        return DecoderOutput(
            _pad(audio, (0,), torch.float32, self.device), self._counts([item.shape[-1] for item in audio])
        )

    @torch.no_grad()
    def embed(
        self, codes: Codes | EncoderOutput, lengths: Lengths | None = None, *, branch: str | None = None
    ) -> Tensor:
        """Quantized embeddings (B, D, L) of codes as `decode` takes them, zero past each item's end.

        They are what the quantizer passes on: the input for probes and language models. `branch` asks for the output
        of a decoder after it instead, `semantic` of an X-Codec. Raises XycodecError where the codec has no such one.
        """
        batch, counts, _ = self._read_codes(codes, lengths)
        if max(counts, default=0) > self.window_frames:
            items = [embed_long(self, item[:, :n], branch=branch) for item, n in zip(batch, counts, strict=True)]
            return torch.stack([F.pad(item, (0, batch.shape[-1] - item.shape[-1])) for item in items])
        with own_precision(self.device):
            if branch is not None:
                return self._embed_branch(batch, counts, branch)
            return self._embed(batch) * _valid(counts, batch)

    def encode_long(
        self,
        blocks: Array | Iterable[Array],
        overlap_s: float | None = None,
        *,
        n_q: int | None = None,
        search: int = 1,
    ) -> Tensor:
        """`xycodec.encode_long` of one clip or its consecutive blocks."""
        return encode_long(self, blocks, overlap_s, n_q=n_q, search=search)

    def decode_blocks(
        self, codes: Array, overlap_s: float | None = None, num_samples: int | None = None
    ) -> Iterator[Tensor]:
        """Audio of codes (k, L) of any length in consecutive blocks (n,); `xycodec.decode_long` has the arguments."""
        return decode_blocks(self, codes, overlap_s, num_samples)

    def encode_file(
        self, source: Source, *, n_q: int | None = None, overlap_s: float | None = None, search: int = 1
    ) -> CodecFile:
        """Encode an audio file of any kind, rate and length, or `-` for stdin, in bounded memory.

        `n_q`, `overlap_s` and `search` are those of `xycodec.encode_long`. Raises AudioError if it cannot be read.
        """
        counted = CountedBlocks(stream_audio(source, self.input_sample_rate))
        codes = encode_long(self, counted, overlap_s, n_q=n_q, search=search)
        # The published rule drops a last partial frame, so such codes promise whole frames only.
        samples = min(counted.samples, codes.shape[1] * self.hop_length)
        return CodecFile.from_codes(codes, self, num_samples=samples, search=search)

    @overload
    def decode_file(
        self, file: CodecFile | FilePath, target: None = None, *, overlap_s: float | None = None
    ) -> Tensor: ...
    @overload
    def decode_file(self, file: CodecFile | FilePath, target: FilePath, *, overlap_s: float | None = None) -> None: ...
    def decode_file(
        self, file: CodecFile | FilePath, target: FilePath | None = None, *, overlap_s: float | None = None
    ) -> Tensor | None:
        """Decode a `.xyc` file, or what `encode_file` gave, into exactly as many samples as its original lasts.

        The audio is written to `target`, whose suffix names the format, in bounded memory; without one it is returned,
        (T,) float32 at `output_sample_rate` on the CPU. Raises BitstreamError if another model made the codes.
        """
        name = "the codes" if isinstance(file, CodecFile) else str(file)
        file = file if isinstance(file, CodecFile) else CodecFile.read(file)
        self.require_own(file, name)
        if target is None:
            return decode_long(self, file.codes, overlap_s, file.num_samples)
        write_audio(target, decode_blocks(self, file.codes, overlap_s, file.num_samples), self.output_sample_rate)
        return None

    # ---- windows: what a model computes in one piece -------------------------------------------

    def encode_windows(self, clips: list[Tensor], n_q: int, search: int = 1) -> list[Tensor]:
        """Codes (n_q, L) of clips (n,) float32 of at most `window_samples`, each as if alone."""
        return self._compute(partial(self._encode, n_q=n_q, search=search), clips)

    def decode_windows(self, codes: list[Tensor]) -> list[Tensor]:
        """Audio (n,) of codes (k, L) int64 of at most `window_frames`, each as if alone."""
        return self._compute(self._decode, codes)

    def embed_window(self, codes: Tensor, branch: str | None) -> Tensor:
        """Embeddings (D, L) of codes (k, L) int64 of at most `window_frames`."""
        return self.embed(codes[None], branch=branch)[0]

    @abstractmethod
    def _encode(self, clips: Sequence[Tensor], n_q: int, search: int) -> list[Tensor]:
        """Codes (n_q, L) of clips (n,), computed in one batch; `search` is above 1 only where `can_search` is set."""

    @abstractmethod
    def _decode(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """Audio (n,) float32 of codes (k, L), computed in one batch."""

    @abstractmethod
    def _embed(self, codes: Tensor) -> Tensor:
        """(B, k, L) -> (B, D, L)."""

    def _embed_branch(self, codes: Tensor, counts: Sequence[int], branch: str) -> Tensor:
        """(B, k, L) -> (B, D, L), of the first `counts` frames of each item, zero past them."""
        raise XycodecError(
            f"{self.model_id} has no branch {branch!r}: leave branch out for what its quantizer passes on"
        )

    # ---- how a batch is computed ---------------------------------------------------------------

    def _compute(self, work: Callable[[Sequence[Tensor]], list[Tensor]], items: list[Tensor]) -> list[Tensor]:
        """Apply `work` to every item as the class's contract says; results in the order of `items`."""

        threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        workers = min(threads, len(items))
        if workers <= 1 or self.share_batches:
            batches = [items] if self.share_batches and items else [[item] for item in items]
            results = list[Tensor]()
            with torch.no_grad(), own_precision(self.device):
                for batch in batches:
                    results += work([item.to(self.device) for item in batch])
            return results

        def alone(item: Tensor) -> Tensor:
            # These belong to a thread, so each worker enters them.
            with torch.no_grad(), own_precision(self.device):
                return work([item.to(self.device)])[0]

        # Longest first: the threads then end together.
        order = sorted(range(len(items)), key=lambda i: -items[i].shape[-1])
        try:
            with ThreadPoolExecutor(workers, "clip", torch.set_num_threads, (threads // workers,)) as pool:
                done = dict(zip(order, pool.map(lambda i: alone(items[i]), order), strict=True))
        finally:
            # What a worker sets is also what threads get that the process starts later.
            torch.set_num_threads(threads)
        return [done[i] for i in range(len(items))]

    # ---- input checks --------------------------------------------------------------------------

    def check_layers(self, n_q: int | None) -> int:
        """Number of layers that `n_q` asks for: all for None. Raises XycodecError if the codec has not that many."""
        return self.n_q if n_q is None else read_integer(n_q, 1, self.n_q, "n_q")

    def check_search(self, search: int) -> int:
        """`search` as an int. Raises XycodecError if it is no width of a beam, or the codec cannot search."""
        width = read_integer(search, 1, WIDEST, "search")
        if width > 1 and not self.can_search:
            raise XycodecError(f"{self.model_id} has no search over its codes: leave search out, or give 1")
        return width

    def _read_codes(
        self, codes: Codes | EncoderOutput, lengths: Lengths | None
    ) -> tuple[Tensor, list[int], list[int] | None]:
        """Codes (B, k, L) on the codec's device, their frames, and the samples that they are of where that is known."""
        samples: list[int] | None = None
        if isinstance(codes, EncoderOutput):
            if lengths is not None:
                raise XycodecError("the encoder's output has its own lengths: leave lengths out, or give its codes")
            samples = None if codes.num_samples is None else codes.num_samples.tolist()
            lengths, codes = codes.lengths, codes.codes
        batch, counts = read_codes(codes, lengths, n_q=self.n_q, codebook_size=self.codebook_size, device=self.device)
        return batch, counts, samples

    def _counts(self, counts: list[int]) -> Tensor:
        return torch.tensor(counts, dtype=torch.int64, device=self.device)

    # ---- float32 -------------------------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the weights, but refuse another type: `half`, `double` and `to(dtype)` come by here."""
        if (dtype := fn(torch.zeros(0, dtype=torch.float32, device="cpu")).dtype) != torch.float32:
            raise XycodecError(
                f"{self.model_id} keeps float32, which makes its codes exact, and cannot be turned into {dtype}: "
                "load_codec(name, dtype=torch.bfloat16) computes the matrices of an XY-Tokenizer in bfloat16"
            )
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def fingerprint(codec: Codec) -> str:
    """Return 16 hexadecimal digits that tell codecs apart: by class, name, weights, their types, and length rules."""
    return _digest(codec, codec.state_dict())


def codes_fingerprint(codec: Codec) -> str:
    """`fingerprint` of what makes the codes alone: equal for a codec whose decoder has learned more."""
    apart = (*_APART, *codec.decoder_parts)
    return _digest(codec, {name: one for name, one in codec.state_dict().items() if not name.startswith(apart)})


_APART = ("quantizer.output_proj.", "quantizer.embed_avg", "quantizer.cluster_size", "quantizer.inited")
"""Beginnings of the names of a quantizer's tensors that encoding does not read."""


def _digest(codec: Codec, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(f"{type(codec).__name__} {codec.model_id} {codec.reference}".encode(), digest_size=8)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _by_length(
    items: list[Tensor],
    longest: int,
    together: Callable[[list[Tensor]], list[Tensor]],
    alone: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    """Results of items in their order: those of up to `longest` in one call, every longer one by itself."""
    short = iter(together([item for item in items if item.shape[-1] <= longest]))
    return [next(short) if item.shape[-1] <= longest else alone(item) for item in items]


def _valid(counts: Sequence[int], batch: Tensor) -> Tensor:
    """(B, 1, L) bool: the frames of each item of `batch` (B, k, L)."""
    places = torch.arange(batch.shape[-1], device=batch.device)
    return (places < torch.tensor(counts, dtype=torch.int64, device=batch.device)[:, None])[:, None]


def _pad(items: Sequence[Tensor], empty: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Stack items that differ in their last axis, zeros on the right; `empty` is the shape of none."""
    longest = max((item.shape[-1] for item in items), default=0)
    out = torch.zeros(len(items), *empty[:-1], longest, dtype=dtype, device=device)
    for row, item in zip(out, items, strict=True):
        row[..., : item.shape[-1]] = item
    return out
