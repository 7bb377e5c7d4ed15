from itertools import pairwise

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist

from xycodec.errors import XycodecError
from xycodec.eval.generation.distances import frechet_distance, inception_score, kernel_distance, moments

SPLITS = 10


def sets(n=90, m=70, size=24, seed=0):
    """Two sets of correlated vectors that differ in mean and spread."""
    draw = np.random.default_rng(seed)
    one, two = (draw.standard_normal((count, size)) @ draw.standard_normal((size, size)) for count in (n, m))
    return one.astype(np.float32), (0.5 * two + 1).astype(np.float32)


def by_scipy(one, two):
    """The textbook form, with scipy's root of a product that is not symmetric."""
    x, y = one.astype(np.float64), two.astype(np.float64)
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    apart = x.mean(0) - y.mean(0)
    return apart @ apart + np.trace(a + b - 2 * sqrtm(a @ b).real)


def test_frechet_distance_is_scipys():
    one, two = sets()
    found = frechet_distance(moments([one]), moments([two]))
    # Both in float64; a root by Schur and one by eigenvalues agree to some 1e-12.
    assert found == pytest.approx(by_scipy(one, two), rel=1e-9)
    assert found == pytest.approx(frechet_distance(moments([two]), moments([one])), rel=1e-9)


def test_frechet_distance_of_fewer_vectors_than_dimensions():
    one, two = sets(n=12, m=15)
    # Without the root of a singular product: the sum of the singular values of one centred set times the other.
    x, y = (z.astype(np.float64) - z.astype(np.float64).mean(0) for z in (one, two))
    root = np.linalg.svd(x @ y.T, compute_uv=False).sum() / np.sqrt(11 * 14)
    apart = one.astype(np.float64).mean(0) - two.astype(np.float64).mean(0)
    expected = apart @ apart + np.square(x).sum() / 11 + np.square(y).sum() / 14 - 2 * root
    # Eigenvalues that should be 0 are 1e-13 of the largest, their roots 3e-7.
    assert frechet_distance(moments([one]), moments([two])) == pytest.approx(expected, rel=1e-5)


def test_frechet_distance_of_equal_sets_is_zero_and_of_a_shift_its_square():
    one, _ = sets()
    assert frechet_distance(moments([one]), moments([one])) == pytest.approx(0, abs=1e-6)
    moved = one.astype(np.float64) + 3
    assert frechet_distance(moments([one]), moments([moved])) == pytest.approx(9 * one.shape[1], rel=1e-9)


def test_moments_do_not_depend_on_batches():
    one, _ = sets()
    whole = moments([one])
    parts = moments([one[:1], one[1:1], one[1:50], one[50:]])
    assert whole.count == parts.count == len(one)
    np.testing.assert_allclose(whole.mean, one.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-9)
    np.testing.assert_allclose(whole.covariance, np.cov(one.astype(np.float64), rowvar=False), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(parts.covariance, whole.covariance, rtol=1e-9, atol=1e-9)


def test_one_vector_has_no_covariance():
    with pytest.raises(XycodecError, match="takes two vectors or more, there are 1"):
        moments([np.ones((1, 3))])
    with pytest.raises(XycodecError, match="of 3 and 4 numbers"):
        frechet_distance(moments([np.ones((2, 3))]), moments([np.ones((2, 4))]))


def test_kernel_distance_is_the_unbiased_discrepancy():
    x, y = sets(n=1100, m=40, size=3)  # more than a block of rows
    width = np.median(cdist(y, y)[np.triu_indices(len(y), 1)])

    def kernel(a, b):
        return np.exp(-cdist(a, b, "sqeuclidean") / (2 * width**2))

    own = [(kernel(z, z).sum() - len(z)) / (len(z) * (len(z) - 1)) for z in (x.astype(float), y.astype(float))]
    expected = 100 * (own[0] + own[1] - 2 * kernel(x.astype(float), y.astype(float)).mean())
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-8)
    assert abs(kernel_distance(x[:500], x[500:])) < 1 < kernel_distance(x, y)
    with pytest.raises(XycodecError, match="two clips or more"):
        kernel_distance(x[:1], y)
    with pytest.raises(XycodecError, match="the same embedding"):
        kernel_distance(x, np.ones((5, 3)))


def test_inception_score_is_one_for_one_class_and_their_number_for_sure_ones():
    assert inception_score(np.tile([5.0, 0, 0], (40, 1))) == pytest.approx(1)
    sure = np.repeat(200 * np.eye(4), 500, axis=0)
    # 200 clips a split: each has the four classes some 50 times.
    assert inception_score(sure) == pytest.approx(4, rel=0.02)


def test_inception_score_by_hand():
    logits = np.random.default_rng(0).standard_normal((43, 6)) * 2
    drawn = logits[np.random.RandomState(2020).permutation(43)]
    p = np.exp(drawn) / np.exp(drawn).sum(1, keepdims=True)
    bounds = [number * 43 // SPLITS for number in range(SPLITS + 1)]
    parts = [p[low:high] for low, high in pairwise(bounds)]
    expected = np.mean([np.exp((q * np.log(q / q.mean(0))).sum(1).mean()) for q in parts])
    assert inception_score(logits) == pytest.approx(expected, rel=1e-9)
    assert inception_score(logits[:1]) == pytest.approx(1)
