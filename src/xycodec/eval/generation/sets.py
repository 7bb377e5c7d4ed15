"""Sets of audio files, the vectors that embedders make of them, and captions."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from xycodec.errors import AudioError, ConfigError
from xycodec.eval.corpus import clip_files, safe_name
from xycodec.eval.generation.embedders.base import EMBEDDING, Embedder, Vectors
from xycodec.io.audio import audio_info, ignore, read_audio
from xycodec.io.digests import digest_of, file_digest
from xycodec.io.files import lines_of, os_error_line, write_whole
from xycodec.io.journal import Journal

RESAMPLER = "soxr HQ, channels averaged first"


class AudioSet:
    """The audio files below a folder, by clip (`clip_files`). Raises ConfigError if there are none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = clip_files(folder)

    @cached_property
    def digests(self) -> dict[str, str]:
        """Digests of the files' bytes. Raises ConfigError if one cannot be read."""
        try:
            return {name: file_digest(path) for name, path in self.files.items()}
        except OSError as error:
            raise ConfigError(os_error_line(str(error.filename), "read", error)) from error

    @property
    def list_hash(self) -> str:
        """Digest of the names and the bytes of all files: equal for equal sets, wherever they lie."""
        return digest_of(sorted(self.digests.items()))

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Length of every file that can be read."""
        found = {}
        for name, path in self.files.items():
            try:
                found[name] = audio_info(path).duration
            except AudioError:
                continue
        return found


@dataclass(frozen=True)
class Embedded:
    """The vectors of a set by one embedder, on disk."""

    folder: Path
    clips: tuple[str, ...]
    """Clips that have vectors, in the set's order."""
    left_out: dict[str, str]
    """Reasons why others have none."""
    count: int
    """Vectors of all clips."""
    size: int
    """Numbers of a vector."""

    def parts(self, part: str) -> Iterator[Vectors]:
        """The vectors (k, D) of each clip that go by the name `part`, a clip at a time."""
        for clip in self.clips:
            with np.load(self.folder / f"{clip}.npz") as saved:
                yield saved[part]

    def joined(self, part: str) -> Vectors:
        """All vectors (N, D); for embedders that give one or few of a clip."""
        return np.concatenate(list(self.parts(part)))


def embed_set(embedder: Embedder, audio: AudioSet, folder: Path, done: Callable[[], None]) -> Embedded:
    """Write the vectors of every file as `folder/CLIP.npz`; those of files that have not changed stay as they are.

    Files that cannot be read or are too short have a reason, and are tried again by the next call.
    """
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / "vectors.jsonl")
    known = {row["clip"]: row for row in journal.rows()}
    left_out = {}
    for clip, path in audio.files.items():
        target, digest = folder / f"{clip}.npz", audio.digests[clip]
        if known.get(clip, {}).get("of") != digest or not target.exists():
            try:
                vectors = embedder(read_audio(path, embedder.sample_rate, tell=ignore))
            except AudioError as error:
                left_out[clip] = str(error)
            else:
                write_whole(target, _writer(vectors))
                known[clip] = {"clip": clip, "of": digest, "shape": list(vectors[EMBEDDING].shape)}
                journal.append(known[clip])
        done()
    shapes = {clip: known[clip]["shape"] for clip in audio.files if clip not in left_out}
    size = next((size for _, size in shapes.values()), 0)
    return Embedded(folder, tuple(shapes), left_out, sum(count for count, _ in shapes.values()), size)


def _writer(vectors: Any) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **vectors)


def read_captions(path: Path) -> dict[str, str]:
    """Captions by clip, of JSON lines with `id` and `caption`. Raises ConfigError with `file:line`."""
    captions: dict[str, str] = {}
    try:
        lines = lines_of(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(os_error_line(str(path), "read", error)) from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            clip, caption = row["id"], row["caption"]
        except (ValueError, KeyError, TypeError):
            clip = caption = None
        if not (isinstance(clip, str) and isinstance(caption, str) and caption.strip()):
            raise ConfigError(f'{path}:{number}: a row is {{"id": "clip", "caption": "what is heard"}}')
        if clip in captions:
            raise ConfigError(f"{path}:{number}: {clip} has a caption already: one caption a clip")
        captions[safe_name(clip)] = caption
    return captions
