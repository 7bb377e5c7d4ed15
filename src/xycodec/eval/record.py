"""The folder of an evaluation that can be interrupted: small files, journals of scores, and circumstances."""

import json
import os
import platform
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from xycodec.errors import XycodecError
from xycodec.eval.judges.base import Judge, Pair
from xycodec.eval.results import Scores
from xycodec.io.files import atomic_path
from xycodec.io.journal import Journal

Stage = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""Context manager of a stage's progress: takes its name and number of clips, gives a function to call after each."""
SCORES = "scores.jsonl"
JUDGED_AT_ONCE = 8  # clips in a batch of a model
_PACKAGES = (
    "xycodec",
    "torch",
    "transformers",
    "numpy",
    "scipy",
    "soxr",
    "pesq",
    "pystoi",
    "praat-parselmouth",
    "swift-f0",
    "jiwer",
)


def no_stage(name: str, clips: int) -> AbstractContextManager[Callable[[], None]]:
    """The `Stage` of callers who watch no progress."""
    return nullcontext(lambda: None)


# ---- small files -------------------------------------------------------------------------------


def read_record(path: Path) -> dict[str, Any]:
    """Read a JSON object that an evaluation wrote. Raises XycodecError if it cannot be."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise XycodecError(f"{path}: cannot be read ({error}): remove its folder to begin again") from error
    if not isinstance(data, dict):
        raise XycodecError(f"{path}: is not what an evaluation writes: remove its folder to begin again")
    return data


def write_record(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON object whole. Raises XycodecError if it cannot be."""
    with atomic_path(path, XycodecError) as temporary:
        temporary.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def claim_judges(folder: Path, known: dict[str, str], judges: Sequence[Judge]) -> None:
    """Add each judge's description to `known`. Raises XycodecError if another model has scored its metric."""
    for judge in judges:
        for name in judge.names:
            if known.setdefault(name, judge.describe()) != judge.describe():
                raise XycodecError(
                    f"{folder}: {name} was scored by {known[name]!r}: choose another folder for another model"
                )


# ---- scores ------------------------------------------------------------------------------------


def known_scores(identities: Mapping[str, Collection[str]], folder: Path) -> dict[str, Scores]:
    """Scores of the clips so far, from the folder's journal; rows of other digests than `identities` do not count."""
    known: dict[str, Scores] = {}
    for row in Journal(folder / SCORES).rows():
        if row.get("of") in identities.get(row["clip"], ()):
            known[row["clip"]] = known.get(row["clip"], Scores()) | Scores(**row["scores"])
    return known


def settled(scores: Scores, names: Sequence[str]) -> bool:
    """Whether every metric of `names` has a value or a reason that lasts."""
    # What was not installed may be there now, and what died may live.
    passing = ("not installed", "not computed")
    lasting = {name for name, why in scores.missing.items() if not why.startswith(passing)}
    return all(name in scores.values or name in lasting for name in names)


def only_asked(scores: Scores, names: Sequence[str]) -> Scores:
    """Drop metrics of earlier calls that were not asked for now."""
    return replace(
        scores,
        values={name: value for name, value in scores.values.items() if name in names},
        missing={name: why for name, why in scores.missing.items() if name in names},
        weights={name: weight for name, weight in scores.weights.items() if name in names},
    )


def judge_clips(
    judge: Judge,
    clips: Sequence[str],
    pair_of: Callable[[str], Pair],
    digest_of: Callable[[str], str],
    folder: Path,
    done: Callable[[], None],
) -> None:
    """Score clips in batches; a row of each goes to the folder's journal as its batch is done."""
    journal = Journal(folder / SCORES)
    for start in range(0, len(clips), JUDGED_AT_ONCE):
        batch = clips[start : start + JUDGED_AT_ONCE]
        for clip, scores in zip(batch, judge([pair_of(clip) for clip in batch]), strict=True):
            journal.append({"clip": clip, "of": digest_of(clip), "scores": asdict(scores)})
            done()


# ---- circumstances -----------------------------------------------------------------------------


def package_versions() -> dict[str, str]:
    """Versions of the installed packages that numbers depend on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine_of(device: str) -> str:
    """One line on the machine that computes."""
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
