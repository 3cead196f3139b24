"""Augmented views of an image: a random crop, scaled to the tower's input, mirrored or not."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image, ImageOps

SCALE = (0.08, 1.0)  # share of the area
RATIO = (3 / 4, 4 / 3)  # width to height


def random_view(image: Image.Image, size: int, seed: int | str) -> Image.Image:
    """A random resized crop of SCALE of the area, mirrored every other time: the augmentation of CoOp's recipe.

    The same seed draws the same view, so that a view can be cached.

    Returns:
        RGB, ``size`` x ``size``.

    Notebook: 03_adapt_clip
    """
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:8]))
    width = height = 0
    for _ in range(10):  # a long crop of nearly the whole area does not fit: draw again
        area = rng.uniform(*SCALE) * image.width * image.height
        ratio = np.exp(rng.uniform(*np.log(RATIO)))
        width, height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < width <= image.width and 0 < height <= image.height:
            break
    else:
        width = height = min(image.size)
    left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
    box = (left, top, left + width, top + height)
    view = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return ImageOps.mirror(view) if rng.random() < 0.5 else view
