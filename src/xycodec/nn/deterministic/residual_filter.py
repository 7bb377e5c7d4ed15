"""A residual unit of DAC in 17 products of matrices where its 7 taps ask for 28, for inference on a CPU.

Two phases of a signal take three filters of half the length, not four (Mou and Duhamel, "Short-length FIR filters and
their use in fast nonrecursive filtering", 1991), and each of these is filtered so again. The phases lie a dilation
apart. Weights and signals are only added and subtracted: errors of rounding are 1.5 times those of a plain sum.

Snakes are scaled, which saves passes over memory: of u = alpha x, x + sin(alpha x)^2 / alpha is (u + sin(u)^2) / alpha,
and the weights before and behind take alpha in. Frames are rows (T, C): those of a phase then lie together in memory.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from xycodec.nn.deterministic.rows import add_product, padded, whole_rows

PART = 8192  # frames that are computed at a time: more leave the cache, fewer take more calls
PHASES = 4
EPSILON = 1e-9  # a channel whose alpha reaches 0 stays finite


class UnitWeights(NamedTuple):
    """A snake's alpha (1, C, 1), a convolution (C, C, 7) with its bias (C), and both again with a single tap."""

    alpha1: Tensor
    conv1: Tensor
    bias1: Tensor
    alpha2: Tensor
    conv2: Tensor
    bias2: Tensor


class ResidualFilter:
    """One unit."""

    def __init__(self, weights: UnitWeights, dilation: int) -> None:
        self.dilation = dilation
        # Kept, so that nothing else can take their place in memory.
        self._weights = [weight.detach() for weight in weights]
        self._versions = _versions(weights)
        first, second = weights.alpha1.flatten() + EPSILON, weights.alpha2.flatten() + EPSILON
        taps = (weights.conv1 / first[:, None] * second[:, None, None]).permute(2, 1, 0).contiguous()
        self.alpha, self.bias1, self.bias2 = first, weights.bias1 * second, weights.bias2.detach()
        self.last = (weights.conv2[..., 0] / second).t().contiguous()
        self.even, self.odd = _HalfFilter(list(taps[0::2]), dilation), _HalfFilter(list(taps[1::2]), dilation)
        self.both = _HalfFilter([*(taps[0:6:2] + taps[1:6:2]), taps[6]], dilation)

    def made_of(self, weights: UnitWeights) -> bool:
        """Whether it was made of these, as they are now."""
        pairs = zip(self._weights, weights, strict=True)
        return all(own.data_ptr() == other.data_ptr() for own, other in pairs) and (
            None not in self._versions and self._versions == _versions(weights)
        )

    def onto(self, x: Tensor, out: Tensor, frames: int) -> None:
        """Rows of x from 3 dilations before the first of `frames` on -> `out`, up to 4 dilations beyond `frames`."""
        groups = -(-frames // (PHASES * self.dilation))
        rows = whole_rows(groups * self.dilation)
        phases = x.new_empty(PHASES, rows + 2 * self.dilation, x.shape[1])
        torch.mul(self._apart(x, groups + 2), self.alpha, out=self._together(phases, groups + 2))
        _add_square_of_sine(phases)
        hidden = self._filtered(phases, rows)
        _add_square_of_sine(hidden)
        branch = torch.empty_like(hidden)
        add_product(hidden.flatten(0, 1), self.last, branch.flatten(0, 1), first=True)
        branch += self.bias2
        inner = x[3 * self.dilation :]
        torch.add(self._apart(inner, groups), self._together(branch, groups), out=self._apart(out, groups))

    def _filtered(self, x: Tensor, rows: int) -> Tensor:
        """Phases (4, rows + 2 dilations, C) -> (4, rows, O)."""
        x0, x1, x2, x3 = x
        x4 = x0[self.dilation :]
        both, out = x.new_empty(2, rows, len(self.bias1)), x.new_empty(2, 2, rows, len(self.bias1))
        self.both.into(both, x1, x3)
        both += self.bias1
        self.even.into(out[:, 0], x0 - x1, x2 - x3)
        self.odd.into(out[:, 1], x2 - x1, x4 - x3[: len(x4)])
        out += both[:, None]
        return out.view(PHASES, rows, -1)

    def _apart(self, x: Tensor, groups: int) -> Tensor:
        """Rows in the order of time -> a view (4, groups, dilation, C)."""
        return x[: PHASES * groups * self.dilation].view(groups, PHASES, self.dilation, -1).transpose(0, 1)

    def _together(self, phases: Tensor, groups: int) -> Tensor:
        """Phases (4, rows, C) -> a view (4, groups, dilation, C)."""
        return phases[:, : groups * self.dilation].view(PHASES, groups, self.dilation, -1)


class _HalfFilter:
    """Three or four taps over a signal that is in two phases itself."""

    def __init__(self, taps: Sequence[Tensor], dilation: int) -> None:
        self.dilation = dilation
        self.even, self.odd = taps[0::2], taps[1::2]
        self.both = [taps[0] + taps[1], taps[2] + taps[3] if len(taps) == 4 else taps[2]]

    def into(self, out: Tensor, x0: Tensor, x1: Tensor) -> None:
        """Both phases of the input, x0 with `dilation` more rows behind, -> those of the output (2, rows, O)."""
        x0, x1, x2 = (x[: out.shape[1] + self.dilation] for x in (x0, x1, x0[self.dilation :]))
        self._add(x1, self.both, out[0], first=True)
        out[1] = out[0]
        self._add(x0 - x1, self.even, out[0])
        self._add(x2 - x1, self.odd, out[1])

    def _add(self, x: Tensor, taps: Sequence[Tensor], out: Tensor, *, first: bool = False) -> None:
        for i, tap in enumerate(taps):
            add_product(x.narrow(0, i * self.dilation, len(out)), tap, out, first=first and i == 0)


def filtered(units: Sequence[ResidualFilter], x: Tensor, put: Callable[[Tensor, Tensor], object]) -> Tensor:
    """One unit after the other: (T, C) -> (T, C), in parts of PART frames, each of which `put` maps into its place."""
    frames, reach = len(x), sum(3 * unit.dilation for unit in units)
    out = torch.empty_like(x)
    for first in range(0, frames, PART):
        last = min(first + PART, frames)
        low, high = max(0, first - reach), min(frames, last + reach)
        # What a part lacks on either side reaches no further than these frames.
        put(_part(units, x[low:high])[first - low : last - low], out[first:last])
    return out


def _part(units: Sequence[ResidualFilter], x: Tensor) -> Tensor:
    widest = max(unit.dilation for unit in units)
    begin, end = 3 * widest, 3 * widest + len(x)
    rows = padded(x, begin, 9 * widest)
    spare = torch.empty_like(rows)
    spare[:begin] = 0.0
    for unit in units:
        unit.onto(rows[begin - 3 * unit.dilation :], spare[begin:], len(x))
        rows, spare = spare, rows
        rows[end:] = 0.0
    return rows[begin:end]


def _versions(weights: UnitWeights) -> list[int | None]:
    """Version counter of each weight, or None where there is none: inference tensors, and weights in training."""
    return [None if weight.is_inference() or weight.requires_grad else weight._version for weight in weights]


def _add_square_of_sine(x: Tensor) -> None:
    sine = x.sin()
    x.addcmul_(sine, sine)
