"""Relevance maps laid over their images."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image
from PIL.Image import Resampling
from tqdm.auto import tqdm

from ..data.preprocess import prepare
from ..detectors.base import Detector
from ..files import written_folder
from ..studies.gradients import DifferentiableDetector
from ..studies.relevance import relevance
from .grid import image_grid
from .style import Drawn, style

COLOURS = mpl.colormaps["coolwarm"]
MADE_BY = "afp score --explain"


def overlay(image: Image.Image, of_image: np.ndarray) -> Image.Image:
    """The image, grey and pale, under its relevance: red speaks for fake, blue for real.

    Args:
        image: RGB; its dark parts are lightened, or no colour would show on them.
        of_image: (g, g), of `relevance`; its largest value has the full colour.
    """
    scaled = of_image / max(np.abs(of_image).max(), 1e-12)
    wide = np.asarray(Image.fromarray(scaled.astype(np.float32)).resize(image.size, Resampling.BICUBIC))
    colours = COLOURS((wide.clip(-1, 1) + 1) / 2)[..., :3] * 255
    share = 0.8 * np.sqrt(np.abs(wide.clip(-1, 1)))[..., None]
    grey = 110 + 0.5 * np.asarray(image.convert("L").convert("RGB"), np.float64)
    return Image.fromarray((grey * (1 - share) + colours * share).round().astype(np.uint8))


def relevance_grid(
    images: Sequence[Image.Image], maps: np.ndarray, names: Iterable[str], verdicts: Iterable[str]
) -> Drawn:
    """Each image, under its name, beside its `overlay`, under its verdict: three pairs a row, and a colour bar."""
    tiles = [tile for pair in zip(images, maps, strict=True) for tile in (pair[0], overlay(*pair))]
    titles = [text for pair in zip(names, verdicts, strict=True) for text in pair]
    fig, table = image_grid(tiles, titles, columns=6)
    add_colour_bar(fig)
    return fig, table


@style()
def add_colour_bar(fig: Figure) -> None:
    """What the colours of an `overlay` say, under a grid of them."""
    scale = ScalarMappable(Normalize(-1, 1), COLOURS)
    bar = fig.colorbar(scale, ax=fig.axes, location="bottom", shrink=0.4, aspect=40)
    bar.set_ticks([-1, 0, 1], labels=["speaks for real", "for neither", "speaks for fake"])
    bar.outline.set_visible(False)


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
