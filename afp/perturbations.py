"""What happens to images on their way through the world: compression, blur, scaling, noise, cropping.

A perturbation is written as ``name:value``; ``+`` chains several from left to right, as in
``rescale:0.5+jpeg:75``, and ``none`` leaves the image alone. It is applied to real and fake images alike,
after :class:`afp.images.Normalisation` (so at its size, 256 pixels unless stated otherwise) and before the
model's own preprocessing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.Image import Resampling
from scipy.ndimage import gaussian_filter

from afp.images import reencode


class Perturbation(NamedTuple):
    """A change of an RGB image: its function, the inclusive range of its value and the value's unit."""

    apply: Callable[[Image.Image, float, np.random.Generator], Image.Image]
    low: float
    high: float
    unit: str
    whole: bool = False


def perturb(image: Image.Image, spec: str, seed: int | str) -> Image.Image:
    """Apply ``spec`` to an RGB image; the result is RGB of the same size.

    Args:
        spec: such as ``"none"``, ``"jpeg:75"``, ``"blur:1"`` or ``"rescale:0.5+jpeg:75"``.
        seed: fixes noise and crop position; give each image its own, such as its SHA-256. Noise of two
            strengths under one seed is one pattern scaled, so curves over strength are paired.

    Raises:
        ValueError: a bad spec (see :func:`check`), or an image that is not RGB.

    Notebook: 06_test_robustness
    """
    parts = _parse(spec)
    if image.mode != "RGB":
        raise ValueError(f"image mode {image.mode!r}: expected 'RGB' (open it with afp.images.open_image)")
    used: Counter[str] = Counter()
    for name, value in parts:
        # A part draws its own numbers, so "a+b" is b after a, and a second noise differs from the first.
        digest = hashlib.sha256(f"{seed}|{name}|{used[name]}".encode()).digest()
        used[name] += 1
        image = PERTURBATIONS[name].apply(image, value, np.random.default_rng(int.from_bytes(digest)))
    return image


def check(spec: str) -> str:
    """Return the canonical form of ``spec`` (``"blur:1.0"`` becomes ``"blur:1"``), for tables and caches.

    Raises:
        ValueError: unknown name, missing value or value out of range; names the spec, the part and the range.

    Notebook: 06_test_robustness
    """
    return "+".join(f"{name}:{value}" for name, value in _parse(spec)) or "none"


def _parse(spec: str) -> tuple[tuple[str, float], ...]:
    if not isinstance(spec, str):
        raise ValueError(f"perturbation {spec!r}: expected text such as 'jpeg:75'")
    if spec.strip().lower() == "none":
        return ()
    return tuple(_parse_part(spec, part) for part in spec.split("+"))


def _parse_part(spec: str, part: str) -> tuple[str, float]:
    name, _, text = part.strip().lower().partition(":")
    where = f"perturbation {spec!r}, part {part!r}"
    if name not in PERTURBATIONS:
        raise ValueError(f"{where}: {name!r} is none of {', '.join(PERTURBATIONS)} (or 'none' alone)")
    _, low, high, unit, whole = PERTURBATIONS[name]
    allowed = f"expected {'a whole number' if whole else 'a number'} from {low:g} to {high:g} ({unit})"
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{where}: value {text!r}, {allowed}") from None
    if not low <= value <= high or (whole and not value.is_integer()):  # NaN fails the comparison
        raise ValueError(f"{where}: value {text}, {allowed}")
    return name, int(value) if value.is_integer() else value


def _jpeg(image: Image.Image, quality: float, _: np.random.Generator) -> Image.Image:
    return reencode(image, "jpeg", int(quality))


def _webp(image: Image.Image, quality: float, _: np.random.Generator) -> Image.Image:
    return reencode(image, "webp", int(quality))


def _blur(image: Image.Image, sigma: float, _: np.random.Generator) -> Image.Image:
    # A true Gaussian (cut at 4 sigma, edges mirrored): Pillow's GaussianBlur is a few box filters.
    return _to_image(gaussian_filter(np.asarray(image, np.float64), (sigma, sigma, 0)))


def _rescale(image: Image.Image, factor: float, _: np.random.Generator) -> Image.Image:
    small = tuple(max(1, round(side * factor)) for side in image.size)
    if small == image.size:
        return image
    return image.resize(small, Resampling.BICUBIC).resize(image.size, Resampling.BICUBIC)


def _noise(image: Image.Image, sd: float, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image, np.float64)
    return _to_image(pixels + sd * rng.standard_normal(pixels.shape))


def _crop(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    width, height = (max(1, round(side * share)) for side in image.size)
    if (width, height) == image.size:
        return image
    left = int(rng.random() * (image.width - width + 1))
    top = int(rng.random() * (image.height - height + 1))
    return image.resize(image.size, Resampling.BICUBIC, box=(left, top, left + width, top + height))


def _to_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


PERTURBATIONS: dict[str, Perturbation] = {
    "jpeg": Perturbation(_jpeg, 1, 100, "JPEG quality, 4:2:0", whole=True),
    "webp": Perturbation(_webp, 1, 100, "WEBP quality, lossy", whole=True),
    "blur": Perturbation(_blur, 0, 64, "standard deviation of the Gaussian in pixels"),
    "rescale": Perturbation(_rescale, 0.01, 1, "factor of each side, bicubic down and up again"),
    "noise": Perturbation(_noise, 0, 255, "standard deviation in grey levels"),
    "crop": Perturbation(_crop, 0.01, 1, "share of each side kept, at a seeded place, bicubic back to size"),
}
