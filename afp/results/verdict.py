"""What a score means: against the run's validation images, and what about the file makes it doubtful."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from ..data.images import open_image
from ..data.preprocess import Normalisation
from ..detectors.base import read_config
from .metrics import compute
from .scores import read_scores


@dataclass(frozen=True)
class Standing:
    """Where a score stands among the scores that a run gave to its validation images.

    Args:
        detector: name.
        generators: trained on.
        threshold: chosen on validation.
        normalisation: what every image went through.
        real, fake: P(fake) of the real and of the fake validation images; both empty where the run kept none.
    """

    detector: str
    generators: list[str]
    threshold: float
    normalisation: Normalisation
    real: np.ndarray
    fake: np.ndarray

    @classmethod
    def of(cls, folder: str | Path) -> Standing:
        """Of a run folder. Raises DataError if it holds no run."""
        config, table = read_config(folder), Path(folder) / "validation.csv"
        scores = read_scores(table) if table.is_file() else pd.DataFrame({"label": [], "score": []})
        real, fake = (scores.loc[scores["label"] == k, "score"].to_numpy(float) for k in (0, 1))
        normalisation = Normalisation(**config["config"]["normalisation"])
        return cls(config["detector"], config["generators"], config["threshold"], normalisation, real, fake)

    def verdict(self, score: float) -> str:
        return "FAKE" if score >= self.threshold else "real"

    def among(self, score: float) -> str:
        """One score: how many validation images of either class lie beyond it."""
        if not len(self.real):
            return "this run kept no validation scores to compare with; fit it again"
        above, below = int((self.real >= score).sum()), int((self.fake <= score).sum())
        return (
            f"in validation {above} of {len(self.real)} real images scored this high or higher, "
            f"{below} of {len(self.fake)} fakes this low or lower"
        )

    def about(self) -> list[str]:
        """The run: what it was trained on, what its threshold and its probabilities are worth."""
        seen = ", ".join(self.generators) or "generators that it does not name"
        lines = [
            f"{self.detector} was fitted on real images and fakes by {seen} alone. Fakes by any other generator "
            'were held out: expect more of them to be called real. "real" means "nothing found".'
        ]
        if not len(self.real):
            return [*lines, f"Threshold {self.threshold:.3f}; the run kept no validation scores."]
        alarms, missed = int((self.real >= self.threshold).sum()), int((self.fake < self.threshold).sum())
        labels = np.repeat([0, 1], [len(self.real), len(self.fake)])
        error = compute(labels, np.concatenate([self.real, self.fake]))["ece"]
        return [
            *lines,
            f"Threshold {self.threshold:.3f}, chosen on validation, where it calls {alarms} of {len(self.real)} "
            f"real images fake and misses {missed} of {len(self.fake)} fakes.",
            f"Calibration: on those {len(labels)} images, {labels.mean():.0%} of them fake, P(fake) is off by "
            f"{error:.2f} on average (ECE). For other kinds of images or another share of fakes it is a rank, "
            "not a frequency.",
        ]


POOR_JPEG = 70  # estimated quality; below it compression removes much of what detectors look for
MANY_PIXELS = 4  # original side over the detector's: finer traces average out
LEAST_JUDGED = 0.5  # of the picture's area
FLAT = 0.75  # share of pixels equal to their left neighbour; a photograph of a plain wall has .7
# Width and height of common screens, portrait or landscape.
SCREENS = {
    frozenset(size)
    for size in [
        *[(1280, 720), (1280, 800), (1366, 768), (1440, 900), (1536, 864), (1600, 900), (1680, 1050)],
        *[(1920, 1080), (1920, 1200), (2256, 1504), (2560, 1440), (2560, 1600), (2880, 1800), (3024, 1964)],
        *[(3440, 1440), (3456, 2234), (3840, 2160), (750, 1334), (828, 1792), (1080, 2340), (1080, 2400)],
        *[(1125, 2436), (1170, 2532), (1179, 2556), (1206, 2622), (1284, 2778), (1290, 2796), (1320, 2868)],
        *[(1440, 3088), (1440, 3200), (1668, 2388), (2048, 2732)],
    ]
}


def cautions(file: str | Path, normalisation: Normalisation | None = None) -> list[str]:
    """Reasons to doubt a score, a sentence each: size, shape, compression, screenshot. Empty for a sound file.

    Args:
        file: an image.
        normalisation: the detector's.
    Raises:
        ImageError: the file cannot be decoded.
    """
    pixels, side = open_image(file), (normalisation or Normalisation()).size
    width, height = pixels.size
    shortest, judged = min(width, height), min(width, height) / max(width, height)
    found = []
    if shortest < side:
        found.append(
            f"tiny: {width} x {height} pixels were enlarged to {side}, and enlarging can look like a network's work"
        )
    if shortest >= MANY_PIXELS * side:
        found.append(
            f"large: {width} x {height} pixels were scaled down {shortest / side:.0f} times; finer traces are "
            "gone. Score a crop at full size too"
        )
    if judged < LEAST_JUDGED:
        found.append(
            f"elongated: only the central square was judged, {judged:.0%} of the picture; crop what matters"
        )
    with Image.open(file) as image:
        kind, size, exif = image.format, image.size, "exif" in image.info
        tables = getattr(image, "quantization", None)
    if tables and (quality := jpeg_quality(tables[min(tables)])) < POOR_JPEG:
        found.append(f"heavily compressed: JPEG quality about {quality}; traces of generators fade with it")
    if flat_share(pixels) > FLAT:
        found.append("screenshot or drawing? Most of it is flat colour; the detector knows photographs")
    elif kind in ("PNG", "BMP", "WEBP") and not exif and frozenset(size) in SCREENS:
        found.append(
            f"screenshot? {kind} of {size[0]} x {size[1]}, the size of a screen, without camera data; "
            "then it was judged as shown, scaled and framed"
        )
    return found


def jpeg_quality(table: list[int]) -> int:
    """The libjpeg quality, 1 to 100, whose luminance table is nearest in sum to this one (64 numbers)."""
    return min(range(1, 101), key=lambda quality: abs(_table_sum(quality) - sum(table)))


@cache
def _table_sum(quality: int) -> int:
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "jpeg", quality=quality)
    with Image.open(buffer, formats=["JPEG"]) as image:
        return sum(image.quantization[0])


def flat_share(image: Image.Image) -> float:
    """Share of pixels that equal their left neighbour exactly, in at most 512 rows of an RGB image."""
    rows = np.asarray(image)[:: max(1, image.height // 512)]
    return float((rows[:, 1:] == rows[:, :-1]).all(axis=2).mean())
