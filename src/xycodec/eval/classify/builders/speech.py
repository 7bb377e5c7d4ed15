"""Speech: RAVDESS, AudioMNIST, SLURP, EMOVO."""

import json
from pathlib import Path

from xycodec.errors import ConfigError
from xycodec.eval.classify.builders.common import divided, named_files, text_of
from xycodec.eval.classify.clips import LabelledClip, Split
from xycodec.io.files import lines_of

RAVDESS_EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
AUDIO_MNIST_FOLDS = (
    (12, 47, 59, 15, 27, 41, 4, 11, 21, 31, 44, 50),
    (26, 52, 60, 18, 32, 42, 5, 13, 22, 33, 45, 51),
    (28, 56, 7, 19, 35, 1, 6, 16, 23, 34, 46, 53),
    (36, 57, 9, 24, 37, 2, 8, 17, 29, 39, 48, 54),
    (43, 58, 14, 25, 38, 3, 10, 20, 30, 40, 49, 55),
)
"""Speakers of each fold, as the authors of AudioMNIST divided them."""
EMOVO_SPEAKERS = ("f1", "f2", "f3", "m1", "m2", "m3")


def ravdess(root: Path) -> list[LabelledClip]:
    """RAVDESS: `Actor_01/03-01-05-01-02-01-01.wav`, the third number the emotion, the last the actor.

    Divided at random: an actor may be in all parts.
    """
    clips = []
    for path in named_files(root, "**/[0-9][0-9]-*-*-*-*-*-*.wav"):
        parts = path.stem.split("-")
        emotion = int(parts[2]) - 1
        if not 0 <= emotion < len(RAVDESS_EMOTIONS):
            raise ConfigError(f"{path}: emotion {parts[2]} is none of RAVDESS's eight")
        clips.append(LabelledClip(path, (RAVDESS_EMOTIONS[emotion],), speaker=parts[6]))
    return divided(clips, {"train": 0.64, "valid": 0.16, "test": 0.2})


def audio_mnist(root: Path) -> list[LabelledClip]:
    """AudioMNIST: `data/01/7_01_0.wav`, which are digit, speaker, take; five folds of twelve speakers."""
    folds = {speaker: fold for fold, speakers in enumerate(AUDIO_MNIST_FOLDS) for speaker in speakers}
    clips = []
    for path in named_files(root / "data", "[0-9][0-9]/[0-9]_*_*.wav"):
        digit, speaker, _ = path.stem.split("_")
        if int(speaker) not in folds:
            raise ConfigError(f"{path}: speaker {speaker} is none of AudioMNIST's sixty")
        clips.append(LabelledClip(path, (digit,), fold=folds[int(speaker)], speaker=speaker))
    return clips


def slurp(root: Path) -> list[LabelledClip]:
    """SLURP: `dataset/slurp/train.jsonl`, `devel.jsonl` and `test.jsonl`, `audio/slurp_real/`; real recordings only.

    The lists may also lie in `root` itself, and the audio in `slurp_real/`. The label is the intent.
    """
    lists = root / "dataset" / "slurp"
    lists = lists if lists.is_dir() else root
    audio = root / "audio" / "slurp_real"
    audio = audio if audio.is_dir() else root / "slurp_real"
    clips = []
    names: dict[str, Split] = {"train": "train", "devel": "valid", "test": "test"}
    for name, split in names.items():
        path = lists / f"{name}.jsonl"
        for number, line in enumerate(lines_of(text_of(path)), 1):
            try:
                row = json.loads(line)
                intent, files = row["intent"], [recording["file"] for recording in row["recordings"]]
            except (ValueError, KeyError, TypeError):
                raise ConfigError(f"{path}:{number}: has no intent and recordings: take SLURP's own lists") from None
            clips += [LabelledClip(audio / file, (intent,), split) for file in files]
    return clips


def emovo(root: Path) -> list[LabelledClip]:
    """EMOVO: `EMOVO/f1/dis-f1-b1.wav`, which are emotion, speaker, sentence; a fold for each of six speakers."""
    folder = root / "EMOVO" if (root / "EMOVO").is_dir() else root
    return [
        LabelledClip(
            path, (path.stem.split("-")[0],), fold=EMOVO_SPEAKERS.index(path.parent.name), speaker=path.parent.name
        )
        for path in named_files(folder, "[fm][123]/*-*-*.wav")
    ]
