"""Audio files to mono float32 at one rate, and back: streamed, so that memory does not grow with the file.

Bad input raises `AudioError` with one line that says what is wrong, where, and what to do.
"""

import io
import math
import os
import shutil
import stat
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from xycodec.errors import AudioError, AudioWarning
from xycodec.io.decoders import Window
from xycodec.io.files import FilePath, atomic_path, open_input, os_error_line
from xycodec.io.rate import SPEECH_RATE
from xycodec.io.reader import AudioFile, regrouped, require_finite

Samples = NDArray[np.float32]
Source = FilePath | BinaryIO | io.RawIOBase
Tell = Callable[[str], None]
"""Callback for remarks on a recording that is read all the same, told one line."""

# Samples encoded at a time. Fixed, so that no result depends on the caller's blocks: an encoder may round differently
# when it is fed differently.
_CHUNK = 1 << 16
_MAX_WRITE_RATE = 192_000  # above 200 kHz libsndfile's Vorbis writer crashes the process
_MAX_BYTES = dict.fromkeys(("WAV", "AIFF"), (1 << 32) - _CHUNK)  # 32-bit sizes, with room for a header
_LOUD, _QUIET = 16.0, 0.01  # peaks (full scale is 1) beyond which a recording is likely to have another scale

_WRITTEN = {  # suffix: libsndfile's container and coding
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
    ".aiff": ("AIFF", "PCM_16"),
    ".caf": ("CAF", "PCM_16"),
    ".w64": ("W64", "PCM_16"),
}
_ONLY_READ = (
    *(".3gp", ".aac", ".ac3", ".aif", ".aifc", ".amr", ".ape", ".au", ".m4a", ".m4b", ".mka", ".mkv", ".mov", ".mp1"),
    *(".mp2", ".mp4", ".nist", ".oga", ".rf64", ".snd", ".sph", ".tta", ".voc", ".wave", ".weba", ".webm", ".wma"),
    ".wv",
)


@dataclass(frozen=True)
class AudioInfo:
    """Rate in Hz, channels, samples per channel, seconds, and the names of container and coding.

    Rate and channels are those of the beginning; `num_samples` and `duration` count all of it at that rate.
    """

    sample_rate: int
    channels: int
    num_samples: int
    duration: float
    format: str
    subtype: str


def audio_extensions() -> frozenset[str]:
    """Suffixes of audio files, in lower case with their dot: those that a folder is searched for. Any file is read."""
    return frozenset([*_WRITTEN, *_ONLY_READ])


