"""Counts of a corpus's clips and of those that cannot be trained on, from its manifests alone."""

from collections.abc import Iterable
from dataclasses import dataclass

from lhotse.cut import Cut

from xycodec.data.clip import lowest_rate
from xycodec.data.config import DataConfig
from xycodec.data.targets import targets_of


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


def obstacle(cut: Cut, config: DataConfig, output_sample_rate: int) -> str | None:
    """Why `cut` cannot be trained on at `output_sample_rate` (Hz), as far as its manifest says; None if it can."""
    if not cut.has_recording:
        return "without a recording"
    if cut.duration < config.min_seconds:
        return f"shorter than data.min_seconds {config.min_seconds:g}"
    if cut.sampling_rate < lowest_rate(output_sample_rate):
        return f"recorded below {lowest_rate(output_sample_rate)} Hz"
    return None


def has_text(cut: Cut) -> bool:
    """Whether anything is said in `cut`, as far as its manifest knows."""
    return any((words.text or "").strip() for words in cut.supervisions)


def has_labels(cut: Cut) -> bool:
    """Whether `cut` has labels to learn, as far as its manifest knows."""
    return targets_of(cut) is not None


def survey(cuts: Iterable[Cut], config: DataConfig, output_sample_rate: int) -> Survey:
    """Count all `cuts`. A weighted mix has no end: give the cuts of its sources, one after the other."""
    clips, seconds, with_text, with_labels = 0, 0.0, 0, 0
    left_out: dict[str, LeftOut] = {}
    for cut in cuts:
        reason = obstacle(cut, config, output_sample_rate)
        if reason is None:
            clips, seconds = clips + 1, seconds + min(cut.duration, config.clip_seconds)
            with_text += has_text(cut)
            with_labels += has_labels(cut)
        else:
            before = left_out.get(reason, LeftOut(reason, 0, cut.id))
            left_out[reason] = LeftOut(reason, before.clips + 1, before.first_id)
    return Survey(clips, seconds / 3600, with_text, with_labels, tuple(left_out.values()))
