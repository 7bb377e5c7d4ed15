"""Files to codes, codes to files, and both in a row: what the command line does to one file."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from xycodec.errors import BitstreamError
from xycodec.io.audio import stream_audio, write_audio
from xycodec.io.parallel import Advance
from xycodec.io.xyc import CodecFile
from xycodec.models.base import Codec
from xycodec.models.longform import CountedBlocks, decode_blocks, encode_long


@dataclass(frozen=True)
class Transcoded:
    """Report on one file that was encoded or decoded."""

    source: str
    target: str
    seconds: float
    """Duration of the audio."""
    wall_seconds: float
    """Time it took, model loading excluded."""
    frames: int
    bytes: int
    """Size of the code file."""
    bitrate: float
    """Bits a second of the codes."""
    model: str
    remarks: tuple[str, ...] = ()
    """What is odd about the audio that was read: its level, or what had to be left out."""

    @property
    def speed(self) -> float:
        """Times faster than real time."""
        return self.seconds / self.wall_seconds


def encode_file(
    codec: Codec,
    source: str,
    target: str,
    *,
    n_q: int | None = None,
    overlap_s: float | None = None,
    advance: Advance = lambda seconds: None,
) -> Transcoded:
    """Encode any audio file (or `-`, stdin) into a `.xyc` file (or `-`, stdout), in bounded memory."""
    start = time.perf_counter()
    rate = codec.input_sample_rate
    remarks: list[str] = []
    counter = CountedBlocks(stream_audio(source, rate, tell=remarks.append), rate, advance)
    codes = encode_long(codec, counter, overlap_s, n_q=n_q).numpy().astype(np.uint16)
    # The published rule drops a last partial frame, so such codes promise whole frames only.
    length = codes.shape[1] * codec.hop_length if codec.reference else counter.samples
    file = CodecFile(
        codes=codes,
        model=codec.model_id,
        codebook_size=codec.codebook_size,
        sample_rate=rate,
        output_sample_rate=codec.output_sample_rate,
        hop_length=codec.hop_length,
        num_samples=length,
    )
    file.write(target)
    return _report(file, source, target, counter.samples / rate, start, remarks)


def decode_file(
    codec: Codec,
    file: CodecFile,
    target: str,
    *,
    name: str,
    overlap_s: float | None = None,
    any_model: bool = False,
    advance: Advance = lambda seconds: None,
) -> Transcoded:
    """Decode a code file, called `name` in messages, into audio of the target's suffix (`-`: WAV on stdout).

    Raises BitstreamError if another model made the codes; `any_model` skips the comparison of names, for models
    that share their codes, but the code's shape must fit all the same.
    """
    start = time.perf_counter()
    check_model(codec, file, name, any_model)
    codes = torch.from_numpy(file.codes.astype(np.int64))
    rate = codec.output_sample_rate
    blocks = (block.numpy() for block in decode_blocks(codec, codes, overlap_s, file.num_samples))
    write_audio(target, CountedBlocks(blocks, rate, advance), rate)
    return _report(file, name, target, file.duration, start)


def check_model(codec: Codec, file: CodecFile, name: str, any_model: bool) -> None:
    """Raise BitstreamError unless `codec` is the one that `file` was made with."""
    if file.model != codec.model_id and not any_model:
        raise BitstreamError(
            f"{name}: its codes are from model {file.model!r}, not {codec.model_id!r}; "
            "name that model, or pass --any-model if the two share their codes"
        )
    wanted = (codec.codebook_size, codec.hop_length, codec.input_sample_rate)
    if (file.codebook_size, file.hop_length, file.sample_rate) != wanted or file.n_q > codec.n_q:
        raise BitstreamError(f"{name}: its codes do not have the shape of model {codec.model_id!r}")


def _report(
    file: CodecFile, source: str, target: str, seconds: float, start: float, remarks: Iterable[str] = ()
) -> Transcoded:
    return Transcoded(
        source=source,
        target=target,
        seconds=seconds,
        wall_seconds=time.perf_counter() - start,
        frames=file.frames,
        bytes=file.num_bytes,
        bitrate=file.bitrate,
        model=file.model,
        remarks=tuple(remarks),
    )
