"""Means that language models report: cross-entropy, and how often the right code is among the ten likeliest."""

import torch
from torch import Tensor
from torch.nn import functional as F

from xycodec.nn.mean import Mean

NO_LABEL = -100
_TOP = 10


def labelled(labels: Tensor) -> Tensor:
    """Places (N,) of rows that have a label, in labels (B, S) or (B, S, K) on the CPU, with B and S as one axis.

    Found there, since a device would let the host wait for their number.
    """
    known = labels != NO_LABEL
    rows = known if known.ndim == 2 else known.any(dim=-1)
    return rows.flatten().nonzero()[:, 0]


def rows_at(x: Tensor, places: Tensor) -> Tensor:
    """Rows (N, ...) of x (B, S, ...) at places (N,) of `labelled`."""
    return torch.index_select(x.flatten(0, 1), 0, places)


def cross_entropy(logits: Tensor, labels: Tensor) -> Mean:
    """Cross-entropy in nats of logits (N, K) and labels (N,); NO_LABEL counts nothing."""
    total = F.cross_entropy(logits.float(), labels, ignore_index=NO_LABEL, reduction="sum")
    return Mean(total[None], (labels != NO_LABEL).sum()[None].float())


def top_ten(logits: Tensor, labels: Tensor) -> Mean:
    """Share of labels (N,) among the ten likeliest of logits (N, K)."""
    likeliest = logits.detach().topk(min(_TOP, logits.shape[-1])).indices
    known = labels != NO_LABEL
    right = (likeliest == labels[:, None]).any(dim=-1) & known
    return Mean(right.sum()[None].float(), known.sum()[None].float())
