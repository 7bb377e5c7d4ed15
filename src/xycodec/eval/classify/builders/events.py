"""Sounds and cries: ESC-50, UrbanSound8K, FSD50K, VIVAE."""

from pathlib import Path

from xycodec.eval.classify.builders.common import named_files, table_rows
from xycodec.eval.classify.clips import LabelledClip, Split


def esc50(root: Path) -> list[LabelledClip]:
    """ESC-50: `meta/esc50.csv`, `audio/`; five folds."""
    return [
        LabelledClip(root / "audio" / row["filename"], (row["category"],), fold=int(row["fold"]))
        for row in table_rows(root / "meta" / "esc50.csv", ("filename", "fold", "category"))
    ]


def urbansound8k(root: Path) -> list[LabelledClip]:
    """UrbanSound8K: `metadata/UrbanSound8K.csv`, `audio/fold1/` to `fold10/`; ten folds."""
    return [
        LabelledClip(
            root / "audio" / f"fold{row['fold']}" / row["slice_file_name"], (row["class"],), fold=int(row["fold"])
        )
        for row in table_rows(root / "metadata" / "UrbanSound8K.csv", ("slice_file_name", "fold", "class"))
    ]


def fsd50k(root: Path) -> list[LabelledClip]:
    """FSD50K: `FSD50K.ground_truth/dev.csv` and `eval.csv`, `FSD50K.dev_audio/`, `FSD50K.eval_audio/`."""
    truth = root / "FSD50K.ground_truth"
    splits: dict[str, Split] = {"train": "train", "val": "valid"}
    clips = [
        LabelledClip(
            root / "FSD50K.dev_audio" / f"{row['fname']}.wav", _labels(row["labels"]), splits.get(row["split"], "train")
        )
        for row in table_rows(truth / "dev.csv", ("fname", "labels", "split"))
    ]
    return clips + [
        LabelledClip(root / "FSD50K.eval_audio" / f"{row['fname']}.wav", _labels(row["labels"]), "test")
        for row in table_rows(truth / "eval.csv", ("fname", "labels"))
    ]


def _labels(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def vivae(root: Path) -> list[LabelledClip]:
    """VIVAE: `full_set/S01_fear_low_01.wav`; a fold for each speaker."""
    clips = []
    for path in named_files(root / "full_set", "S[0-9][0-9]_*_*_*.wav"):
        speaker, emotion = path.stem.split("_")[:2]
        clips.append(LabelledClip(path, (emotion,), fold=int(speaker[1:]), speaker=speaker))
    return clips
