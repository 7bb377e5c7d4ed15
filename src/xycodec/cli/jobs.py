"""Many files through one command: what is done already, what is to do, and the exit code."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from xycodec.cli.terminal import error_console, print_error, print_note, print_outcome, progress
from xycodec.errors import XycodecError

if TYPE_CHECKING:
    from xycodec.io.parallel import Job, Notes, Work


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
    from xycodec.io import parallel
    from xycodec.io.cores import available_cores

    todo, existing = parallel.pending(plan, overwrite)
    if len(plan) == 1 and existing:
        raise XycodecError(f"{plan[0].target} exists already: pass --overwrite to replace it")
    notes = parallel.Notes()
    others = [(job, reason) for job in existing if (reason := _made_otherwise(job, notes, untold, differs))]
    for job, reason in others[:_MOST_TOLD]:
        print_error(f"{job.target}: {reason}: pass --overwrite to replace it, or choose another output")
    if len(others) > _MOST_TOLD:
        print_error(f"{len(others) - _MOST_TOLD} more were made with other settings")
    processes = min(processes, max(1, len(todo)))
    # Side by side, processes share the cores; more threads than cores slow each other down.
    settings["threads"] = max(1, (threads or available_cores()) // processes) if processes > 1 else threads
    console = error_console()
    failed, seconds = 0, 0.0
    with progress(console, len(todo), quiet or as_json) as (advance_file, advance_audio):
        for outcome in parallel.run_jobs(todo, make_work, settings, processes, advance_audio) if todo else ():
            advance_file()
            failed += outcome.error is not None
            if outcome.result:
                seconds += outcome.result.seconds
                notes.note(outcome.job.target, untold)
                for remark in outcome.result.remarks:
                    print_note(remark)
            print_outcome(outcome, console, quiet or (len(plan) > 20), as_json)
    if not quiet and len(plan) > 1:
        summary = f"{len(todo) - failed} done, {seconds:,.1f} s of audio"
        same = len(existing) - len(others)
        summary += f", {same} existed already (--overwrite replaces them)" if same else ""
        summary += f", {len(others)} were made with other settings" if others else ""
        console.print(summary + (f", {failed} failed" if failed else ""), highlight=False)
    if failed or others:
        raise typer.Exit(1)


_MOST_TOLD = 5  # results of other settings that are named


def _made_otherwise(
    job: "Job", notes: "Notes", untold: dict[str, Any], differs: "Callable[[Job], str | None]"
) -> str | None:
    noted = notes.settings_of(job.target)
    if noted != untold:
        was, now = (", ".join(f"{key} {value}" for key, value in one.items()) or "none" for one in (noted, untold))
        return f"made with other settings (then {was}, now {now})"
    return differs(job)
