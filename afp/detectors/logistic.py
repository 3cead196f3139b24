"""Logistic regression on standardised features: the classifier behind three detectors."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight
from tqdm.auto import tqdm

from ..paths import cache_dir

if TYPE_CHECKING:  # the detectors that read no model import no torch
    from ..models.features import Features

C_GRID = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
IN_MEMORY = 10**9  # bytes of float32 features up to which they are one array: 244,000 images of CLIP ViT-L/14
AT_ONCE = 4096  # rows in memory of those that are not
MAX_STEPS = 2000


@contextmanager
def matrix(parts: Sequence[Features]) -> Iterator[np.ndarray]:
    """Features as one array, (n, ...): float32 in memory or, beyond `IN_MEMORY` bytes, float16 in a passing file."""
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    if 4 * np.prod(shape) <= IN_MEMORY:
        yield np.concatenate([np.asarray(part) for part in parts])
        return
    cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=cache_dir()) as file:
        rows, i = np.memmap(file, np.float16, "w+", shape=shape), 0
        for part in parts:
            for j in range(len(part)):
                rows[i] = part[j]
                i += 1
        yield rows


def _chunks(x: np.ndarray) -> Iterator[np.ndarray]:
    """All rows in float64, some at a time."""
    for start in range(0, len(x), AT_ONCE):
        yield x[start : start + AT_ONCE].astype(np.float64)


@dataclass(frozen=True)
class Logistic:
    """A fitted model. ``mean``, ``scale``, ``coef``: (d,); ``intercept``: (1,)."""

    mean: np.ndarray
    scale: np.ndarray
    coef: np.ndarray
    intercept: np.ndarray

    @classmethod
    def fit(cls, x: np.ndarray, y: np.ndarray, c: float) -> Logistic:
        """Fit on (n, d) features and (n,) labels; both classes weigh the same.

        By scikit-learn in memory; of a file, its optimum by the same solver, which reads some rows at a time.
        """
        if isinstance(x, np.memmap):
            return cls._fit_file(x, y, c)
        mean, scale = x.mean(0), x.std(0)
        scale = np.where(scale > 1e-6, scale, 1.0)
        model = LogisticRegression(C=c, class_weight="balanced", max_iter=MAX_STEPS)
        model.fit((x - mean) / scale, y)
        return cls(mean, scale, model.coef_[0], model.intercept_)

    @classmethod
    def _fit_file(cls, x: np.ndarray, y: np.ndarray, c: float) -> Logistic:
        scaler, weights = StandardScaler(), compute_sample_weight("balanced", y)
        for rows in _chunks(x):
            scaler.partial_fit(rows)
        mean, scale = scaler.mean_, np.sqrt(scaler.var_)
        scale = np.where(scale > 1e-6, scale, 1.0)

        def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
            """scikit-learn's loss at coefficients and intercept (d + 1,), and its gradient."""
            coef, of_x, total, pull = values[:-1], values[:-1] / scale, 0.0, np.zeros(len(values))
            start = 0
            for rows in _chunks(x):
                part = slice(start, start := start + len(rows))
                margin = rows @ of_x + values[-1] - mean @ of_x
                total += weights[part] @ (np.logaddexp(0, margin) - y[part] * margin)
                error = weights[part] * (expit(margin) - y[part])
                pull += np.append((error @ rows - error.sum() * mean) / scale, error.sum())
            pull[:-1] += coef / c
            return (total + coef @ coef / (2 * c)) / len(x), pull / len(x)

        options = {"maxiter": MAX_STEPS, "maxls": 50, "gtol": 1e-4, "ftol": 64 * np.finfo(float).eps}
        found = minimize(loss, np.zeros(x.shape[1] + 1), method="L-BFGS-B", jac=True, options=options).x
        return cls(mean, scale, found[:-1], found[-1:])

    def predict(self, x: np.ndarray) -> np.ndarray:
        """P(fake) of (n, d) features: (n,)."""
        # Not `@`: its last digits depend on how many rows there are, and a score must not depend on its batch.
        sums = [
            np.ascontiguousarray((rows - self.mean) / self.scale * self.coef).sum(1) for rows in _chunks(x)
        ]
        return expit(np.concatenate(sums) + self.intercept[0])

    @property
    def size(self) -> int:
        """Trained numbers: coefficients and intercept."""
        return self.coef.size + 1

    def save(self, folder: Path) -> None:
        arrays = {k: np.asarray(v, np.float64) for k, v in vars(self).items()}
        save_file(arrays, folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Logistic:
        return cls(**load_file(folder / "model.safetensors"))


def fit_best(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    grid: Sequence[float] = C_GRID,
    progress: bool = False,
) -> tuple[Logistic, float, float]:
    """The regularisation with the smallest class-balanced log loss on validation.

    The loss rather than the AUC, because the held-in AUC is 1 for many settings at once.

    Returns:
        The model, its C, its validation loss (nats).
    """
    x, y = validation
    weights = np.where(y == 1, 0.5 / max(1, (y == 1).sum()), 0.5 / max(1, (y == 0).sum()))
    bar = tqdm(grid, "regularisation", leave=False, disable=not progress)
    fits = [(Logistic.fit(*train, c), c) for c in bar]
    losses = [log_loss(y, model.predict(x), sample_weight=weights, labels=[0, 1]) for model, _ in fits]
    best = int(np.argmin(losses))
    return *fits[best], losses[best]
