"""Files to codes, codes to files, and both in a row: what the command line does to one file."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from xycodec.io.audio import stream_audio, write_audio
from xycodec.io.progress import Advance, unwatched
from xycodec.io.xyc import CodecFile
from xycodec.models.windows import CountedBlocks


class FileCodec(Protocol):
    """A codec that computes clips of any length block by block, with torch or without it."""

    model_id: str
    codebook_size: int
    input_sample_rate: int
    output_sample_rate: int
    hop_length: int

    def encode_long(self, blocks: Any, overlap_s: float | None, *, n_q: int | None, search: int) -> Any:
        """Codes (n_q, L) of consecutive blocks (n,) of one clip."""

    def decode_blocks(self, codes: Any, overlap_s: float | None, num_samples: int | None) -> Iterable[Any]:
        """Consecutive blocks (n,) of the audio of codes (k, L)."""

    def require_own(self, file: CodecFile, name: str, *, any_model: bool = False) -> None:
        """Raise BitstreamError unless this model made `file`."""


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
    search: int = 1
    """Width of the search that found the codes; 1 is greedy."""
    remarks: tuple[str, ...] = ()
    """Remarks on the audio that was read: its level, or what had to be left out."""

    @property
    def speed(self) -> float:
        """Times faster than real time."""
        return self.seconds / self.wall_seconds


def encode_file(
    codec: FileCodec,
    source: str,
    target: str,
    *,
    n_q: int | None = None,
    overlap_s: float | None = None,
    search: int = 1,
    advance: Advance = unwatched,
) -> Transcoded:
    """Encode any audio file (or `-`, stdin) into a `.xyc` file (or `-`, stdout), in bounded memory."""
    start = time.perf_counter()
    rate = codec.input_sample_rate
    remarks: list[str] = []
    counted = CountedBlocks(stream_audio(source, rate, tell=remarks.append), rate, advance)
    codes = codec.encode_long(counted, overlap_s, n_q=n_q, search=search)
    # The published rule drops a last partial frame, so such codes promise whole frames only.
    samples = min(counted.samples, codes.shape[1] * codec.hop_length)
    file = CodecFile.from_codes(codes, codec, num_samples=samples, search=search)
    file.write(target)
    return _report(file, source, target, counted.samples / rate, start, remarks)


def decode_file(
    codec: FileCodec,
    file: CodecFile,
    target: str,
    *,
    name: str,
    overlap_s: float | None = None,
    any_model: bool = False,
    advance: Advance = unwatched,
) -> Transcoded:
    """Decode a code file, called `name` in messages, into audio of the target's suffix (`-`: WAV on stdout).

    Raises BitstreamError if another model made the codes; `any_model` skips the comparison of names, for models
    that share their codes, but the code's shape must fit all the same.
    """
    start = time.perf_counter()
    codec.require_own(file, name, any_model=any_model)
    rate = codec.output_sample_rate
    blocks = codec.decode_blocks(file.codes, overlap_s, file.num_samples)
    write_audio(target, CountedBlocks(blocks, rate, advance), rate)
    return _report(file, name, target, file.duration, start)


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
        search=file.search,
        remarks=tuple(remarks),
    )
