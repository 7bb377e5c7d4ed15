"""The engine of one machine: shards one after another, in this process or in several."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from xycodec.errors import StoreError
from xycodec.io.parallel import in_worker, workers
from xycodec.io.tokens.layout import read_description
from xycodec.tokenize.corpus import do_shard
from xycodec.tokenize.progress import Progress
from xycodec.tokenize.shard import AdvanceClips, Encoding, Times

_POLL = 0.5  # s between two looks at how far the processes are
_DEATHS = 3  # times that processes may die without a clip in between

MakeEncoding = Callable[..., Encoding]


class LocalEngine:
    """Encodes shards in this process, or in processes of their own.

    Args:
        make_encoding: called once in every process with `settings`, so both must pickle.
        settings: its arguments.
        processes: 1 does all in this process.
        advance: told clips and seconds as they are done.
    """

    def __init__(
        self,
        make_encoding: MakeEncoding,
        settings: Mapping[str, Any],
        processes: int = 1,
        advance: AdvanceClips = lambda clips, seconds: None,
    ) -> None:
        self._make, self._settings, self._processes, self._advance = make_encoding, settings, processes, advance

    def __call__(self, folder: Path, shards: list[int]) -> Iterator[Times]:
        """Do the shards, and yield where the time of each went; in several processes in any order.

        Processes that die are started again; raises StoreError if they do so again and again without getting on.
        """
        if self._processes == 1 or len(shards) <= 1:
            encoding = self._make(**self._settings)
            for number in shards:
                yield do_shard(encoding, folder, number, self._advance)
            return
        progress = Progress(folder, read_description(folder))
        progress.news()
        left, deaths = set(shards), 0
        while left:
            before = progress.done()
            try:
                for number, times in self._round(folder, left, progress):
                    left.discard(number)
                    yield times
            except BrokenProcessPool:
                deaths = deaths + 1 if progress.done() == before else 0
                if deaths == _DEATHS:
                    raise StoreError(
                        f"{folder}: worker processes die without getting on (out of memory?): use fewer --jobs"
                    ) from None

    def _round(self, folder: Path, shards: Iterable[int], progress: Progress) -> Iterator[tuple[int, Times]]:
        with workers(self._processes, self._make, self._settings) as pool:
            waiting = {pool.submit(in_worker, do_shard, folder, number): number for number in sorted(shards)}
            while waiting:
                done, _ = wait(waiting, _POLL, FIRST_COMPLETED)
                self._advance(*progress.news())
                for future in done:
                    yield waiting.pop(future), future.result()
