"""``metadata``: sees the file, never the picture. Better than chance means that the data set has a shortcut."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.feature_extraction import DictVectorizer

from ..images import ImageError, UnreadableImages, open_image
from .base import Detector, DetectorError
from .logistic import Logistic, choose


def describe(file: str | Path) -> dict[str, str | float]:
    """What a file tells without being looked at: format, mode, size, aspect, JPEG tables, embedded profiles.

    ``bytes_per_pixel`` is the size of the file over the number of its pixels.

    Raises:
        ImageError: the file cannot be decoded.
    """
    if not Path(file).is_file():
        open_image(file)  # says what is wrong
    status = Path(file).stat()
    return dict(_describe(str(file), status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=2**17)  # cross-fitting asks for every file once a fold
def _describe(file: str, size: int, changed: int) -> dict[str, str | float]:
    open_image(file)  # refuses what no detector could score, with one message for all
    with Image.open(file) as image:
        tables = getattr(image, "quantization", None) or {}
        return {
            "format": image.format or "?",
            "mode": image.mode,
            "size": f"{image.width}x{image.height}",
            "log_width": float(np.log2(image.width)),
            "log_height": float(np.log2(image.height)),
            "aspect": image.width / image.height,
            "jpeg_tables": str([list(tables[k]) for k in sorted(tables)]),
            "jpeg_mean": float(np.mean([v for t in tables.values() for v in t])) if tables else 0.0,
            "exif": float("exif" in image.info),
            "icc": float("icc_profile" in image.info),
            "bytes_per_pixel": size / (image.width * image.height),
        }


@dataclass
class Metadata(Detector):
    """Logistic regression on `describe`: the shortcut baseline (a format difference fooled DIRE's own test set).

    A perturbation acts on pixels, so it changes none of these scores.

    Args:
        with_bytes: add bytes per pixel. After a common encoding that is no leak but a measure of how smooth the
            content is, so it stands apart.

    Notebook: 01_prepare_data
    """

    name: ClassVar[str] = "metadata"
    with_bytes: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.with_bytes, bool):
            raise DetectorError(f"metadata: with_bytes is {self.with_bytes!r}, expected true or false")

    @property
    def n_trainable(self) -> int:
        """Number of distinct properties seen in training + 1."""
        return self.model_.size

    def _rows(self, frame: pd.DataFrame) -> list[dict]:
        rows, errors = [], {}
        for file in frame["file"]:
            try:
                row = describe(file)
                size = row.pop("bytes_per_pixel")
                rows.append(row | {"log_bytes": float(np.log2(size))} if self.with_bytes else row)
            except ImageError as error:
                errors[file] = str(error)
        if errors:
            raise UnreadableImages(errors)
        return rows

    def _fit(self, train: pd.DataFrame, validation: pd.DataFrame, progress: bool) -> None:
        vectorizer = DictVectorizer(sparse=False)
        x = vectorizer.fit_transform(self._rows(train))
        self.columns_ = vectorizer.get_feature_names_out().tolist()
        x_val = self._vectors(self._rows(validation))
        self.model_, _, _ = choose((x, train["label"].to_numpy()), (x_val, validation["label"].to_numpy()))

    def _vectors(self, rows: list[dict]) -> np.ndarray:
        """(n, columns_), a text value as its own 0/1 column, values never seen in training left out."""
        place = {column: i for i, column in enumerate(self.columns_)}
        x = np.zeros((len(rows), len(place)))
        for i, row in enumerate(rows):
            for key, value in row.items():
                column = f"{key}={value}" if isinstance(value, str) else key
                if column in place:
                    x[i, place[column]] = 1.0 if isinstance(value, str) else value
        return x

    def _score(self, frame: pd.DataFrame, perturbation: str, progress: bool) -> np.ndarray:
        return self.model_.predict(self._vectors(self._rows(frame)))

    def _save(self, folder: Path) -> None:
        self.model_.save(folder)
        (folder / "columns.json").write_text(json.dumps(self.columns_) + "\n")

    def _load(self, folder: Path) -> None:
        self.model_ = Logistic.load(folder)
        self.columns_ = json.loads((folder / "columns.json").read_text())
