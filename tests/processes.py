"""Processes that start at once: each is a copy of one that has imported everything."""

import os
from collections.abc import Callable
from multiprocessing import get_context

from torch import multiprocessing

FORKSERVER = get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    ["xycodec.train.run", "xycodec.data.manifest", "tests.training", "tests.training_runs"]
)


def start_two(work: Callable[..., None], arguments: tuple = ()) -> None:
    """Run `work(rank, *arguments)` in two processes to their end; raises what one of them raises."""
    multiprocessing.start_processes(work, arguments, nprocs=2, start_method="forkserver")


def do_not_wait_for_the_disk() -> None:
    """Tests kill processes, not machines: no file has to survive a power cut."""
    os.fsync = lambda descriptor: None
