"""The engine of a cluster (Ray Data): clips are read on any processor, encoded by actors, and written here in order."""

import logging
import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from xycodec.errors import StoreError, XycodecError, reason_of
from xycodec.io.tokens.layout import SHARDS, Description, read_description, shard_name
from xycodec.io.tokens.write import ShardWriter, locked
from xycodec.tokenize.inputs.item import Item, require_package
from xycodec.tokenize.local import MakeEncoding
from xycodec.tokenize.plan import WORK, Plan, part_of
from xycodec.tokenize.shard import AdvanceClips, Encoding, Loaded, Result, Times, encode, load, write

BLOCK_CLIPS = 16
"""Clips that a reader hands over at once."""
BATCH_CLIPS = 64
"""Clips that an actor gets at once: it sorts them by length, and encodes `batch_s` seconds of them in a call."""
_READER_CPUS = 0.4
"""Share of a core that a reader has; other than what an actor has, or Ray would let actors read as well."""
_READERS = 100
"""At most: each has a shard, of which this process holds four files open. They read 100,000 x real time."""
_BLOCK_BYTES = 32 << 20

Table = dict[str, Any]
"""Columns of rows that Ray moves."""


class RayEngine:
    """Encodes shards on a cluster of Ray: the one that `ray start` began, or one of this machine alone.

    An actor has one accelerator, or `cores` processor cores where there are none; what is left reads. All machines
    have to see the inputs and the store's folder. Shards are written by this process alone, so that nothing can be
    missing or twice, whichever machine dies.

    Args:
        make_encoding: called once in every actor with `settings`, so both must pickle.
        settings: its arguments.
        cores: of an actor, where it has no accelerator.
        actors: at most so many (None: as many as there is room for).
        accelerators: whether to use them.
        advance: told clips and seconds as they are written.

    Raises XycodecError if Ray is not installed.
    """

    def __init__(
        self,
        make_encoding: MakeEncoding,
        settings: Mapping[str, Any],
        *,
        cores: int = 4,
        actors: int | None = None,
        accelerators: bool = True,
        advance: AdvanceClips = lambda clips, seconds: None,
    ) -> None:
        require_package("ray", "ray")
        self._make, self._settings, self._advance = make_encoding, dict(settings), advance
        self._cores, self._actors, self._accelerators = cores, actors, accelerators

    def __call__(self, folder: Path, shards: list[int]) -> Iterator[Times]:
        """Do the shards, and yield where the time of each batch went.

        Raises StoreError if the disk does not take them, or workers fail again and again.
        """
        if not shards:
            return
        folder = folder.resolve()
        ray = _started()
        with OrderedShards(folder, read_description(folder), self._advance) as written:
            begun = [{"shard": number, "first": written.begin(number)} for number in shards]
            try:
                for table in self._encoded(ray, folder, begun):
                    yield from written.take(table)
            except XycodecError:
                raise
            except ray.exceptions.RayError as error:
                raise StoreError(f"{folder}: workers of Ray fail ({_cause(error)}): see their logs") from error
            written.require_all(shards)

    def _encoded(self, ray: Any, folder: Path, begun: list[dict[str, int]]) -> Iterator[Table]:
        about = read_description(folder)
        window = about.window.frames * about.hop_length
        actors, resources = self._room(ray.cluster_resources())
        reader = make_reader(folder, about.sample_rate, window)
        encoder = make_encoder(self._make, self._settings)
        read = ray.data.from_items(begun, override_num_blocks=len(begun)).map_batches(
            reader, batch_size=1, compute=ray.data.TaskPoolStrategy(size=_READERS), num_cpus=_READER_CPUS
        )
        made = read.map_batches(
            encoder, batch_size=BATCH_CLIPS, compute=ray.data.ActorPoolStrategy(size=actors), **resources
        )
        yield from made.iter_batches(batch_size=None, batch_format="numpy")

    def _room(self, has: Mapping[str, float]) -> tuple[int, dict[str, float]]:
        """The number of actors, and what each of them needs; readers need a part of a core."""
        if accelerators := int(has.get("GPU", 0)) if self._accelerators else 0:
            room, resources = accelerators, {"num_gpus": 1.0, "num_cpus": _READER_CPUS}
        else:
            cores = min(self._cores, max(1, int(has["CPU"])))
            self._settings["threads"] = cores
            room, resources = int(has["CPU"]) // cores, {"num_cpus": cores - _READER_CPUS}
        return max(1, min(room, self._actors or room)), resources


