"""Many files, one after another or in several processes: which become which, and what happened to each."""

import glob
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xycodec.errors import XycodecError


@dataclass(frozen=True)
class Job:
    """One file to make from another; `-` is stdin or stdout."""

    source: str
    target: str


@dataclass(frozen=True)
class Outcome:
    """Result of a job, or one line that says why there is none."""

    job: Job
    result: Any = None
    error: str | None = None


def plan_jobs(inputs: Sequence[str], output: str | None, suffix: str, extensions: frozenset[str]) -> list[Job]:
    """Match every input with its output.

    An input is a file, a folder (searched for `extensions`), a glob, or `-`. `output` is a file for a single
    input file, else a folder that mirrors the inputs' tree; without it, results lie beside their sources with
    the suffix changed. Raises XycodecError if an input is missing, a folder or glob gives nothing, or two
    outputs would be the same file or overwrite an input.
    """
    jobs = []
    to_folder = output is not None and output != "-" and (Path(output).is_dir() or output.endswith("/"))
    single = len(inputs) == 1 and not Path(inputs[0]).is_dir() and not _is_pattern(inputs[0])
    if output is not None and not single:
        if output == "-" or any(place.is_file() for place in (Path(output), *Path(output).parents)):
            raise XycodecError(f"{output}: several inputs need a folder to write to")
        to_folder = True
    for given in inputs:
        for source, relative in _expand(given, extensions):
            if output is None:
                target = "-" if source == "-" else str(Path(source).with_suffix(suffix))
            elif to_folder:
                name = Path("stdin") if source == "-" else relative
                target = str(Path(output) / name.with_suffix(suffix))
            else:
                target = output
            jobs.append(Job(source, target))
    _check_targets(jobs)
    return jobs


def _is_pattern(name: str) -> bool:
    return glob.has_magic(name) and not Path(name).exists()


def _expand(given: str, extensions: frozenset[str]) -> Iterator[tuple[str, Path]]:
    """(source, its path below the output folder) for everything that one input names."""
    path = Path(given)
    if given == "-" or path.is_file():
        yield given, Path(path.name)
    elif path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in extensions)
        if not found:
            raise XycodecError(f"{given}: the folder holds no {'/'.join(sorted(extensions))} file")
        for file in found:
            yield str(file), file.relative_to(path)
    elif _is_pattern(given):
        names = sorted(name for name in glob.glob(given, recursive=True) if Path(name).is_file())
        if not names:
            raise XycodecError(f"{given}: no file matches")
        for name in names:
            yield name, Path(Path(name).name)
    elif path.exists():
        yield given, Path(path.name)  # a named pipe, /dev/stdin
    else:
        raise XycodecError(f"{given}: no such file or folder")


def _check_targets(jobs: Sequence[Job]) -> None:
    made_from: dict[str, str] = {}
    sources = {os.path.realpath(job.source) for job in jobs if job.source != "-"}
    for job in jobs:
        place = "-" if job.target == "-" else os.path.realpath(job.target)
        if place in made_from:
            raise XycodecError(f"{job.source} and {made_from[place]} would both become {job.target}")
        if place in sources:
            raise XycodecError(f"{job.target} would overwrite an input: choose another output")
        made_from[place] = job.source


Advance = Callable[[float], None]
"""Callback for progress, told the seconds of audio just done."""
Work = Callable[..., Any]
"""`work(source, target, advance=...)` makes one file from another and returns what it has to tell."""


def run_jobs(
    jobs: Sequence[Job],
    make_work: Callable[..., Work],
    settings: dict[str, Any],
    processes: int,
    advance: Advance = lambda seconds: None,
) -> Iterator[Outcome]:
    """Do every job and yield what became of it; one that fails does not stop the others.

    `make_work(**settings)` gives the function for one job. It is called once in every process, so it must be
    importable and `settings` must pickle. With one process it is called in this one, and `advance` hears of
    progress inside a file.
    """
    # Only this process has a stdin and a stdout.
    if processes == 1 or len(jobs) <= 1 or any("-" in (job.source, job.target) for job in jobs):
        work = make_work(**settings)
        for job in jobs:
            yield _attempt(work, job, advance)
        return
    # Forking a process that has used torch's threads can hang, so fresh ones are started.
    context = multiprocessing.get_context("spawn")
    workers = min(processes, len(jobs))
    with ProcessPoolExecutor(workers, context, _start_worker, (make_work, settings)) as pool:
        futures = {pool.submit(_in_worker, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                if isinstance(future.exception(), BrokenProcessPool):
                    yield Outcome(futures[future], error="a worker process died (out of memory?): use fewer --jobs")
                else:
                    yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _attempt(work: Work, job: Job, advance: Advance) -> Outcome:
    try:
        if job.target != "-":
            Path(job.target).parent.mkdir(parents=True, exist_ok=True)
        return Outcome(job, work(job.source, job.target, advance=advance))
    except XycodecError as error:
        return Outcome(job, error=str(error))
    except BrokenPipeError:
        return Outcome(job, error=f"{job.target}: the reader of the output went away")
    except OSError as error:
        return Outcome(job, error=f"{error.filename or job.source}: {error.strerror or error}")


_worker_work: Work | None = None
_worker_error: str = ""


def _start_worker(make_work: Callable[..., Work], settings: dict[str, Any]) -> None:
    global _worker_work, _worker_error  # a pool's initializer has no other way to reach its jobs
    try:
        _worker_work = make_work(**settings)
    except XycodecError as error:
        _worker_error = str(error)


def _in_worker(job: Job) -> Outcome:
    if _worker_work is None:
        return Outcome(job, error=_worker_error)
    return _attempt(_worker_work, job, lambda seconds: None)


def pending(jobs: Iterable[Job], overwrite: bool) -> tuple[list[Job], list[Job]]:
    """Split jobs into those to do and those whose output exists already."""
    todo: list[Job] = []
    done: list[Job] = []
    for job in jobs:
        exists = not overwrite and job.target != "-" and Path(job.target).exists()
        (done if exists else todo).append(job)
    return todo, done
