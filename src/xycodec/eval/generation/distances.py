"""Numbers of sets of embeddings: Fréchet distance, kernel audio distance, inception score. All in float64."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

from xycodec.errors import XycodecError

Array = NDArray[np.float64]
Vectors = NDArray[np.floating]

KAD_SCALE = 100.0
SPLITS, SPLIT_SEED = 10, 2020  # of AudioLDM's evaluation
_BLOCK = 1024


@dataclass(frozen=True)
class Moments:
    """Mean (D,) and covariance (D, D) of `count` vectors."""

    count: int
    mean: Array
    covariance: Array


def moments(batches: Iterable[Vectors]) -> Moments:
    """Mean and covariance of vectors that come in batches (n, D), one batch in memory at a time.

    Sums of squares about the means are joined pairwise (Chan, Golub and LeVeque 1983). Raises XycodecError for fewer
    than two vectors.
    """
    count, mean, squares = 0, np.zeros(0), np.zeros((0, 0))
    for batch in batches:
        vectors = np.asarray(batch, dtype=np.float64)
        if not len(vectors):
            continue
        own = vectors.mean(axis=0)
        centred = vectors - own
        if not count:
            count, mean, squares = len(vectors), own, centred.T @ centred
            continue
        total, apart = count + len(vectors), own - mean
        squares = squares + centred.T @ centred + np.outer(apart, apart) * (count * len(vectors) / total)
        mean = mean + apart * (len(vectors) / total)
        count = total
    if count < 2:
        raise XycodecError(f"a covariance takes two vectors or more, there are {count}: give more or longer clips")
    return Moments(count, mean, squares / (count - 1))


def frechet_distance(one: Moments, two: Moments) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), the squared Fréchet distance of two Gaussians.

    The trace of the root is the sum of the roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which is symmetric and has
    those of S1 S2; what rounding makes negative is zero. Raises XycodecError where the vectors differ in size.
    """
    if one.mean.shape != two.mean.shape:
        raise XycodecError(f"vectors of {len(one.mean)} and {len(two.mean)} numbers cannot be compared")
    apart = one.mean - two.mean
    values, vectors = np.linalg.eigh(one.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = root @ two.covariance @ root
    roots = np.sqrt(np.maximum(np.linalg.eigvalsh((product + product.T) / 2), 0))
    traces = np.trace(one.covariance) + np.trace(two.covariance)
    return float(max(0.0, apart @ apart + traces - 2 * roots.sum()))


def kernel_distance(generated: Vectors, reference: Vectors) -> float:
    """Kernel audio distance (Chung et al. 2025) of (m, D) and (n, D): 100 times the unbiased squared MMD.

    The kernel is Gaussian; its bandwidth is the median distance between vectors of the reference. Sets of one
    distribution give about 0, also a little below. Raises XycodecError for fewer than two vectors in either, or for a
    reference whose vectors are mostly equal.
    """
    x, y = (np.asarray(vectors, dtype=np.float64) for vectors in (generated, reference))
    if min(len(x), len(y)) < 2:
        raise XycodecError("a kernel distance takes two clips or more in either set")
    bandwidth = float(np.median(pdist(y)))
    if not bandwidth:
        raise XycodecError("most clips of the reference have the same embedding: no kernel distance")
    gamma = 1 / (2 * bandwidth**2)
    own = [(_kernel_sum(z, z, gamma) - len(z)) / (len(z) * (len(z) - 1)) for z in (x, y)]
    return KAD_SCALE * (own[0] + own[1] - 2 * _kernel_sum(x, y, gamma) / (len(x) * len(y)))


def _kernel_sum(x: Array, y: Array, gamma: float) -> float:
    squares = np.square(y).sum(axis=1)
    total = 0.0
    for start in range(0, len(x), _BLOCK):
        rows = x[start : start + _BLOCK]
        distances = np.square(rows).sum(axis=1)[:, None] + squares - 2 * rows @ y.T
        total += float(np.exp(-gamma * np.maximum(distances, 0)).sum())
    return total


def inception_score(logits: Vectors) -> float:
    """Inception score (Salimans et al. 2016) of class outputs (n, classes): at least 1, at most the classes.

    The exponential of the mean Kullback-Leibler divergence between a clip's softmax and that of its split; the mean
    over 10 splits, or as many as there are clips, of the order that seed 2020 draws (AudioLDM's evaluation).
    """
    drawn = np.random.RandomState(SPLIT_SEED).permutation(len(logits))
    values = np.asarray(logits, dtype=np.float64)[drawn]
    values = values - values.max(axis=1, keepdims=True)
    log_p = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    scores = []
    count, splits = len(log_p), min(SPLITS, len(log_p))
    for split in range(splits):
        part = log_p[split * count // splits : (split + 1) * count // splits]
        p = np.exp(part)
        # A class that underflows in every clip adds nothing.
        marginal = np.log(np.maximum(p.mean(axis=0), np.finfo(np.float64).tiny))
        scores.append(np.exp((p * (part - marginal)).sum(axis=1).mean()))
    return float(np.mean(scores))
