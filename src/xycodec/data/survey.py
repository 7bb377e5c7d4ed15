"""Counts of a corpus's clips and of those that cannot be trained on, from its manifests alone."""

from dataclasses import dataclass

import numpy as np

from xycodec.data.config import DataConfig
from xycodec.data.corpus import Corpus
from xycodec.data.facts import obstacles


@dataclass(frozen=True)
class LeftOut:
    """Clips that share the reason why they are left out."""

    reason: str
    clips: int
    first_id: str


@dataclass(frozen=True)
class Survey:
    """Clips that can be used, their hours as cropped, those with text and with labels, and what is left out."""

    clips: int
    hours: float
    with_text: int
    with_labels: int
    left_out: tuple[LeftOut, ...]


def survey(corpus: Corpus, config: DataConfig, output_sample_rate: int) -> Survey:
    """Count the clips of all sources, once each, whatever their weights; each is left out for one reason."""
    facts = corpus.facts
    left = np.ones(len(facts), dtype=np.bool_)
    left_out: list[LeftOut] = []
    for reason, hit in obstacles(facts, config, output_sample_rate):
        found = np.flatnonzero(left & hit)
        left &= ~hit
        if len(found):
            left_out.append(LeftOut(reason, len(found), corpus[int(found[0])].id))
    good = facts[left]
    seconds = float(np.minimum(good["seconds"], config.clip_seconds).sum())
    return Survey(len(good), seconds / 3600, int(good["text"].sum()), int(good["labels"].sum()), tuple(left_out))