def audio_files(folder: Path) -> list[Path]:
    """The audio files below `folder`, by their suffix, in order; what is hidden (".name") is left out."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in audio_extensions() and path.is_file())
    return [path for path in found if not is_hidden(path.relative_to(folder))]


def is_hidden(path: Path) -> bool:
    """Whether a file or a folder on its way begins with a dot, as do the "._NAME" that macOS leaves beside files."""
    return any(part.startswith(".") and part not in (".", "..") for part in path.parts)


def audio_info(source: Source) -> AudioInfo:
    """Describe a recording. It is decoded only where no header tells reliably how long it is.

    What had to be left out is a Python warning (AudioWarning).

    Raises:
        AudioError: `source` is missing, empty, not readable or not audio.
    """
    with open_audio(source) as audio:
        frames, rate = audio.length(), audio.sample_rate
        for remark in audio.remarks:
            _warn(f"{audio.name}: {remark}")
        return AudioInfo(rate, audio.channels, frames, frames / rate, audio.container.upper(), audio.coding.upper())


def stream_audio(
    source: Source, sample_rate: int = SPEECH_RATE, block_s: float = 30.0, *, tell: Tell | None = None
) -> Iterator[Samples]:
    """Yield `source` as mono, the mean over its channels, at `sample_rate` (Hz), `block_s` seconds at a time.

    Every block is 1-D float32 with `round(block_s * sample_rate)` samples, the last one with fewer. Samples
    are in [-1, 1], except where a float file or a lossy codec exceeds that. The joined blocks are the same
    bit for bit whatever `block_s`, and `max(1, round(frames * sample_rate / rate))` long. Memory is a few
    blocks, whatever the length. Joined recordings are read one after another, without the encoders' delays. A WAV or
    Ogg file that was cut off is read as far as it goes.

    Args:
        source: a path, "-" for stdin, or a binary file object, read from its current position. What cannot
            seek is first copied to a temporary file.
        sample_rate: rate of the result in Hz.
        block_s: seconds in a block.
        tell: called at the end with one line on each thing that is odd: packets or bytes that were left out, a very
            low level, a scale that is not [-1, 1]. By default these are Python warnings (AudioWarning).

    Raises:
        AudioError: on the first `next` if `source` is missing, empty, not readable, not audio or without
            samples, or a number is not positive; later, where the audio is damaged, breaks off before the length in
            its header, goes on after it, or holds a NaN or an infinity.
    """
    if not (sample_rate >= 1 and 0 < block_s < math.inf):
        raise AudioError(f"no blocks of {block_s} s at {sample_rate} Hz can be read: give positive numbers")
    with open_audio(source) as audio:
        peak, empty = 0.0, True
        for block in regrouped(audio.blocks(sample_rate), max(1, round(block_s * sample_rate))):
            peak, empty = max(peak, float(np.abs(block).max())), False
            yield block
        if empty:
            raise AudioError(f"{audio.name} holds no samples: give a recording that is not empty")
        for remark in [*audio.remarks, *_level_remarks(peak, audio.is_float)]:
            (tell or _warn)(f"{audio.name}: {remark}")


def read_audio(source: Source, sample_rate: int = SPEECH_RATE, *, tell: Tell | None = None) -> Samples:
    """Read all of `source` as `stream_audio` does: 1-D float32, mono, at `sample_rate` (Hz).

    `codec.encode` takes it as it is, and `torch.from_numpy` without a copy.
    """
    return np.concatenate(list(stream_audio(source, sample_rate, tell=tell)))


def identity_of(file: BinaryIO | io.RawIOBase) -> Hashable | None:
    """Identity of an open file's content; None if that may have changed unnoticed, or it is no file."""
    if isinstance(file, Window):
        return file.identity and (file.identity, file.start, file.end)
    try:
        facts = os.fstat(file.fileno())
    except OSError:
        return None
    # The clock of a file system is coarse.
    settled = time.time() - facts.st_mtime > 1
    return (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns) if settled else None


def ignore(remark: str) -> None:
    """A `tell` that drops every remark, for recordings that were read before."""


def _warn(remark: str) -> None:
    warnings.warn(remark, AudioWarning, stacklevel=3)


def _level_remarks(peak: float, is_float: bool) -> list[str]:
    level = f"{20 * math.log10(peak):+.0f} dB" if peak else "-inf dB"
    if is_float and peak > _LOUD:
        return [f"its loudest sample is {peak:,.0f} ({level} of full scale): divide 16-bit values by 32768"]
    if peak < _QUIET:
        return [f"very quiet, its loudest sample has {level} of full scale: is this the right channel and level?"]
    return []


def write_audio(path: FilePath, blocks: Any, sample_rate: int) -> None:
    """Write mono audio to `path`, which appears there only when it is complete.

    Args:
        path: its suffix names the container (.wav, .flac, .ogg, .opus, .mp3, ...; PCM has 16 bits); "-"
            writes WAV to stdout.
        blocks: one clip (T,) or (1, T) of floats in [-1, 1], torch or numpy, or an iterable of consecutive stretches
            (n,) of it; what lies beyond is clipped. The file does not depend on where the blocks are cut.
        sample_rate: in Hz, at most 192000; Opus and MP3 allow only some rates.

    Raises:
        AudioError: before the first block is asked for, if the folder, the suffix or the rate will not do;
            later, if a block is not 1-D float or holds a NaN or an infinity, there are no samples at all, or
            the disk is full. Nothing is left behind then, nor when `blocks` raises.
    """
    name = "stdout" if path == "-" else repr(os.fspath(path))
    suffix = ".wav" if path == "-" else Path(path).suffix.lower()
    if suffix not in _WRITTEN:
        raise AudioError(f"{name} does not name an audio format: use one of {', '.join(sorted(_WRITTEN))}")
    if not 1 <= sample_rate <= _MAX_WRITE_RATE:
        raise AudioError(f"{name} cannot be written at {sample_rate} Hz: use 1 to {_MAX_WRITE_RATE} Hz")
    if hasattr(blocks, "ndim"):
        blocks = [blocks[0] if blocks.ndim == 2 and len(blocks) == 1 else blocks]
    if isinstance(blocks, str | bytes) or not isinstance(blocks, Iterable):
        raise AudioError(f"{name} cannot be written from {type(blocks).__name__}: give samples, torch or numpy")
    if path == "-":
        with tempfile.TemporaryFile() as file:
            _encode(file, name, blocks, sample_rate, *_WRITTEN[suffix])
            file.seek(0)
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
    else:
        with atomic_path(path, AudioError) as temporary, open(temporary, "wb") as file:
            _encode(file, name, blocks, sample_rate, *_WRITTEN[suffix])


