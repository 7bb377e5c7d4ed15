"""The interface every codec shares, and how a batch is computed so that codes depend on the clip alone."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import ceil, log2
from os import PathLike
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from xycodec.errors import AudioError, CheckpointError, XycodecError

Item = TypeVar("Item")


@dataclass(frozen=True)
class EncoderOutput:
    """codes (B, n_q, L) int64, zero past each item's end; lengths (B,) int64 valid frames."""

    codes: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class DecoderOutput:
    """audio (B, T) float32, zero past each item's end; lengths (B,) int64 valid samples."""

    audio: Tensor
    lengths: Tensor


_loaders: list[Callable[..., "Codec"]] = []
LoaderT = TypeVar("LoaderT", bound=Callable[..., "Codec"])


def register_loader(load: LoaderT) -> LoaderT:
    """Decorator of the function that `Codec.from_pretrained` calls: models know nothing of files."""
    _loaders[:] = [load]
    return load


class Codec(nn.Module, ABC):
    """Speech to discrete codes and back.

    Audio is (B, T) float32 in [-1, 1] at `input_sample_rate`, codes are (B, n_q, L) int64 at `frame_rate`, and
    decoded audio is at `output_sample_rate`. Each clip of a batch is computed at its own shape, as if alone:
    products of another shape round differently, and a near-tie in the quantizer would flip. On a CPU, clips
    run side by side and divide the threads, which is also faster than taking turns.

    `share_batches` trades that for speed on a GPU: clips of a batch share padded, masked products. Codes then
    agree with the exact ones except for near-ties.

    `reference` follows the published length and windowing rules instead of the length-true ones.
    """

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

    @classmethod
    def from_pretrained(cls, name_or_path: str | PathLike[str], **options: Any) -> Self:
        """Load a codec of this class, as `xycodec.load_codec` does; `options` are its own.

        Raises CheckpointError if nothing is found there, or a codec of another class.
        """
        if not _loaders:
            raise CheckpointError("no loader of checkpoints is there: import Codec from xycodec, or load_codec")
        codec = _loaders[0](name_or_path, **options)
        if not isinstance(codec, cls):
            raise CheckpointError(f"{name_or_path}: holds a codec of class {type(codec).__name__}, not {cls.__name__}")
        return codec

    # ---- what follows from the numbers above --------------------------------------------------

    @property
    def frame_rate(self) -> float:
        """Code frames a second."""
        return self.input_sample_rate / self.hop_length

    @property
    def bitrate(self) -> float:
        """Bits a second with all codebooks."""
        return self.frame_rate * self.n_q * log2(self.codebook_size)

    @property
    def window_samples(self) -> int:
        """The longest clip `encode` takes, in input samples; `encode_long` has no limit."""
        return self.window_frames * self.hop_length

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def num_frames(self, num_samples: int) -> int:
        """Code frames of a clip of `num_samples` input samples: the last partial frame counts."""
        return ceil(num_samples / self.hop_length)

    def reference_frames(self, num_samples: int) -> int:
        """Code frames of a clip under the published rule: of most codecs the whole ones."""
        return num_samples // self.hop_length

    def payload_bits(self, codes: Tensor) -> int:
        """Bits that the codes (k, L) of one clip take, without any container."""
        return round(codes.numel() * log2(self.codebook_size))

    def num_output_samples(self, num_samples: int) -> int:
        """Samples at the output rate that last as long as `num_samples` at the input rate."""
        return ceil(num_samples * self.output_sample_rate / self.input_sample_rate)

    # ---- the interface -------------------------------------------------------------------------

    def encode(self, audio: Tensor, lengths: Tensor | None = None, *, n_q: int | None = None) -> EncoderOutput:
        """Turn audio (B, T) into codes (B, n_q, L).

        `lengths` (B,) int counts each item's valid samples (default: all); what lies beyond is ignored.
        `n_q` keeps the first layers only (default: all). Raises AudioError on a wrong shape or type, on NaN or
        Inf, and on clips longer than `window_samples`, for which `encode_long` is made.
        """
        counts = self._check_audio(audio, lengths)
        layers = self.check_layers(n_q)
        clips = [clip[:count] for clip, count in zip(audio, counts, strict=True)]
        codes = self._compute(partial(self._encode, n_q=layers), clips)
        frames = torch.tensor([item.shape[-1] for item in codes], dtype=torch.int64, device=self.device)
        return EncoderOutput(_pad(codes, (layers, 0), torch.int64, self.device), frames)

    def decode(self, codes: Tensor, lengths: Tensor | None = None) -> DecoderOutput:
        """Turn codes (B, k, L) of the first k <= n_q layers into audio (B, T).

        `lengths` (B,) int counts each item's valid frames (default: all). Raises XycodecError on a wrong
        shape, codes out of range, or more than `window_frames` frames, for which `decode_long` is made.
        """
        counts = self._check_codes(codes, lengths)
        items = [item[:, :count] for item, count in zip(codes, counts, strict=True)]
        audio = self._compute(self._decode, items)
        samples = torch.tensor([item.shape[-1] for item in audio], dtype=torch.int64, device=self.device)
        return DecoderOutput(_pad(audio, (0,), torch.float32, self.device), samples)

    @torch.no_grad()
    def embed(self, codes: Tensor, lengths: Tensor | None = None, *, branch: str | None = None) -> Tensor:
        """Quantized embeddings (B, D, L) of codes (B, k, L), zero past each item's end.

        They are what the quantizer passes on: the input for probes and language models. `branch` asks for the output
        of a decoder after it instead, `semantic` of an X-Codec. Raises XycodecError where the codec has no such one.
        """
        counts = self._check_codes(codes, lengths)
        valid = _valid(counts, codes.shape[-1])[:, None].to(self.device)
        with _own_precision(self.device):
            if branch is not None:
                return self._embed_branch(codes.to(self.device), counts, branch)
            return self._embed(codes.to(self.device).where(valid, 0)) * valid

    @abstractmethod
    def _encode(self, clips: Sequence[Tensor], n_q: int) -> list[Tensor]:
        """Codes (n_q, L) of clips (n,), computed in one batch."""

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

        def alone(item: Tensor) -> Tensor:
            # These belong to a thread, so each worker enters them.
            with torch.no_grad(), _own_precision(self.device):
                return work([item.to(self.device)])[0]

        if self.share_batches and items:
            with torch.no_grad(), _own_precision(self.device):
                return work([item.to(self.device) for item in items])
        threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        workers = min(threads, len(items))
        if workers <= 1:
            return [alone(item) for item in items]
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

    def _check_audio(self, audio: Tensor, lengths: Tensor | None) -> list[int]:
        if audio.ndim != 2:
            raise AudioError(f"audio must be (B, T), got shape {tuple(audio.shape)}: add or drop an axis")
        if not audio.is_floating_point():
            raise AudioError(f"audio must be floating point in [-1, 1], got {audio.dtype}")
        counts = _check_lengths(lengths, audio.shape[0], audio.shape[1])
        for i, count in enumerate(counts):
            if count > self.window_samples:
                raise AudioError(
                    f"item {i} lasts {count / self.input_sample_rate:.1f} s, the model's window is "
                    f"{self.window_samples / self.input_sample_rate:g} s: use encode_long"
                )
            if not torch.isfinite(audio[i, :count]).all():
                raise AudioError(f"item {i} holds NaN or Inf")
        return counts

    def check_layers(self, n_q: int | None) -> int:
        """Number of layers that `n_q` asks for: all for None. Raises XycodecError if the codec has not that many."""
        if n_q is not None and not (type(n_q) is int and 1 <= n_q <= self.n_q):
            raise XycodecError(f"n_q must be an integer from 1 to {self.n_q}, got {n_q!r}")
        return n_q or self.n_q

    def _check_codes(self, codes: Tensor, lengths: Tensor | None) -> list[int]:
        if codes.ndim != 3 or not 1 <= codes.shape[1] <= self.n_q:
            raise XycodecError(f"codes must be (B, 1..{self.n_q}, L), got shape {tuple(codes.shape)}")
        if codes.dtype != torch.int64:
            raise XycodecError(f"codes must be int64, got {codes.dtype}")
        counts = _check_lengths(lengths, codes.shape[0], codes.shape[2])
        used = codes.where(_valid(counts, codes.shape[2])[:, None].to(codes.device), 0)
        if used.numel() and not (used.min() >= 0 and used.max() < self.codebook_size):
            raise XycodecError(f"codes must lie in 0..{self.codebook_size - 1}, found {used.min()}..{used.max()}")
        if max(counts, default=0) > self.window_frames:
            raise XycodecError(
                f"{max(counts)} frames are more than the model's window of {self.window_frames}: use decode_long"
            )
        return counts


