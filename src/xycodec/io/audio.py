"""Audio files to mono float32 at one rate, and back: streamed, so that memory does not grow with the file.

Bad input raises `AudioError` with one line that says what is wrong, where, and what to do.
"""

import math
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO

import numpy as np
import soundfile as sf
import soxr
from numpy.typing import NDArray

from xycodec.errors import AudioError
from xycodec.io.files import FilePath, atomic_path, open_input, os_error_line

Samples = NDArray[np.float32]

# Samples decoded, resampled or encoded at a time. Fixed, so that no result depends on the caller's blocks:
# a resampler or an encoder may round differently when it is fed differently.
_CHUNK = 1 << 16
_UNKNOWN = (1 << 63) - 1  # libsndfile's frame count for a stream whose header names none
_MP3_FRAME = 1152  # samples
_MP3_SLACK = 2 * _MP3_FRAME  # encoders disagree on whether the length counts the frame that holds it
_MP3_PADDING = 2 * 1441  # bytes: an encoder may end with up to two frames that hold no more than padding
_MP3_TAGS = (b"TAG", b"APETAGEX", b"LYRICS", b"ID3", b"\0\0")  # what may follow the last frame
_OGG_AHEAD = 8192  # bytes: libsndfile reads Ogg up to 4096 ahead
_MAX_WRITE_RATE = 192_000  # above 200 kHz libsndfile's Vorbis writer crashes the process
_MAX_BYTES = dict.fromkeys(("WAV", "AIFF"), (1 << 32) - _CHUNK)  # 32-bit sizes, with room for a header
_CONVERT = "convert it to wav or flac first, e.g. ffmpeg -i INPUT out.wav"

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
_ONLY_READ = (".aif", ".aifc", ".au", ".mp1", ".mp2", ".nist", ".oga", ".rf64", ".snd", ".sph", ".voc")


@dataclass(frozen=True)
class AudioInfo:
    """Rate in Hz, channels, samples per channel, seconds, and libsndfile's names of container and coding."""

    sample_rate: int
    channels: int
    num_samples: int
    duration: float
    format: str
    subtype: str


def audio_extensions() -> frozenset[str]:
    """Suffixes of the audio files that libsndfile reads, in lower case with their dot."""
    return frozenset([*_WRITTEN, *_ONLY_READ])


def audio_info(path: FilePath) -> AudioInfo:
    """Describe an audio file. It is decoded only where its header does not say how long it is.

    Raises:
        AudioError: `path` is missing, empty, not readable or not audio.
    """
    with _opened(path) as audio:
        sound = audio.sound
        frames = sum(map(len, audio.blocks())) if audio.promised is None else audio.promised
        duration = frames / sound.samplerate
        return AudioInfo(sound.samplerate, sound.channels, frames, duration, sound.format, sound.subtype)


def stream_audio(source: FilePath | BinaryIO, sample_rate: int = 16000, block_s: float = 30.0) -> Iterator[Samples]:
    """Yield `source` as mono, the mean over its channels, at `sample_rate` (Hz), `block_s` seconds at a time.

    Every block is 1-D float32 with `round(block_s * sample_rate)` samples, the last one with fewer. Samples
    are in [-1, 1], except where a float file or a lossy codec exceeds that. The joined blocks are the same
    bit for bit whatever `block_s`, and `max(1, round(frames * sample_rate / rate))` long. Memory is a few
    blocks, whatever the length. A WAV or Ogg file that was cut off is read as far as it goes.

    Args:
        source: a path, "-" for stdin, or a binary file object, read from its current position. What is not
            a regular file is first copied to a temporary one, because reading audio needs seeking.
        sample_rate: rate of the result in Hz.
        block_s: seconds in a block.

    Raises:
        AudioError: on the first `next` if `source` is missing, empty, not readable, not audio or without
            samples, or a number is not positive; later, where the audio breaks off before the length in its
            header, goes on after it, or holds a NaN or an infinity.
    """
    if not (sample_rate >= 1 and 0 < block_s < math.inf):
        raise AudioError(f"no blocks of {block_s} s at {sample_rate} Hz can be read: give positive numbers")
    with _opened(source) as audio:
        blocks = audio.blocks()
        if audio.sound.samplerate != sample_rate:
            blocks = resampled(blocks, audio.sound.samplerate, sample_rate)
        empty = True
        for block in _regrouped(blocks, max(1, round(block_s * sample_rate))):
            empty = False
            yield block
        if empty:
            raise AudioError(f"{audio.name} holds no samples: give a recording that is not empty")


