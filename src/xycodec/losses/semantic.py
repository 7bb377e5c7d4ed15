"""Distance between decoded and true features of a self-supervised model."""

from torch import Tensor

from xycodec.nn.mean import Mean, masked_mean, plain_mean


def semantic_distance(decoded: Tensor, target: Tensor, mask: Tensor | None = None) -> Mean:
    """Mean squared difference of decoded features (B, L, D) from true ones, over the frames of `mask` (B, L).

    Over all frames without a mask. No gradient goes to `target`. Source: X-Codec, its semantic loss.
    """
    difference = (decoded.float() - target.detach().float()).square().mean(dim=2)
    return plain_mean(difference) if mask is None else masked_mean(difference, mask)
