"""Attention whose results depend on neither the number of threads nor what pads a clip."""

import torch
from torch import Tensor
from torch.nn import functional as F

from xycodec.nn.deterministic.kernels import has_onednn, multiply, uses_onednn

_DIVIDED = range(384, 512)
"""Numbers of frames whose sums MKL's code for AVX-512 divides from eight threads on. Found by every number up to 780,
and every ninth up to 1,500, of 4 and of 12 heads on 4, 8 and 48 threads."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, bias: Tensor | None = None) -> Tensor:
    """Softmax(q k^T / sqrt(d) + bias) v over the valid frames: (B, H, T, d) each -> (B, H, T, d).

    mask: (B, T) bool, True on the valid frames, which come first; None where all are. bias: (B, H, T, T).
    Raises ValueError if both are given: nothing here needs that.
    """
    if mask is not None and bias is not None:
        raise ValueError("attention takes a mask or a bias, not both")
    learns = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    plain = q.device.type != "cpu" or q.dtype != torch.float32 or learns or torch.compiler.is_exporting()
    if plain or not (uses_onednn("attention") or (q.shape[2] in _DIVIDED and has_onednn())):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias if mask is None else mask[:, None, None, :])
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    lengths = [q.shape[2]] * len(q) if mask is None else mask.sum(dim=1).tolist()
    q = q * q.shape[-1] ** -0.5
    for i, length in enumerate(lengths):
        for head in range(q.shape[1]):
            queries, keys, values = (part[i, head, :length] for part in (q, k, v))
            scores = multiply(queries, keys) if bias is None else multiply(queries, keys, onto=bias[i, head])
            out[i, head, :length] = multiply(scores.softmax(dim=-1), values.t())
    return out
