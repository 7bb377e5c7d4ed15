"""Collectives that are no-ops on one process, so that callers need not ask how many there are."""

import torch
from torch import Tensor
from torch import distributed as dist


def _active() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's number, 0 when there is only one."""
    return dist.get_rank() if _active() else 0


def world_size() -> int:
    """Number of processes that take part, at least 1."""
    return dist.get_world_size() if _active() else 1


def all_reduce_(tensor: Tensor) -> Tensor:
    """Sum `tensor` over all processes, in place."""
    if _active():
        dist.all_reduce(tensor)
    return tensor


def rank_offsets(count: Tensor) -> tuple[Tensor, Tensor]:
    """Offset of this process's items in the concatenation over all processes, and the total: two 0-d int64.

    `count` is a 0-d int64 tensor; it stays on its device, so no host synchronisation happens.
    """
    counts = torch.zeros(world_size(), dtype=torch.int64, device=count.device)
    counts[rank()] = count
    all_reduce_(counts)
    return counts[: rank()].sum(), counts.sum()
