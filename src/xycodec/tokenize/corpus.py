"""A corpus to a store of tokens: planned once, encoded shard by shard, finished; a killed call goes on where it was."""

import fcntl
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xycodec.errors import StoreError
from xycodec.io.files import is_scratch, os_error_line
from xycodec.io.tokens.layout import SHARD_LIST, SHARDS, STORE, Description, read_description, shard_name
from xycodec.io.tokens.read import TokenStore
from xycodec.io.tokens.write import begin_store, finish_store, locked
from xycodec.tokenize.inputs.item import Item
from xycodec.tokenize.inputs.listing import list_items
from xycodec.tokenize.plan import WORK, Job, Plan, make_plan, part_of, read_job, write_job
from xycodec.tokenize.progress import Progress
from xycodec.tokenize.shard import AdvanceClips, Encoding, Times, encode_shard


@dataclass
class Report:
    """Report on a store: its clips and seconds, clips that failed, clips encoded by this call, and where its time went.

    `failures` has the first of them.
    """

    clips: int
    seconds: float
    failed: int
    made: int
    times: Times
    failures: list[dict[str, Any]] = field(default_factory=list)


Engine = Callable[[Path, list[int]], Iterable[Times]]
"""Does shards of a begun store, and yields where the time of each went."""


def tokenize_corpus(
    inputs: Sequence[str],
    folder: Path,
    description: Description,
    engine: Engine,
    *,
    items: Iterable[Item] | None = None,
    shard_clips: int | None = None,
    planned: Callable[[int, int], None] = lambda clips, done: None,
    tell: Callable[[int], None] = lambda clips: None,
) -> Report:
    """Encode every clip of some inputs into a store.

    The same call goes on where another was interrupted: clips that are in a shard are not encoded again, and the store
    becomes the same byte for byte. A clip that cannot be read or encoded is listed in `failures.jsonl`.

    Args:
        inputs: as `list_items` takes them.
        folder: the store: a new folder, or one that the same call began.
        description: of the codes (`Encoding.describe`).
        engine: what encodes shards, such as `LocalEngine`.
        items: the clips that `inputs` name, if `list_items` does not know them.
        shard_clips: clips of a shard (None: a 64th of the corpus, from 32 to 4096).
        planned: told the clips of the corpus, and how many are done, before the first is encoded.
        tell: told how many clips were listed, now and then.

    Raises:
        StoreError: the folder is of other codes or inputs, another process is writing it, or it cannot be written.
        XycodecError: an input is not there or of no known form.
    """
    begin_store(folder, description)
    with _alone(folder):
        for path in filter(is_scratch, folder.iterdir()):
            path.unlink()
        if (folder / SHARD_LIST).is_file():
            _require_same(folder, read_job(folder), inputs)
            shutil.rmtree(folder / WORK, ignore_errors=True)
            return _report(folder, None, Times())
        job = read_job(folder / WORK)
        if job is None:
            job = make_plan(folder / WORK, inputs, list_items(inputs) if items is None else items, shard_clips, tell)
        _require_same(folder, job, inputs)
        progress = Progress(folder, description)
        before = progress.encoded()
        planned(job.clips, progress.done()[0])
        left = [number for number in range(job.shards) if not (folder / SHARDS / shard_name(number)).is_dir()]
        times = Times()
        for spent in engine(folder, left):
            times += spent
        write_job(folder, job)
        finish_store(folder)
        shutil.rmtree(folder / WORK, ignore_errors=True)
        return _report(folder, before, times)


def do_shard(
    encoding: Encoding, folder: Path, number: int, advance: AdvanceClips = lambda clips, seconds: None
) -> Times:
    """Encode a shard of a begun store, unless it is there. Raises StoreError if it cannot be written.

    A process that has lost its parent may still be at it: then this one waits for it.
    """
    part, place = part_of(folder, number), folder / SHARDS / shard_name(number)
    with locked(part.with_suffix(".lock")):
        if place.is_dir():
            return Times()
        items = Plan(folder / WORK).items(number)
        return encode_shard(encoding, items, part, place, read_description(folder), advance)


def _require_same(folder: Path, job: Job | None, inputs: Sequence[str]) -> None:
    if job is not None and job.inputs != tuple(inputs):
        was = " ".join(job.inputs)
        raise StoreError(f"{folder}: was begun with other inputs ({was}): choose another folder, and merge the stores")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        with open(folder / STORE, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
    except BlockingIOError:
        raise StoreError(f"{folder}: another process is writing it: wait for it, or end it") from None
    except OSError as error:
        raise StoreError(os_error_line(str(folder), "written", error)) from error


def _report(folder: Path, before: int | None, times: Times) -> Report:
    """Report on a store of which so many clips were there before, None for all."""
    store = TokenStore(folder)
    failures = store.failures()
    made = 0 if before is None else len(store) - before
    return Report(len(store), store.seconds, len(failures), made, times, failures[:5])
