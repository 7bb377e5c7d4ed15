"""Metrics against loops that spell them out, and against values by hand."""

import numpy as np
import pytest

from xycodec.eval.classify.metrics import average_precision, macro_f1, measures


def naive_precision(scores, truth):
    """Each threshold in turn: precision times the recall that it adds."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        chosen = scores >= threshold
        precision, recall = truth[chosen].mean(), truth[chosen].sum() / truth.sum()
        total += precision * (recall - before)
        before = recall
    return total


@pytest.mark.parametrize("levels", [3, 1000])
def test_average_precision_is_that_of_the_loop(levels):
    generator = np.random.default_rng(0)
    for _ in range(20):
        scores = generator.integers(0, levels, 30).astype(float)
        truth = generator.random(30) < 0.3
        truth[0] = True
        assert average_precision(scores, truth) == pytest.approx(naive_precision(scores, truth), abs=1e-12)


def test_values_by_hand():
    truth = np.array([True, False, True, False])
    assert average_precision(np.array([4.0, 3, 2, 1]), truth) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(np.ones(4), truth) == pytest.approx(0.5)
    assert np.isnan(average_precision(np.ones(4), np.zeros(4, bool)))
    # Classes 0, 1, 2: one hit of 2 + 1, one of 1 + 2, none of 0 + 0, which does not count.
    assert macro_f1(np.array([0, 0, 1]), np.array([0, 1, 1])) == pytest.approx(2 / 3)
    assert macro_f1(np.array([0, 2]), np.array([0, 0])) == pytest.approx((2 / 3 + 0) / 2)


def test_both_kinds_of_tasks():
    scores = np.array([[3.0, 1, 0], [0, 2, 1], [2, 1, 0]])
    one = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0]], bool)
    found = measures(scores, one, several=False)
    assert found == pytest.approx(
        {"accuracy": 200 / 3, "macro_f1": 200 / 3, "macro_map": 100 * (1 + (1 + 2 / 3) / 2) / 2}
    )
    many = np.array([[1, 1, 0], [0, 1, 0], [0, 1, 0]], bool)
    found = measures(scores, many, several=True)
    assert found == pytest.approx({"macro_map": 100.0, "weighted_map": 100.0})
