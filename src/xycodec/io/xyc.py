"""The `.xyc` file: the codes of one clip, packed, with what is needed to decode them and a checksum.

    magic          4 bytes   b"XYC1"; the last character is the version
    header length  4 bytes   unsigned, little-endian, at most 65536
    header         UTF-8 JSON object: model, codebook_size, n_q, frames, sample_rate, output_sample_rate,
                   hop_length, num_samples; and search, where it is more than 1
    codes          ceil(log2(codebook_size)) bits each, most significant bit first: frame 0 layer 0, frame 0
                   layer 1, ..., frame 1 layer 0, ...; zero bits fill the last byte
    checksum       4 bytes   CRC-32 of everything before it, unsigned, little-endian

A reader believes no size before it has checked it: a header that promises more than the file holds is refused
before anything is allocated for it. Bad files and bad values raise `BitstreamError`, in one line.
"""

import io
import json
import os
import stat
import struct
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from xycodec.errors import BitstreamError
from xycodec.io.files import FilePath, atomic_path, open_input, os_error_line

_MAGIC = b"XYC1"
_PREFIX = struct.Struct("<4sI")
_CRC = struct.Struct("<I")
_MAX_HEADER = 1 << 16
_MAX_MODEL = 1024
_CHUNK = 1 << 16  # codes packed or unpacked at a time: about 1 MB of bits
_RANGES = {
    "codebook_size": (2, 1 << 16),
    "n_q": (1, 64),
    "frames": (0, (1 << 63) - 1),
    "sample_rate": (1, 1_000_000),
    "output_sample_rate": (1, 1_000_000),
    "hop_length": (1, 1_000_000),
    "num_samples": (0, (1 << 63) - 1),
    "search": (1, 1 << 16),
}
_OPTIONAL = {"search": 1}
"""Fields that a header holds only where they have another value than this, so that older readers take it."""


class Coder(Protocol):
    """Facts on the codec that a file's codes need; `xycodec.Codec` explains them."""

    model_id: str
    codebook_size: int
    input_sample_rate: int
    output_sample_rate: int
    hop_length: int


