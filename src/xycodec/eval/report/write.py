"""The report of an evaluation: JSON and CSV for programs, Markdown and a page for people."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xycodec.errors import XycodecError
from xycodec.eval.report.listen import FileOf, choose_clips
from xycodec.eval.report.markdown import make_markdown
from xycodec.eval.report.page import make_page
from xycodec.eval.report.tables import Tables, make_tables
from xycodec.eval.results import Evaluation
from xycodec.io.files import atomic_path

REPORTS = ("report.json", "report.csv", "summary.csv", "report.md", "report.html")

_CLIP_FIELDS = ("clip", "source", "speaker", "language", "text", "seconds", "bits", "encode_s", "decode_s", "error")


def write_report(
    evaluation: Evaluation,
    folder: Path,
    *,
    audio: Path | FileOf | None = None,
    expected: Mapping[str, Mapping[str, float]] | None = None,
    expected_source: str = "",
) -> dict[str, Path]:
    """Write every file of `REPORTS` into `folder`, or none of them; those of an earlier report are replaced.

    Args:
        evaluation: what was found.
        folder: made where it is not there.
        audio: folder with `CODEC/audio/CLIP.flac`, or a function that tells the file of a codec's clip, for the page's
            players; None: a page without sound.
        expected: codec name -> metric -> the value it is said to have, shown with the difference to the measured.
        expected_source: where these values are from, in a line.

    Returns:
        Where each file is, by its name.

    Raises:
        XycodecError: there is no clip or no metric, a value is expected of a codec or metric that was not evaluated,
            or the folder cannot be written.
    """
    tables = make_tables(evaluation, expected, expected_source)
    contents = {
        "report.json": _json(evaluation, tables),
        "report.csv": _csv(_clip_rows(evaluation)),
        "summary.csv": _csv(_summary_rows(tables)),
        "report.md": make_markdown(tables),
        "report.html": make_page(tables, choose_clips(evaluation, audio)),
    }
    paths = {name: folder / name for name in REPORTS}
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # All are written before the first gets its name.
            scratch = {name: stack.enter_context(atomic_path(path, XycodecError)) for name, path in paths.items()}
            for name, content in contents.items():
                scratch[name].write_text(content, encoding="utf-8", newline="")
        except OSError as error:
            why = error.strerror or error
            raise XycodecError(f"{str(folder)!r} cannot hold a report ({why}): give another folder") from error
    return paths


def _json(evaluation: Evaluation, tables: Tables) -> str:
    data = {"evaluation": evaluation.to_dict(), "tables": tables.to_dict()}
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _csv(rows: Iterator[dict[str, Any]]) -> str:
    text = io.StringIO()
    first = next(rows)
    writer = csv.DictWriter(text, list(first), lineterminator="\n")
    writer.writeheader()
    writer.writerow(first)
    writer.writerows(rows)
    return text.getvalue()


def _clip_rows(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    """A row for each codec and clip; a metric without a value is empty, and `missing` says why.

    `heard_in_original` is filled where it was the reference, for want of a text.
    """
    for codec in evaluation.codecs:
        for clip in codec.clips:
            fields = {name: getattr(clip, name) for name in _CLIP_FIELDS}
            values = {metric: clip.scores.values.get(metric) for metric in evaluation.metrics}
            missing = "; ".join(f"{metric}: {why}" for metric, why in clip.scores.missing.items())
            words = {
                "heard": clip.scores.transcript,
                "heard_in_original": clip.scores.reference,
                "looped": clip.scores.looped,
            }
            yield {"codec": codec.name, **fields, **values, "missing": missing, **words}


def _summary_rows(tables: Tables) -> Iterator[dict[str, Any]]:
    """A row for each group of clips, codec and metric; without a value where none of the clips has it."""
    groups = [("all", tables.overall)]
    groups += [("source", group) for group in tables.sources]
    groups += [("speaker", group) for group in tables.speakers]
    for kind, group in groups:
        for codec, scores in group.scores.items():
            for metric in tables.metrics:
                found = scores.get(metric.name)
                numbers = asdict(found) if found else {"value": None, "low": None, "high": None, "clips": 0}
                head = {"grouped_by": kind, "group": group.name, "codec": codec, "metric": metric.name}
                yield {**head, **numbers, "clips_in_group": group.clips}
