"""Metrics of classification: accuracy, macro F1, and mean average precision, all in percent."""

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Truth = NDArray[np.bool_]


def measures(scores: Scores, truth: Truth, *, several: bool) -> dict[str, float]:
    """Metrics of scores (N, classes), the higher the likelier, against `truth` (N, classes).

    With one label a clip: `accuracy` and `macro_f1` of the likeliest class, and `macro_map`. With `several`:
    `macro_map`, a mean over the classes that occur, and `weighted_map`, which weights them by how often they do.
    """
    precisions = np.array([average_precision(scores[:, i], truth[:, i]) for i in range(truth.shape[1])])
    counts = truth.sum(axis=0)
    occurs = counts > 0
    found = {"macro_map": float(precisions[occurs].mean())} if occurs.any() else {}
    if several:
        if occurs.any():
            found["weighted_map"] = float(np.average(precisions[occurs], weights=counts[occurs]))
    else:
        guessed, right = scores.argmax(axis=1), truth.argmax(axis=1)
        found = {"accuracy": float(np.mean(guessed == right)), "macro_f1": macro_f1(guessed, right)} | found
    return {name: 100 * value for name, value in found.items()}


def macro_f1(guessed: NDArray[np.int64], right: NDArray[np.int64]) -> float:
    """Mean over the classes that occur in either of 2 TP / (2 TP + FP + FN)."""
    classes = np.union1d(guessed, right)
    hits = [np.sum((guessed == one) & (right == one)) for one in classes]
    sizes = [np.sum(guessed == one) + np.sum(right == one) for one in classes]
    return float(np.mean([2 * hit / size for hit, size in zip(hits, sizes, strict=True)]))


def average_precision(scores: Scores, truth: Truth) -> float:
    """Sum over thresholds of precision times the recall that each adds; equal scores share one. NaN without a hit."""
    if not truth.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(truth[order])
    last = np.append(ranked[1:] != ranked[:-1], True)  # of each group of equal scores
    precision, recall = (hits / np.arange(1, len(hits) + 1))[last], (hits / hits[-1])[last]
    return float(np.sum(precision * np.diff(recall, prepend=0.0)))
