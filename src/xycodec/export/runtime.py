"""An exported codec in ONNX Runtime, without torch: the same codes, and the same files.

codec = OnnxCodec.load("folder")                       # what `xycodec export-onnx` wrote
codec.encode_file("talk.mp3").write("talk.xyc")
codec.decode_file("talk.xyc", "talk.wav")
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from xycodec.errors import AudioError, CheckpointError, XycodecError, reason_of
from xycodec.export.layout import DECODER, ENCODER, METADATA_KEY, About, read_about, read_folder
from xycodec.io.audio import Source, stream_audio, write_audio
from xycodec.io.files import FilePath
from xycodec.io.libraries import require_library
from xycodec.io.xyc import CodecFile
from xycodec.models.facts import CodecFacts
from xycodec.models.windows import (
    FADE,
    Arrays,
    CountedBlocks,
    Cutter,
    Joiner,
    choose_windows,
    first_samples,
    samples_to_decode,
)

Samples = NDArray[np.float32]
CodeArray = NDArray[np.int64]
_INT16_SCALE = 32768


def _join(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(parts, axis=-1)


def _lerp(one: Samples, other: Samples, weight: Samples) -> Samples:
    return one + weight * (other - one)


def _rise(count: int) -> Samples:
    return (np.arange(count, dtype=np.float32) + np.float32(0.5)) / np.float32(max(1, count))


NUMPY = Arrays(_join, _lerp, _rise)


@dataclass(frozen=True)
class Encoded:
    """codes (B, n_q, L) int64, zero past each item's end; lengths (B,) valid frames; num_samples (B,) input samples."""

    codes: CodeArray
    lengths: CodeArray
    num_samples: CodeArray


@dataclass(frozen=True)
class Decoded:
    """audio (B, T) float32, zero past each item's end; lengths (B,) valid samples."""

    audio: Samples
    lengths: CodeArray


