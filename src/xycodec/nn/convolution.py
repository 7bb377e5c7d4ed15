"""Convolutions whose results do not depend on the number of threads, for inference on a CPU: (B, C, T) -> (B, O, L).

oneDNN divides the sums of a convolution over few frames by the number of threads. Here every tap is a matrix product
whose columns are the frames. MKL leaves such sums whole while they have 512 terms at most and there are two columns or
more, measured bit for bit on an Intel Xeon. It is as fast while a map lies in a core's cache, and faster for transposed
convolutions. Large strided ones are faster by oneDNN and stay. `xycodec.nn.rows` is for whole stacks of layers.

What learns, is in another precision or lies on another device goes through torch's own convolutions.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.nn.linear import pieces

_FEWEST = 2  # columns of a product
_MANY = 1 << 15  # values that oneDNN makes without dividing sums: none was divided above 20,000


def by_products(conv: nn.Conv1d | nn.ConvTranspose1d, x: Tensor) -> bool:
    """Whether `conv` computes `x` as this module's products."""
    learns = torch.is_grad_enabled() and (x.requires_grad or conv.weight.requires_grad)
    plain = x.dtype == conv.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return x.device.type == "cpu" and plain and not learns


class Conv1d(nn.Conv1d):
    """`nn.Conv1d` of one group."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, O, L)."""
        if not by_products(self, x):
            return super().forward(x)
        stride, padding = self.stride[0], int(self.padding[0])
        reach, width = self.dilation[0] * (self.kernel_size[0] - 1), x.shape[2] + 2 * padding
        frames = (width - reach - 1) // stride + 1
        if stride > 1 and frames * self.out_channels >= _MANY:
            return super().forward(x)
        missing = max(0, reach + 1 + stride * (_FEWEST - 1) - width)
        padded = F.pad(x, (padding, padding + missing))
        return torch.stack([self.product(item) for item in padded])[..., :frames]

    def product(self, x: Tensor) -> Tensor:
        """One item that already has its padding (C, T) -> (O, L), L >= 2."""
        taps, stride, dilation = self.kernel_size[0], self.stride[0], self.dilation[0]
        reach = dilation * (taps - 1)
        frames = (x.shape[1] - reach - 1) // stride + 1
        weight = laid_out(self, (2, 0, 1))
        if self.in_channels == 1:
            # Few terms: all taps at once, of a copy of the samples for each.
            out = weight[..., 0].t() @ x[0].as_strided((taps, frames), (dilation, stride)).contiguous()
        elif self.out_channels == 1 and stride == 1:
            # A single row is handed to another kernel, as single columns are: here taps are rows.
            rows = x.new_empty(taps, x.shape[1])
            _add_product(weight[:, 0], x, rows, first=True)
            out = torch.stack([row[dilation * tap :][:frames] for tap, row in enumerate(rows)]).sum(dim=0, keepdim=True)
        else:
            columns = frames + reach // stride
            # Sample t is column t // stride of phase t % stride.
            phases = F.pad(x, (0, columns * stride - x.shape[1])).view(-1, columns, stride).permute(2, 0, 1)
            phases = phases.contiguous() if stride > 1 else phases
            out = x.new_empty(self.out_channels, frames)
            for tap, one in enumerate(weight):
                begin, phase = divmod(dilation * tap, stride)
                _add_product(one, phases[phase, :, begin : begin + frames], out, first=tap == 0)
        return out if self.bias is None else out.add_(self.bias[:, None])


class PointwiseConv(nn.Conv1d):
    """A convolution of one tap."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """Add the map of x (B, C, T) to a residual (B, O, T): (B, O, T)."""
        if not by_products(self, x):
            out: Tensor = residual + self(x)
            return out
        frames = x.shape[2]
        if frames < _FEWEST:
            x, residual = (F.pad(tensor, (0, _FEWEST - frames)) for tensor in (x, residual))
        return torch.stack([self.product_onto(*item) for item in zip(residual, x, strict=True)])[..., :frames]

    def product_onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """The same for one item, residual (O, T) and x (C, T), T >= 2."""
        out = residual.clone() if self.bias is None else residual + self.bias[:, None]
        _add_product(self.weight[..., 0], x, out)
        return out


class UpConv1d(nn.ConvTranspose1d):
    """A transposed convolution of twice as many taps as its stride, which makes `stride` times as many frames."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        # An odd stride pads half a sample too much, which output_padding gives back.
        super().__init__(in_channels, out_channels, 2 * stride, stride, -(-stride // 2), output_padding=stride % 2)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(B, C, T) -> (B, O, T * stride)."""
        if not by_products(self, x):
            return super().forward(x)
        stride, padding = self.stride[0], int(self.padding[0])
        frames = x.shape[2] + 1
        # What a frame adds to its own stride, and to the next one.
        own, late = laid_out(self, (2, 1, 0)).view(2, -1, self.in_channels)
        columns = x.new_empty(stride * self.out_channels, frames)
        out = x.new_empty(len(x), self.out_channels, frames, stride)
        for item, row in zip(F.pad(x, (1, 1)), out, strict=True):
            _add_product(own, item[:, 1:], columns, first=True)
            _add_product(late, item[:, :-1], columns)
            row.copy_(columns.view(stride, -1, frames).permute(1, 2, 0))
        if self.bias is not None:
            out += self.bias[:, None, None]
        return out.flatten(2)[..., padding : padding + stride * x.shape[2]]


def laid_out(conv: nn.Conv1d | nn.ConvTranspose1d, order: tuple[int, int, int]) -> Tensor:
    """The weight with its axes in `order`, one after the other in memory; frozen weights are rearranged once."""
    weight = conv.weight
    laid_out = weight.permute(order).contiguous()
    if not weight.requires_grad and laid_out.data_ptr() != weight.data_ptr():
        back = [order.index(axis) for axis in range(3)]
        weight.data = laid_out.permute(back)
    return laid_out


def _add_product(weight: Tensor, x: Tensor, out: Tensor, *, first: bool = False) -> None:
    """Add (O, C) times (C, L) to `out` (O, L), which holds nothing yet if `first`."""
    for piece in pieces(weight.shape[1]):
        if first:
            torch.mm(weight[:, piece], x[piece], out=out)
        else:
            out.addmm_(weight[:, piece], x[piece])
        first = False
