"""Relevance maps laid over their images."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from PIL import Image
from PIL.Image import Resampling
from tqdm.auto import tqdm

from ..data.preprocess import prepare
from ..detectors.base import Detector
from ..files import written_folder
from ..studies.gradients import DifferentiableDetector
from ..studies.relevance import relevance

MADE_BY = "afp score --explain"


def overlay(image: Image.Image, of_image: np.ndarray, strength: float | None = None) -> Image.Image:
    """The image, grey, under its relevance: red speaks for fake, blue for real.

    Args:
        of_image: (g, g), of `relevance`.
        strength: the relevance of full colour; default the image's own largest.
    """
    scaled = of_image / max(strength or np.abs(of_image).max(), 1e-12)
    small = Image.fromarray(np.clip(scaled, -1, 1).astype(np.float32))
    wide = np.asarray(small.resize(image.size, Resampling.BICUBIC)).clip(-1, 1)
    colours = mpl.colormaps["RdBu_r"]((wide + 1) / 2)[..., :3] * 255
    share = 0.65 * np.abs(wide)[..., None]
    grey = np.asarray(image.convert("L").convert("RGB"), np.float64)
    return Image.fromarray((grey * (1 - share) + colours * share).round().astype(np.uint8))


def write_overlays(
    detector: Detector, frame: pd.DataFrame, out: str | Path, perturbation: str = "none"
) -> list[Path]:
    """`overlay` of every row as ``out/NNNN-<name>.png``.

    Args:
        detector: fitted; its score must have a gradient.
        frame: rows with path, file and sha256.
        out: folder; one of an earlier call is replaced.
        perturbation: see `afp.data.preprocess`.
    Returns:
        The files.
    Raises:
        ModelError: the detector's score has no gradient.
        DataError: ``out`` holds other files.
    """
    victim, names = DifferentiableDetector.of(detector), []
    with written_folder(out, MADE_BY, frame["file"]) as folder:
        for i, row in enumerate(tqdm(frame.itertuples(), total=len(frame), desc="explain", unit="image")):
            image = prepare(row.file, row.sha256, detector.normalisation, perturbation)
            name = re.sub(r"[^A-Za-z0-9_-]", "_", Path(row.path).stem)[:80]
            names.append(f"{i:04}-{name}.png")
            overlay(image, relevance(victim, [image])[0]).save(folder / names[-1])
    return [Path(out) / name for name in names]
