"""Pictures of images."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from PIL import Image

from ..data.images import open_image
from ..errors import AfpError
from .style import DOUBLE, Drawn, drawing, short


def data_uri(image: Image.Image, side: int) -> str:
    """A picture inside a page: scaled down to ``side`` pixels on the longer side, as the text of a ``src``."""
    small, buffer = image.convert("RGB"), io.BytesIO()
    small.thumbnail((side, side))
    small.save(buffer, "webp", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@drawing
def image_grid(files: Iterable[str | Path | Image.Image], titles: Iterable[str], columns: int = 6) -> Drawn:
    """Thumbnails in rows, a small title above each, shortened to its width; `files` may be opened images.

    Table: position, file (its name alone), title. ValueError when titles and images differ in number.
    """
    files, titles = list(files), [str(title) for title in titles]
    if len(files) != len(titles) or not files:
        raise AfpError(f"image_grid: {len(files)} images and {len(titles)} titles; expected as many, not 0")
    columns = min(columns, len(files))
    n_rows = -(-len(files) // columns)
    images = [(file if isinstance(file, Image.Image) else open_image(file)).convert("RGB") for file in files]
    width = DOUBLE / max(columns, 4)
    height = width * max(image.height / image.width for image in images)
    height += 0.15 * max(title.count("\n") + 1 for title in titles)
    fig, axes = plt.subplots(n_rows, columns, figsize=(width * columns, height * n_rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, title in zip(axes.flat, images, titles, strict=False):
        image.thumbnail((256, 256) if columns <= 4 else (160, 160))  # the SVG holds every pixel
        ax.imshow(image, interpolation="none")
        lines = [short(line, 28 if columns <= 4 else 21) for line in title.split("\n")]
        ax.set_title("\n".join(lines), fontsize=8 if columns <= 4 else 7, pad=2)
    names = ["" if isinstance(file, Image.Image) else Path(file).name for file in files]
    return fig, pd.DataFrame({"position": range(len(files)), "file": names, "title": titles})
