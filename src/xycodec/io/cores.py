"""The number of cores that this process may use where a machine is shared, and as many threads."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_GROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available_cores() -> int:
    """Cores that this process may use, at least 1: those it is bound to, and no more than its control group's quota.

    A quota of 2.5 cores counts as 2: a third thread would be stopped amid each product, and the others would wait.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([bound, *_quotas()])))


def use_threads(threads: int | None) -> None:
    """Compute on so many threads; by default on a core each, as many as this process may use."""
    import torch

    # torch's own number is of physical cores, or what OMP_NUM_THREADS says.
    torch.set_num_threads(threads or min(torch.get_num_threads(), available_cores()))


def _quotas() -> Iterator[float]:
    """Cores that each control group around this process allows (Linux, cgroup v2, and v1 as containers see it)."""
    with suppress(OSError):
        own = next((line[3:] for line in _OWN.read_text().splitlines() if line.startswith("0::")), "/")
        place = _GROUPS / own.strip("/")
        for folder in (place, *place.parents):
            if folder.is_relative_to(_GROUPS):
                with suppress(OSError, ValueError):
                    quota, period = (folder / "cpu.max").read_text().split()
                    yield int(quota) / int(period)  # ValueError for "max"
    with suppress(OSError, ValueError):
        quota, period = ((_GROUPS / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if int(quota) > 0:
            yield int(quota) / int(period)
