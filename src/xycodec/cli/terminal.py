"""What the command line shows a person: progress, tables, errors; reports as JSON for a program."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from xycodec.errors import XycodecError

if TYPE_CHECKING:
    from rich.console import Console

    from xycodec.eval.abx.run import AbxResult
    from xycodec.eval.asr_probe.run import ProbeProgress, ProbeResult
    from xycodec.eval.evaluate import Stage
    from xycodec.eval.results import Evaluation, Scores
    from xycodec.io.parallel import Job, Outcome, Work
    from xycodec.models.files import Comparison
    from xycodec.train.plan import RunPlan


def run_all(
    plan: "list[Job]",
    make_work: "Callable[..., Work]",
    settings: dict[str, Any],
    processes: int,
    threads: int | None,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
    untold: dict[str, Any],
    differs: "Callable[[Job], str | None]",
) -> None:
    """Do all jobs that are not done yet, tell what became of each, and exit with 1 if any failed.

    `untold` are the settings, other than the defaults, that a result does not tell; they are noted beside it. A result
    that exists passes for done if the same settings are noted of it and `differs` finds no other difference.
    """
    import os

    from xycodec.io import parallel as batch

    todo, existing = batch.pending(plan, overwrite)
    if len(plan) == 1 and existing:
        raise XycodecError(f"{plan[0].target} exists already: pass --overwrite to replace it")
    others = [(job, reason) for job in existing if (reason := _made_otherwise(job, untold, differs))]
    for job, reason in others[:_MOST_TOLD]:
        print_error(f"{job.target}: {reason}: pass --overwrite to replace it, or choose another output")
    if len(others) > _MOST_TOLD:
        print_error(f"{len(others) - _MOST_TOLD} more were made with other settings")
    processes = min(processes, max(1, len(todo)))
    # Side by side, processes share the cores; more threads than cores slow each other down.
    settings["threads"] = max(1, (threads or os.cpu_count() or 1) // processes) if processes > 1 else threads
    console = _console()
    failed, seconds = 0, 0.0
    with progress(console, len(todo), quiet or as_json) as (advance_file, advance_audio):
        for outcome in batch.run_jobs(todo, make_work, settings, processes, advance_audio) if todo else ():
            advance_file()
            failed += outcome.error is not None
            if outcome.result:
                seconds += outcome.result.seconds
                batch.note_settings(outcome.job.target, untold)
                for remark in outcome.result.remarks:
                    _note(remark)
            _print_outcome(outcome, console, quiet or (len(plan) > 20), as_json)
    if not quiet and len(plan) > 1:
        summary = f"{len(todo) - failed} done, {seconds:,.1f} s of audio"
        same = len(existing) - len(others)
        summary += f", {same} existed already (--overwrite replaces them)" if same else ""
        summary += f", {len(others)} were made with other settings" if others else ""
        console.print(summary + (f", {failed} failed" if failed else ""), highlight=False)
    if failed or others:
        raise typer.Exit(1)


_MOST_TOLD = 5  # results of other settings that are named


def _made_otherwise(job: "Job", untold: dict[str, Any], differs: "Callable[[Job], str | None]") -> str | None:
    from xycodec.io.parallel import settings_of

    noted = settings_of(job.target)
    if noted != untold:
        was, now = (", ".join(f"{key} {value}" for key, value in one.items()) or "none" for one in (noted, untold))
        return f"made with other settings (then {was}, now {now})"
    return differs(job)


def _print_outcome(outcome: "Outcome", console: "Console", quiet: bool, as_json: bool) -> None:
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


def _console() -> "Console":
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
    """The same on stderr for clips of which each is told once, with its seconds."""
    from rich.console import Console

    with progress(Console(stderr=True), None, quiet, unit) as (advance_clip, advance_audio):

        def advance(seconds: float) -> None:
            advance_clip()
            advance_audio(seconds)

        yield advance


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


def print_table(title: str, columns: Sequence[tuple[str, str]], rows: Sequence[tuple[str, ...]]) -> None:
    """A table on stdout; `columns` are (name, left or right), without names there is no heading."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), show_header=any(name for name, _ in columns), title_justify="left")
    for name, justify in columns:
        # Numbers stay whole; what is left of the width is for words.
        table.add_column(name, justify=justify, overflow="fold", no_wrap=justify == "right")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


