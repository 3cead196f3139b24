"""What a score means: against the run's validation images, and what about the file makes it doubtful."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from ..data.images import describe_file, extension_caution, open_image
from ..data.preprocess import Normalisation
from ..detectors import detector_class
from ..detectors.base import check_seal, read_config
from ..detectors.operating_point import threshold_at_fpr
from .metrics import compute
from .scores import SCORE_COLUMNS, read_scores


@dataclass(frozen=True)
class Standing:
    """Where a score stands among those that a run gave to the images that it was validated or calibrated on.

    Args:
        detector: name.
        generators: trained on.
        threshold: of the run.
        normalisation: what every image went through.
        real: P(fake) of the real validation images, or of the photographs that the run was calibrated on.
        fake: P(fake) of the fake validation images, by generator.
        origin: of ``real``, ``validation`` or ``calibration``.
    """

    detector: str
    generators: list[str]
    threshold: float
    normalisation: Normalisation
    real: np.ndarray
    fake: dict[str, np.ndarray]
    origin: str = "validation"

    @classmethod
    def of(cls, folder: str | Path) -> Standing:
        """Of a run folder. Raises ModelError if it holds no run."""
        folder = Path(folder)
        content = read_config(folder)
        check_seal(folder)
        detector = detector_class(content["detector"]).configured(folder, content)
        tables = {
            n: read_scores(f) for n in ("validation", "calibration") if (f := folder / f"{n}.csv").is_file()
        }
        scores = tables.get("validation", pd.DataFrame(columns=SCORE_COLUMNS))
        origin = "calibration" if "calibration" in tables else "validation"
        reals = tables.get(origin, scores)
        fakes = scores[scores["label"] == 1].groupby("generator")["score"]
        return cls(
            *(content["detector"], content["generators"], content["threshold"], detector.normalisation),
            real=reals.loc[reals["label"] == 0, "score"].to_numpy(float),
            fake={str(name): part.to_numpy(float) for name, part in fakes},
            origin=origin,
        )

    def threshold_at(self, target_fpr: float) -> float:
        """The threshold at which at most this share of ``real`` is called fake. Raises AfpError without any."""
        return threshold_at_fpr(self.real, target_fpr)

    def among(self, score: float) -> str:
        """One score: how many known images of either class lie beyond it."""
        if not len(self.real):
            return "this run kept no validation scores to compare with; fit it again"
        fakes = np.concatenate([*self.fake.values(), []])
        return (
            f"in {self.origin} {(self.real >= score).sum()} of {len(self.real)} real images scored this high or "
            f"higher, in validation {(fakes <= score).sum()} of {len(fakes)} fakes this low or lower"
        )

    def about(self, threshold: float | None = None) -> list[str]:
        """The run: what it was trained on, what its threshold and its probabilities are worth.

        Args:
            threshold: where it is another than the run's.
        """
        threshold = self.threshold if threshold is None else threshold
        seen = ", ".join(self.generators) or "generators that it does not name"
        lines = [
            f"{self.detector} was fitted on real images and fakes by {seen} alone. Fakes by any other generator "
            'were held out: expect to miss more of them. "nothing found" does not mean that an image is real.'
        ]
        if not len(self.real):
            return [*lines, f"Threshold {threshold:.3g}; the run kept no validation scores."]
        found = [f"{(p >= threshold).sum()} of {len(p)} by {name}" for name, p in self.fake.items()]
        lines.append(
            f'"Nothing found" means something for these alone: at the threshold {threshold:.3g} it finds '
            f"{', '.join(found) or 'no'} fakes of validation, and calls {(self.real >= threshold).sum()} of "
            f"{len(self.real)} real images fake ({self.origin}). Photographs that were denoised, filtered or "
            "compressed since can be called fake more often."
        )
        scores = np.concatenate([self.real, *self.fake.values()])
        labels = np.repeat([0, 1], [len(self.real), len(scores) - len(self.real)])
        return [
            *lines,
            f"Calibration: on those {len(labels)} images, {labels.mean():.0%} of them fake, P(fake) is off by "
            f"{compute(labels, scores)['ece']:.2f} on average (ECE). For other kinds of images or another share of "
            "fakes it is a rank, not a frequency.",
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
    if differs := extension_caution(file):
        found.append(differs)
    about = describe_file(file)
    kind, size, tables = about["format"], str(about["size"]).split("x"), json.loads(str(about["jpeg_tables"]))
    if tables and (quality := jpeg_quality(tables[0])) < POOR_JPEG:
        found.append(f"heavily compressed: JPEG quality about {quality}; traces of generators fade with it")
    if flat_share(pixels) > FLAT:
        found.append("screenshot or drawing? Most of it is flat colour; the detector knows photographs")
    elif kind in ("PNG", "BMP", "WEBP") and not about["exif"] and frozenset(map(int, size)) in SCREENS:
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
        return sum(getattr(image, "quantization", {})[0])


def flat_share(image: Image.Image) -> float:
    """Share of pixels that equal their left neighbour exactly, in at most 512 rows of an RGB image."""
    rows = np.asarray(image)[:: max(1, image.height // 512)]
    return float((rows[:, 1:] == rows[:, :-1]).all(axis=2).mean())
