"""From a score to a decision: the threshold, chosen on validation images, and what it costs real images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv

from ..errors import AfpError

TARGET_FPR = 0.05


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold, how it was chosen, and the share of real images that it calls fake.

    Args:
        threshold: an image whose score reaches it is called fake.
        rule: how it was chosen, in words.
        rate, low, high: share of ``n_real`` real images called fake, with its 95 % interval.
        origin: of these images, ``validation`` or ``calibration``.
    """

    threshold: float
    rule: str
    rate: float
    low: float
    high: float
    n_real: int
    origin: str = "validation"

    def __post_init__(self) -> None:
        for name in ("threshold", "rate", "low", "high", "n_real"):
            if not isinstance(value := getattr(self, name), int | float):
                raise AfpError(f"operating point: {name} is {value!r}, expected a number")

    def __str__(self) -> str:
        return (
            f"threshold {self.threshold:.4g} by {self.rule}; of {self.n_real} real images of {self.origin} it calls "
            f"{self.rate:.3f} [{self.low:.3f}, {self.high:.3f}] fake"
        )


def choose_operating_point(
    labels: ArrayLike,
    scores: ArrayLike,
    sources: Sequence[str],
    target_fpr: float | None = None,
    origin: str = "validation",
) -> OperatingPoint:
    """The threshold of the best balanced accuracy, or of real images alone, and its rate on the real images.

    Args:
        labels, scores, sources: (n,) of validation images; ``sources`` are the photographs that they derive from.
        target_fpr: the largest share of real images that it may call fake, above 0, under 1. It is spent where that
            finds more fakes, and all of it where there are no fakes to find. None sets no limit, and none is set
            where there are so few real images that not one might be called fake.
        origin: see `OperatingPoint`.
    """
    y, p = check_labels_and_scores(labels, scores)
    real = p[y == 0]
    if target_fpr is None or len(real) < fewest_for(target_fpr):
        threshold, rule = choose_threshold(y, p), "the best balanced accuracy"
        if target_fpr is not None:
            rule += f" (too few real images for a rate of {target_fpr:g})"
    elif len(real) == len(p):
        threshold, rule = threshold_at_fpr(real, target_fpr), f"a false-positive rate of {target_fpr:g}"
    else:
        threshold = choose_threshold(y, p, target_fpr)
        rule = f"the best balanced accuracy at a false-positive rate of at most {target_fpr:g}"
    rates = false_positive_rate(real >= threshold, np.asarray(sources)[y == 0])
    return OperatingPoint(threshold, rule, *rates, len(real), origin)


def fewest_for(target_fpr: float) -> int:
    """The fewest real images of which this rate allows one to be called fake. Raises AfpError for no rate."""
    if not 0 < target_fpr < 1:
        raise AfpError(f"target FPR: {target_fpr}, expected a number between 0 and 1")
    return math.ceil(1 / target_fpr - 1e-9)


def choose_threshold(labels: ArrayLike, scores: ArrayLike, max_fpr: float = 1) -> float:
    """The threshold with the best balanced accuracy on validation images (score >= threshold is fake).

    Candidates are the midpoints between neighbouring distinct scores, so not everything is called the same;
    of equally good ones the widest gap wins, then the one nearest 0.5. With one class only, or one distinct
    score, there is nothing to choose by, and 0.5 is returned.

    Args:
        labels, scores: (n,) of validation images.
        max_fpr: the largest share of real images that it may call fake. Where every candidate calls more fake, see
            `threshold_at_fpr`.
    """
    y, p = check_labels_and_scores(labels, scores)
    values = np.unique(p)
    if len(np.unique(y)) < 2 or (len(values) < 2 and max_fpr >= 1):
        return 0.5
    low, high = values[:-1], values[1:]
    middle = np.maximum((low + high) / 2, np.nextafter(low, 1))  # neighbouring floats have no midpoint
    tpr, fpr = (1 - np.searchsorted(np.sort(c), high) / len(c) for c in (p[y == 1], p[y == 0]))
    best_first = np.lexsort((np.abs(middle - 0.5), -np.round(high - low, 12), -np.round(tpr - fpr, 12)))
    within = best_first[fpr[best_first] <= max_fpr + 1e-9]
    return float(middle[within[0]]) if len(within) else threshold_at_fpr(p[y == 0], max_fpr)


def threshold_at_fpr(real_scores: ArrayLike, target_fpr: float) -> float:
    """A threshold at which at most this share of real images is called fake; real images alone decide it.

    It lies in the middle between the highest score that must stay below it and the next one, or just above it. Where
    real images score 1, even the highest threshold calls them fake.

    Args:
        real_scores: P(fake) of real images, (n,).
        target_fpr: above 0, under 1.
    Raises:
        AfpError: another ``target_fpr``, or too few images for it.
    """
    p = np.sort(np.asarray(real_scores, float))[::-1]
    if len(p) < (fewest := fewest_for(target_fpr)):
        raise AfpError(
            f"{len(p)} real images are too few for a false-positive rate of {target_fpr:g}; expected {fewest}"
        )
    allowed = int(target_fpr * len(p) + 1e-9)  # rounding must not forbid 1 of 20 images at .05
    above = p[p > p[allowed]]
    lowest = np.nextafter(p[allowed], 1)
    return float(max(lowest, (p[allowed] + above[-1]) / 2) if len(above) else lowest)


def false_positive_rate(called_fake: ArrayLike, sources: ArrayLike) -> tuple[float, float, float]:
    """The share of real images that are called fake, with its 95 % interval.

    The interval is Clopper's and Pearson's (Biometrika 26, 1934), as if there were one image a source: images of one
    photograph are no independent trials, and an interval of 0 to 0 would be none.

    Args:
        called_fake: (n,) bool, of real images.
        sources: (n,), the photographs that they derive from.
    Returns:
        Rate, low, high; all NaN without an image.
    """
    called = np.asarray(called_fake, bool)
    if not len(called):
        return np.nan, np.nan, np.nan
    rate, n = float(called.mean()), len(np.unique(np.asarray(sources, str)))
    k = rate * n
    low = float(betaincinv(k, n - k + 1, 0.025)) if k > 0 else 0.0
    high = float(betaincinv(k + 1, n - k, 0.975)) if k < n else 1.0
    return rate, low, high


def check_labels_and_scores(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both as (n,) float arrays. Raises ValueError for a label but 0 and 1, and for a score outside of [0, 1]."""
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