def read_audio(source: FilePath | BinaryIO, sample_rate: int = 16000) -> Samples:
    """Read all of `source` as `stream_audio` does: 1-D float32, mono, at `sample_rate` (Hz)."""
    return np.concatenate(list(stream_audio(source, sample_rate)))


def write_audio(path: FilePath, blocks: NDArray[Any] | Iterable[NDArray[Any]], sample_rate: int) -> None:
    """Write mono audio to `path`, which appears there only when it is complete.

    Args:
        path: its suffix names the container (.wav, .flac, .ogg, .opus, .mp3, ...; PCM has 16 bits); "-"
            writes WAV to stdout.
        blocks: one 1-D float array or an iterable of them, in [-1, 1]; what lies beyond is clipped. The file
            does not depend on where the blocks are cut.
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
    if isinstance(blocks, np.ndarray):
        blocks = [blocks]
    if path == "-":
        with tempfile.TemporaryFile() as file:
            _encode(file, name, blocks, sample_rate, *_WRITTEN[suffix])
            file.seek(0)
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
    else:
        with atomic_path(path, AudioError) as temporary, open(temporary, "wb") as file:
            _encode(file, name, blocks, sample_rate, *_WRITTEN[suffix])


class _Sequential(sf.SoundFile):  # type: ignore[misc]  # soundfile ships no types
    """A SoundFile that is only read forward: seeking after each read fails on a FLAC of unknown length."""

    def seekable(self) -> bool:
        return False


@dataclass(frozen=True)
class _Audio:
    """An open audio file: its name in messages, its descriptor, and the frames that its header promises."""

    name: str
    fd: int
    sound: _Sequential
    promised: int | None

    def blocks(self) -> Iterator[Samples]:
        """Yield the mean over channels at the file's own rate, checked to be finite and whole."""
        sound, rate, done = self.sound, self.sound.samplerate, 0
        # Ten seconds at most: resampling makes 160 samples of each frame of a file that claims 100 Hz. One
        # frame of MP3, so that a last frame that is cut off costs no other.
        limit = _MP3_FRAME if sound.format == "MP3" else _CHUNK // sound.channels
        chunk = max(1, min(limit, 10 * rate))
        while done < sound.frames:
            try:
                block = sound.read(min(chunk, sound.frames - done), dtype="float32", always_2d=True)
            except sf.LibsndfileError as error:
                if sound.format == "MP3" and not self._goes_on():
                    return self._require_promised(done)
                where = f"{done / rate:.2f} s ({_reason(error)})"
                raise AudioError(f"{self.name} is damaged after {where}: get a whole copy") from error
            if not len(block):
                break
            _require_finite(block, done, rate, self.name)
            done += len(block)
            # In float64, because the sum of float32 samples near the largest number overflows.
            yield block.mean(axis=1, dtype=np.float64).astype(np.float32)
        self._require_promised(done)
        if self._goes_on():
            raise AudioError(f"{self.name} goes on after its first {done / rate:.2f} s: {_CONVERT}")

    def _require_promised(self, done: int) -> None:
        slack = _MP3_SLACK if self.sound.format == "MP3" else 0
        if self.promised is not None and done < self.promised - slack:
            end, whole = (f"{frames / self.sound.samplerate:.2f} s" for frames in (done, self.promised))
            raise AudioError(f"{self.name} breaks off at {end} of {whole}: get a whole copy")

    def _goes_on(self) -> bool:
        """Whether audio follows where the decoder stopped: damaged, or the second of several joined files."""
        if self.sound.format == "MP3":
            with open(self.fd, "rb", closefd=False) as file:
                rest = file.read(_MP3_PADDING + 1)
            return len(rest) > _MP3_PADDING and not rest.startswith(_MP3_TAGS)
        if self.sound.format == "OGG":
            os.lseek(self.fd, max(1, os.lseek(self.fd, 0, os.SEEK_CUR) - _OGG_AHEAD), os.SEEK_SET)
            return b"OggS\0\2" in os.read(self.fd, _CHUNK)  # the page that begins a stream
        return False


