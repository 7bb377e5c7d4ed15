"""`xycodec classify`: labels that a linear probe reads from a frozen codec's features."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xycodec.cli.options import AsJson, Device, Layers, Quiet, require_extra
from xycodec.cli.terminal import error_console, print_note, print_table
from xycodec.models.registry import DEFAULT

if TYPE_CHECKING:
    from xycodec.eval.classify.run import ClassifyProgress, ClassifyResult

TITLES = {"accuracy": "accuracy", "macro_f1": "macro F1", "macro_map": "macro mAP", "weighted_map": "weighted mAP"}


class Tap(StrEnum):
    """Part of a codec that is read."""

    pre_quant = "pre_quant"
    post_quant = "post_quant"
    semantic = "semantic"


class PoolingOption(StrEnum):
    """Way from frames to a clip."""

    mean = "mean"
    padded = "padded"
    attention = "attention"


class Select(StrEnum):
    """Epoch that is reported."""

    last = "last"
    best = "best"


def classify(
    dataset: Annotated[
        str,
        typer.Argument(
            help="esc50, urbansound8k, fsd50k, vivae, fma-small, magnatagatune, irmas, medley-solos-db, ravdess, "
            "audio-mnist, slurp, emovo; or jsonl:FILE, clips with labels"
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of everything; a second call goes on there.")],
    root: Annotated[Path | None, typer.Option(help="Folder that the data set was unpacked into.")] = None,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            envvar="XYCODEC_MODEL",
            help="What evaluate takes as --codec; or log-mel, or random:NAME: the same model with random weights.",
        ),
    ] = DEFAULT,
    tap: Annotated[
        Tap, typer.Option(help="post_quant is what a language model has; semantic is X-Codec's row in its table 5.")
    ] = Tap.post_quant,
    n_q: Layers = None,
    pooling: Annotated[
        PoolingOption, typer.Option(help="mean of a clip's frames; padded with silence as ARCH's code; attention.")
    ] = PoolingOption.mean,
    max_seconds: Annotated[float | None, typer.Option(min=0.1, help="Cut clips to it (default: ARCH's).")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of the probe.")] = 200,
    select: Annotated[Select, typer.Option(help="last epoch, as ARCH reports; or best on the validation clips.")] = (
        Select.last
    ),
    standardise: Annotated[
        bool, typer.Option("--standardise", help="Bring each feature to mean 0 and variance 1 (ARCH does not).")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the probe.")] = 0,
    cache: Annotated[Path | None, typer.Option(help="Folder of features that several calls share.")] = None,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a linear probe on a frozen codec's features: accuracy or mean average precision, as the ARCH benchmark."""
    require_extra("train", "scipy")
    from xycodec.eval.classify.probe import ClassifierConfig
    from xycodec.eval.classify.run import run_classify
    from xycodec.io.config import parse_config

    settings = {"epochs": epochs, "select": select.value, "standardise": standardise, "seed": seed}
    config = parse_config(ClassifierConfig, settings, "classify")
    with classify_progress(quiet or as_json) as advance:
        result = run_classify(
            dataset,
            model,
            output,
            config,
            root=root,
            tap=tap.value,
            n_q=n_q,
            pooling=pooling.value,
            max_seconds=max_seconds,
            cache=cache,
            device=device,
            advance=advance,
        )
    if as_json:
        print(json.dumps(result.to_dict()))
    elif not quiet:
        print_classify(result)


@contextmanager
def classify_progress(quiet: bool) -> "Iterator[Callable[[ClassifyProgress], None]]":
    """A bar on stderr for each phase, if a person is watching."""
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = error_console()
    counts = TextColumn("{task.completed:,.0f} of {task.total:,.0f} {task.description}")
    columns = (BarColumn(), counts, TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def advance(now: "ClassifyProgress") -> None:
            if now.phase not in tasks:
                tasks[now.phase] = bar.add_task("clips" if now.phase == "features" else "steps")
            bar.update(tasks[now.phase], total=now.total, completed=now.done)

        yield advance


def print_classify(result: "ClassifyResult") -> None:
    """The report: metrics in percent with their intervals, and published values marked as such."""
    rows = []
    for name, score in result.scores.items():
        between = "" if score.low is None else f"{score.low:.2f} to {score.high:.2f}"
        rows.append((TITLES[name], f"{score.value:.2f}", between))
    rows.append(("most frequent label", f"{result.chance:.2f}", ""))
    rows += [
        (f"published: {name}, {TITLES[result.metric]}", f"{value:.2f}", "") for name, value in result.published.items()
    ]
    tap = "" if result.tap is None else f", {result.tap}"
    tests = sum(fold.test for fold in result.folds)
    runs = "one split" if len(result.folds) == 1 else f"{len(result.folds)} folds"
    title = f"{result.dataset}: {result.model}{tap}, {result.pooling}: {result.classes} labels, {tests:,} clips, {runs}"
    print_table(title, [("%", "left"), ("", "right"), ("95 % over folds", "left")], rows)
    if result.published:
        print_note("published values are X-Codec's table 5, which does not say what tensor was probed (docs/probes.md)")
    for clip, reason in result.failed[:3]:
        print_note(f"{clip}: {reason} ({len(result.failed)} such clips)")
