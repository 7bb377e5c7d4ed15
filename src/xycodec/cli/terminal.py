"""Output for a person: progress, tables, errors; and reports as JSON for a program."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from xycodec.eval.abx.run import AbxResult
    from xycodec.eval.asr_probe.run import ProbeProgress, ProbeResult
    from xycodec.eval.record import Stage
    from xycodec.eval.results import Evaluation, Metric, Scores
    from xycodec.eval.roundtrip import Comparison
    from xycodec.io.parallel import Outcome
    from xycodec.train.plan import RunPlan


def print_outcome(outcome: "Outcome", console: "Console", quiet: bool, as_json: bool) -> None:
    """Print the result of one file, as a line or as JSON."""
    if outcome.error:
        print_error(outcome.error)
    if as_json:
        # Codes or audio may be on stdout; then the report goes where the errors go.
        stream = sys.stderr if outcome.job.target == "-" else sys.stdout
        report = asdict(outcome.result) if outcome.result else {**asdict(outcome.job), "error": outcome.error}
        print(json.dumps(report), file=stream, flush=True)
    elif outcome.result and not quiet:
        made = outcome.result
        text = f"{made.source} -> {made.target}: {made.seconds:.2f} s, {made.bytes:,} bytes, {made.bitrate:,.0f} bit/s"
        console.print(f"{text}, {made.speed:.1f} x real time", highlight=False, markup=False, soft_wrap=True)


def error_console() -> "Console":
    """A console on stderr."""
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def progress(
    console: "Console", files: int | None, quiet: bool, unit: str = "files"
) -> "Iterator[tuple[Callable[[], None], Callable[[float], None]]]":
    """A bar over files, if their number is known, and a count of audio seconds, if a person is watching."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit + ", {task.fields[seconds]:,.0f} s of audio,"),
        TimeElapsedColumn(),
    )
    hidden = quiet or not console.is_terminal
    with Progress(*columns, console=console, disable=hidden, transient=True) as bar:
        task = bar.add_task("", total=files, seconds=0.0)

        def advance_audio(seconds: float) -> None:
            bar.update(task, seconds=bar.tasks[task].fields["seconds"] + seconds)

        yield lambda: bar.advance(task), advance_audio


@contextmanager
def clip_progress(unit: str, quiet: bool) -> "Iterator[Callable[[float], None]]":
    """A progress bar on stderr for clips; call the function it yields once for each, with its seconds."""
    from rich.console import Console

    with progress(Console(stderr=True), None, quiet, unit) as (advance_clip, advance_audio):

        def advance(seconds: float) -> None:
            advance_clip()
            advance_audio(seconds)

        yield advance


@dataclass(frozen=True)
class TokenBar:
    """Callbacks of a corpus's bar: clips listed so far; clips in all and done before; clips encoded, and seconds."""

    listed: "Callable[[int], None]"
    planned: "Callable[[int, int], None]"
    advance: "Callable[[int, float], None]"


