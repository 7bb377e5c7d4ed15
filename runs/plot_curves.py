"""Curves of runs, one column each, from their metrics.jsonl: python runs/plot_curves.py RUN [RUN ...] --output PNG."""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

SHOWN = (
    "loss",
    "mel",
    "features",
    "asr",
    "commitment",
    "accuracy",
    "adversarial",
    "feature",
    "discriminator",
    "codes_used",
    "wer",
    "wer_capped",
    "asr_wer",
)


def read(run: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Name of a metric -> kind (window, valid) -> points (step, value)."""
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for text in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if line["kind"] in ("window", "valid"):
            for name in SHOWN:
                if name in line:
                    curves.setdefault(name, {}).setdefault(line["kind"], []).append((line["step"], line[name]))
    return curves


def main() -> None:
    """Parse, read, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    runs = {run.name: read(run) for run in args.runs}
    rows = max(len(curves) for curves in runs.values())
    figure = Figure(figsize=(4.5 * len(runs), 1.7 * rows), layout="constrained")
    axes = figure.subplots(rows, len(runs), squeeze=False)
    for column, (run, curves) in zip(axes.T, runs.items(), strict=True):
        names = [name for name in SHOWN if name in curves]
        column[0].set_title(run)
        for axis, name in zip(column, names, strict=False):
            for kind, label in (("window", "training"), ("valid", "validation")):
                if points := curves[name].get(kind):
                    axis.plot(*zip(*points, strict=True), label=label, marker="o" if kind == "valid" else None, ms=3)
            axis.set_ylabel(name)
            axis.grid(alpha=0.3)
        for axis in column[len(names) :]:
            axis.axis("off")
        column[0].legend()
        column[len(names) - 1].set_xlabel("step")
    figure.savefig(args.output, dpi=90)
    print(args.output)


if __name__ == "__main__":
    main()