@dataclass(frozen=True, eq=False)
class CodecFile:
    """The codes of one clip and how to decode them; a value that exists is valid.

    Attributes:
        codes: (n_q, L) uint16, each below `codebook_size`, 1 to 64 layers; read-only, and a copy of what was
            given unless that was read-only.
        model: id of the model that made the codes, printable, 1 to 1024 characters.
        codebook_size: 2 to 65536.
        sample_rate: rate of the model's input, Hz.
        output_sample_rate: rate of what decoding gives, Hz.
        hop_length: input samples in a frame.
        num_samples: length of the original at `sample_rate`; L is ceil(num_samples / hop_length).
        search: width of the search that found the codes, 1 to 65536; 1 is greedy, and not written.

    Raises:
        BitstreamError: a value is of another type or outside its range.
    """

    codes: NDArray[np.uint16]
    model: str
    codebook_size: int
    sample_rate: int
    output_sample_rate: int
    hop_length: int
    num_samples: int
    search: int = 1

    def __post_init__(self) -> None:
        codes = self.codes
        if not isinstance(codes, np.ndarray) or codes.dtype != np.uint16 or codes.ndim != 2:
            what = f"{codes.dtype} {codes.shape}" if isinstance(codes, np.ndarray) else type(codes).__name__
            raise BitstreamError(f"codes must be a uint16 array of shape (n_q, frames), not {what}")
        _check_header(self._fields())
        if codes.size and int(codes.max()) >= self.codebook_size:
            raise BitstreamError(f"code {codes.max()} is out of range: codebook_size is {self.codebook_size}")
        if codes.flags.writeable or not codes.flags.owndata:
            codes = np.array(codes, order="C")
            codes.flags.writeable = False
            object.__setattr__(self, "codes", codes)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CodecFile):
            return NotImplemented
        return self._fields() == other._fields() and np.array_equal(self.codes, other.codes)

    @classmethod
    def from_codes(cls, codes: Any, codec: Coder, *, num_samples: int | None = None, search: int = 1) -> "CodecFile":
        """Make the file of one clip from what a codec's `encode` gave.

        Args:
            codes: (n_q, L) or (1, n_q, L) of any integer type, torch or numpy.
            codec: the codec that made them.
            num_samples: length of the original at the codec's input rate (default: L whole frames).
            search: the width given to `encode`.

        Raises:
            BitstreamError: the codes are of another type or shape, out of range, or not as many as `num_samples` has.
        """
        array = _array(codes)
        if array is None or array.dtype.kind not in "iu":
            what = type(codes).__name__ if array is None else array.dtype
            raise BitstreamError(f"codes must be a torch or numpy array of integers, not {what}")
        array = array[0] if array.ndim == 3 and len(array) == 1 else array
        if array.ndim != 2:
            raise BitstreamError(f"codes must be those of one clip, (n_q, L), not of shape {array.shape}")
        if array.size and not (array.min() >= 0 and array.max() < codec.codebook_size):
            raise BitstreamError(f"codes must lie in 0..{codec.codebook_size - 1}, found {array.min()}..{array.max()}")
        return cls(
            codes=array.astype(np.uint16),
            model=codec.model_id,
            codebook_size=codec.codebook_size,
            sample_rate=codec.input_sample_rate,
            output_sample_rate=codec.output_sample_rate,
            hop_length=codec.hop_length,
            num_samples=array.shape[1] * codec.hop_length if num_samples is None else num_samples,
            search=search,
        )

    @property
    def n_q(self) -> int:
        """Codes in a frame."""
        return int(self.codes.shape[0])

    @property
    def frames(self) -> int:
        """Frames, L."""
        return int(self.codes.shape[1])

    @property
    def duration(self) -> float:
        """Length of the original in seconds."""
        return self.num_samples / self.sample_rate

    @property
    def bitrate(self) -> float:
        """Bits per second of the packed codes, without the header."""
        return self.n_q * _bits(self.codebook_size) * self.sample_rate / self.hop_length

    @property
    def num_bytes(self) -> int:
        """Size of the `.xyc` file."""
        return len(self._start()) + _payload_bytes(self.n_q, self.frames, self.codebook_size) + _CRC.size

    def to_bytes(self) -> bytes:
        """Return the whole `.xyc` file."""
        return b"".join(self._pieces())

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "<bytes>") -> "CodecFile":
        """Parse a whole `.xyc` file.

        Raises:
            BitstreamError: `data` is not exactly one valid file; the message begins with `name`.
        """
        return _parse(io.BytesIO(data), len(data), name)

    def write(self, path: FilePath) -> None:
        """Write the file to `path`, which appears only when it is complete, or to stdout if it is "-".

        Raises:
            BitstreamError: `path` cannot be written.
        """
        if path == "-":
            sys.stdout.buffer.writelines(self._pieces())
            sys.stdout.buffer.flush()
            return
        with atomic_path(path, BitstreamError) as temporary:
            try:
                with open(temporary, "wb") as file:
                    file.writelines(self._pieces())
            except OSError as error:
                raise BitstreamError(os_error_line(repr(os.fspath(path)), "written", error)) from error

    @classmethod
    def read(cls, path: FilePath) -> "CodecFile":
        """Read the file at `path`, or stdin if it is "-".

        Raises:
            BitstreamError: there is no such file, or it is not exactly one valid `.xyc` file. A file of
                another kind is refused after its first 8 bytes, however large it is.
        """
        if path == "-":
            return _parse(sys.stdin.buffer, None, "stdin")
        with open_input(path, BitstreamError) as file:
            status = os.fstat(file.fileno())
            size = status.st_size if stat.S_ISREG(status.st_mode) else None
            return _parse(file, size, repr(os.fspath(path)))

    def _fields(self) -> dict[str, Any]:
        return {  # sorted, so that equal files have equal bytes
            "codebook_size": self.codebook_size,
            "frames": self.frames,
            "hop_length": self.hop_length,
            "model": self.model,
            "n_q": self.n_q,
            "num_samples": self.num_samples,
            "output_sample_rate": self.output_sample_rate,
            "sample_rate": self.sample_rate,
            "search": self.search,
        }

    def _start(self) -> bytes:
        fields = {key: value for key, value in self._fields().items() if value != _OPTIONAL.get(key)}
        header = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
        return _PREFIX.pack(_MAGIC, len(header)) + header

    def _pieces(self) -> Iterator[bytes]:
        start = self._start()
        crc = zlib.crc32(start)
        yield start
        step = _frames_per_chunk(self.n_q)
        for first in range(0, self.frames, step):
            piece = _pack(self.codes[:, first : first + step], _bits(self.codebook_size))
            crc = zlib.crc32(piece, crc)
            yield piece
        yield _CRC.pack(crc)


