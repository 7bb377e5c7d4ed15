"""Linear layers whose rows depend on neither the number of rows nor the number of threads.

Codes depend on that, so every product on the way to them is made here. torch's own `F.linear` hands it to MKL, which
chooses among kernels, and divides sums among threads, by the shape. oneDNN's product adds up each row in one order from
two rows on, whatever their number: measured bit for bit over 19 shapes of layers, 1 to 1,504 rows and 1 to 32 threads,
with its code for AVX-512, AVX2 and SSE4.1. It is called by the name that torch's compiler calls it by.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from xycodec.nn.deterministic.kernels import multiply, uses_onednn


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: (..., in) by (out, in) -> (..., out); by oneDNN in float32 on a CPU, where torch has it."""
    plain = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if not plain or x.device.type != "cpu" or x.numel() == 0 or not uses_onednn("linear"):
        return F.linear(x, weight, bias)
    flat = x.reshape(-1, x.shape[-1])
    learns = torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in (x, weight, bias))
    multiplied: Callable[..., Tensor] = _Product.apply if learns else multiply
    out = multiplied(flat, weight, bias)
    return out.view(*x.shape[:-1], weight.shape[0])


class _Product(torch.autograd.Function):
    """`F.linear` of a matrix, and its gradients, by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(rows, in), (out, in), (out) -> (rows, out)."""
        ctx.save_for_backward(x, weight)
        return multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """(rows, out) -> the gradients of x, weight and bias that are asked for."""
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            multiply(slope, weight.t()) if wants_x else None,
            multiply(slope.t(), x.t()) if wants_weight else None,
            slope.sum(dim=0) if wants_bias else None,
        )


class Linear(nn.Linear):
    """`nn.Linear` by `product`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return product(x, self.weight, self.bias)


def gelu(x: Tensor) -> Tensor:
    """Exact GELU; in place where no gradient is asked for, which saves fresh memory on the widest tensors."""
    return F.gelu(x) if x.requires_grad or torch.compiler.is_exporting() else torch.ops.aten.gelu_(x)


def convolve(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """Apply a padded convolution of kernel 3 to x (B, T, C) as one product.

    oneDNN's own convolution divides its sums by the number of threads.
    """
    if torch.compiler.is_exporting():
        convolved: Tensor = conv(x.transpose(1, 2)).transpose(1, 2)
        return convolved
    patches = F.pad(x, (0, 0, 1, 1)).unfold(1, 3, conv.stride[0]).flatten(2)
    return product(patches, conv.weight.flatten(1), conv.bias)
