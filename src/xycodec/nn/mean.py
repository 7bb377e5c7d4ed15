"""Sum and count of a mean, reduced across micro-batches and processes before dividing."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST = 1e-8  # a mean over nothing is 0


@dataclass(frozen=True)
class Mean:
    """`total` over `count`, both (K,) float32: K means whose sum is the value.

    Adding two of them joins what they were taken over, exactly. Only `total` carries a gradient.
    """

    total: Tensor
    count: Tensor

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    def detach(self) -> "Mean":
        """The mean without its gradient."""
        return Mean(self.total.detach(), self.count)

    def value(self) -> Tensor:
        """The sum of the K means, a scalar."""
        return self.share(self.count)

    def share(self, count: Tensor, parts: int = 1) -> Tensor:
        """This part's share of a mean over `count` in all, times `parts`: the average over parts is the mean."""
        return parts * (self.total / count.clamp_min(SMALLEST)).sum()


def masked_mean(values: Tensor, weight: Tensor) -> Mean:
    """The mean of `values` where `weight` is 1 (or True); shapes are equal. K is 1."""
    weight = weight.float()
    return Mean((values.float() * weight).sum()[None], weight.sum()[None])


def plain_mean(values: Tensor) -> Mean:
    """The mean of all `values`. K is 1."""
    return Mean(values.float().sum()[None], torch.full((1,), float(values.numel()), device=values.device))


def sum_of(means: Sequence[Mean]) -> Mean:
    """The `Mean` whose value is the sum of the given ones' values; it holds the entries of all."""
    return Mean(torch.cat([mean.total for mean in means]), torch.cat([mean.count for mean in means]))


def average_of(means: Sequence[Mean]) -> Mean:
    """The `Mean` whose value is the average of the given ones' values; it holds the entries of all."""
    joined = sum_of(means)
    return Mean(joined.total / len(means), joined.count)
