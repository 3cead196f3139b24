"""A scores table as a page of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import jinja2
import pandas as pd
from PIL import Image, ImageDraw
from tqdm.auto import tqdm

from ..data.images import open_image
from ..data.preprocess import prepare
from ..detectors import load
from ..detectors.base import read_config
from ..errors import ImageError, ModelError
from ..files import PAGE, check_output, write_text
from ..results.scores import with_files
from ..results.verdict import Standing, cautions
from .grid import data_uri

THUMBNAIL = 240  # pixels, the longer side
MOST_THUMBNAILS = 1000  # about 10 MB of page
MET = "had a part in the run's fit or calibration, themselves or by their photograph"


def write_html(
    table: pd.DataFrame, frame: pd.DataFrame, folder: str | Path, out: str | Path, n_maps: int = 0
) -> Path:
    """A scores table as one page that needs no other file and no network; it opens sorted by score.

    Args:
        table: rows with `afp.results.scores.SCORE_COLUMNS`, all of one run.
        frame: has the ``file`` of every row of the table.
        folder: the run.
        out: the page to write.
        n_maps: highest scores that get a relevance map beside their picture, if the run's detector has a gradient;
            each takes some seconds on a CPU.
    Raises:
        ModelError: ``folder`` holds no run.
        DataError: ``out`` is another file's name.
    """
    check_output(out, PAGE, frame["file"])
    standing = Standing.of(folder)
    table = table.sort_values("score", ascending=False, na_position="last", kind="stable")
    failed = int((table["error"] != "").sum())
    fakes = int((table["score"] >= table["threshold"]).sum())
    counts = f"{len(table) - failed} images scored, {fakes} called fake, {failed} failed."
    about = [*standing.about(), f"Run: {Path(folder).resolve().name}."]
    if met := int((table["role"] != "").sum()):
        about.append(f"{met} images {MET}: their scores say nothing of images that it never met.")
    if len(table) > MOST_THUMBNAILS:
        about.append(f"Pictures are shown for the {MOST_THUMBNAILS} highest scores.")
    draw = _relevance(folder) if n_maps else None
    if draw:
        of = f" of the {n_maps} highest scores" if len(table) > n_maps else ""
        about.append(
            f"Beside each picture{of}: what moved the score, red towards fake, blue towards real. Each map is "
            "scaled by its own largest value. It shows what the detector used, not where an image was changed."
        )
    environment = jinja2.Environment(loader=jinja2.PackageLoader("afp.figures"), autoescape=True)
    rows = tqdm(_rows(table, frame, standing, draw, n_maps), total=len(table), desc="report")
    page = environment.get_template("report.html").render(
        title="Real or fake?", counts=counts, about=about, rows=rows
    )
    return write_text(out, page)


def _relevance(folder: str | Path) -> Callable[[Image.Image], Image.Image] | None:
    """Draws where a run's detector looks in a prepared image; None if its score has no gradient."""
    from ..studies import gradients, relevance
    from . import overlays

    if read_config(folder)["detector"] not in gradients.DIFFERENTIABLE:
        return None
    try:
        victim = gradients.DifferentiableDetector.of(load(folder))
    except ModelError:  # its preprocessing has no gradient
        return None
    return lambda image: overlays.overlay(image, relevance.relevance(victim, [image], n_steps=4)[0])


def _rows(
    table: pd.DataFrame, frame: pd.DataFrame, standing: Standing, draw: Callable | None, n_maps: int
) -> Iterator[dict]:
    for i, (row, file) in enumerate(with_files(table, frame)):
        content = {"path": row.path, "error": row.error, "notes": [], "thumbnail": "", "map": ""}
        if not row.error:
            content |= {"verdict": row.verdict, "standing": standing.among(row.score)}
            content |= {"score": row.score, "threshold": row.threshold}
            try:
                content["notes"] = [MET] if row.role else []
                content["notes"] += cautions(file, standing.normalisation)
                if i < MOST_THUMBNAILS:
                    content["thumbnail"] = data_uri(_framed(open_image(file)), THUMBNAIL)
                if draw and i < n_maps:
                    seen = prepare(file, row.sha256, standing.normalisation, row.perturbation)
                    content["map"] = data_uri(_framed(draw(seen)), THUMBNAIL)
            except ImageError as error:  # it could be read when it was scored
                content["notes"] = [str(error)]
        yield content


def _framed(image: Image.Image) -> Image.Image:
    """A small copy, the central square framed where the picture is not one."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    side = min(small.size)
    if side < 0.95 * max(small.size):
        left, top = (small.width - side) // 2, (small.height - side) // 2
        square = (left, top, left + side - 1, top + side - 1)
        ImageDraw.Draw(small).rectangle(square, outline="#ff9900", width=2)
    return small