@contextmanager
def _opened(source: FilePath | BinaryIO) -> Iterator[_Audio]:
    with ExitStack() as stack:
        name, file = stack.enter_context(_on_disk(source))
        fd = file.fileno()
        if os.fstat(fd).st_size == 0:
            raise AudioError(f"{name} is empty (0 bytes): give a file that holds audio")
        try:
            sound = stack.enter_context(_Sequential(fd, closefd=False))
            if sound.format == "MP3":
                # If the header of an MP3 names no length, libsndfile guesses one from the size of the file,
                # and may lose minutes after it. From a pipe, whose size it cannot know, it reads on.
                fd = stack.enter_context(_mp3_pipe(fd))
                sound = stack.enter_context(_Sequential(fd, closefd=False))
        except sf.LibsndfileError as error:
            hint = f"if it is m4a, webm, raw or damaged audio, {_CONVERT}"
            raise AudioError(f"{name} is not audio that can be read ({_reason(error)}): {hint}") from error
        yield _Audio(name, fd, sound, None if sound.frames == _UNKNOWN else sound.frames)


@contextmanager
def _on_disk(source: FilePath | BinaryIO) -> Iterator[tuple[str, BinaryIO]]:
    """Yield a name for messages and an open regular file: `source` itself or a copy of what it delivers."""
    with ExitStack() as stack:
        if not isinstance(source, (str, os.PathLike)):
            name, file = "the file object", source
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


@contextmanager
def _mp3_pipe(fd: int) -> Iterator[int]:
    """Yield the end of a pipe that delivers an MP3 from its first frame: tags may be too long for a pipe."""
    os.lseek(fd, 0, os.SEEK_SET)
    while (head := os.read(fd, 10)).startswith(b"ID3"):  # an ID3v2 tag, whose size has 4 times 7 bits
        size = sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=False))
        os.lseek(fd, size, os.SEEK_CUR)
    os.lseek(fd, -len(head), os.SEEK_CUR)
    reader, writer = os.pipe()

    def feed() -> None:
        with suppress(BrokenPipeError), open(writer, "wb") as pipe:
            while data := os.read(fd, _CHUNK):
                pipe.write(data)

    feeder = Thread(target=feed, daemon=True)
    feeder.start()
    try:
        yield reader
    finally:
        os.close(reader)
        feeder.join()


def resampled(blocks: Iterable[Samples], rate: int, target: int) -> Iterator[Samples]:
    """Consecutive 1-D float32 `blocks` of one clip at `rate` (Hz) as blocks at `target`, the same however they are cut.

    A clip that would round to nothing keeps one sample.
    """
    stream = soxr.ResampleStream(rate, target, 1, dtype="float32", quality="HQ")
    made, last = 0, np.zeros(0, np.float32)
    for last in blocks:
        out = stream.resample_chunk(last)
        made += len(out)
        yield out
    out = stream.resample_chunk(np.zeros(0, np.float32), last=True)
    yield out if made + len(out) else last[:1]


def _regrouped(blocks: Iterable[NDArray[Any]], size: int) -> Iterator[NDArray[Any]]:
    """Cut the concatenation of 1-D `blocks` into blocks of `size`, the last one shorter."""
    parts: list[NDArray[Any]] = []
    missing = size
    for block in blocks:
        start = 0
        while start < len(block):
            part = block[start : start + missing].copy()  # the caller may reuse its array
            parts.append(part)
            start += len(part)
            missing -= len(part)
            if missing == 0:
                yield np.concatenate(parts)
                parts, missing = [], size
    if parts:
        yield np.concatenate(parts)


def _encode(file: BinaryIO, name: str, blocks: Iterable[NDArray[Any]], rate: int, container: str, subtype: str) -> None:
    done = 0
    try:
        with sf.SoundFile(file.fileno(), "w", rate, 1, subtype, format=container, closefd=False) as sound:
            for block in _regrouped(_mono_floats(blocks, name), _CHUNK):
                _require_finite(block, done, rate, name)
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


def _mono_floats(blocks: Iterable[NDArray[Any]], name: str) -> Iterator[NDArray[Any]]:
    for block in map(np.asarray, blocks):
        if block.ndim != 1 or block.dtype.kind != "f":
            what = f"{block.dtype} of shape {block.shape}"
            raise AudioError(f"{name} cannot be written from {what}: give 1-D arrays of floats in [-1, 1]")
        yield block


def _require_finite(block: NDArray[Any], start: int, rate: int, name: str) -> None:
    """Raise AudioError at the first NaN or infinity in `block`, which is `start` frames into the audio."""
    finite = np.isfinite(block)
    if not finite.all():
        frame = start + int(np.argwhere(~finite)[0, 0])
        raise AudioError(f"{name} holds a NaN or an infinity at {frame / rate:.4f} s: repair it")


def _reason(error: Any) -> str:
    return str(error.error_string).removeprefix("Error : ").rstrip(" .")
