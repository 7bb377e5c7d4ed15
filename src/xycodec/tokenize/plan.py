"""The plan of a corpus: every clip listed once, in order, and cut into shards whatever the number of workers."""

import json
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xycodec.errors import StoreError
from xycodec.io.files import atomic_path, os_error_line
from xycodec.io.tokens.layout import hash_of, shard_name
from xycodec.tokenize.inputs.item import Item

JOB = "job.json"
WORK = "work"
"""Folder of a store that is not finished: the plan, and shards that are being written."""
_ITEMS, _OFFSETS = "items.jsonl", "offsets.bin"
_MOST_CLIPS, _FEWEST_CLIPS, _SHARDS = 4096, 32, 64


@dataclass(frozen=True)
class Job:
    """The job that a store was begun with: its inputs, the number of their clips, and that of a shard's."""

    inputs: tuple[str, ...]
    clips: int
    shard_clips: int

    @property
    def shards(self) -> int:
        """Shards of all clips; a corpus without clips has none."""
        return -(-self.clips // self.shard_clips)

    def clips_of(self, shard: int) -> int:
        """Clips of a shard: the last may have fewer."""
        return min(self.shard_clips, self.clips - shard * self.shard_clips)


def part_of(folder: Path, shard: int) -> Path:
    """The folder in which a shard of a store grows."""
    return folder / WORK / f"shard-{shard_name(shard)}"


class Plan:
    """The clips of a job, read shard by shard. Raises StoreError if the folder holds no plan.

    Args:
        folder: what `make_plan` filled.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        found = read_job(folder)
        if found is None:
            raise StoreError(f"{folder}: holds no plan: run the command again")
        self.job = found

    def items(self, shard: int) -> list[Item]:
        """The clips of a shard, in order."""
        first = shard * self.job.shard_clips
        count = self.job.clips_of(shard)
        try:
            offsets = np.fromfile(self._folder / _OFFSETS, "<u8", count + 1, offset=8 * first).tolist()
            with open(self._folder / _ITEMS, "rb") as file:
                file.seek(offsets[0])
                lines = file.read(offsets[-1] - offsets[0]).splitlines()
            if len(lines) != count:
                raise ValueError(f"{len(lines)} clips of {count}")
            return [Item.from_row(json.loads(line)) for line in lines]
        except OSError as error:
            raise StoreError(os_error_line(str(self._folder), "read", error)) from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise StoreError(f"{self._folder}: the plan of shard {shard} is damaged ({error}): {_AGAIN}") from error


def read_job(folder: Path) -> Job | None:
    """The job whose plan, or store, a folder holds; None if it has none yet. Raises StoreError if it is damaged."""
    try:
        row = json.loads((folder / JOB).read_bytes())
        return Job(tuple(row["inputs"]), int(row["clips"]), int(row["shard_clips"]))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(os_error_line(str(folder / JOB), "read", error)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{folder / JOB}: is damaged ({error}): {_AGAIN}") from error


_AGAIN = "remove the store and begin again"


def make_plan(
    folder: Path,
    inputs: Sequence[str],
    items: Iterable[Item],
    shard_clips: int | None,
    tell: Callable[[int], None] = lambda clips: None,
) -> Job:
    """List `items` in a folder and cut them into shards. A clip whose id came before is listed as a failure.

    `shard_clips` of None is a 64th of the clips, from 32 to 4096. `tell` hears now and then how many clips there are.
    Raises StoreError if the folder cannot be written, or there are no clips.
    """
    offsets, hashes = array("Q", [0]), array("Q")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / _ITEMS, "wb") as file:
            for item in items:
                hashes.append(hash_of(item.id))
                offsets.append(offsets[-1] + file.write(_line(item)))
                if len(hashes) % 10_000 == 0:
                    tell(len(hashes))
        if not hashes:
            raise StoreError(f"{', '.join(inputs)}: no clips")
        offsets = _without_twins(folder / _ITEMS, offsets, np.asarray(hashes))
        np.asarray(offsets, "<u8").tofile(folder / _OFFSETS)
        clips = len(hashes)
        size = shard_clips or min(_MOST_CLIPS, max(_FEWEST_CLIPS, -(-clips // _SHARDS)))
        job = Job(tuple(inputs), clips, size)
        write_job(folder, job)
        return job
    except OSError as error:
        raise StoreError(os_error_line(str(folder), "written", error)) from error


def write_job(folder: Path, job: Job) -> None:
    """Note in a folder what it was made from."""
    with atomic_path(folder / JOB, StoreError) as scratch:
        scratch.write_text(json.dumps(asdict(job), ensure_ascii=False) + "\n", encoding="utf-8")


def _line(item: Item) -> bytes:
    return json.dumps(item.to_row(), ensure_ascii=False, default=_in_json).encode() + b"\n"


def _in_json(value: Any) -> Any:
    """numpy's numbers, which some of Lhotse's cuts hold."""
    return value.item() if hasattr(value, "item") else str(value)


def _without_twins(path: Path, offsets: "array[int]", hashes: Any) -> "array[int]":
    """Rewrite the list if an id occurs twice: all but the first of one name are failures. Their new places."""
    order = np.argsort(hashes, kind="stable")
    again = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    if not len(again):
        return offsets
    suspects = {int(order[place + 1]) for place in again} | {int(order[place]) for place in again}
    moved, first = array("Q", [0]), dict[str, str]()
    whole = path.with_suffix(".whole")
    with open(path, "rb") as old, open(whole, "wb") as new:
        for number, line in enumerate(old):
            if number in suspects:
                item = Item.from_row(json.loads(line))
                audio = str(item.meta.get("audio"))
                if item.id in first:
                    error = f"{first[item.id]} has the same id: give one of them another"
                    line = _line(Item(item.id, {}, item.meta, error))
                else:
                    first[item.id] = audio
            moved.append(moved[-1] + new.write(line))
    whole.replace(path)
    return moved
