"""Decoders of one stretch of a file, which holds one recording: libsndfile for PCM and Vorbis, FFmpeg for the rest.

Both yield blocks of shape (samples, channels) in float32, with the rate of each block in Hz.
"""

import io
from collections.abc import Hashable, Iterator
from fractions import Fraction
from typing import Any, BinaryIO, Protocol

import av
import numpy as np
import soundfile as sf
from numpy.typing import NDArray

Samples = NDArray[np.float32]

# PCM samples read at a time. Fixed, so that no result depends on the caller's blocks: a resampler may round
# differently when it is fed differently.
_CHUNK = 1 << 16
# FFmpeg loses the last samples of some Vorbis streams and of ALAC in CAF.
_BY_SNDFILE = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW", "VORBIS", "ALAC_")
_PREROLL_S = 1.0  # decoded before an excerpt: lossy decoders give the same samples again after a few frames
_MP3_SLACK = 4  # frames: one that the length may count or not, and what is the encoder's at both ends
_MATROSKA_SLACK_S = 0.1  # its times are whole milliseconds and count the encoder's delay
# Demuxers that open what a file names (playlists, image sequences) stay out: a recording must not choose what is read.
_DEMUXERS = (
    "aac,ac3,aiff,amr,ape,asf,asf_o,au,avi,caf,dsf,dts,eac3,flac,flv,gsm,loas,"
    "matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpc,mpc8,mpeg,mpegts,nistsphere,ogg,oma,rm,tak,tta,voc,w64,wav,wv,xwma"
)
_SEEKABLE = ("flac", "mp3", "mov", "ogg")  # their time stamps tell the exact sample
_LOSSLESS = ("flac", "alac", "wavpack", "tta")  # no packet of theirs is left out
_STEPS = {"u8": 1 / 128, "s16": 2.0**-15, "s32": 2.0**-31, "s64": 2.0**-63}  # full scale is 1


class Unreadable(Exception):
    """Bytes that hold no audio for a decoder; the message says why, in a few words."""


class Damaged(Exception):
    """Audio that ends early or cannot be decoded; the message completes "NAME is ..."."""


class Window(io.RawIOBase):
    """Bytes `start` to `end` of a seekable binary file, as a file of its own.

    The libraries that read it print what it would raise. So a place that does not exist gives -1, a failed read gives
    no data, and `failure` keeps the reason. Closing it leaves `file` open. `identity` stands for the file's content,
    None if it may change.
    """

    def __init__(
        self, file: "BinaryIO | Window", start: int, end: int, name: str = "", identity: Hashable | None = None
    ) -> None:
        self.start, self.end, self.name, self.identity = start, end, name, identity
        self.failure: OSError | None = None
        self._file, self._place = file, 0

    def __len__(self) -> int:
        return self.end - self.start

    def part(self, start: int, end: int, name: str | None = None) -> "Window":
        """Bytes `start` to `end` of this window, from their beginning."""
        name = self.name if name is None else name
        return Window(self._file, self.start + start, self.start + end, name, self.identity)

    def readable(self) -> bool:
        """Whether bytes can be read: always."""
        return True

    def seekable(self) -> bool:
        """Whether the place can be moved: always."""
        return True

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        """Move to byte `place`, from the beginning, the current place or the end."""
        place += {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: len(self)}[whence]
        if place < 0:
            return -1
        self._place = place
        return place

    def tell(self) -> int:
        """Bytes from the beginning."""
        return self._place

    def bytes_at(self, place: int, size: int) -> bytes:
        """At most `size` bytes from `place`."""
        self.seek(place)
        return self.read(size)

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, fewer at the end only."""
        left = max(0, len(self) - self._place)
        wanted = left if size < 0 else min(size, left)
        pieces: list[bytes] = []
        try:
            while wanted and (piece := self._read_at(self.start + self._place, wanted)):
                pieces.append(piece)
                self._place += len(piece)
                wanted -= len(piece)
        except OSError as error:
            self.failure = error
        return b"".join(pieces)

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as the bytes go."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _read_at(self, place: int, size: int) -> bytes:
        self._file.seek(place)
        return self._file.read(size) or b""


class Decoder(Protocol):
    """One recording: its rate (Hz) and channels at the beginning, and the names of its container and coding."""

    rate: int
    channels: int
    container: str
    coding: str

    @property
    def is_float(self) -> bool:
        """Whether samples are stored as floats, which may lie beyond full scale."""

    def length(self) -> int | None:
        """Samples per channel, or None where only decoding tells. Nothing is to be decoded afterwards."""

    def blocks(self, first: int = 0) -> Iterator[tuple[int, int, Samples]]:
        """Yield (place, rate, block), to the end, from sample `first` or earlier; place -1 if it cannot be found.

        Raises:
            Damaged: it ends early or cannot be decoded.
        """

    def remarks(self) -> list[str]:
        """Remarks on what was left out; complete once all blocks were read."""

    def close(self) -> None:
        """Close the decoder's handles."""


