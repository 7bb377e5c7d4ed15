"""Many files, one after another or in several processes: which become which, and what happened to each."""

import glob
import json
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any, BinaryIO

from xycodec.errors import XycodecError
from xycodec.io.audio import is_hidden
from xycodec.io.files import lines_of
from xycodec.io.progress import Advance, unwatched


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

    An input is a file, a folder (searched for `extensions`; what is hidden is left out), a glob, or `-`. `output` is
    a file for a single input file, else a folder that mirrors the inputs' trees; without it, results lie beside their
    sources. A result has its source's name with the suffix changed, or added where two sources differ in it alone
    (a.wav and a.mp3 give a.wav.xyc and a.mp3.xyc).

    Raises:
        XycodecError: an input is missing, a folder or glob gives nothing, two outputs would be the same file, or one
            would overwrite an input or have the suffix of one.
    """
    found: list[tuple[str, Path]] = []
    to_folder = output is not None and output != "-" and (Path(output).is_dir() or output.endswith("/"))
    single = len(inputs) == 1 and not Path(inputs[0]).is_dir() and not _is_pattern(inputs[0])
    if output is not None and not single:
        if output == "-" or any(place.is_file() for place in (Path(output), *Path(output).parents)):
            raise XycodecError(f"{output}: several inputs need a folder to write to")
        to_folder = True
    for given in inputs:
        found += expand_input(given, extensions)
    if single and output is not None and not to_folder:
        jobs = [Job(source, output) for source, _ in found]
    else:
        jobs = _mirrored(found, output, suffix)
    _check_targets(jobs)
    if output is not None and single and not to_folder and Path(output).suffix.lower() in extensions - {suffix}:
        raise XycodecError(f"{output}: a {suffix} file cannot have that suffix: give another name")
    return jobs


def _mirrored(found: Sequence[tuple[str, Path]], output: str | None, suffix: str) -> list[Job]:
    """Jobs whose targets have their sources' places below `output`, or lie beside them without it."""

    def place(source: str, relative: Path) -> Path:
        if source == "-":
            return Path("-" if output is None else Path(output) / "stdin")
        return Path(source) if output is None else Path(output) / relative

    places = [(source, place(source, relative)) for source, relative in found]
    sharing = Counter(path.with_suffix("") for path in {path for _, path in places} if path.suffix != suffix)
    jobs = []
    for source, path in places:
        name = path.name + suffix if sharing[path.with_suffix("")] > 1 else path.with_suffix(suffix).name
        jobs.append(Job(source, "-" if source == "-" and output is None else str(path.with_name(name))))
    return jobs


def _is_pattern(name: str) -> bool:
    return glob.has_magic(name) and not Path(name).exists()


def expand_input(given: str, extensions: frozenset[str]) -> Iterator[tuple[str, Path]]:
    """Yield (file, its path below the folder or glob) for everything that one input names, in order.

    Raises XycodecError if that is nothing.
    """
    path = Path(given)
    if given == "-" or path.is_file():
        yield given, Path(path.name)
    elif path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in extensions)
        found = [p for p in found if not is_hidden(p.relative_to(path))]
        if not found:
            raise XycodecError(f"{given}: the folder holds no {'/'.join(sorted(extensions))} file")
        for file in found:
            yield str(file), file.relative_to(path)
    elif _is_pattern(given):
        # A glob with two ** finds a file several times.
        names = sorted({name for name in glob.glob(given, recursive=True) if Path(name).is_file()})
        if not names:
            raise XycodecError(f"{given}: no file matches")
        for name in names:
            yield name, Path(os.path.relpath(name, _root(given)))
    elif path.exists():
        yield given, Path(path.name)  # a named pipe, /dev/stdin
    else:
        raise XycodecError(f"{given}: no such file or folder")


def _root(pattern: str) -> Path:
    """The folder below which a glob searches: its path up to the first part with a sign of a glob."""
    parts = Path(pattern).parts
    return Path(*takewhile(lambda part: not glob.has_magic(part), parts[:-1]))


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


Work = Callable[..., Any]
"""`work(source, target, advance=...)` makes one file from another and returns what it has to tell."""