METRICS = {
    "stoi": ("STOI", 3, "1 is equality"),
    "pesq_wb": ("PESQ wide-band", 2, "4.64 is equality"),
    "pesq_nb": ("PESQ narrow-band", 2, "4.55 is equality"),
    "mel_distance": ("mel distance", 3, "0 is equality"),
}
"""What a round trip measures: heading, decimals and scale."""


def print_comparison(result: "Comparison", picture: str) -> None:
    """The report of `xycodec roundtrip`."""
    one, two = result.encoded, result.decoded
    for remark in one.remarks:
        _note(remark)
    rows = [
        ("audio", f"{one.source} ({one.seconds:.2f} s)"),
        ("model", one.model),
        ("codes", f"{one.target} ({one.bytes:,} bytes, {one.bitrate:,.0f} bit/s)"),
        ("decoded", two.target),
        ("picture", picture),
        *((heading, _shown(result.quality, name)) for name, (heading, _, _) in METRICS.items()),
        ("encode", f"{one.speed:.1f} x real time"),
        ("decode", f"{two.speed:.1f} x real time"),
    ]
    print_table("round trip", [("", "left"), ("", "left")], rows)


def _shown(quality: "Scores", name: str) -> str:
    _, decimals, scale = METRICS[name]
    if name in quality.missing:
        return f"-- ({quality.missing[name]})"
    return f"{quality.values[name]:.{decimals}f} ({scale})"


def print_evaluation(result: "Evaluation", page: str) -> None:
    """The report of `xycodec evaluate`, in short: one row a codec, and what lacks."""
    from rich.console import Console

    from xycodec.eval.results import METRICS as KNOWN
    from xycodec.eval.results import pooled

    # Metrics down the side, there are more of them than codecs; and as many codecs at a time as a terminal is wide.
    per_table = max(1, (Console().width - 14) // 19)
    for start in range(0, len(result.codecs), per_table):
        codecs = result.codecs[start : start + per_table]
        rates = ("" if codec.bitrate is None else f"{codec.bitrate:,.0f}" for codec in codecs)
        rows = [("bit/s", *rates)]
        for name in result.metrics:
            values = (pooled(codec.clips, name) for codec in codecs)
            shown = ("--" if value is None else f"{value:.{KNOWN[name].digits}f}" for value in values)
            rows.append((KNOWN[name].title, *shown))
        columns = [("", "left"), *((_shortened(codec.title), "right") for codec in codecs)]
        print_table(f"{result.title}: {len(codecs[0].clips)} clips", columns, rows)
    told: set[str] = set()  # what cannot be read is so for every codec
    for codec in result.codecs:
        errors = [clip.error for clip in codec.clips if clip.error and clip.error not in told]
        for error in sorted(set(errors)):
            print_error(f"{codec.title}: {errors.count(error)} clips without scores: {error}")
        told |= set(errors)
        for name in result.metrics:
            lacking = [clip.scores.missing[name] for clip in codec.clips if name in clip.scores.missing]
            if lacking:
                _note(f"{codec.title}: {KNOWN[name].title} lacks {len(lacking)} clips, the first: {lacking[0]}")
    own = {clip.clip for codec in result.codecs for clip in codec.clips if clip.scores.reference is not None}
    if own:
        _note(f"WER and CER: {len(own)} clips have no text, their reference is what was heard in the original")
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
            _note(f"{name}: {clips.without_text} clips without text were left out")
        if clips.crowded:
            _note(f"{name}: {clips.crowded} clips have more characters than frames")
        for clip, reason in clips.failed[:3]:
            _note(f"{name}: {clip}: {reason} ({len(clips.failed)} such clips)")


def print_abx(result: "AbxResult") -> None:
    """The report of `xycodec abx`."""
    columns = [("frames", "left"), ("codebooks", "right"), ("speakers", "left"), ("error, %", "right")]
    rows = [
        (score.kind, str(score.n_q), score.mode, "--" if score.error is None else f"{score.error:.2f}")
        for score in result.scores
    ]
    triples = ", ".join(f"{one.triples:,} triples {one.mode}" for one in result.counts)
    print_table(f"ABX of {result.model}: {triples}", columns, rows)
    for remark in result.remarks:
        _note(remark)


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
    title = f"{report['model']} on {report['device']}, float32 peak {report['peak_gflops']:,.0f} GFLOP/s"
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


def _note(message: str) -> None:
    print(f"note: {message}", file=sys.stderr)


def print_error(message: str) -> None:
    """One line on stderr."""
    print(f"error: {message}", file=sys.stderr, flush=True)