class SndfileDecoder:
    """PCM in WAV, AIFF, AU, CAF and their like, and Vorbis, by libsndfile.

    Raises:
        Unreadable: the bytes are no audio, or of a coding that FFmpeg is to read.
    """

    def __init__(self, window: Window) -> None:
        window = window.part(0, len(window), name="")  # by a name that ends in .raw it would ask for the format
        try:
            self._sound = sf.SoundFile(window)
        except sf.LibsndfileError as error:
            raise Unreadable(_sndfile_reason(error)) from error
        self.container, self.coding = self._sound.format, self._sound.subtype
        self.rate, self.channels, self._frames = self._sound.samplerate, self._sound.channels, self._sound.frames
        if not self.coding.startswith(_BY_SNDFILE) or self.container == "FLAC":
            self._sound.close()
            raise Unreadable(f"{self.container} of {self.coding}")
        self._sound.seek(0)
        begin = window.tell()
        self._sound.seek(self._frames)
        self.end = window.tell()
        """Byte after the last sample, of PCM."""
        self.frame_bytes = (self.end - begin) // max(1, self._frames)
        """Bytes of one sample of all channels, of PCM."""

    @property
    def is_float(self) -> bool:
        """Whether samples are stored as floats."""
        return self.coding in ("FLOAT", "DOUBLE")

    def length(self) -> int:
        """Samples per channel."""
        return int(self._frames)

    def blocks(self, first: int = 0) -> Iterator[tuple[int, int, Samples]]:
        """Yield (place, rate, block) from sample `first`. Raises Damaged."""
        # Ten seconds at most: resampling makes 160 samples of each sample of a file that claims 100 Hz.
        chunk = max(1, min(_CHUNK // self.channels, 10 * self.rate))
        place = min(first, self._frames)
        self._sound.seek(place)
        while place < self._frames:
            wanted = min(chunk, self._frames - place)
            block = self._sound.read(wanted, dtype="float32", always_2d=True)
            if not len(block):
                raise Damaged(f"damaged after {place / self.rate:.2f} s")
            yield place, self.rate, block
            place += len(block)

    def remarks(self) -> list[str]:
        """No remarks: libsndfile leaves nothing out."""
        return []

    def close(self) -> None:
        """Close libsndfile's handle."""
        self._sound.close()


class CodedDecoder:
    """Any container and coding that FFmpeg reads; packets that cannot be decoded are left out and counted.

    Args:
        window: the bytes.
        mp3_frames: how many frames an MP3 has by its first one, if that says so.

    Raises:
        Unreadable: the bytes are no audio.
    """

    def __init__(self, window: Window, mp3_frames: int | None = None) -> None:
        options = {"format_whitelist": _DEMUXERS}
        window.seek(0)
        try:
            self._input: Any = av.open(window, "r", container_options=options, metadata_errors="replace")
        except (av.FFmpegError, OSError, ValueError) as error:
            raise Unreadable(_ffmpeg_reason(error)) from error
        try:
            self._open(mp3_frames)
        except BaseException:
            self._input.close()
            raise

    def _open(self, mp3_frames: int | None) -> None:
        stream: Any = self._input.streams.best("audio")
        if stream is None or not stream.codec_context.sample_rate or not stream.codec_context.channels:
            raise Unreadable("no track of sound" if stream is None else "no sound that can be decoded")
        self._stream, context = stream, stream.codec_context
        context.thread_count = 1  # threads do not survive a fork
        self.container, self.coding = self._input.format.name.split(",")[0], context.codec.canonical_name
        if self.container == "flac":
            context.options = {"err_detect": "crccheck+explode"}  # or it passes damage on as noise
        self.rate, self.channels = int(context.sample_rate), int(context.channels)
        self._origin: int | None = None
        self._packets = self._bad = 0
        self._first_bad, self._unread = 0.0, ""
        self._promised = self._find_promised(mp3_frames)

    def _find_promised(self, mp3_frames: int | None) -> Fraction | None:
        """Seconds that it has at least, by a header that can be relied on."""
        stream, container = self._stream, self._input
        if self.container == "mp3" and mp3_frames is not None:
            frame = Fraction(stream.codec_context.frame_size or 1152, self.rate)
            return max(Fraction(0), (mp3_frames - _MP3_SLACK) * frame)
        if self.container in ("flac", "mov"):
            return stream.duration * stream.time_base if stream.duration and stream.time_base else None
        if self.container == "matroska" and len(container.streams) == 1 and container.duration:
            return Fraction(container.duration, 1_000_000) - Fraction(_MATROSKA_SLACK_S)
        return None

    @property
    def is_float(self) -> bool:
        """Whether samples are stored as floats."""
        return str(self.coding).startswith("pcm_f")

    def length(self) -> int | None:
        """Samples per channel, or None where only decoding tells: FLAC's are counted by its last frame.

        Nothing can be decoded afterwards.
        """
        if self.container == "mov" and self._promised is not None:
            return round(self._promised * self.rate)
        if self.container != "flac":
            return None
        time_base = self._stream.time_base
        last = None
        try:
            self._input.seek(1 << 40, stream=self._stream)
            for packet in self._input.demux(self._stream):
                if packet.pts is not None and packet.duration:
                    last = round((packet.pts + packet.duration) * time_base * self.rate)
        except av.FFmpegError:
            return None
        return last if self._promised is None or last == round(self._promised * self.rate) else None

    def blocks(self, first: int = 0) -> Iterator[tuple[int, int, Samples]]:
        """Yield (place, rate, block) from sample `first` or a little earlier; place -1 if it is not found."""
        place, seconds = 0, Fraction(0)
        found = first <= 2 * _PREROLL_S * self.rate or self.container not in _SEEKABLE
        if not found and not self._seek(first):
            yield -1, self.rate, np.zeros((0, self.channels), np.float32)
            return
        for frame in self._frames():
            if not found:
                found, place = True, self._place_of(frame)
                seconds = Fraction(place, self.rate)
                self._bad = 0  # the first packets after a seek need those before them
            rate = int(frame.sample_rate)
            if self.container == "flac" and self._place_of(frame) != place:
                raise Damaged(f"damaged after {place / rate:.2f} s")  # a frame with a wrong checksum is not passed on
            block = _array(frame)
            if self.container == "mov" and self._promised is not None and rate == self.rate:
                # The last frame is filled up; the edit list says where the recording ends.
                block = block[: max(0, round(self._promised * rate) - place)]
            if len(block):
                yield place, rate, block
                place += len(block)
                seconds += Fraction(len(block), rate)
        self._require_promised(seconds)

    def _frames(self) -> Iterator[Any]:
        seconds = 0.0
        packets = self._input.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError as error:
                if self.container == "ogg" and seconds:
                    self._unread = f"what follows {seconds:.2f} s cannot be read and was left out"
                    return
                raise Damaged(f"damaged after {seconds:.2f} s ({_ffmpeg_reason(error)})") from error
            if packet is None:
                return
            self._packets += 1
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                if self._promised is not None and seconds >= self._promised:
                    continue  # what follows the audio is no packet
                if self.coding in _LOSSLESS:
                    raise Damaged(f"damaged after {seconds:.2f} s ({_ffmpeg_reason(error)})") from error
                self._first_bad = self._first_bad if self._bad else seconds
                self._bad += 1
                continue
            for frame in frames:
                self._origin = frame.pts if self._origin is None else self._origin
                seconds += frame.samples / frame.sample_rate
                yield frame

    def _seek(self, first: int) -> bool:
        """Seek to a second before sample `first`; False where that cannot be done, as in FLAC of one or two frames."""
        next(self._frames(), None)  # tells the time stamp of the first sample
        offset = Fraction(first, self.rate) - Fraction(0 if self.container == "flac" else _PREROLL_S)
        try:
            self._input.seek((self._origin or 0) + int(offset / self._stream.time_base), stream=self._stream)
        except av.FFmpegError:
            return False
        return True

    def _place_of(self, frame: Any) -> int:
        """The sample that a frame begins with by its time stamp; -1 if it has none."""
        return -1 if frame.pts is None else round((frame.pts - (self._origin or 0)) * frame.time_base * self.rate)

    def _require_promised(self, seconds: Fraction) -> None:
        lacks = self._promised is not None and seconds < self._promised
        what = f"{self._bad} of {self._packets} packets cannot be decoded, the first after {self._first_bad:.2f} s"
        if self._bad and (lacks or 2 * self._bad > self._packets):
            raise Damaged(f"damaged: {what}")
        if lacks:
            assert self._promised is not None
            raise Damaged(f"cut off: it breaks off at {float(seconds):.2f} s of {float(self._promised):.2f} s")

    def remarks(self) -> list[str]:
        """One line on the packets that were left out, if any."""
        if not self._bad:
            return [self._unread] if self._unread else []
        first = f"the first after {self._first_bad:.2f} s"
        return [f"{self._bad} of {self._packets} packets could not be decoded and were left out, {first}"]

    def close(self) -> None:
        """Close FFmpeg's handles."""
        self._input.close()


def _array(frame: Any) -> Samples:
    """A frame of any sample format as (samples, channels), full scale at 1."""
    channels = frame.layout.nb_channels
    array = frame.to_ndarray()
    array = array.T if frame.format.is_planar else array.reshape(-1, channels)
    step = _STEPS.get(frame.format.name.removesuffix("p"))
    with np.errstate(over="ignore"):
        samples: Samples = array.astype(np.float32)
    if array.dtype == np.uint8:
        samples -= 128
    if step is not None:
        samples *= np.float32(step)
    return samples


def _sndfile_reason(error: Any) -> str:
    return str(error.error_string).removeprefix("Error : ").rstrip(" .")


def _ffmpeg_reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).split("\n")[0].rstrip(" .")