def run_jobs(
    jobs: Sequence[Job],
    make_work: Callable[..., Work],
    settings: dict[str, Any],
    processes: int,
    advance: Advance = unwatched,
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
    with workers(min(processes, len(jobs)), make_work, settings) as pool:
        futures = {pool.submit(in_worker, _attempt, job): job for job in jobs}
        for future in as_completed(futures):
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                yield Outcome(futures[future], error="a worker process died (out of memory?): use fewer --jobs")
            elif isinstance(error, XycodecError):
                yield Outcome(futures[future], error=str(error))
            else:
                yield future.result()


def _attempt(work: Work, job: Job, advance: Advance = unwatched) -> Outcome:
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


# ---- processes that have something of their own --------------------------------------------------


@contextmanager
def workers(processes: int, make: Callable[..., Any], settings: Mapping[str, Any]) -> Iterator[ProcessPoolExecutor]:
    """Processes that call `make(**settings)` once each; `submit(in_worker, work, ...)` calls `work(made, ...)` in one.

    `make` must be importable and `settings` must pickle. They end with this process, whatever ends it.
    """
    # Forking a process that has used torch's threads can hang, so fresh ones are started.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _start, (make, dict(settings))) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def in_worker(work: Callable[..., Any], *arguments: Any) -> Any:
    """Call `work` on what this process has made. Raises XycodecError if it could not be made."""
    if _error is not None:
        raise _error
    return work(_made, *arguments)


_made: Any = None
_error: XycodecError | None = None


def _start(make: Callable[..., Any], settings: dict[str, Any]) -> None:
    global _made, _error  # a pool's initializer has no other way to reach its work
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _made = make(**settings)
    except XycodecError as error:
        _error = error


def _end_with_parent() -> None:
    """A killed parent cannot end its workers; they would go on for hours, and hold the memory."""
    if (parent := multiprocessing.parent_process()) is not None:
        wait_for([parent.sentinel])
        os._exit(1)


# ---- what is there already -----------------------------------------------------------------------


def pending(jobs: Iterable[Job], overwrite: bool) -> tuple[list[Job], list[Job]]:
    """Split jobs into those to do and those whose output exists already."""
    todo: list[Job] = []
    done: list[Job] = []
    for job in jobs:
        exists = not overwrite and job.target != "-" and Path(job.target).exists()
        (done if exists else todo).append(job)
    return todo, done


NOTES = ".xycodec.jsonl"
"""The file in a folder of results that keeps the settings which the results themselves do not tell."""


class Notes:
    """The settings noted of results; each folder's file is read once."""

    def __init__(self) -> None:
        self._known: dict[Path, dict[str, dict[str, Any]]] = {}

    def settings_of(self, target: str) -> dict[str, Any]:
        """The settings noted of a result; empty where there are none, as of results made with the defaults."""
        return self._of_folder(Path(target).parent).get(Path(target).name, {})

    def note(self, target: str, settings: dict[str, Any]) -> None:
        """Note what a result was made with, unless that is noted already or it is the defaults."""
        if target == "-" or not os.path.exists(target) or settings == self.settings_of(target):
            return
        folder, name = Path(target).parent, Path(target).name
        with open(folder / NOTES, "a+b") as file:
            if file.tell() and _last_byte(file) != b"\n":  # a line that an interrupted run did not finish
                file.write(b"\n")
            row = json.dumps({"result": name, "settings": settings}, ensure_ascii=False)
            file.write(row.encode(errors="surrogateescape") + b"\n")
        self._of_folder(folder)[name] = settings

    def _of_folder(self, folder: Path) -> dict[str, dict[str, Any]]:
        if folder not in self._known:
            self._known[folder] = dict(_noted(folder / NOTES))
        return self._known[folder]


def _noted(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        lines = lines_of(path.read_text(encoding="utf-8", errors="surrogateescape"))
    except OSError:
        return
    for line in lines:
        try:
            row = json.loads(line)
            yield row["result"], row["settings"]
        except (ValueError, TypeError, KeyError):  # a line that an interrupted run did not finish, or none of ours
            continue


def _last_byte(file: BinaryIO) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)
