"""Pictures and questions on which the miniature InstructBLIP is pretrained.

Tiles of photographs (and of drawings, which are what `real` is told from) go through one known change each,
or none; questions ask for the change, for measured properties, and for combinations. No image here was made
by a generator, and no word says whether one was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from PIL.Image import Resampling
from scipy import ndimage

from .images import reencode

TILE = 256
Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def _array(function: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Change:
    """A change of (h, w, 3) float values in 0-255 as a change of images."""

    def change(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        values = function(np.asarray(image, np.float32), rng)
        return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))

    return change


def _enhance(kind: Callable, low: float, high: float) -> Change:
    return lambda image, rng: kind(image).enhance(rng.uniform(low, high))


def _gamma(low: float, high: float) -> Change:
    return _array(lambda a, rng: 255 * (a / 255) ** rng.uniform(low, high))


def _shrink(image: Image.Image, factor: float, method: Resampling) -> Image.Image:
    return image.resize((round(image.width / factor), round(image.height / factor)), method)


def _pixelated(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return _shrink(image, rng.uniform(2, 6), Resampling.BOX).resize(image.size, Resampling.NEAREST)


def _enlarged(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    method = rng.choice([Resampling.BILINEAR, Resampling.BICUBIC, Resampling.LANCZOS])
    return _shrink(image, rng.uniform(2, 5), Resampling.BICUBIC).resize(image.size, Resampling(method))


def _sharpened(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.UnsharpMask(rng.uniform(0.8, 3), int(rng.uniform(120, 400)), 0))


def _smoothed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.MedianFilter(int(rng.choice([3, 5, 7]))))


def _polished(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return _sharpened(_smoothed(image, rng), rng)


def _crisped(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return _sharpened(_enlarged(image, rng), rng)


def _speckled(a: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    hit = rng.random(a.shape[:2]) < rng.uniform(0.01, 0.08)
    return np.where(hit[..., None], rng.choice([0, 255], a.shape[:2])[..., None], a)


def _smeared(a: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return ndimage.uniform_filter1d(a, int(rng.integers(4, 14)), axis=int(rng.integers(2)), mode="nearest")


def _rippled(a: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A hard cut in frequency: edges ring."""
    frequency = np.hypot(np.fft.fftfreq(a.shape[0])[:, None], np.fft.fftfreq(a.shape[1])[None])
    kept = frequency < rng.uniform(0.06, 0.2)
    return np.fft.ifft2(np.fft.fft2(a, axes=(0, 1)) * kept[..., None], axes=(0, 1)).real


def _gridded(a: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A faint periodic pattern, as strided convolutions leave one."""
    period = int(rng.choice([2, 4, 8]))
    pattern = np.tile(rng.normal(0, rng.uniform(3, 10), (period, period)), (TILE // period, TILE // period))
    return a + pattern[..., None]


def _tinted(a: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    share = rng.uniform(0.2, 0.4)
    return a * (1 - share) + share * rng.permutation([230, rng.uniform(0, 230), 0])


CHANGES: dict[str, Change] = {
    "nothing": lambda image, rng: image,
    "blurred": lambda image, rng: image.filter(ImageFilter.GaussianBlur(rng.uniform(0.8, 3))),
    "noisy": _array(lambda a, rng: a + rng.normal(0, rng.uniform(5, 30), a.shape)),
    "grainy": _array(lambda a, rng: a + rng.normal(0, rng.uniform(5, 25), (*a.shape[:2], 1))),
    "compressed": lambda image, rng: reencode(image, "jpeg", int(rng.integers(5, 40))),
    "pixelated": _pixelated,
    "enlarged": _enlarged,
    "sharpened": _sharpened,
    "smoothed": _smoothed,
    "polished": _polished,
    "crisped": _crisped,
    "painted": lambda image, rng: image.filter(ImageFilter.ModeFilter(int(rng.choice([3, 5, 7])))),
    "posterised": lambda image, rng: ImageOps.posterize(image, int(rng.integers(2, 5))),
    "dithered": lambda image, rng: image.quantize(int(rng.integers(6, 33))).convert("RGB"),
    "speckled": _array(_speckled),
    "smeared": _array(_smeared),
    "rippled": _array(_rippled),
    "gridded": _array(_gridded),
    "tinted": _array(_tinted),
    "inverted": lambda image, rng: ImageOps.invert(image),
    "darkened": _gamma(1.6, 3.0),
    "brightened": _gamma(0.35, 0.65),
    "faded": _enhance(ImageEnhance.Contrast, 0.3, 0.6),
    "saturated": _enhance(ImageEnhance.Color, 2.0, 3.5),
    "grayed": _enhance(ImageEnhance.Color, 0.0, 0.15),
}

# Changes that cannot be told apart for certain: a question for one is not asked where another was made.
ALIKE = (
    {"blurred", "enlarged", "smeared", "rippled", "smoothed"},
    {"noisy", "grainy", "speckled"},
    {"sharpened", "crisped", "polished"},
    {"smoothed", "painted", "polished"},
    {"posterised", "dithered"},
    {"enlarged", "crisped"},
)

COLORS = {
    "red": (190, 40, 40), "orange": (220, 130, 40), "yellow": (220, 210, 70), "green": (70, 140, 60),
    "blue": (60, 100, 190), "purple": (130, 70, 150), "brown": (110, 75, 45), "white": (235, 235, 235),
    "gray": (128, 128, 128), "black": (20, 20, 20),
}  # fmt: skip


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
}


def color(image: Image.Image) -> str:
    """The name in `COLORS` that most pixels are closest to."""
    pixels = np.asarray(image.resize((32, 32), Resampling.BOX), np.float32).reshape(-1, 1, 3)
    names = list(COLORS)
    nearest = np.linalg.norm(pixels - np.array([COLORS[n] for n in names], np.float32), axis=2).argmin(1)
    return names[np.bincount(nearest, minlength=len(names)).argmax()]


def read_original(file: str | Path) -> Image.Image:
    """A wallpaper as RGB, its short side at most 1,400 pixels."""
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
