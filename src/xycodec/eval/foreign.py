"""Codecs that are not ours, in an evaluation: files that were decoded elsewhere, and any Python class.

    folder:PATH          PATH holds a decoded file for each clip, under the clip's name, with any suffix of audio
    MODULE:CLASS         a class of an importable module, or of a file: my_codecs/mine.py:Mine

A class is made without arguments and has `sample_rate`, `encode(audio) -> codes` and `decode(codes) -> audio`. Audio is
a numpy array (T,) of float32 in [-1, 1] at `sample_rate`, of decoded audio also a tensor or (1, T); codes are what the
class likes. What it decodes beyond the clip's length is cut off, what is missing is silence. Optional:

    output_sample_rate   where decoded audio has another rate
    bits(codes)          bits that one clip's codes take; or bitrate, bits a second
    name, frame_rate     for tables
    version              changes when the class gives other audio without a change of its source
"""

import importlib
import importlib.util
import inspect
import os
import re
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from xycodec.errors import XycodecError, described
from xycodec.eval.corpus import clip_files
from xycodec.io.audio import Samples, ignore, read_audio, write_audio
from xycodec.io.digests import digest_of, file_digest
from xycodec.io.files import os_error_line
from xycodec.io.journal import Journal
from xycodec.io.rate import SPEECH_RATE

FOLDER = "folder:"
_CLASS = re.compile(r"([\w.]+|[^:]+\.py):[A-Za-z_]\w*")
_NOT_CLASSES = ("hf:", "bigcodec:")


@dataclass(frozen=True)
class Decoded:
    """Decoded audio of one clip."""

    audio: Samples
    """Mono at `SPEECH_RATE`, of any length."""
    bits: float | None = None
    """Bits of its codes; None where nobody knows."""
    encode_s: float | None = None
    decode_s: float | None = None


class Foreign(ABC):
    """A codec that an evaluation knows by what it decodes alone."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """Tell its `model` in words, `weights`, a digest of what its audio depends on, and `frame_rate`, or None."""

    @abstractmethod
    def decode(self, clip: str, original: Path) -> Decoded:
        """Decode a clip, whose audio lies in `original`. Raises whatever it likes where it fails."""


def is_foreign(text: str) -> bool:
    """Whether `text` has the form of a folder of decoded files or of a class."""
    return text.startswith(FOLDER) or (_CLASS.fullmatch(text) is not None and not text.startswith(_NOT_CLASSES))


def open_foreign(text: str) -> Foreign:
    """Open the codec that `text` names; `is_foreign(text)` has to be true.

    Raises XycodecError, one line, if there is no such folder, module or class, or the class is none of a codec.
    """
    if text.startswith(FOLDER):
        return DecodedFolder(Path(text.removeprefix(FOLDER)))
    module, _, name = text.rpartition(":")
    return PythonCodec(text, _class_of(text, module, name))


def decode_clips(
    codec: Foreign, clips: Mapping[str, str], originals: Path, folder: Path, journal: Journal, done: Callable[[], None]
) -> None:
    """Decode each `originals/CLIP.flac` into `folder/CLIP.flac`, as long as it, with a row in `journal`.

    `clips` are names and digests of audio, which rows hold as `of`. A clip that the codec fails on has a row that says
    why. Rows are written last, so that what a kill interrupts is done again.
    """
    for clip, of in clips.items():
        try:
            made = codec.decode(clip, originals / f"{clip}.flac")
            length = len(read_audio(originals / f"{clip}.flac", SPEECH_RATE, tell=ignore))
            target = folder / f"{clip}.flac"
            target.parent.mkdir(parents=True, exist_ok=True)
            write_audio(target, _as_long_as(length, made.audio), SPEECH_RATE)
            row: dict[str, Any] = {"bits": made.bits, "encode_s": made.encode_s, "decode_s": made.decode_s}
        except Exception as error:  # whatever somebody's codec raises: the other clips are still worth having
            row = {"error": described(error)}
        journal.append({"clip": clip, "of": of, **row})
        done()


def _as_long_as(length: int, audio: Samples) -> Samples:
    if not np.isfinite(audio).all():
        raise ValueError("its audio holds a NaN or an infinity")
    return np.pad(audio[:length], (0, max(0, length - len(audio))))


# ---- a folder of decoded files -----------------------------------------------------------------


class DecodedFolder(Foreign):
    """Files that were decoded elsewhere, of any rate and format. Raises XycodecError if there are none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = clip_files(path)

    def about(self) -> dict[str, Any]:
        """Weights are the content of all files."""
        try:
            content = [[name, file_digest(file)] for name, file in sorted(self.files.items())]
        except OSError as error:
            raise XycodecError(os_error_line(str(self.path), "read", error)) from error
        return {"model": f"files of {self.path}", "weights": digest_of(content), "frame_rate": None}

    def decode(self, clip: str, original: Path) -> Decoded:
        """Read the clip's file."""
        if clip not in self.files:
            raise XycodecError(f"{self.path / clip}.*: there is no decoded file of this name")
        return Decoded(read_audio(self.files[clip], SPEECH_RATE, tell=ignore))