@contextmanager
def open_audio(source: Source, called: str | None = None, *, whole: bool = True) -> Iterator[AudioFile]:
    """Open a recording as `stream_audio` does, to look at it or to read a part of it.

    Messages name it by what it is `called`, its path by default. Where `whole` is false, only headers are read, and
    nothing but rate, channels and names of the result is to be used. Raises AudioError.
    """
    with ExitStack() as stack:
        name, file = stack.enter_context(_on_disk(source))
        name = called or name
        try:
            start = file.tell()
            end = file.seek(0, io.SEEK_END)
        except OSError as error:
            raise AudioError(os_error_line(name, "read", error)) from error
        if end <= start:
            raise AudioError(f"{name} is empty (0 bytes): give a file that holds audio")
        place = source if isinstance(source, (str, os.PathLike)) else ""
        audio = AudioFile(Window(file, start, end, os.fspath(place), identity_of(file)), name, whole)
        stack.callback(audio.close)
        yield audio


@contextmanager
def _on_disk(source: Source) -> Iterator[tuple[str, BinaryIO]]:
    """Yield a name for messages and an open file that can seek: `source` itself or a copy of what it delivers."""
    with ExitStack() as stack:
        if not isinstance(source, (str, os.PathLike)):
            if not hasattr(source, "seekable") or isinstance(source, io.TextIOBase):
                what = type(source).__name__
                raise AudioError(f"audio is read from a path, '-' or a file opened in binary mode, not from {what}")
            name, file = "the file object", cast(BinaryIO, source)
            if file.seekable():
                yield name, file
                return
        elif source == "-":
            name, file = "stdin", sys.stdin.buffer
        else:
            name, file = repr(os.fspath(source)), stack.enter_context(open_input(source, AudioError))
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                yield name, file
                return
        copy = stack.enter_context(tempfile.TemporaryFile())
        try:
            shutil.copyfileobj(file, copy, 1 << 20)
            copy.seek(0)
        except OSError as error:
            raise AudioError(os_error_line(name, "copied to a temporary file", error)) from error
        yield name, copy


def _encode(file: BinaryIO, name: str, blocks: Iterable[Any], rate: int, container: str, subtype: str) -> None:
    done = 0
    try:
        with sf.SoundFile(file.fileno(), "w", rate, 1, subtype, format=container, closefd=False) as sound:
            for block in regrouped(_mono_floats(blocks, name), _CHUNK):
                require_finite(block, done / rate, rate, name)
                done += len(block)
                if 2 * done > _MAX_BYTES.get(container, math.inf):
                    raise AudioError(f"{name} would exceed the 4 GiB of {container}: use .flac or .w64")
                samples = block.clip(-1, 1).astype(np.float32)
                if subtype == "PCM_16":
                    # Rounded here, because libsndfile rounds WAV down and FLAC to nearest.
                    sound.write(np.rint(samples * 32768).clip(max=32767).astype(np.int16))
                else:
                    sound.write(samples)
    except sf.LibsndfileError as error:
        why = f"cannot be written ({_reason(error)}): check the sample rate and the disk"
        raise AudioError(f"{name} {why}") from error
    if not done:
        raise AudioError(f"{name} would hold no samples: give at least one")


def _mono_floats(blocks: Iterable[Any], name: str) -> Iterator[NDArray[Any]]:
    for block in map(_array, blocks):
        if block.ndim != 1 or block.dtype.kind != "f":
            what = f"{block.dtype} of shape {block.shape}"
            raise AudioError(f"{name} cannot be written from {what}: give 1-D arrays of floats in [-1, 1]")
        yield block


def _array(block: Any) -> NDArray[Any]:
    if hasattr(block, "detach"):  # a tensor; this module does without torch
        block = block.detach().cpu()
        block = (block.float() if block.is_floating_point() else block).numpy()
    return np.asarray(block)


def _reason(error: Any) -> str:
    return str(error.error_string).removeprefix("Error : ").rstrip(" .")
