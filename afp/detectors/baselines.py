"""The baselines: ``metadata`` sees the file and never the picture, ``spectrum`` sees no content."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.feature_extraction import DictVectorizer

from ..data.images import describe_file
from ..data.preprocess import Normalisation, for_every_image, prepare
from .base import Detector
from .logistic import Logistic, fit_best

MOST_VALUES = 500  # texts that have a column; a hundred thousand photographs have thousands of sizes


@dataclass
class Metadata(Detector):
    """Logistic regression on `describe`: the shortcut baseline (a format difference fooled DIRE's own test set).

    A perturbation acts on pixels, so it changes none of these scores.

    Args:
        with_bytes: add bytes per pixel. After a common encoding that is no leak but a measure of how smooth the
            content is, so it stands apart.
    """

    name: ClassVar[str] = "metadata"
    with_bytes: bool = False

    @property
    def n_trainable(self) -> int:
        """Numbers, and distinct texts seen in training (the `MOST_VALUES` most frequent), + 1."""
        return self.model_.size

    def _rows(self, frame: pd.DataFrame, progress: bool) -> list[dict]:
        rows = for_every_image(lambda file, digest: describe_file(file), frame, progress, "files")
        for row in rows:
            size = float(row.pop("bytes_per_pixel"))
            if self.with_bytes:
                row["log_bytes"] = float(np.log2(size))
        return rows

    def _fit(self, train: pd.DataFrame, validation: pd.DataFrame, progress: bool) -> None:
        rows = self._rows(train, progress)
        counts = Counter((k, v) for row in rows for k, v in row.items() if isinstance(v, str))
        known = {text for text, _ in counts.most_common(MOST_VALUES)}
        kept = [{k: v for k, v in row.items() if not isinstance(v, str) or (k, v) in known} for row in rows]
        self.columns_ = DictVectorizer().fit(kept).get_feature_names_out().tolist()
        x, x_val = self._vectors(rows), self._vectors(self._rows(validation, progress))
        y, y_val = (frame["label"].to_numpy() for frame in (train, validation))
        self.model_, _, _ = fit_best((x, y), (x_val, y_val), progress=progress)

    def _vectors(self, rows: list[dict]) -> np.ndarray:
        """(n, columns_), a text value as its own 0/1 column, values that have none left out."""
        vectorizer = DictVectorizer(sparse=False)
        vectorizer.feature_names_ = self.columns_
        vectorizer.vocabulary_ = {column: i for i, column in enumerate(self.columns_)}
        return vectorizer.transform(rows)

    def _score(self, frame: pd.DataFrame, perturbation: str, progress: bool) -> np.ndarray:
        return self.model_.predict(self._vectors(self._rows(frame, progress)))

    def _save(self, folder: Path) -> None:
        self.model_.save(folder)
        (folder / "columns.json").write_text(json.dumps(self.columns_) + "\n")

    def _load(self, folder: Path) -> None:
        self.model_ = Logistic.load(folder)
        self.columns_ = json.loads((folder / "columns.json").read_text())


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
    """Logistic regression on the radial power spectrum: the baseline that sees no content."""

    name: ClassVar[str] = "spectrum"

    @property
    def n_trainable(self) -> int:
        """Rings of the spectrum + 1."""
        return self.model_.size

    def _features(self, frame: pd.DataFrame, perturbation: str, progress: bool) -> np.ndarray:
        def work(file: str, digest: str) -> np.ndarray:
            return _spectrum(file, digest, self.normalisation, perturbation)

        return np.stack(for_every_image(work, frame, progress, "spectra"))

    def _fit(self, train: pd.DataFrame, validation: pd.DataFrame, progress: bool) -> None:
        x, x_val = (self._features(frame, "none", progress) for frame in (train, validation))
        y, y_val = (frame["label"].to_numpy() for frame in (train, validation))
        self.model_, _, _ = fit_best((x, y), (x_val, y_val), progress=progress)

    def _score(self, frame: pd.DataFrame, perturbation: str, progress: bool) -> np.ndarray:
        return self.model_.predict(self._features(frame, perturbation, progress))

    def _save(self, folder: Path) -> None:
        self.model_.save(folder)

    def _load(self, folder: Path) -> None:
        self.model_ = Logistic.load(folder)
