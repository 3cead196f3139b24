"""Sliders for JupyterLab: change an image, watch the detector's score. `ladder` is the same without a hand."""

from __future__ import annotations

import io

import ipywidgets
import pandas as pd
from matplotlib.figure import Figure

from . import figures
from .detectors import Detector
from .features import prepare

LADDER = ("none", "jpeg:75", "jpeg:30", "jpeg:10", "none", "blur:0.5", "blur:1", "blur:2")
NO_JPEG = 100  # the JPEG slider's right end means: not compressed again


def ladder(detector: Detector, image: pd.DataFrame, specs: tuple[str, ...] = LADDER) -> tuple[Figure, pd.DataFrame]:
    """One image under several perturbations, the score above each.

    Args:
        detector: fitted.
        image: one row with ``file`` and ``sha256``.
        specs: see `afp.perturbations`.
    Returns:
        Figure; table ``perturbation, score, threshold``.

    Notebook: 00_start_here
    """
    pictures = [_prepare(detector, image, spec) for spec in specs]
    scores = [float(detector.score(image, spec)[0]) for spec in specs]
    titles = [f"{spec}: P(fake) {score:.2f}" for spec, score in zip(specs, scores, strict=True)]
    fig, _ = figures.image_grid(pictures, titles, columns=4)
    return fig, pd.DataFrame({"perturbation": specs, "score": scores, "threshold": detector.threshold_})


def sliders(detector: Detector, image: pd.DataFrame) -> ipywidgets.Widget:
    """Sliders of blur and JPEG quality over an image, with its score; updated when a slider is let go.

    Args:
        detector: fitted.
        image: one row with ``file`` and ``sha256``.

    Notebook: 00_start_here
    """
    options = {"continuous_update": False, "style": {"description_width": "7em"}}
    blur = ipywidgets.FloatSlider(0, min=0, max=3, step=0.25, description="blur (pixels)", **options)
    quality = ipywidgets.IntSlider(NO_JPEG, min=5, max=NO_JPEG, step=5, description="JPEG quality", **options)
    picture = ipywidgets.Image(format="png", width=256, height=256)
    answer = ipywidgets.HTML()

    def update(_change: object = None) -> None:
        spec = perturbation(blur.value, quality.value)
        buffer = io.BytesIO()
        _prepare(detector, image, spec).save(buffer, "png")
        picture.value = buffer.getvalue()
        score = float(detector.score(image, spec)[0])
        verdict = "fake" if score >= detector.threshold_ else "real"
        answer.value = (
            f"<b>{verdict}</b>: P(fake) = {score:.3f}, threshold {detector.threshold_:.3f} (<code>{spec}</code>)"
        )

    for slider in (blur, quality):
        slider.observe(update, "value")
    update()
    return ipywidgets.VBox([blur, quality, picture, answer])


def perturbation(blur: float, quality: int) -> str:
    """What two sliders mean: blur first, as in a camera, then the file. Notebook: 00_start_here"""
    parts = [f"blur:{blur:g}"] * (blur > 0) + [f"jpeg:{quality}"] * (quality < NO_JPEG)
    return "+".join(parts) or "none"


def _prepare(detector: Detector, image: pd.DataFrame, spec: str):
    return prepare(image["file"].item(), image["sha256"].item(), detector.normalisation, spec)
