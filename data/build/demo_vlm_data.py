"""Pictures and questions on which the miniature InstructBLIP is pretrained.

Tiles of photographs (and of drawings, which are what `real` is told from) go through one known change each,
or none; questions ask for the change, for measured properties, and for combinations. No image here was made
by a generator, and no word says whether one was.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from demo_vlm_changes import CHANGES, TILE
from PIL import Image, ImageOps
from PIL.Image import Resampling
from scipy import ndimage

from afp.data.preprocess import reencode

COLORS = {
    "red": (190, 40, 40),
    "orange": (220, 130, 40),
    "yellow": (220, 210, 70),
    "green": (70, 140, 60),
    "blue": (60, 100, 190),
    "purple": (130, 70, 150),
    "brown": (110, 75, 45),
    "white": (235, 235, 235),
    "gray": (128, 128, 128),
    "black": (20, 20, 20),
}


def tile(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random square of an RGB photograph, from all of it to a third of its short side, as (256, 256)."""
    side = int(min(image.size) * rng.uniform(0.3, 0.9))
    left, top = rng.integers(image.width - side + 1), rng.integers(image.height - side + 1)
    square = image.crop((left, top, left + side, top + side)).resize((TILE, TILE), Resampling.LANCZOS)
    return ImageOps.mirror(square) if rng.random() < 0.5 else square


def measure(image: Image.Image) -> dict[str, float]:
    """Measured properties of an RGB image; each word's questions compare one of them with its quantiles."""
    a = np.asarray(image, np.float32)
    light, half = a.mean(2), a.shape[0] // 2
    edge = slice(half // 2, -half // 2)
    return {
        "bright": light.mean(),
        "colorful": (a.max(2) - a.min(2)).mean(),
        "contrasty": light.std(),
        "warm": (a[..., 0] - a[..., 2]).mean(),
        "green": (a[..., 1] - a[..., [0, 2]].max(2)).mean(),
        "detailed": np.abs(np.diff(light, axis=0)).mean() + np.abs(np.diff(light, axis=1)).mean(),
        "top": light[:half].mean() - light[half:].mean(),
        "left": light[:, :half].mean() - light[:, half:].mean(),
        "centered": light[edge, edge].mean() - light.mean(),
    } | _texture(a, light)


def _texture(a: np.ndarray, light: np.ndarray) -> dict[str, float]:
    """How a picture is made up at the scale of pixels, whatever it shows."""
    down, right = np.gradient(light)
    slope = np.hypot(down, right)
    grain = light - ndimage.gaussian_filter(light, 1)
    chroma = a[..., [0, 2]] - light[..., None]
    blocks = grain.reshape(32, 8, 32, 8).std((1, 3))
    octaves = [light[::step, ::step] for step in (1, 2)]
    fine, coarse = (
        np.square(o[:, 1::2] - o[:, :-1:2]).mean() + np.square(o[1::2] - o[:-1:2]).mean() for o in octaves
    )
    tensor = [ndimage.gaussian_filter(x, 4) for x in (down * down, right * right, down * right)]
    directed = np.hypot(tensor[0] - tensor[1], 2 * tensor[2])
    return {
        "crisp": np.abs(ndimage.laplace(light)).mean() / (slope.mean() + 1),
        "sparse": np.sqrt(np.square(slope).mean()) / (slope.mean() + 1e-3),
        "dirty": np.log(np.quantile(blocks, 0.2) + 0.1),
        "motley": np.abs(chroma - ndimage.gaussian_filter(chroma, (1, 1, 0))).mean(),
        "fine": np.log((fine + 0.1) / (coarse + 0.1)),
        "lined": directed.sum() / (tensor[0] + tensor[1] + 1).sum(),
        "upright": np.log((np.square(right).mean() + 0.1) / (np.square(down).mean() + 0.1)),
        "patchy": blocks.std() / (blocks.mean() + 0.1),
    }


# Measured property -> (its word when high, its word when low).
MEASURED = {
    "bright": ("bright", "dark"),
    "colorful": ("colorful", "colorless"),
    "contrasty": ("contrasty", "flat"),
    "warm": ("warm", "cold"),
    "green": ("greenish", "pinkish"),
    "detailed": ("detailed", "plain"),
    "top": ("toplit", "bottomlit"),
    "left": ("leftlit", "rightlit"),
    "centered": ("centerlit", "edgelit"),
    "crisp": ("crisp", "mellow"),
    "sparse": ("sparse", "dense"),
    "dirty": ("dirty", "clean"),
    "motley": ("motley", "uniform"),
    "fine": ("fine", "coarse"),
    "lined": ("lined", "stippled"),
    "upright": ("upright", "lying"),
    "patchy": ("patchy", "even"),
}


def color(image: Image.Image) -> str:
    """The name in `COLORS` that most pixels are closest to."""
    pixels = np.asarray(image.resize((32, 32), Resampling.BOX), np.float32).reshape(-1, 1, 3)
    names = list(COLORS)
    nearest = np.linalg.norm(pixels - np.array([COLORS[n] for n in names], np.float32), axis=2).argmin(1)
    return names[np.bincount(nearest, minlength=len(names)).argmax()]


def read_original(file: str | Path) -> Image.Image:
    """An original as RGB, its short side at most 1,400 pixels."""
    with Image.open(file) as opened:
        opened.draft("RGB", (1800, 1800))  # a JPEG is decoded at a fraction of its size, if that is enough
        image = opened.convert("RGB")
    scale = 1400 / min(image.size)
    if scale >= 1:
        return image
    return image.resize((round(image.width * scale), round(image.height * scale)), Resampling.LANCZOS)


def plan(kinds: Sequence[str], n: int, seed: int = 0) -> list[tuple[int, str, int]]:
    """What to draw: n times (index of the original, change, seed), one in eight from a drawing."""
    rng = np.random.default_rng(seed)
    photos = [i for i, kind in enumerate(kinds) if kind == "photo"]
    drawings = [i for i, kind in enumerate(kinds) if kind != "photo"]
    names, drawn = list(CHANGES), []
    for j in range(n):
        is_drawing = rng.random() < 0.12
        original = drawings[rng.integers(len(drawings))] if is_drawing else photos[j % len(photos)]
        change = "nothing" if rng.random() < 0.08 else names[rng.integers(len(names))]
        drawn.append((original, change, int(rng.integers(2**31))))
    return drawn


def picture(original: Image.Image, change: str, seed: int) -> Image.Image:
    """A tile of `original` after one change, then JPEG 95 as the benchmark's normalisation does."""
    rng = np.random.default_rng(seed)
    return reencode(CHANGES[change](tile(original, rng), rng), "jpeg", 95)
