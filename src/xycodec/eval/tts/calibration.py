"""True speech measured as a paper measured it: where it differs, so may everything else."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from xycodec.eval.results import METRICS, Section

SOURCE = "X-Codec, arXiv 2408.17175, table 1: LibriSpeech test-clean, 4 to 10 s, continual"


@dataclass(frozen=True)
class Anchor:
    """A published value of true speech, and how far ours may be from it."""

    value: float
    tolerance: float


ANCHORS = {"wer": Anchor(0.0223, 0.003), "similarity": Anchor(0.67, 0.02), "utmos": Anchor(4.10, 0.05)}
"""Only the similarity's tolerance stands in our specification; the others are as tight as text normalisers allow."""


def calibration(measured: Mapping[str, float | None]) -> Section:
    """The table of measured and published values of true speech."""
    rows = []
    for metric, anchor in ANCHORS.items():
        digits = METRICS[metric].digits
        value = measured.get(metric)
        shown = "not measured" if value is None else f"{value:.{digits}f}"
        verdict = "-" if value is None else "off" if _is_off(value, anchor) else "holds"
        rows.append((METRICS[metric].title, shown, f"{anchor.value:g}", f"{anchor.tolerance:g}", verdict))
    heads = ("metric", "true speech", "published", "tolerance", "verdict")
    return Section("Calibration", heads, tuple(rows), f"Published: {SOURCE}.")


def calibration_warnings(measured: Mapping[str, float | None]) -> Iterator[str]:
    """A sentence for each metric of true speech that is not what was published."""
    for metric, anchor in ANCHORS.items():
        value = measured.get(metric)
        if value is not None and _is_off(value, anchor):
            shown = f"{value:.{METRICS[metric].digits}f}"
            yield (
                f"true speech has {METRICS[metric].title} {shown}, published is {anchor.value:g}: clips or model are "
                f"not the paper's, so its {METRICS[metric].title} and these do not compare"
            )


def _is_off(value: float, anchor: Anchor) -> bool:
    return abs(value - anchor.value) > anchor.tolerance
