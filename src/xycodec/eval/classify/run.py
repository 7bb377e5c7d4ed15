"""The classification benchmark: features of a frozen model, a probe for each fold, and metrics with intervals.

The protocol is ARCH's (La Quatra 2024), which X-Codec's table 5 follows; docs/probes.md says where ours differs.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.special import stdtrit

from xycodec.errors import ConfigError
from xycodec.eval.classify.arch import open_task, published_table
from xycodec.eval.classify.clips import write_clips
from xycodec.eval.classify.embed import Pooling, embed_clips, stacked
from xycodec.eval.classify.features import Tap, open_features
from xycodec.eval.classify.metrics import measures
from xycodec.eval.classify.probe import Attended, ClassifierConfig, Pooled, fit_probes, truth_of
from xycodec.eval.classify.splits import plan_runs
from xycodec.eval.report.statistics import LEVEL
from xycodec.io.files import write_whole
from xycodec.models.base import Codec

RESULT, CLIPS, CACHE = "result.json", "clips.jsonl", "features"


@dataclass(frozen=True)
class FoldScore:
    """Metrics of one run on its test clips."""

    name: str
    values: dict[str, float]
    """Percent, by name of the metric."""
    epoch: int
    """Epoch that the probe is of."""
    train: int
    valid: int
    test: int
    """Numbers of clips."""


@dataclass(frozen=True)
class MeanScore:
    """A metric over the folds, percent."""

    value: float
    low: float | None
    """Bounds, with `high`, of the interval of 95 % (Student's t over folds); None for a single run."""
    high: float | None


@dataclass(frozen=True)
class ClassifyResult:
    """Result of `run_classify`."""

    dataset: str
    model: str
    tap: Tap | None
    """None of features that have no taps."""
    pooling: Pooling
    metric: str
    """The metric that the published table has."""
    scores: dict[str, MeanScore]
    folds: tuple[FoldScore, ...]
    classes: int
    chance: float
    """Percent of the test clips that have the most frequent label."""
    width: int
    """Numbers that the probe reads of a clip, or of a frame."""
    failed: tuple[tuple[str, str], ...]
    """(clip, reason) of those that cannot be read."""
    published: dict[str, float]
    """Published values of this data set by model, of `metric`; they are not measured here."""
    config: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain types."""
        return asdict(self)


@dataclass(frozen=True)
class ClassifyProgress:
    """Progress: clips whose features are there, or steps of training."""

    phase: Literal["features", "training"]
    done: int
    total: int


Advance = Callable[[ClassifyProgress], None]


def run_classify(
    dataset: str,
    model: str | Codec,
    folder: Path,
    config: ClassifierConfig | None = None,
    *,
    root: Path | None = None,
    tap: Tap = "post_quant",
    n_q: int | None = None,
    pooling: Pooling = "mean",
    max_seconds: float | None = None,
    cache: Path | None = None,
    device: str = "auto",
    advance: Advance = lambda progress: None,
) -> ClassifyResult:
    """Measure how well a linear probe reads labels from a model's features.

    Args:
        dataset: one of `xycodec.eval.classify.arch.TASKS`, or `jsonl:FILE`, see `xycodec.eval.classify.clips`.
        model: what `open_features` takes: a codec or its name, `log-mel`, `random:NAME`.
        folder: for clips.jsonl (the clips in the one form), result.json, and the cache; made if needed.
        config: of the probe; None: ARCH's.
        root: folder that the data set was unpacked into.
        tap: `post_quant`, `pre_quant` or `semantic`.
        n_q: codebooks to use, the first ones; None: all.
        pooling: `mean` of a clip's own frames, `padded` as ARCH's code, or `attention`.
        max_seconds: length that clips are cut to; None: the data set's, which ARCH decides.
        cache: folder of features, which several data sets and models may share; None: `folder / "features"`.
        device: of a `model` that is loaded here; probes are trained on the CPU.
        advance: told of progress.

    Raises:
        ConfigError: there is no such data set, it is not in `root`, or its clips cannot be divided.
        CheckpointError: `model` is none.
        XycodecError: it has no such tap, no clip can be read, or a file cannot be written.
    """
    config = config or ClassifierConfig()
    task, labelled = open_task(dataset, root)
    plan_runs(labelled.clips, task.valid_share)  # refused before hours of encoding
    features = open_features(model, tap, n_q, device)
    count = len(labelled.clips)
    embedded = embed_clips(
        features, labelled, cache or folder / CACHE, pooling=pooling,
        max_seconds=task.max_seconds if max_seconds is None else max_seconds,
        advance=lambda done: advance(ClassifyProgress("features", done, count)),
    )  # fmt: skip
    labelled = embedded.labelled
    write_clips(folder / CLIPS, labelled)
    runs, classes = plan_runs(labelled.clips, task.valid_share), labelled.classes
    if not classes:
        raise ConfigError(f"{dataset}: no clip that can be read has a label")
    if config.select == "best" and not all(len(run.valid) for run in runs):
        raise ConfigError(f"{dataset}: has no clips to choose an epoch on: leave select at last, or give valid clips")
    truth = truth_of([clip.labels for clip in labelled.clips], classes)
    source = Attended(embedded.features) if pooling == "attention" else Pooled(stacked(embedded.features))
    fitted = fit_probes(
        source, truth, runs, config, several=labelled.several,
        advance=lambda done, total: advance(ClassifyProgress("training", done, total)),
    )  # fmt: skip
    known = truth.bool().numpy()
    folds = tuple(
        FoldScore(
            run.name,
            measures(one.scores.double().numpy(), known[run.test], several=labelled.several),
            one.epoch, len(run.train), len(run.valid), len(run.test),
        )
        for run, one in zip(runs, fitted, strict=True)
    )  # fmt: skip
    tested = np.concatenate([run.test for run in runs])
    result = ClassifyResult(
        dataset=task.name,
        model=features.name,
        tap=None if features.tap is None else tap,
        pooling=pooling,
        metric=task.metric,
        scores={
            name: _mean([fold.values[name] for fold in folds if name in fold.values])
            for name in dict.fromkeys(name for fold in folds for name in fold.values)
        },
        folds=folds,
        classes=len(classes),
        chance=100 * float(known[tested].mean(axis=0).max()),
        width=source.width,
        failed=embedded.failed,
        published={name: values[task.name] for name, values in published_table().models.items() if task.name in values},
        config=config.model_dump(mode="json"),
    )
    text = json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + "\n"
    write_whole(folder / RESULT, lambda path: path.write_text(text, encoding="utf-8"))
    return result


def _mean(values: list[float]) -> MeanScore:
    """The mean over folds and its interval."""
    value = float(np.mean(values))
    if len(values) < 2:
        return MeanScore(value, None, None)
    half = float(stdtrit(len(values) - 1, (1 + LEVEL) / 2) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return MeanScore(value, value - half, value + half)
