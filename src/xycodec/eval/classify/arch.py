"""The twelve data sets of ARCH and what the benchmark decides for each; published numbers to set beside."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

import yaml

from xycodec.errors import ConfigError
from xycodec.eval.classify.builders import events, music, speech
from xycodec.eval.classify.builders.common import Builder
from xycodec.eval.classify.clips import LabelledSet, read_clips

JSONL = "jsonl:"


@dataclass(frozen=True)
class Task:
    """A data set, and how it is used."""

    name: str
    title: str
    domain: Literal["events", "music", "speech", "own"]
    build: Builder | None
    """Reader of its folder; None of JSON lines."""
    max_seconds: float | None
    """Length that longer clips are cut to; None: none is."""
    metric: Literal["accuracy", "macro_map"]
    """Metric of the paper's table."""
    valid_share: float | None = None
    """Share of the clips outside the test fold that validation takes, at random; None: the next fold is it."""


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("esc50", "ESC-50", "events", events.esc50, 5, "accuracy", 0.2),
        Task("urbansound8k", "US8K", "events", events.urbansound8k, 5, "accuracy", 0.2),
        Task("fsd50k", "FSD50K", "events", events.fsd50k, 10, "macro_map"),
        Task("vivae", "VIVAE", "events", events.vivae, 5, "accuracy"),
        Task("fma-small", "FMA", "music", music.fma_small, 30, "accuracy"),
        Task("magnatagatune", "MTT", "music", music.magnatagatune, 30, "macro_map"),
        Task("irmas", "IRMAS", "music", music.irmas, 5, "macro_map"),
        Task("medley-solos-db", "MS-DB", "music", music.medley_solos_db, 3, "accuracy"),
        Task("ravdess", "RAVDESS", "speech", speech.ravdess, 5, "accuracy"),
        Task("audio-mnist", "A-MNIST", "speech", speech.audio_mnist, 5, "accuracy"),
        Task("slurp", "SLURP", "speech", speech.slurp, 10, "accuracy"),
        Task("emovo", "EMOVO", "speech", speech.emovo, 5, "accuracy", 0.1),
    )
}
_SEVERAL = ("fsd50k", "magnatagatune", "irmas")


def open_task(dataset: str, root: Path | None) -> tuple[Task, LabelledSet]:
    """The task that `dataset` names, and its clips: one of `TASKS` in the folder `root`, or `jsonl:FILE`.

    Raises ConfigError, one line, if there is no such data set, or it is not in the folder as it was unpacked.
    """
    if dataset.startswith(JSONL):
        labelled = read_clips(Path(dataset.removeprefix(JSONL)))
        name = Path(dataset).stem
        return Task(name, name, "own", None, None, "macro_map" if labelled.several else "accuracy"), labelled
    if dataset not in TASKS:
        raise ConfigError(f"{dataset}: no such data set: known are {', '.join(TASKS)}, or jsonl:FILE")
    if root is None:
        raise ConfigError(f"{dataset}: where is it? give --root, the folder that it was unpacked into")
    task = TASKS[dataset]
    assert task.build is not None
    clips = task.build(root)
    if not clips:
        raise ConfigError(f"{root}: holds no clip of {task.title}: give the folder that it was unpacked into")
    return task, LabelledSet(tuple(clips), dataset in _SEVERAL)


@dataclass(frozen=True)
class Published:
    """Numbers of X-Codec's table 5, in percent: which tensor was probed, it does not say."""

    source: str
    remark: str
    models: dict[str, dict[str, float]]
    """Values by model, then by the data set's name."""


@cache
def published_table() -> Published:
    """The published table of `assets/report/arch.yaml`."""
    text = files("xycodec").joinpath("assets/report/arch.yaml").read_text(encoding="utf-8")
    return Published(**yaml.safe_load(text))
