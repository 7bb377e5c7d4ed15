"""Convolutions over frames in rows (T, C), for inference on a CPU: views of the rows are factors of matrix products.

As many frames as a stride are one row of a view, and a transposed convolution's rows are its frames. The results depend
on neither the number of threads nor what follows; oneDNN's convolutions, which torch calls, divide sums over few frames
by the number of threads. So does MKL, unless three habits keep it from that, each measured bit for bit. On an AMD
EPYC, the last one to three rows of a block met another kernel (so rows are a multiple of four). On an Intel Xeon, with
up to 32 threads, few rows divided a sum among threads (so there are at least sixteen), and so did sums of 384, 768 or
more than 768 terms (so each is added up in pieces of 512 and 256). One shape of these models still differs, 512 terms
into 128 columns with 3, 5 or 7 threads, but only in 20 to 32 rows, and every clip has 41 or more there
(benchmarks/reports/ablations.md).
"""

from functools import cache

import torch
from torch import Tensor, nn

from xycodec.nn.deterministic.kernels import multiply, uses_onednn

_ROWS, _FEWEST = 4, 16
_LONG, _SHORT = 512, 256  # terms of a piece


def plain_inference(module: nn.Module, x: Tensor) -> bool:
    """Whether products of our own compute a module here: in float32 on a CPU, where nothing learns or is exported."""
    weights = list(module.parameters())
    learns = torch.is_grad_enabled() and (x.requires_grad or any(weight.requires_grad for weight in weights))
    plain = x.dtype == weights[0].dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return x.device.type == "cpu" and plain and not learns and not torch.compiler.is_exporting()


def padded(x: Tensor, before: int, after: int) -> Tensor:
    """Rows of zeros on both sides; (T, C) -> (before + T + after, C)."""
    out = x.new_empty(before + len(x) + after, x.shape[1])
    out[:before], out[before : before + len(x)], out[before + len(x) :] = 0.0, x, 0.0
    return out


def convolved(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """A convolution without dilation, (T, C) -> (L, O)."""
    taps, stride, padding, channels = conv.kernel_size[0], conv.stride[0], int(conv.padding[0]), conv.in_channels
    frames = (len(x) + 2 * padding - taps) // stride + 1
    rows = whole_rows(frames)
    weight = conv.weight.permute(2, 1, 0).contiguous()
    needed = whole_rows(stride * (rows + -(-taps // stride) - 1))
    x = padded(x, padding, max(0, needed - len(x) - padding))
    if channels == 1:
        # Few terms: all taps at once, of a copy of the samples for each, and the bias of ones.
        patches = x.new_ones(rows, taps + 1)
        patches[:, :taps] = x.as_strided((rows, taps), (stride, 1))
        bias = weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias
        out = x.new_empty(rows, conv.out_channels)
        add_product(patches, torch.cat([weight[:, 0], bias[None]]), out, first=True)
    elif conv.out_channels == 1:
        # A single column is handed to another kernel: here taps are columns.
        columns = x.new_zeros(len(x), taps)
        add_product(x, weight[..., 0].t(), columns)
        # Frame t is the sum of column i of row t + i.
        out = columns.as_strided((rows, taps), (taps, taps + 1)).sum(dim=1, keepdim=True)
        out = out if conv.bias is None else out + conv.bias
    else:
        out = _started(conv.bias, rows, conv.out_channels, x)
        for i, tap in enumerate(torch.split(weight, stride)):
            strides = x[stride * i :][: stride * rows].view(rows, stride * channels)
            add_product(strides[:, : len(tap) * channels], tap.view(-1, conv.out_channels), out)
    return out[:frames]


def upsampled(conv: nn.ConvTranspose1d, x: Tensor) -> Tensor:
    """A transposed convolution of twice as many taps as its stride, (T, C) -> (T * stride, O)."""
    stride, padding, frames = conv.stride[0], int(conv.padding[0]), len(x)
    rows = whole_rows(frames + 1)
    # What a frame adds to its own stride, and to the next one.
    own, late = conv.weight.transpose(1, 2).reshape(conv.in_channels, 2, -1).unbind(dim=1)
    x = padded(x, 1, rows - frames)
    out = _started(conv.bias, rows * stride, conv.out_channels, x)
    strides = out.view(rows, -1)
    add_product(x[1:], own, strides)
    add_product(x[:rows], late, strides)
    return out[padding : padding + stride * frames]


def whole_rows(rows: int) -> int:
    """Round a number of rows up, so that no row of a product depends on the number of threads."""
    return max(_FEWEST, -(-rows // _ROWS) * _ROWS)


def add_product(x: Tensor, weight: Tensor, out: Tensor, *, first: bool = False) -> None:
    """Add (rows, C) times (C, O) to `out` (rows, O), which holds nothing yet if `first`."""
    if uses_onednn("taps"):
        out.copy_(multiply(x, weight.t(), onto=None if first else out))
        return
    parts = _pieces(len(weight))
    for piece in parts:
        terms = (x[:, piece], weight[piece]) if len(parts) > 1 else (x, weight)
        if first:
            torch.mm(*terms, out=out)
        else:
            out.addmm_(*terms)
        first = False


@cache
def _pieces(terms: int) -> tuple[slice, ...]:
    """Indices at which a sum of `terms` terms is cut."""
    if terms <= _SHORT or terms == _LONG:
        return (slice(0, terms),)
    size = _LONG if terms > _LONG else _SHORT
    rest = _pieces(terms - size)
    return (slice(0, size), *(slice(size + piece.start, size + piece.stop) for piece in rest))


def _started(bias: Tensor | None, rows: int, channels: int, like: Tensor) -> Tensor:
    out = like.new_empty(rows, channels)
    return out.zero_() if bias is None else out.copy_(bias)
