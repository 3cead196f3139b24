"""From a score to a decision: the threshold, chosen on validation images."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ..errors import AfpError


def choose_threshold(labels: ArrayLike, scores: ArrayLike) -> float:
    """The threshold with the best balanced accuracy on validation images (score >= threshold is fake).

    Candidates are the midpoints between neighbouring distinct scores, so not everything is called the same;
    of equally good ones the widest gap wins, then the one nearest 0.5. With one class only, or one distinct
    score, there is nothing to choose by, and 0.5 is returned.
    """
    y, p = check_labels_and_scores(labels, scores)
    values = np.unique(p)
    if len(np.unique(y)) < 2 or len(values) < 2:
        return 0.5
    low, high = values[:-1], values[1:]
    middle = np.maximum((low + high) / 2, np.nextafter(low, 1))  # neighbouring floats have no midpoint
    tpr, fpr = (1 - np.searchsorted(np.sort(c), high) / len(c) for c in (p[y == 1], p[y == 0]))
    best_first = np.lexsort((np.abs(middle - 0.5), -np.round(high - low, 12), -np.round(tpr - fpr, 12)))
    return float(middle[best_first[0]])


def check_labels_and_scores(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    y, p = np.asarray(labels, float), np.asarray(scores, float)
    for name, values, good, expected in (
        ("label", y, np.isin(y, (0, 1)), "0 (real) or 1 (fake)"),
        ("score", p, (p >= 0) & (p <= 1), "P(fake) in [0, 1]"),
    ):
        if (bad := np.flatnonzero(~good)).size:
            raise AfpError(f"{name}: {values[bad[0]]} in row {bad[0]}; expected {expected}")
    if y.shape != p.shape or y.ndim != 1:
        raise AfpError(f"labels and scores: shapes {y.shape} and {p.shape}; expected (n,) both")
    return y, p