def fingerprint(codec: Codec) -> str:
    """Return 16 hexadecimal digits that tell codecs apart: by class, name, weights, their types, and length rules."""
    digest = hashlib.blake2b(f"{type(codec).__name__} {codec.model_id} {codec.reference}".encode(), digest_size=8)
    for name, tensor in sorted(codec.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_lengths(lengths: Tensor | None, batch: int, longest: int) -> list[int]:
    if lengths is None:
        return [longest] * batch
    whole = lengths.shape == (batch,) and not lengths.is_floating_point() and not lengths.is_complex()
    counts = lengths.tolist()
    if not whole or any(not 0 <= n <= longest for n in counts):
        raise XycodecError(f"lengths must be {batch} integers from 0 to {longest}, got {counts}")
    return [int(n) for n in counts]


def _valid(counts: Sequence[int], longest: int) -> Tensor:
    """(B, longest) bool on the CPU."""
    return torch.arange(longest) < torch.tensor(counts, dtype=torch.int64)[:, None]


def _pad(items: Sequence[Tensor], empty: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Stack items that differ in their last axis, zeros on the right; `empty` is the shape of none."""
    longest = max((item.shape[-1] for item in items), default=0)
    out = torch.zeros(len(items), *empty[:-1], longest, dtype=dtype, device=device)
    for row, item in zip(out, items, strict=True):
        row[..., : item.shape[-1]] = item
    return out


def _own_precision(device: torch.device) -> ExitStack:
    """The weights' types alone decide how products are computed, not what surrounds the call.

    Float32 means float32: on CUDA, TF32 keeps 10 bits of mantissa, on a CPU oneDNN may compute in bfloat16, and both
    change codes. The setting belongs to the whole process, so it is only touched where someone has lowered it.
    """
    stack = ExitStack()
    stack.enter_context(torch.autocast(device.type, enabled=False))
    before = torch.get_float32_matmul_precision()
    if before != "highest":
        torch.set_float32_matmul_precision("highest")
        stack.callback(torch.set_float32_matmul_precision, before)
    if device.type == "cuda":
        stack.enter_context(torch.backends.cudnn.flags(allow_tf32=False))
    return stack
