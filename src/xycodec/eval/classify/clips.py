"""Labelled clips as JSON lines: the one form that a probe knows, whatever folders they come from.

    {"audio": "a.wav", "duration": 1.5, "label": "yes", "fold": 3, "speaker": "s1"}
    {"audio": "b.wav", "duration": 9.0, "labels": ["rock", "guitar"], "split": "train"}

A path is relative to the file. Each clip has a `label`, or `labels` (several, or none), and either a `split` (train,
valid, test) or a `fold`; all clips of a file the same ones. `duration` (seconds) and `speaker` may be missing.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from xycodec.errors import ConfigError
from xycodec.io.files import open_input, write_whole

Split = Literal["train", "valid", "test"]


@dataclass(frozen=True)
class LabelledClip:
    """A clip, its labels, and the part of the data that it belongs to."""

    audio: Path
    labels: tuple[str, ...]
    split: Split | None = None
    """None where clips are in folds."""
    fold: int | None = None
    speaker: str | None = None
    duration: float | None = None
    """Seconds; None where nobody said."""


@dataclass(frozen=True)
class LabelledSet:
    """Labelled clips of one task."""

    clips: tuple[LabelledClip, ...]
    several: bool
    """Whether a clip may have several labels or none, rather than one."""

    @property
    def classes(self) -> tuple[str, ...]:
        """All labels, sorted: the order of a probe's outputs."""
        return tuple(sorted({label for clip in self.clips for label in clip.labels}))


def read_clips(path: Path) -> LabelledSet:
    """Read labelled clips from JSON lines. Raises ConfigError, with the line, where that is not what they are."""
    clips, kinds = [], set[tuple[bool, bool]]()
    with open_input(path, ConfigError) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise ConfigError(f"{where}: not an object of JSON: write one a line")
            clips.append(_clip_of(row, path.parent, where))
            kinds.add((row.get("labels") is not None, row.get("fold") is not None))
            if len(kinds) > 1:
                raise ConfigError(
                    f"{where}: has other keys than the lines before: label or labels, split or fold in all"
                )
    if not clips:
        raise ConfigError(f"{path}: holds no clip: write one object of JSON a line")
    if not any(clip.labels for clip in clips):
        raise ConfigError(f"{path}: no clip has a label: give some")
    ((several, _),) = kinds
    return LabelledSet(tuple(clips), several)


def write_clips(path: Path, labelled: LabelledSet) -> None:
    """Write labelled clips as JSON lines. Raises XycodecError."""
    lines = "".join(json.dumps(_row_of(clip, labelled.several), ensure_ascii=False) + "\n" for clip in labelled.clips)
    write_whole(path, lambda scratch: scratch.write_text(lines, encoding="utf-8"))


def _clip_of(row: dict[str, Any], folder: Path, where: str) -> LabelledClip:
    audio, label, labels = row.get("audio"), row.get("label"), row.get("labels")
    split, fold = row.get("split"), row.get("fold")
    if not isinstance(audio, str):
        raise ConfigError(f"{where}: has no audio: name a file")
    if (label is None) == (labels is None):
        raise ConfigError(f"{where}: needs a label, or labels: give one of the two")
    given = [label] if labels is None else labels
    if not isinstance(given, list) or not all(isinstance(one, str | int) and one != "" for one in given):
        raise ConfigError(f"{where}: label is a word or a number, labels are a list of such")
    if (split is None) == (fold is None):
        raise ConfigError(f"{where}: needs a split, or a fold: give one of the two")
    if split is not None and split not in get_args(Split):
        raise ConfigError(f"{where}: split is {split!r}, must be one of {', '.join(get_args(Split))}")
    if fold is not None and (not isinstance(fold, int) or isinstance(fold, bool)):
        raise ConfigError(f"{where}: fold is {fold!r}, must be a whole number")
    duration, speaker = row.get("duration"), row.get("speaker")
    return LabelledClip(
        folder / audio,
        tuple(map(str, given)),
        split,
        fold,
        None if speaker is None else str(speaker),
        float(duration) if isinstance(duration, int | float) else None,
    )


def _row_of(clip: LabelledClip, several: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"audio": str(clip.audio.absolute()), "duration": clip.duration}
    row |= {"labels": list(clip.labels)} if several else {"label": clip.labels[0]}
    row |= {"split": clip.split, "fold": clip.fold, "speaker": clip.speaker}
    return {key: value for key, value in row.items() if value is not None}