@contextmanager
def token_progress(quiet: bool) -> "Iterator[TokenBar]":
    """A bar on stderr over the clips of a corpus, with the time that is left."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = error_console()
    text = TextColumn("clips, {task.fields[seconds]:,.0f} s of audio,")
    columns = (BarColumn(), MofNCompleteColumn(), text, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    hidden = quiet or not console.is_terminal
    with Progress(*columns, console=console, disable=hidden, transient=True) as bar:
        task = bar.add_task("", total=None, seconds=0.0)

        def advance(clips: int, seconds: float) -> None:
            bar.update(task, advance=clips, seconds=bar.tasks[task].fields["seconds"] + seconds)

        yield TokenBar(
            lambda clips: bar.update(task, completed=clips),
            lambda clips, done: bar.update(task, total=clips, completed=done),
            advance,
        )


def stage_progress(quiet: bool) -> "Stage":
    """A bar on stderr for each stage of an evaluation that has something to do."""

    @contextmanager
    def stage(name: str, clips: int) -> "Iterator[Callable[[], None]]":
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        hidden = quiet or not clips or not console.is_terminal
        with Progress(*columns, console=console, disable=hidden, transient=True) as bar:
            task = bar.add_task(name, total=clips)
            yield lambda: bar.advance(task)

    return stage


@contextmanager
def probe_progress(quiet: bool) -> "Iterator[Callable[[ProbeProgress], None]]":
    """A bar on stderr for each phase of a probe, with the best word error rate so far."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    counts = TextColumn("{task.completed:,.0f} of {task.total:,.0f} {task.fields[what]}")
    columns = (BarColumn(), counts, TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def advance(now: "ProbeProgress") -> None:
            if now.phase not in tasks:
                tasks[now.phase] = bar.add_task("", what="")
            best = "" if now.wer is None else f", WER {now.wer:.3f}"
            what = "s of audio encoded" if now.phase == "encoding" else f"steps{best}"
            bar.update(tasks[now.phase], total=now.total, completed=now.done, what=what)

        yield advance


class Whole(str):
    """A cell of a table that stays on one line, such as a path with spaces."""


def print_table(title: str, columns: Sequence[tuple[str, str]], rows: Sequence[tuple[str, ...]]) -> None:
    """A table on stdout; `columns` are (name, left or right), without names there is no heading.

    Words, ids and paths stay whole, sentences are wrapped. What is wider than the terminal all the same has no frame,
    or is a wider table where it has a heading.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=any(name for name, _ in columns))
    width = 1
    for i, (name, justify) in enumerate(columns):
        cells = [name, *(row[i] for row in rows)]
        # Numbers stay whole; what is left of the width is for words.
        whole = justify == "right"
        least = max(cell_len(part) for cell in cells for part in _unbroken(cell, whole))
        table.add_column(name, justify=justify, min_width=least, no_wrap=whole)  # type: ignore[arg-type]
        width += least + 3
    for row in rows:
        table.add_row(*(Text(cell, no_wrap=isinstance(cell, Whole)) for cell in row))
    print(title)
    console = Console()
    if width > console.width and not table.show_header:
        # Lines without a frame, which a terminal can wrap.
        keys = max(cell_len(key) for key, *_ in rows)
        print("\n".join(f"{key:{keys}}  {'  '.join(cells)}" for key, *cells in rows))
        return
    console.width = max(console.width, width)
    console.print(table)


def _unbroken(cell: str, whole: bool) -> list[str]:
    """The parts of a table's cell that may not be broken over lines: the whole cell, its lines, or its words."""
    if isinstance(cell, Whole):
        return [cell]
    return (cell.splitlines() if whole else cell.split()) or [""]


def print_comparison(result: "Comparison", picture: str) -> None:
    """The report of `xycodec roundtrip`."""
    from xycodec.eval.results import METRICS, ROUNDTRIP

    one, two = result.encoded, result.decoded
    for remark in one.remarks:
        print_note(remark)
    rows = [
        ("audio", Whole(f"{one.source} ({one.seconds:.2f} s)")),
        ("model", one.model),
        ("codes", Whole(one.target)),
        ("", f"{one.bytes:,} bytes, {one.bitrate:,.0f} bit/s"),
        ("decoded", Whole(two.target)),
        ("picture", Whole(picture)),
        *((METRICS[name].title, _shown(result.quality, METRICS[name])) for name in ROUNDTRIP),
        ("encode", f"{one.speed:.1f} x real time"),
        ("decode", f"{two.speed:.1f} x real time"),
    ]
    print_table("round trip", [("", "left"), ("", "left")], rows)


def _shown(quality: "Scores", metric: "Metric") -> str:
    if metric.name in quality.missing:
        return f"-- ({quality.missing[metric.name]})"
    return f"{quality.values[metric.name]:.{metric.digits}f} ({metric.equality} is equality)"


def print_evaluation(result: "Evaluation", page: str) -> None:
    """The report of `xycodec evaluate`, in short: one row a codec, and what lacks."""
    from rich.console import Console

    from xycodec.eval.results import METRICS, overall

    # Metrics down the side, there are more of them than codecs; and as many codecs at a time as a terminal is wide.
    per_table = max(1, (Console().width - 14) // 19)
    for start in range(0, len(result.codecs), per_table):
        codecs = result.codecs[start : start + per_table]
        rates = ("" if codec.bitrate is None else f"{codec.bitrate:,.0f}" for codec in codecs)
        rows = [("bit/s", *rates)]
        for name in result.metrics:
            values = (overall(codec, name) for codec in codecs)
            shown = ("--" if value is None else f"{value:.{METRICS[name].digits}f}" for value in values)
            rows.append((METRICS[name].title, *shown))
        columns = [("", "left"), *((_shortened(codec.title), "right") for codec in codecs)]
        print_table(f"{result.title}: {len(codecs[0].clips)} clips", columns, rows)
    for warning in result.warnings:
        print_note(warning)
    told: set[str] = set()  # what cannot be read is so for every codec
    for codec in result.codecs:
        errors = [clip.error for clip in codec.clips if clip.error and clip.error not in told]
        for error in sorted(set(errors)):
            print_error(f"{codec.title}: {errors.count(error)} clips without scores: {error}")
        told |= set(errors)
        for name in result.metrics:
            lacking = [clip.scores.missing[name] for clip in codec.clips if name in clip.scores.missing]
            if lacking:
                print_note(f"{codec.title}: {METRICS[name].title} lacks {len(lacking)} clips, the first: {lacking[0]}")
    own = {clip.clip for codec in result.codecs for clip in codec.clips if clip.scores.reference is not None}
    if own:
        print_note(f"WER and CER: {len(own)} clips have no text, their reference is what was heard in the original")
    print(page)


def _shortened(title: str) -> str:
    return title if len(title) <= 16 else "\N{HORIZONTAL ELLIPSIS}" + title[-15:]


def print_probe(result: "ProbeResult", expected: float | None) -> None:
    """The report of `xycodec probe`; `expected` is a published WER."""
    rows = [
        ("WER", f"{result.wer:.4f}"),
        *([("published", f"{expected:.4f} (difference {result.wer - expected:+.4f})")] if expected is not None else []),
        ("CER", f"{result.cer:.4f}"),
        ("at step", f"{result.best_step:,} of {result.steps:,}"),
        ("codebooks", str(result.n_q)),
        ("learned from", f"{result.train.used:,} clips, {result.train.seconds / 3600:.2f} h"),
        ("measured on", f"{result.dev.used:,} clips, {result.dev.seconds / 3600:.2f} h"),
    ]
    print_table(f"ASR probe of {result.model}", [("", "left"), ("", "left")], rows)
    for name, clips in (("train", result.train), ("dev", result.dev)):
        if clips.without_text:
            print_note(f"{name}: {clips.without_text} clips without text were left out")
        if clips.crowded:
            print_note(f"{name}: {clips.crowded} clips have more characters than frames")
        for clip, reason in clips.failed[:3]:
            print_note(f"{name}: {clip}: {reason} ({len(clips.failed)} such clips)")


def print_abx(result: "AbxResult") -> None:
    """The report of `xycodec abx`."""
    columns = [("frames", "left"), ("codebooks", "right"), ("speakers", "left"), ("error, %", "right")]
    rows = [
        (
            score.kind,
            "" if score.n_q is None else str(score.n_q),
            score.mode,
            "--" if score.error is None else f"{score.error:.2f}",
        )
        for score in result.scores
    ]
    triples = ", ".join(f"{one.triples:,} triples {one.mode}" for one in result.counts)
    print_table(f"ABX of {result.model}: {triples}", columns, rows)
    for remark in result.remarks:
        print_note(remark)


def print_kernels(report: dict[str, Any]) -> None:
    """The report of `xycodec bench --kernels`."""
    titles = {"mkl": "MKL", "onednn": "oneDNN", None: "neither"}
    rows = [
        (
            row["part"],
            " x ".join(map(str, row["shape"])),
            titles[row["library"]],
            f"{row['gflops']:,.0f}",
            "yes" if row["keeps_bits"] else "no",
        )
        for row in report["rows"]
    ]
    columns = [("part", "left"), ("shape", "right"), ("library", "left"), ("GFLOP/s", "right"), ("keeps bits", "left")]
    print_table("products of float32 matrices", columns, rows)
    for name, choice in (("in force", report["in_force"]), ("proposed", report["proposed"])):
        print(f"{name}: {', '.join(f'{part} {titles[library]}' for part, library in choice.items())}")
    print(
        f"in force is the row {report['processor']} of xycodec/nn/deterministic/kernels.py, another by XYCODEC_KERNELS"
    )


def print_bench(report: dict[str, Any]) -> None:
    """The report of `xycodec bench`."""
    titles = ("clip", "encode", "x real time", "of peak", "decode", "x real time", "of peak")
    rows = [
        (
            f"{row['seconds']:g} s",
            f"{row['encode_s']:.3f} s",
            f"{row['encode_speed']:.1f}",
            f"{row['encode_share']:.0%}",
            f"{row['decode_s']:.3f} s",
            f"{row['decode_speed']:.1f}",
            f"{row['decode_share']:.0%}",
        )
        for row in report["rows"]
    ]
    title = (
        f"{report['model']} on {report['device']}, {report['threads']} threads, "
        f"float32 peak {report['peak_gflops']:,.0f} GFLOP/s ({report['peak_by']})"
    )
    print_table(title, [(name, "right") for name in titles], rows)
    if mixed := report.get("batch"):
        print(
            f"{mixed['clips']} clips of 2 to 15 s in one call: {mixed['batch_speed']:.1f} x real time, "
            f"{mixed['ratio']:.2f} of 10 s clips one by one"
        )
    if low := report.get("bfloat16"):
        shares = ", ".join(f"{share:.1%}" for share in low["equal_codes"])
        print(
            f"bfloat16: encode {low['encode_ratio']:.2f} x, decode {low['decode_ratio']:.2f} x as fast; "
            f"equal codes by layer: {shares}"
        )


def print_plan(plan: "RunPlan") -> None:
    """The report of `xycodec train --dry-run`."""
    rows = [(part.name, f"{part.parameters:,}", _trained(part.parameters, part.trainable)) for part in plan.parts]
    total, trained = sum(p.parameters for p in plan.parts), sum(p.trainable for p in plan.parts)
    rows.append(("in all", f"{total:,}", f"{trained:,} trained"))
    print_table(f"{plan.stage}: parameters", [("part", "left"), ("parameters", "right"), ("", "left")], rows)
    memory = ", ".join(f"{name} {size:.2f}" for name, size in plan.memory_gib.items())
    print(f"memory of a process, GiB (estimate): {memory}")
    epoch = "unknown (streamed or endless)" if plan.steps_per_epoch is None else f"{plan.steps_per_epoch:,}"
    print(f"processes: {plan.processes}; clips a step: at most {plan.clips_per_step}")
    print(f"{plan.steps:,} steps, an epoch is {epoch}")
    for line in plan.remarks:
        print(line)


def _trained(parameters: int, trainable: int) -> str:
    if trainable == parameters:
        return "trained"
    return "frozen" if not trainable else f"{trainable:,} trained"


def print_note(message: str) -> None:
    """Print a remark on stderr."""
    print(f"note: {message}", file=sys.stderr)


def print_error(message: str) -> None:
    """Print an error as one line on stderr."""
    print(f"error: {message}", file=sys.stderr, flush=True)
