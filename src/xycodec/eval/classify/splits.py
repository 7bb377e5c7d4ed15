"""Parts of a labelled set that a probe learns from, is chosen on and is measured on: one run, or one for each fold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xycodec.errors import ConfigError
from xycodec.eval.classify.clips import LabelledClip

Rows = NDArray[np.int64]
SEED = 42  # of validation clips, ARCH's


@dataclass(frozen=True)
class Run:
    """Rows of clips: what one probe learns from, is chosen on (may be empty), and is measured on."""

    name: str
    train: Rows
    valid: Rows
    test: Rows


def plan_runs(clips: Sequence[LabelledClip], valid_share: float | None) -> list[Run]:
    """The runs of clips with splits, which is one, or with folds, each of which is measured on once.

    `valid_share` of the clips outside the test fold validate, drawn at random; None: the next fold does, if there are
    three or more. Raises ConfigError if nothing can be learned or measured.
    """
    splits = np.array([clip.split or "" for clip in clips])
    if any(splits):
        runs = [Run("all", *(np.flatnonzero(splits == name) for name in ("train", "valid", "test")))]
    else:
        folds = np.array([clip.fold for clip in clips])
        names = np.unique(folds)
        runs = [_fold(folds, names, place, valid_share) for place in range(len(names))]
    for run in runs:
        for part, rows in (("train", run.train), ("test", run.test)):
            if not len(rows):
                raise ConfigError(
                    f"{run.name}: no clip to {part} with: give two folds at least, or clips of both splits"
                )
    return runs


def _fold(folds: NDArray[np.int64], names: NDArray[np.int64], place: int, valid_share: float | None) -> Run:
    test = folds == names[place]
    valid = np.zeros_like(test)
    if valid_share is not None:
        rest = np.flatnonzero(~test)
        valid[np.random.default_rng(SEED).permutation(rest)[: round(valid_share * len(rest))]] = True
    elif len(names) > 2:
        valid = folds == names[(place + 1) % len(names)]
    return Run(f"fold {names[place]}", *map(np.flatnonzero, (~test & ~valid, valid, test)))
