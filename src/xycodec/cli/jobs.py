"""Many files through one command: what is done already, what is to do, and the exit code."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from xycodec.cli.terminal import error_console, print_outcome, progress
from xycodec.errors import XycodecError

if TYPE_CHECKING:
    from xycodec.io.parallel import Job, Work


def run_all(
    plan: "list[Job]",
    make_work: "Callable[..., Work]",
    settings: dict[str, Any],
    processes: int,
    threads: int | None,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Do all jobs that are not done yet, tell what became of each, and exit with 1 if any failed."""
    from xycodec.io import parallel

    todo, existing = parallel.pending(plan, overwrite)
    if len(plan) == 1 and existing:
        raise XycodecError(f"{plan[0].target} exists already: pass --overwrite to replace it")
    processes = min(processes, max(1, len(todo)))
    # Side by side, processes share the cores; more threads than cores slow each other down.
    settings["threads"] = max(1, (threads or os.cpu_count() or 1) // processes) if processes > 1 else threads
    console = error_console()
    failed, seconds = 0, 0.0
    with progress(console, len(todo), quiet or as_json) as (advance_file, advance_audio):
        for outcome in parallel.run_jobs(todo, make_work, settings, processes, advance_audio) if todo else ():
            advance_file()
            failed += outcome.error is not None
            seconds += outcome.result.seconds if outcome.result else 0
            print_outcome(outcome, console, quiet or (len(plan) > 20), as_json)
    if not quiet and len(plan) > 1:
        summary = f"{len(todo) - failed} done, {seconds:,.1f} s of audio"
        summary += f", {len(existing)} existed already (--overwrite replaces them)" if existing else ""
        console.print(summary + (f", {failed} failed" if failed else ""), highlight=False)
    if failed:
        raise typer.Exit(1)