def _array(codes: Any) -> NDArray[Any] | None:
    """A torch or numpy array as numpy's; None of anything else."""
    if hasattr(codes, "detach") and not codes.is_floating_point():  # a tensor; this module does without torch
        codes = codes.detach().cpu().numpy()
    return codes if isinstance(codes, np.ndarray) else None


def _bits(codebook_size: int) -> int:
    return (codebook_size - 1).bit_length()


def _payload_bytes(n_q: int, frames: int, codebook_size: int) -> int:
    return -(-n_q * frames * _bits(codebook_size) // 8)


def _frames_per_chunk(n_q: int) -> int:
    # A multiple of 8 frames fills whole bytes, whatever the number of layers and bits.
    return _CHUNK // n_q // 8 * 8


def _pack(codes: NDArray[np.uint16], bits: int) -> bytes:
    """Pack (n_q, L) codes in frame order, zero bits last."""
    words = codes.T.astype(">u2").reshape(-1, 1).view(np.uint8)
    return np.packbits(np.unpackbits(words, axis=1)[:, 16 - bits :]).tobytes()


def _unpack(data: bytes, n_q: int, frames: int, bits: int) -> tuple[NDArray[np.uint16], bool]:
    """Return (n_q, L) codes and whether the bits after them are all zero."""
    stream = np.unpackbits(np.frombuffer(data, np.uint8))
    used = n_q * frames * bits
    words = np.zeros((n_q * frames, 16), np.uint8)
    words[:, 16 - bits :] = stream[:used].reshape(-1, bits)
    return np.packbits(words, axis=1).view(">u2").reshape(frames, n_q).T, not stream[used:].any()


def _check_header(header: Mapping[str, Any]) -> None:
    """Raise BitstreamError unless every field has its type and range, and the length fits the frames."""
    for key, (low, high) in _RANGES.items():
        value = header.get(key, _OPTIONAL.get(key))
        if type(value) is not int:  # bool is a subclass
            raise BitstreamError(f"{key} must be an integer, not {type(value).__name__}")
        if not low <= value <= high:
            raise BitstreamError(f"{key} is out of range: it must be {low} to {high}")
    model = header["model"]
    if not (isinstance(model, str) and 1 <= len(model) <= _MAX_MODEL and model.isprintable()):
        raise BitstreamError(f"model must be a string of 1 to {_MAX_MODEL} printable characters")
    frames = -(-header["num_samples"] // header["hop_length"])
    if header["frames"] != frames:
        raise BitstreamError(f"frames is {header['frames']} where num_samples / hop_length gives {frames}")


def _parse(file: BinaryIO, size: int | None, name: str) -> CodecFile:
    """Read one file of `size` bytes; None, for a pipe, is found out without reading past the promised end."""
    prefix = file.read(_PREFIX.size)
    header_length = _check_prefix(prefix, name)
    raw = file.read(header_length)
    if len(raw) < header_length:
        raise BitstreamError(f"{name} is cut off in its header: get a whole copy")
    header = _parse_header(raw, name)
    promised = _payload_bytes(header["n_q"], header["frames"], header["codebook_size"]) + _CRC.size
    if size is None:
        file, rest = _buffered(file, promised + 1)
    else:
        rest = size - len(prefix) - header_length
    if rest != promised:
        fault = "cut off" if rest < promised else "longer than its header says"
        raise BitstreamError(f"{name} is {fault}: get a whole copy")
    codes = _read_codes(file, header, zlib.crc32(prefix + raw), name)
    del header["n_q"], header["frames"]
    try:
        return CodecFile(codes, **header)
    except BitstreamError as error:
        raise BitstreamError(f"{name} is not valid: {error}") from error


def _check_prefix(prefix: bytes, name: str) -> int:
    """Return the length of the header."""
    if prefix[:3] != _MAGIC[:3] or len(prefix) < len(_MAGIC):
        raise BitstreamError(f"{name} is not a .xyc file: it does not begin with {_MAGIC.decode()}")
    if prefix[:4] != _MAGIC:
        raise BitstreamError(f"{name} has version {chr(prefix[3])!r} of the format: upgrade xycodec to read it")
    if len(prefix) < _PREFIX.size:
        raise BitstreamError(f"{name} is cut off after {len(prefix)} bytes: get a whole copy")
    length = int(_PREFIX.unpack(prefix)[1])
    if length > _MAX_HEADER:
        raise BitstreamError(f"{name} is corrupt: its header would take {length} bytes, over {_MAX_HEADER}")
    return length


def _parse_header(raw: bytes, name: str) -> dict[str, Any]:
    try:
        # Tuples tell an object from an array, and keep a key that is there twice.
        pairs = json.loads(raw.decode("utf-8"), object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        raise BitstreamError(f"{name} is corrupt: its header is not JSON") from error
    keys = sorted({*_RANGES, "model"} - {*_OPTIONAL})
    found = sorted(key for key, _ in pairs) if isinstance(pairs, tuple) else None
    if found not in (keys, sorted([*keys, *_OPTIONAL])):
        raise BitstreamError(f"{name} is corrupt: its header does not hold {', '.join(keys)}, once each")
    header = dict(pairs)
    try:
        _check_header(header)
    except BitstreamError as error:
        raise BitstreamError(f"{name} is not valid: {error}") from error
    return header


def _buffered(file: BinaryIO, limit: int) -> tuple[BinaryIO, int]:
    """Copy at most `limit` bytes of a pipe, and return the copy and its size."""
    copy = io.BytesIO()
    while copy.tell() < limit and (piece := file.read(min(_CHUNK, limit - copy.tell()))):
        copy.write(piece)
    size = copy.tell()
    copy.seek(0)
    return copy, size


def _read_codes(file: BinaryIO, header: Mapping[str, Any], crc: int, name: str) -> NDArray[np.uint16]:
    """Read the codes, (n_q, L), and the checksum; `crc` is that of what came before."""
    n_q, frames, bits = header["n_q"], header["frames"], _bits(header["codebook_size"])
    codes = np.empty((n_q, frames), np.uint16)
    filled = True
    step = _frames_per_chunk(n_q)
    for first in range(0, frames, step):
        count = min(step, frames - first)
        wanted = -(-n_q * count * bits // 8)
        data = file.read(wanted)
        if len(data) < wanted:
            raise BitstreamError(f"{name} became shorter while it was read: try again")
        crc = zlib.crc32(data, crc)
        codes[:, first : first + count], filled = _unpack(data, n_q, count, bits)
    if file.read(_CRC.size) != _CRC.pack(crc):
        raise BitstreamError(f"{name} is corrupt: its checksum does not match; get a whole copy")
    if not filled:
        raise BitstreamError(f"{name} is corrupt: the bits after its last code are not zero")
    codes.flags.writeable = False  # so that CodecFile need not copy it
    return codes
