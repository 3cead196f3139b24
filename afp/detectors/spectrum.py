"""``spectrum``: how much energy an image has at each spatial frequency, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from ..features import prepare
from ..images import ImageError, Normalisation, UnreadableImages
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


@lru_cache(maxsize=2**17)  # cross-fitting asks for every image once a fold
def _spectrum(file: str, digest: str, normalisation: Normalisation, perturbation: str) -> np.ndarray:
    return radial_spectrum(prepare(file, digest, normalisation, perturbation))


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
        spectra, errors = [], {}
        rows = zip(frame["file"], frame["sha256"], strict=True)
        for file, digest in tqdm(rows, total=len(frame), desc="spectra", disable=not progress, leave=False):
            try:
                spectra.append(_spectrum(file, digest, self.normalisation, perturbation))
            except ImageError as error:
                errors[file] = str(error)
        if errors:
            raise UnreadableImages(errors)
        return np.stack(spectra)

    def _fit(self, train: pd.DataFrame, validation: pd.DataFrame, progress: bool) -> None:
        sets = [(self._features(f, "none", progress), f["label"].to_numpy()) for f in (train, validation)]
        self.model_, _, _ = choose(*sets)

    def _score(self, frame: pd.DataFrame, perturbation: str, progress: bool) -> np.ndarray:
        return self.model_.predict(self._features(frame, perturbation, progress))

    def _save(self, folder: Path) -> None:
        self.model_.save(folder)

    def _load(self, folder: Path) -> None:
        self.model_ = Logistic.load(folder)
