"""Facts that decide whether a cut is trained on and in which batch: numbers, so that millions of cuts fit in memory."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from lhotse.cut import Cut
from numpy.typing import NDArray

from xycodec.data.clip import lowest_rate
from xycodec.data.config import DataConfig
from xycodec.data.targets import targets_of

FACTS = np.dtype([("seconds", "<f8"), ("rate", "<u4"), ("text", "?"), ("labels", "?"), ("end", "<u8")])
"""A cut's row: its duration; Hz, 0 without a recording; whether it has text and labels; where its line ends on disk."""

Facts = NDArray[Any]
"""Rows of FACTS, (N,)."""


def facts_of(cut: Cut) -> tuple[float, int, bool, bool]:
    """The row of a cut but for its last field, as its manifest tells."""
    rate = cut.sampling_rate if cut.has_recording else 0
    return float(cut.duration), int(rate), has_text(cut), has_labels(cut)


def has_text(cut: Cut) -> bool:
    """Whether anything is said in `cut`, as far as its manifest knows."""
    return any((words.text or "").strip() for words in cut.supervisions)


def has_labels(cut: Cut) -> bool:
    """Whether `cut` has labels to learn, as far as its manifest knows."""
    return targets_of(cut) is not None


def obstacles(facts: Facts, config: DataConfig, output_sample_rate: int) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield each reason why cuts cannot be trained on at `output_sample_rate` (Hz), and which cuts (N,) it hits."""
    lowest = lowest_rate(output_sample_rate)
    yield "without a recording", facts["rate"] == 0
    yield f"shorter than data.min_seconds {config.min_seconds:g}", facts["seconds"] < config.min_seconds
    yield f"recorded below {lowest} Hz", facts["rate"] < lowest


def usable(facts: Facts, config: DataConfig, output_sample_rate: int) -> NDArray[np.bool_]:
    """Mask (N,) of the cuts that can be trained on at `output_sample_rate` (Hz), as far as their manifests say."""
    good = np.ones(len(facts), dtype=np.bool_)
    for _, hit in obstacles(facts, config, output_sample_rate):
        good &= ~hit
    return good
