"""Sliders for JupyterLab: change an image, watch the detector's score. `ladder` is the same without a hand."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from ..data.preprocess import prepare
from ..detectors.base import Detector
from ..errors import DataError, require
from .grid import image_grid

LADDER = ("none", "jpeg:75", "jpeg:30", "jpeg:10", "none", "blur:0.5", "blur:1", "blur:2")
NO_JPEG = 100  # the JPEG slider's right end means: not compressed again
PATIENCE = 0.1  # seconds without another move, after which the score is computed


def ladder(
    detector: Detector, images: pd.DataFrame, specs: Sequence[str] = LADDER
) -> tuple[Figure, pd.DataFrame]:
    """Images under several perturbations, score and verdict above each; framed where it is not the clean image's.

    One image stands in rows of four, several in a row each.

    Args:
        detector: fitted.
        images: rows with ``file`` and ``sha256``; with ``generator`` and ``path`` too, they bear their names.
        specs: see `afp.data.preprocess`.
    Returns:
        Figure; table ``image, perturbation, score, threshold``.
    Raises:
        AfpError: no image, or no perturbation.
    """
    scores = [detector.score(images, spec).tolist() for spec in specs]
    clean = detector.score(images) >= detector.threshold_
    pictures, titles, turned, rows = [], [], [], []
    for i, name in enumerate(_names(images)):
        for spec, of_spec in zip(specs, scores, strict=True):
            pictures.append(_prepare(detector, images.iloc[[i]], spec))
            lead = "" if len(images) == 1 else f"{name.partition(':')[0]}\n"
            is_fake = of_spec[i] >= detector.threshold_
            titles.append(f"{lead}{spec}\nP(fake) {of_spec[i]:.2f}: {'fake' if is_fake else 'real'}")
            turned.append(is_fake != clean[i])
            rows.append({"image": name, "perturbation": spec, "score": of_spec[i]})
    fig, _ = image_grid(pictures, titles, columns=4 if len(images) == 1 else len(specs))
    for ax, is_turned in zip(fig.axes, turned, strict=False):
        if is_turned:
            frame = Rectangle(
                (0, 0), 1, 1, transform=ax.transAxes, fill=False, edgecolor="#D55E00", linewidth=5
            )
            ax.add_patch(frame)
    return fig, pd.DataFrame(rows).assign(threshold=detector.threshold_)


def sliders(detectors: Detector | Mapping[str, Detector], images: pd.DataFrame) -> Any:
    """Sliders of blur and JPEG quality over an image, with its score; updated when a slider is let go.

    Several images, and several detectors, are there to be chosen from. Moves that follow each other fast, or while a
    score is computed, are answered once.

    Args:
        detectors: fitted; one, or name -> detector.
        images: rows with ``file`` and ``sha256``; with ``generator`` and ``path`` too, they bear their names.
    Returns:
        An ``ipywidgets.VBox``.
    Raises:
        AfpError: no image, or no detector; ipywidgets is not installed.
    """
    ipywidgets = require("ipywidgets", extra="widgets")
    known = {detectors.name: detectors} if isinstance(detectors, Detector) else dict(detectors)
    if not known or images.empty:
        raise DataError(
            f"sliders: {len(images)} images and {len(known)} detectors, expected 1 or more of each"
        )
    look = {"style": {"description_width": "7em"}}
    which = ipywidgets.Dropdown(
        options=[(name, i) for i, name in enumerate(_names(images))], description="image", **look
    )
    judge = ipywidgets.Dropdown(options=list(known), description="detector", **look)
    once = look | {"continuous_update": False}
    blur = ipywidgets.FloatSlider(0, min=0, max=3, step=0.25, description="blur (pixels)", **once)
    quality = ipywidgets.IntSlider(NO_JPEG, min=5, max=NO_JPEG, step=5, description="JPEG quality", **once)
    picture = ipywidgets.Image(format="png", width=256, height=256)
    answer = ipywidgets.HTML()
    waiting: list[asyncio.TimerHandle] = []

    def update() -> None:
        detector, image = known[judge.value], images.iloc[[which.value]]
        spec = _spec(blur.value, quality.value)
        score, buffer = float(detector.score(image, spec)[0]), io.BytesIO()
        _prepare(detector, image, spec).save(buffer, "png")
        picture.value = buffer.getvalue()
        verdict = "fake" if score >= detector.threshold_ else "real"
        told = f"P(fake) = {score:.3f}, threshold {detector.threshold_:.3f} (<code>{spec}</code>)"
        answer.value = f"<b>{verdict}</b>: {told}"

    def moved(_change: object) -> None:
        answer.value = "computing ..."
        while waiting:
            waiting.pop().cancel()
        try:
            waiting.append(asyncio.get_running_loop().call_later(PATIENCE, update))
        except RuntimeError:  # no kernel's loop here
            update()

    choices = [box for box in (which, judge) if len(box.options) > 1]
    for control in (*choices, blur, quality):
        control.observe(moved, "value")
    update()
    return ipywidgets.VBox([*choices, blur, quality, picture, answer])


def _spec(blur: float, quality: int) -> str:
    """What two sliders mean: blur first, as in a camera, then the file."""
    parts = [f"blur:{blur:g}"] if blur else []
    parts += [f"jpeg:{quality}"] if quality < NO_JPEG else []
    return "+".join(parts) or "none"


def _names(images: pd.DataFrame) -> list[str]:
    """What images are called in a list: generator and path, or what there is."""
    parts = [images[c].astype(str).tolist() for c in ("generator", "path") if c in images]
    return [": ".join(row) for row in zip(*parts, strict=True)] if parts else images["file"].tolist()


def _prepare(detector: Detector, image: pd.DataFrame, spec: str) -> Image.Image:
    return prepare(image["file"].item(), image["sha256"].item(), detector.normalisation, spec)