class OnnxCodec(CodecFacts):
    """Speech to discrete codes and back, by two ONNX graphs; `xycodec.Codec` is the same with torch.

    A clip's codes depend on the clip alone: every one is computed by itself, as long as it is.
    """

    reference = False

    def __init__(self, about: About, folder: Path, threads: int | None) -> None:
        self.about = about
        self.model_id = about.model_id
        self.input_sample_rate, self.output_sample_rate = about.input_sample_rate, about.output_sample_rate
        self.n_q, self.codebook_size = about.n_q, about.codebook_size
        self.hop_length, self.window_frames = about.hop_length, about.window_frames
        self._folder, self._threads = folder, threads

    @classmethod
    def load(cls, folder: FilePath, *, threads: int | None = None) -> "OnnxCodec":
        """Load an exported folder, to compute on so many CPU threads (default: ONNX Runtime's choice).

        A graph is read when it is first needed. Raises CheckpointError if the folder holds no exported codec; then also
        if a graph is damaged, or of another codec.
        """
        path = Path(folder)
        return cls(read_folder(path), path, threads)

    @cached_property
    def _encoder(self) -> Any:
        return _session(self._folder / ENCODER, self.about, self._threads)

    @cached_property
    def _decoder(self) -> Any:
        return _session(self._folder / DECODER, self.about, self._threads)

    def encode(self, audio: Any, *, n_q: int | None = None) -> Encoded:
        """Turn audio of any length into codes.

        `audio`: one clip (T,), a batch (B, T), or a list of clips; floats in [-1, 1] or int16, at `input_sample_rate`.
        `n_q` keeps the first layers only. Raises AudioError on other audio, XycodecError on other layers.
        """
        batch = list(audio) if isinstance(audio, list | tuple) or np.ndim(audio) == 2 else [audio]
        clips = [_samples(clip) for clip in batch]
        codes = [self.encode_long([clip], n_q=n_q) for clip in clips]
        lengths = [item.shape[1] for item in codes]
        out = np.zeros((len(codes), self._layers(n_q), max(lengths, default=0)), np.int64)
        for row, item in zip(out, codes, strict=True):
            row[:, : item.shape[1]] = item
        return Encoded(out, np.array(lengths, np.int64), np.array([len(clip) for clip in clips], np.int64))

    def decode(self, codes: Any) -> Decoded:
        """Turn codes of the first k <= n_q layers, of any length, into audio.

        `codes`: what `encode` gave, which decodes to as many samples as went in; or (k, L) or (B, k, L) of an integer
        type or a list of such arrays, which decode to whole frames. Raises XycodecError on others and on codes out of
        range.
        """
        if isinstance(codes, Encoded):
            items = [item[:, :n] for item, n in zip(codes.codes, codes.lengths, strict=True)]
            samples: list[int | None] = [int(n) for n in codes.num_samples]
        else:
            items = _clips_of(codes)
            samples = [None] * len(items)
        clips = [_join([*self.decode_blocks(item, None, n), _NOTHING]) for item, n in zip(items, samples, strict=True)]
        lengths = [len(clip) for clip in clips]
        out = np.zeros((len(clips), max(lengths, default=0)), np.float32)
        for row, clip in zip(out, clips, strict=True):
            row[: len(clip)] = clip
        return Decoded(out, np.array(lengths, np.int64))

    def encode_long(
        self, blocks: Iterable[Any], overlap_s: float | None = None, *, n_q: int | None = None, search: int = 1
    ) -> CodeArray:
        """Codes (n_q, L) of one clip that comes in consecutive blocks (n,); windows share `overlap_s` seconds.

        Raises XycodecError if `search` is above 1: a graph takes the nearest code.
        """
        if search != 1:
            raise XycodecError(f"{self.model_id} in ONNX has no search over its codes: leave search out, or give 1")
        windows, layers = choose_windows(self, overlap_s), self._layers(n_q)

        def encode(clips: list[Samples]) -> list[CodeArray]:
            # A clip without samples has no frame.
            run = self._encoder.run
            return [
                run(None, {"audio": clip[None]})[0][0] if len(clip) else np.zeros((layers, 0), int) for clip in clips
            ]

        pieces = Cutter(windows, self.hop_length, NUMPY).pieces(map(_samples, blocks))
        codes = Joiner(windows, 1, NUMPY).computed(pieces, encode)
        return _join([np.zeros((layers, 0), np.int64), *(part[:layers] for part in codes)])

    def decode_blocks(
        self, codes: NDArray[Any], overlap_s: float | None = None, num_samples: int | None = None
    ) -> Iterator[Samples]:
        """Yield the audio of codes (k, L) in consecutive blocks (n,), `num_samples` input samples of it if given."""
        clip = self._codes(codes)
        samples = samples_to_decode(self, clip.shape[1], num_samples)
        windows = choose_windows(self, overlap_s)
        hop = self.num_output_samples(self.hop_length)

        def decode(parts: list[CodeArray]) -> list[Samples]:
            run = self._decoder.run
            return [run(None, {"codes": one[None]})[0][0] if one.shape[1] else _NOTHING for one in parts]

        pieces = Cutter(windows, 1, NUMPY).pieces([clip])
        return first_samples(Joiner(windows, hop, NUMPY, FADE).computed(pieces, decode), samples)

    def encode_file(self, source: Source, *, n_q: int | None = None, overlap_s: float | None = None) -> CodecFile:
        """Encode an audio file of any kind, rate and length, or `-` for stdin, in bounded memory."""
        counted = CountedBlocks(stream_audio(source, self.input_sample_rate))
        codes = self.encode_long(counted, overlap_s, n_q=n_q)
        return CodecFile.from_codes(codes, self, num_samples=counted.samples)

    @overload
    def decode_file(
        self, file: CodecFile | FilePath, target: None = None, *, overlap_s: float | None = None
    ) -> Samples: ...
    @overload
    def decode_file(self, file: CodecFile | FilePath, target: FilePath, *, overlap_s: float | None = None) -> None: ...
    def decode_file(
        self, file: CodecFile | FilePath, target: FilePath | None = None, *, overlap_s: float | None = None
    ) -> Samples | None:
        """Decode a `.xyc` file, or what `encode_file` gave, to `target`, or return the audio (T,) without one.

        Raises BitstreamError if another model made the codes.
        """
        name = "the codes" if isinstance(file, CodecFile) else str(file)
        file = file if isinstance(file, CodecFile) else CodecFile.read(file)
        self.require_own(file, name)
        blocks = self.decode_blocks(file.codes, overlap_s, file.num_samples)
        if target is None:
            return _join([*blocks, _NOTHING])
        write_audio(target, blocks, self.output_sample_rate)
        return None

    def _layers(self, n_q: int | None) -> int:
        if n_q is None:
            return self.n_q
        if type(n_q) is not int or not 1 <= n_q <= self.n_q:
            raise XycodecError(f"n_q must be an integer from 1 to {self.n_q}, got {n_q!r}")
        return n_q

    def _codes(self, codes: NDArray[Any]) -> CodeArray:
        if codes.ndim != 2 or codes.dtype.kind not in "iu" or not 1 <= len(codes) <= self.n_q:
            raise XycodecError(f"codes must be integers (1..{self.n_q}, L), got {codes.dtype} {codes.shape}")
        if codes.size and not (codes.min() >= 0 and codes.max() < self.codebook_size):
            raise XycodecError(f"codes must lie in 0..{self.codebook_size - 1}, found {codes.min()}..{codes.max()}")
        return codes.astype(np.int64)


_NOTHING = np.zeros(0, np.float32)


def _samples(clip: Any) -> Samples:
    """One clip (T,) as float32. Raises AudioError on anything else."""
    array = np.asarray(clip)
    if array.ndim != 1 or not (array.dtype.kind == "f" or array.dtype == np.int16):
        raise AudioError(f"a clip must be (T,) of floats in [-1, 1] or int16, got {array.dtype} {array.shape}")
    samples = array.astype(np.float32)
    if array.dtype == np.int16:
        return samples / np.float32(_INT16_SCALE)
    if not np.isfinite(samples).all():
        raise AudioError("the clip holds NaN or Inf, or what is too large for float32")
    return samples


def _clips_of(codes: Any) -> list[NDArray[Any]]:
    """Each clip's codes, of one array or a list of arrays."""
    arrays = isinstance(codes, list | tuple) and all(isinstance(part, np.ndarray) for part in codes)
    try:
        parts = list(codes) if arrays else [np.asarray(codes)]
    except ValueError:  # numbers nested in lists of unequal lengths
        raise XycodecError("codes of unequal lengths: give a list of arrays (k, L), one for each clip") from None
    return [item for part in parts for item in (part if part.ndim == 3 else [part])]


def _session(path: Path, about: About, threads: int | None) -> Any:
    """A session of a graph on the CPU. Raises CheckpointError unless it is of the codec that `about` describes."""
    runtime = require_library("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors, which are raised as well
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common class
        raise CheckpointError(f"{path}: damaged or not an ONNX graph ({reason_of(error)})") from None
    if read_about(session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, "null"), str(path)) != about:
        raise CheckpointError(f"{path}: is of another codec than the {path.parent.name}/config.json beside it")
    return session
