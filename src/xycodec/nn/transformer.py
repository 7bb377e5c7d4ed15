"""The pre-norm transformer that every tower and adapter is made of (docs/models/xy_tokenizer.md, Transformer).

Padding is described once, by a mask (B, T) that is True on valid frames, or None where all are: a clip
on its own needs none, and attention then runs without a mask tensor.

Weights may be bfloat16 while the residual stream, the norms and everything between layers stay float32:
each matrix product takes its input in its weight's own type, and the sum promotes back.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from xycodec.nn.deterministic.attention import attend
from xycodec.nn.deterministic.linear import Linear, gelu, product


def sinusoids(length: int, dim: int) -> Tensor:
    """Whisper's position table: (length, dim) float32, sines in the first half, cosines in the second."""
    # On the CPU first: on torch's meta device, arange imports torch's compiler, which takes a second.
    count = partial(torch.arange, dtype=torch.float32, device="cpu")
    rates = torch.exp(-math.log(10_000) / (dim // 2 - 1) * count(dim // 2))
    angles = count(length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1).to(torch.get_default_device())


def frame_mask(lengths: Sequence[int], width: int) -> Tensor | None:
    """(B, width) bool on the CPU, True on each item's valid frames; None where all are."""
    if min(lengths) == width:
        return None
    return torch.arange(width, device="cpu") < torch.tensor(lengths, device="cpu")[:, None]


def zero_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """Set the padded frames of x (B, T, D) to zero."""
    return x if mask is None else x * mask[..., None]


class SelfAttention(nn.Module):
    """Full multi-head attention; queries, keys and values come from one product. Keys have no bias."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv_weight = nn.Parameter(torch.empty(3 * d_model, d_model))
        self.q_bias = nn.Parameter(torch.zeros(d_model))
        self.v_bias = nn.Parameter(torch.zeros(d_model))
        self.out_proj = Linear(d_model, d_model)
        # nn.Linear's own default, so that the fused weight starts like three separate ones.
        nn.init.kaiming_uniform_(self.qkv_weight, a=math.sqrt(5))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D) in the weights' dtype."""
        b, t, d = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = product(x.to(self.qkv_weight.dtype), self.qkv_weight, bias)
        q, k, v = qkv.view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        out = attend(q, k, v, mask)
        projected: Tensor = self.out_proj(out.transpose(1, 2).reshape(b, t, d))
        return projected


class TransformerLayer(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x)) with exact GELU."""

    def __init__(self, d_model: int, heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(d_model, heads)
        self.self_attn_layer_norm = nn.LayerNorm(d_model)
        self.fc1 = Linear(d_model, ffn_dim)
        self.fc2 = Linear(ffn_dim, d_model)
        self.final_layer_norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, D) float32 -> (B, T, D) float32."""
        x = x + self.self_attn(self.self_attn_layer_norm(x), mask)
        h = self.final_layer_norm(x).to(self.fc1.weight.dtype)
        out: Tensor = x + self.fc2(gelu(self.fc1(h)))
        return out


class Transformer(nn.Module):
    """Sinusoidal positions, layers, a final norm. Base of the towers and the adapters."""

    positional_embedding: Tensor

    def __init__(self, *, d_model: int, layers: int, heads: int, ffn_dim: int, max_positions: int) -> None:
        super().__init__()
        self.register_buffer("positional_embedding", sinusoids(max_positions, d_model))
        self.layers = nn.ModuleList(TransformerLayer(d_model, heads, ffn_dim) for _ in range(layers))
        self.layer_norm = nn.LayerNorm(d_model)

    def transform(self, x: Tensor, mask: Tensor | None = None, first: int = 0) -> Tensor:
        """(B, T, D) -> (B, T, D), zero on padded frames. Row 0 has position `first`; first + T <= max_positions."""
        for state in self.states(x, mask, first):
            x = state
        return zero_padding(self.layer_norm(x), mask)

    def states(self, x: Tensor, mask: Tensor | None = None, first: int = 0) -> Iterator[Tensor]:
        """Yield the first layer's input (B, T, D), then each layer's output, before the final norm."""
        x = x + self.positional_embedding[first : first + x.shape[1]]
        yield x
        if mask is not None:
            # Softmax over no key at all is NaN: an item without valid frames looks at its first, and is zeroed.
            keys = mask.clone()
            keys[:, 0] |= ~mask.any(dim=1)
        for layer in self.layers:
            x = layer(x, None if mask is None else keys)
            yield x


class Adapter(Transformer):
    """A transformer between parts of different width: linear maps in and out where the width changes."""

    def __init__(
        self,
        *,
        input_dim: int,
        output_dim: int,
        d_model: int,
        layers: int,
        heads: int,
        ffn_dim: int,
        max_positions: int,
    ) -> None:
        super().__init__(d_model=d_model, layers=layers, heads=heads, ffn_dim=ffn_dim, max_positions=max_positions)
        self.proj = Linear(input_dim, d_model) if input_dim != d_model else nn.Identity()
        self.out_proj = Linear(d_model, output_dim) if output_dim != d_model else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor | None = None, first: int = 0) -> Tensor:
        """(B, T, input_dim) -> (B, T, output_dim); padded frames hold the bias of the outer map, if any.

        Frame 0 has position `first`.
        """
        out: Tensor = self.out_proj(self.transform(self.proj(x), mask, first))
        return out