# ---- a Python class ----------------------------------------------------------------------------


class PythonCodec(Foreign):
    """An object with `sample_rate`, `encode` and `decode`. Raises XycodecError if it is not made or lacks one."""

    def __init__(self, text: str, made_by: type) -> None:
        self.text, self.source = text, inspect.getsourcefile(made_by)
        try:
            self.codec: Any = made_by()
        except Exception as error:
            raise XycodecError(f"{text}: cannot be made without arguments ({described(error)})") from error
        lacking = [name for name in ("sample_rate", "encode", "decode") if not hasattr(self.codec, name)]
        if lacking:
            raise XycodecError(f"{text}: lacks {', '.join(lacking)}: see xycodec.eval.foreign for what a codec has")
        self.rate = self._rate("sample_rate", self.codec.sample_rate)
        self.output_rate = self._rate("output_sample_rate", getattr(self.codec, "output_sample_rate", self.rate))

    def _rate(self, name: str, rate: Any) -> int:
        if isinstance(rate, bool) or not isinstance(rate, int) or rate < 1:
            raise XycodecError(f"{self.text}: {name} is {rate!r}, must be a positive int, in Hz")
        return rate

    def about(self) -> dict[str, Any]:
        """Weights are the class's source, and its `version` if it has one."""
        source = file_digest(Path(self.source)) if self.source and os.path.isfile(self.source) else None
        frame_rate = getattr(self.codec, "frame_rate", None)
        return {
            "model": str(getattr(self.codec, "name", self.text)),
            "weights": digest_of([self.text, source, str(getattr(self.codec, "version", ""))]),
            "frame_rate": None if frame_rate is None else float(frame_rate),
        }

    def decode(self, clip: str, original: Path) -> Decoded:
        """Encode and decode the clip, and take the time of both."""
        audio = read_audio(original, self.rate, tell=ignore)
        start = time.perf_counter()
        codes = self.codec.encode(audio)
        middle = time.perf_counter()
        decoded = self.codec.decode(codes)
        end = time.perf_counter()
        if hasattr(decoded, "detach"):
            decoded = decoded.detach().cpu()
        decoded = np.asarray(decoded, dtype=np.float32)
        samples = decoded.reshape(-1)
        if decoded.size != decoded.shape[-1]:
            raise ValueError(f"decode gave an array {decoded.shape}, must be (T,) or (1, T)")
        if self.output_rate != SPEECH_RATE:
            samples = soxr.resample(samples, self.output_rate, SPEECH_RATE)
        return Decoded(samples, self._bits(codes, len(audio) / self.rate), middle - start, end - middle)

    def _bits(self, codes: Any, seconds: float) -> float | None:
        if hasattr(self.codec, "bits"):
            return float(self.codec.bits(codes))
        bitrate = getattr(self.codec, "bitrate", None)
        return None if bitrate is None else float(bitrate) * seconds


def _class_of(text: str, module: str, name: str) -> type:
    try:
        if module.endswith(".py"):
            found = _module_of(Path(module))
        else:
            if "" not in sys.path:
                sys.path.insert(0, "")  # of the working directory, as with `python -m`
            found = importlib.import_module(module)
    except Exception as error:
        raise XycodecError(f"{text}: {module} cannot be imported ({described(error)})") from error
    made_by = getattr(found, name, None)
    if not inspect.isclass(made_by):
        raise XycodecError(f"{text}: {module} has no class {name}")
    return made_by


def _module_of(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError("there is no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where pickle and dataclasses look
    spec.loader.exec_module(module)
    return module