def _started() -> Any:
    """Ray, connected to a cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what matters arrives as an exception
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray
    import ray.data

    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.target_max_block_size = _BLOCK_BYTES
    return ray


def _cause(error: BaseException) -> str:
    """The innermost reason of an error that Ray has wrapped."""
    inner = getattr(error, "cause", None) or error.__cause__
    return _cause(inner) if isinstance(inner, BaseException) else reason_of(error)


# ---- on the cluster ----------------------------------------------------------------------------


def make_reader(folder: Path, rate: int, window: int) -> Callable[[Table], Iterator[Table]]:
    """A function that reads the clips of shards, rows of `shard` and `first`, from the first that is not there."""

    def read(table: Table) -> Iterator[Table]:
        plan = Plan(folder / WORK)
        for shard, first in zip(table["shard"].tolist(), table["first"].tolist(), strict=True):
            clips = iter(enumerate(plan.items(shard)[first:], first))
            while block := list(islice(clips, BLOCK_CLIPS)):
                data = [pickle.dumps(_movable(load(item, rate, window))) for _, item in block]
                yield _table(shard=[shard] * len(block), place=[place for place, _ in block], data=data)

    return read


def make_encoder(make_encoding: MakeEncoding, settings: Mapping[str, Any]) -> type:
    """A class of actors that encode what readers read."""

    class Encoder:
        def __init__(self) -> None:
            self._encoding: Encoding = make_encoding(**settings)
            self._ended: float | None = None

        def __call__(self, table: Table) -> Table:
            start = time.perf_counter()
            waited = start - self._ended if self._ended is not None else 0.0
            codec = self._encoding.codec
            clips = [pickle.loads(data) for data in table["data"]]
            # What is longer than a window was not moved: it is read as it is encoded.
            clips = [
                load(clip.item, codec.input_sample_rate, codec.window_samples) if _is_long(clip) else clip
                for clip in clips
            ]
            results = encode(self._encoding, clips)
            self._ended = time.perf_counter()
            spent = [(waited, self._ended - start), *[(0.0, 0.0)] * (len(clips) - 1)]
            rows = [
                Encoded(clip.item, result, clip.remarks, Times(waits, works, reading=clip.reading, clips=1))
                for clip, result, (waits, works) in zip(clips, results, spent, strict=True)
            ]
            return _table(shard=table["shard"], place=table["place"], data=[pickle.dumps(row) for row in rows])

    return Encoder


@dataclass(frozen=True)
class Encoded:
    """Result of a clip, and the time that its batch took, told once."""

    item: Item
    result: Result
    remarks: list[str] = field(default_factory=list)
    times: Times = field(default_factory=Times)


def _movable(clip: Loaded) -> Loaded:
    clip.stream = None
    return clip


def _is_long(clip: Loaded) -> bool:
    return clip.audio is None and clip.error is None


def _table(shard: Any, place: Any, data: list[bytes]) -> Table:
    column = np.empty(len(data), object)
    column[:] = data
    return {"shard": np.asarray(shard), "place": np.asarray(place), "data": column}


# ---- here --------------------------------------------------------------------------------------


class OrderedShards:
    """Shards of a begun store that are written clip by clip in order, whatever order the clips come in."""

    def __init__(self, folder: Path, description: Description, advance: AdvanceClips) -> None:
        self._folder, self._description, self._advance = folder, description, advance
        self._plan = Plan(folder / WORK)
        self._open: dict[int, tuple[ShardWriter, ExitStack]] = {}
        self._next: dict[int, int] = {}
        self._early: dict[int, dict[int, Encoded]] = {}

    def __enter__(self) -> "OrderedShards":
        return self

    def __exit__(self, *error: object) -> None:
        for _, stack in self._open.values():
            stack.close()

    def begin(self, shard: int) -> int:
        """Open a shard, and return the number of its clips that are there already."""
        self._next[shard], self._early[shard] = 0, {}
        if part_of(self._folder, shard).is_dir():
            writer, stack = self._opened(shard)
            self._next[shard] = writer.go_on([item.id for item in self._plan.items(shard)])
            del self._open[shard]
            stack.close()
        return self._next[shard]

    def take(self, table: Table) -> Iterator[Times]:
        """Write what can be, keep what comes early, and drop what a worker that died has made before."""
        for shard, place, data in zip(table["shard"].tolist(), table["place"].tolist(), table["data"], strict=True):
            start = time.perf_counter()
            if place < self._next[shard]:
                continue
            clip = pickle.loads(data)
            self._early[shard][place] = clip
            before = self._next[shard]
            seconds = self._write(shard)
            clips = self._next[shard] - before
            self._advance(clips, seconds)
            clip.times.writing, clip.times.audio = time.perf_counter() - start, seconds
            yield clip.times

    def require_all(self, shards: list[int]) -> None:
        """Finish shards that were whole before, and raise StoreError if clips of one never came."""
        for shard in shards:
            if not self._finished(shard):
                self._write(shard)
            if not self._finished(shard):
                raise StoreError(f"{self._folder}: clips of shard {shard} never came: run the command again")

    def _write(self, shard: int) -> float:
        """Write the clips that are next; seconds of them."""
        seconds, early = 0.0, self._early[shard]
        writer, stack = self._opened(shard)
        while (clip := early.pop(self._next[shard], None)) is not None:
            loaded = Loaded(clip.item, remarks=clip.remarks)
            seconds += write(writer, loaded, clip.result, self._description.sample_rate)
            self._next[shard] += 1
        if self._next[shard] == self._plan.job.clips_of(shard):
            writer.finish(self._place(shard))
            del self._open[shard]
            stack.close()
        return seconds

    def _opened(self, shard: int) -> tuple[ShardWriter, ExitStack]:
        if shard not in self._open:
            stack, part = ExitStack(), part_of(self._folder, shard)
            stack.enter_context(locked(part.with_suffix(".lock")))
            self._open[shard] = (stack.enter_context(ShardWriter(part, self._description)), stack)
        return self._open[shard]

    def _finished(self, shard: int) -> bool:
        return self._place(shard).is_dir()

    def _place(self, shard: int) -> Path:
        return self._folder / SHARDS / shard_name(shard)
