"""Attention whose results depend on neither the number of threads nor what pads a clip."""

import torch
from torch import Tensor
from torch.nn import functional as F

from xycodec.nn.deterministic.kernels import multiply, uses_onednn


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax(q k^T / sqrt(d)) v over the valid frames: (B, H, T, d) each -> (B, H, T, d).

    mask: (B, T) bool, True on the valid frames, which come first; None where all are.
    """
    learns = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if q.device.type != "cpu" or q.dtype != torch.float32 or learns or not uses_onednn("attention"):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None, :])
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    lengths = [q.shape[2]] * len(q) if mask is None else mask.sum(dim=1).tolist()
    q = q * q.shape[-1] ** -0.5
    for i, length in enumerate(lengths):
        for head in range(q.shape[1]):
            queries, keys, values = (part[i, head, :length] for part in (q, k, v))
            weights = multiply(queries, keys).softmax(dim=-1)
            out[i, head, :length] = multiply(weights, values.t())
    return out
