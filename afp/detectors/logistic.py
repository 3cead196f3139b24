"""Logistic regression on standardised features: the classifier behind three detectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from tqdm.auto import tqdm

C_GRID = (1e-3, 1e-2, 1e-1, 1.0, 10.0)


@dataclass(frozen=True)
class Logistic:
    """A fitted model. ``mean``, ``scale``, ``coef``: (d,); ``intercept``: (1,)."""

    mean: np.ndarray
    scale: np.ndarray
    coef: np.ndarray
    intercept: np.ndarray

    @classmethod
    def fit(cls, x: np.ndarray, y: np.ndarray, c: float) -> Logistic:
        """Fit on (n, d) features and (n,) labels; both classes weigh the same."""
        mean, scale = x.mean(0), x.std(0)
        scale = np.where(scale > 1e-6, scale, 1.0)
        model = LogisticRegression(C=c, class_weight="balanced", max_iter=2000)
        model.fit((x - mean) / scale, y)
        return cls(mean, scale, model.coef_[0], model.intercept_)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """P(fake) of (n, d) features: (n,)."""
        z = (x.astype(np.float64) - self.mean) / self.scale * self.coef
        # Not `@`: its last digits depend on how many rows there are, and a score must not depend on its batch.
        return expit(np.ascontiguousarray(z).sum(1) + self.intercept[0])

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
