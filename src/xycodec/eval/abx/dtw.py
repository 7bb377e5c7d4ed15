"""Dynamic time warping of many pairs of sequences at once."""

import torch
from torch import Tensor


def dtw(distances: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Mean distance along the cheapest path that aligns each pair of sequences.

    A path goes from the first pair of frames to the last by steps of one frame in one sequence or in both. The
    cheapest has the least sum of distances; of several, the shortest counts, so that d(a, b) = d(b, a).

    Args:
        distances: (P, N, M) between the frames of P pairs; what lies beyond a pair's ends is ignored.
        rows: (P,) int64 from 1 to N, frames of the first sequences.
        columns: (P,) int64 from 1 to M, frames of the second.

    Returns:
        (P,) sum of the distances on the path over their number, of the same dtype.
    """
    pairs, height, width = distances.shape
    flipped = distances.flip(2)
    last = rows + columns - 2
    means = distances.new_zeros(pairs)
    # Cells of a diagonal i + j = d depend only on the two diagonals before it. Row i is at index i + 1: index 0 is
    # outside, and costs infinity but for the start of all paths.
    before = _Diagonal.outside(distances, height)
    before.costs[:, 0] = 0
    previous = _Diagonal.outside(distances, height)
    for number in range(height + width - 1):
        low, high = max(0, number - width + 1), min(height, number + 1)
        here = _Diagonal.outside(distances, height)
        ways = ((before, low), (previous, low), (previous, low + 1))
        costs = [diagonal.costs[:, start : start + high - low] for diagonal, start in ways]
        steps = [diagonal.steps[:, start : start + high - low] for diagonal, start in ways]
        least = torch.minimum(torch.minimum(costs[0], costs[1]), costs[2])
        shortest = torch.full_like(least, torch.inf)
        for cost, step in zip(costs, steps, strict=True):
            shortest = torch.where(cost == least, torch.minimum(shortest, step), shortest)
        here.costs[:, low + 1 : high + 1] = least + flipped.diagonal(width - 1 - number, 1, 2)
        here.steps[:, low + 1 : high + 1] = shortest + 1
        (ended,) = torch.nonzero(last == number, as_tuple=True)
        means[ended] = here.costs[ended, rows[ended]] / here.steps[ended, rows[ended]]
        before, previous = previous, here
    return means


class _Diagonal:
    """Costs of the cheapest paths to the cells of a diagonal, and their lengths: (P, N + 1) each."""

    def __init__(self, costs: Tensor, steps: Tensor) -> None:
        self.costs, self.steps = costs, steps

    @classmethod
    def outside(cls, like: Tensor, height: int) -> "_Diagonal":
        shape = (like.shape[0], height + 1)
        return cls(like.new_full(shape, torch.inf), like.new_zeros(shape))
