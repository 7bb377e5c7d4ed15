"""Nearest rows of codebooks: of one, and of several on successive residuals by beam search.

Greedy codes take each layer's nearest row and never look ahead. A beam keeps the best few choices of all layers so far,
so that a worse row now may leave a residual that the next codebooks fit better (multi-path search of residual vector
quantization; Barnes, Rizvi and Nasrabadi 1996). The codes fit the same decoder and take the same bits.
"""

import torch
from torch import Tensor

from xycodec.nn.deterministic.linear import product

WIDEST = 256
"""Most candidates that a search keeps."""
_FRAMES = 64  # searched at a time: memory does not grow with the clip


def distances(x: Tensor, codebook: Tensor) -> Tensor:
    """Squared Euclidean distances (N, K) of (N, D) to the rows of (K, D)."""
    # Summed in the published order, so that near-ties round alike.
    return x.square().sum(dim=1, keepdim=True) - 2 * product(x, codebook) + codebook.square().sum(dim=1)


def nearest(x: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest row by squared Euclidean distance, the first of equals: (N, D), (K, D) -> (N,)."""
    return distances(x, codebook).argmin(dim=1)


def search(x: Tensor, codebooks: Tensor, width: int) -> Tensor:
    """Codes (layers, N) whose rows of `codebooks` (layers, K, D) sum up nearest to `x` (N, D), by a beam of `width`.

    Never further from it than greedy codes, which are kept where the beam found nothing nearer. Each frame is searched
    by itself; of equal candidates the first wins: that of the better choice before, then of the lower code.
    """
    return torch.cat([_search(part, codebooks, width) for part in torch.split(x, _FRAMES)], dim=1)


def _search(x: Tensor, codebooks: Tensor, width: int) -> Tensor:
    greedy, greedy_error = _beam(x, codebooks, 1)
    found, error = _beam(x, codebooks, width)
    return torch.where(error < greedy_error, found, greedy)


def _beam(x: Tensor, codebooks: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Codes (layers, N) of the best path of a beam, and their squared errors (N,)."""
    frames, dim = x.shape
    residuals, codes = x[:, None], torch.zeros(frames, 1, 0, dtype=torch.int64, device=x.device)
    for codebook in codebooks:
        errors = distances(residuals.reshape(-1, dim), codebook).view(frames, residuals.shape[1] * len(codebook))
        chosen = _lowest(errors, width)
        path, code = chosen // len(codebook), chosen % len(codebook)
        residuals = residuals.take_along_dim(path[..., None], dim=1) - codebook[code]
        codes = torch.cat([codes.take_along_dim(path[..., None], dim=1), code[..., None]], dim=2)
    # Measured once more on the residual itself, which has less rounding than a sum of products.
    errors = residuals.square().sum(dim=2)
    best = errors.argmin(dim=1, keepdim=True)
    return codes.take_along_dim(best[..., None], dim=1)[:, 0].T, errors.take_along_dim(best, dim=1)[:, 0]


def _lowest(values: Tensor, count: int) -> Tensor:
    """Indices (N, count) of the lowest of `values` (N, M) float32 in rising order, the first of equals first."""
    # `topk` leaves open which of equals it takes, so their places decide: the keys are integers in the order of the
    # floats (their bits, but for the negative ones) above the places.
    bits = (values + 0.0).view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)
    keys = (ordered << 32) | torch.arange(values.shape[1], device=values.device)
    return keys.topk(min(count, values.shape[1]), dim=1, largest=False).values & 0xFFFFFFFF
