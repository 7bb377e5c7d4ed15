"""The transformer of our own language models: pre-norm layers, any mask, and a cache of keys and values.

Masks are additive or bool (True: is attended to), of shape (B or 1, heads or 1, rows, keys); None lets all see all.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.lm.config import TransformerConfig
from xycodec.nn.transformer import sinusoids


@dataclass
class Cache:
    """Keys and values (B, heads, rows, D) of the rows that every layer has seen."""

    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Number of rows seen."""
        return self.layers[0][0].shape[2] if self.layers else 0

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer, with those of the rows that come now."""
        if layer == len(self.layers):
            self.layers.append((key, value))
        else:
            old_key, old_value = self.layers[layer]
            self.layers[layer] = torch.cat([old_key, key], dim=2), torch.cat([old_value, value], dim=2)
        return self.layers[layer]


class Norm(nn.LayerNorm):
    """Layer norm that takes a condition and does without it."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class AdaptiveNorm(nn.Module):
    """Layer norm whose scale and shift are a linear map of a condition (D,) (VALL-E, 4.2.2)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.project = nn.Linear(d_model, 2 * d_model)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        assert condition is not None
        scale, shift = self.project(condition).chunk(2, dim=-1)
        out: Tensor = scale * self.norm(x) + shift
        return out


class Attention(nn.Module):
    """Multi-head attention over the rows that a mask allows."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model, bias=config.bias)
        self.out = nn.Linear(config.d_model, config.d_model, bias=config.bias)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Cache | None, layer: int) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        if mask is not None and mask.dtype is not torch.bool:
            mask = mask.to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0)
        projected: Tensor = self.out(out.transpose(1, 2).reshape(b, t, d))
        return projected


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)), with dropout after each."""

    def __init__(self, config: TransformerConfig, *, adaptive: bool = False) -> None:
        super().__init__()
        self.norm1 = _norm(config, adaptive)
        self.attention = Attention(config)
        self.norm2 = _norm(config, adaptive)
        self.fc1 = nn.Linear(config.d_model, config.ffn_dim, bias=config.bias)
        self.fc2 = nn.Linear(config.ffn_dim, config.d_model, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)
        self.relu = config.activation == "relu"

    def forward(
        self, x: Tensor, mask: Tensor | None, condition: Tensor | None, cache: Cache | None, layer: int
    ) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.dropout(self.attention(self.norm1(x, condition), mask, cache, layer))
        h = self.fc1(self.norm2(x, condition))
        h = self.dropout(F.relu(h) if self.relu else F.gelu(h))
        out: Tensor = x + self.dropout(self.fc2(h))
        return out


class Stack(nn.Module):
    """Blocks and a final norm; every norm is adaptive or none is."""

    def __init__(self, config: TransformerConfig, *, adaptive: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config, adaptive=adaptive) for _ in range(config.layers))
        self.norm = _norm(config, adaptive)

    def forward(
        self,
        x: Tensor,
        mask: "Tensor | list[Tensor] | None",
        condition: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D). A list holds a mask for each layer."""
        for layer, block in enumerate(self.blocks):
            x = block(x, mask[layer] if isinstance(mask, list) else mask, condition, cache, layer)
        out: Tensor = self.norm(x, condition)
        return out


def _norm(config: TransformerConfig, adaptive: bool) -> nn.Module:
    return AdaptiveNorm(config.d_model) if adaptive else Norm(config.d_model, bias=config.bias)


@torch.no_grad()
def initialise_gpt(module: nn.Module, layers: int) -> None:
    """Start weights as nanoGPT does: normal with deviation 0.02, that of residual projections over sqrt(2 layers)."""
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.ndim >= 2:
            residual = name.endswith(("attention.out.weight", "fc2.weight"))
            parameter.normal_(std=0.02 / math.sqrt(2 * layers) if residual else 0.02)


class Positions(nn.Module):
    """Sinusoidal positions times a learned number, with dropout (VALL-E's source); `learned` false keeps it at 1."""

    def __init__(self, d_model: int, *, dropout: float = 0.0, learned: bool = True) -> None:
        super().__init__()
        self.d_model = d_model
        self.scale = nn.Parameter(torch.ones(1), requires_grad=learned)
        self.dropout = nn.Dropout(dropout)
        self._table: Tensor | None = None

    def forward(self, x: Tensor, places: Tensor, end: int) -> Tensor:
        """(B, T, D) -> (B, T, D); `places` (T,) or (B, T) int64, all below `end`, are the positions of the rows."""
        if self._table is None or len(self._table) < end or self._table.device != x.device:
            with torch.device("cpu"):
                self._table = sinusoids(max(2048, 2 * end), self.d_model).to(x.device)
        out: Tensor = self.dropout(x + self.scale * self._table[places].to(x.dtype))
        return out


# ---- masks ---------------------------------------------------------------------------------------


def prefix_mask(rows: int, prefix: Tensor | int, lengths: Tensor | None = None) -> Tensor:
    """(B or 1, 1, rows, rows) bool: the first `prefix` rows see each other, later ones these and what came before them.

    `prefix` (B,) may differ over a batch, 0 is a causal model; `lengths` (B,) hide what lies behind each item's end.
    Every row sees itself, so that no softmax is over nothing.
    """
    device = prefix.device if isinstance(prefix, Tensor) else None
    place = torch.arange(rows, device=device)
    causal = place[:, None] >= place
    fixed = prefix[:, None, None] if isinstance(prefix, Tensor) else prefix
    mask = causal | ((place[:, None] < fixed) & (place < fixed))
    if mask.ndim == 2:
        mask = mask[None]
    if lengths is not None:
        mask = mask & (place < lengths[:, None, None])
        mask = mask | torch.eye(rows, dtype=torch.bool, device=device)
    return mask[:, None]
