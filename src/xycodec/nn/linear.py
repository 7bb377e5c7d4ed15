"""Matrix products whose rows depend on neither the number of rows nor the number of threads.

MKL, which torch's CPU builds use, has another kernel for the last one to three rows of a block than for four and
more, and the blocks follow the number of threads. Products of a multiple of four rows never meet it: measured
bit for bit with 1 to 16 threads. Codes depend on that, so every product on the way to them is made here.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ROWS = 4


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: (..., in) by (out, in) -> (..., out), with rows of zeros up to a multiple of four on a CPU."""
    rows = x.shape[:-1].numel()
    missing = -rows % _ROWS
    if not missing or x.device.type != "cpu":
        return F.linear(x, weight, bias)
    padded = F.pad(x.reshape(rows, x.shape[-1]), (0, 0, 0, missing))
    return F.linear(padded, weight, bias)[:rows].view(*x.shape[:-1], weight.shape[0])


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
