"""``spectrum``: how much energy an image has at each spatial frequency, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from PIL import Image

from ..features import prepare_all
from .base import Detector
from .logistic import Logistic, choose


def radial_spectrum(image: Image.Image) -> np.ndarray:
    """Azimuthally averaged log power spectrum of a square image's luminance.

    Args:
        image: RGB, (s, s).
    Returns:
        (s // 2,), natural logarithm of the mean power in rings of one cycle per image (Durall et al., 2020).
    """
    gray = np.asarray(image.convert("L"), np.float64) / 255
    size = gray.shape[0]
    window = np.hanning(size)  # without it the borders' jump would fill every frequency
    power = np.abs(np.fft.fft2((gray - gray.mean()) * np.outer(window, window))) ** 2
    frequency = np.fft.fftfreq(size, 1 / size)
    ring = np.hypot(frequency[:, None], frequency[None, :]).astype(int).ravel()
    total, count = (np.bincount(ring, w, minlength=size // 2)[: size // 2] for w in (power.ravel(), None))
    return np.log(total / count + 1e-8)


@dataclass
class Spectrum(Detector):
    """Logistic regression on the radial power spectrum: the baseline that sees no content.

    Notebook: 04_evaluate_held_out
    """

    name: ClassVar[str] = "spectrum"

    @property
    def n_trainable(self) -> int:
        """Rings of the spectrum + 1."""
        return self.model_.size

    def _features(self, frame: pd.DataFrame, perturbation: str, progress: bool) -> np.ndarray:
        images = prepare_all(frame, self.normalisation, perturbation, progress)
        return np.stack([radial_spectrum(image) for image in images])

    def _fit(self, train: pd.DataFrame, validation: pd.DataFrame, progress: bool) -> None:
        sets = [(self._features(f, "none", progress), f["label"].to_numpy()) for f in (train, validation)]
        self.model_, _, _ = choose(*sets)

    def _score(self, frame: pd.DataFrame, perturbation: str, progress: bool) -> np.ndarray:
        return self.model_.predict(self._features(frame, perturbation, progress))

    def _save(self, folder: Path) -> None:
        self.model_.save(folder)

    def _load(self, folder: Path) -> None:
        self.model_ = Logistic.load(folder)
