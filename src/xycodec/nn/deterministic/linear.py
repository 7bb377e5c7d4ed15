"""Matrix products whose rows depend on neither the number of rows nor the number of threads.

MKL, which torch's CPU builds use, chooses among kernels and divides work by the shape and the number of threads.
Three habits keep that out of the results, each measured bit for bit. On an AMD EPYC, the last one to three rows of a
block met another kernel (so rows are a multiple of four). On an Intel Xeon, with up to 32 threads, few rows divided a
sum among threads (so there are at least sixteen), and so did sums of 384, 768 or more than 768 terms (so each is added
up in pieces of 512 and 256). Codes depend on that, so every product on the way to them is made here.
"""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ROWS, _FEWEST = 4, 16
_LONG, _SHORT = 512, 256  # terms of a piece


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: (..., in) by (out, in) -> (..., out), in shapes that threads do not matter to on a CPU."""
    if x.device.type != "cpu" or weight.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    flat = x.reshape(-1, x.shape[-1])
    rows = flat.shape[0]
    missing = whole_rows(rows) - rows
    if missing:
        flat = torch.cat([flat, flat.new_zeros(missing, flat.shape[1])])
    first, *others = pieces(flat.shape[1])
    out = F.linear(flat[:, first], weight[:, first], bias)
    for piece in others:
        out.addmm_(flat[:, piece], weight[:, piece].t())
    return out[:rows].view(*x.shape[:-1], weight.shape[0])


def whole_rows(rows: int) -> int:
    """As many rows or a few more, in which none depends on the number of threads."""
    return max(_FEWEST, -(-rows // _ROWS) * _ROWS)


@cache
def pieces(terms: int) -> tuple[slice, ...]:
    """Indices at which a sum of `terms` terms is cut."""
    if terms <= _SHORT or terms == _LONG:
        return (slice(0, terms),)
    size = _LONG if terms > _LONG else _SHORT
    rest = pieces(terms - size)
    return (slice(0, size), *(slice(size + piece.start, size + piece.stop) for piece in rest))


class Linear(nn.Linear):
    """`nn.Linear` by `product`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return product(x, self.weight, self.bias)


def gelu(x: Tensor) -> Tensor:
    """Exact GELU; in place where no gradient is asked for, which saves fresh memory on the widest tensors."""
    return F.gelu(x) if x.requires_grad else torch.ops.aten.gelu_(x)


def convolve(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """Apply a padded convolution of kernel 3 to x (B, T, C) as one product.

    oneDNN's own convolution divides its sums by the number of threads.
    """
    patches = F.pad(x, (0, 0, 1, 1)).unfold(1, 3, conv.stride[0]).flatten(2)
    return product(patches, conv.weight.flatten(1), conv.bias)
