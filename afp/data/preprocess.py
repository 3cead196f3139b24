"""What is done to pixels before a model sees them: one normalisation for both classes, perturbations, random crops.

A perturbation is written as ``name:value``; ``+`` chains several from left to right, as in
``rescale:0.5+jpeg:75``, and ``none`` leaves the image alone. It is applied to real and fake images alike,
after `Normalisation` (so at its size, 256 pixels unless stated otherwise) and before the model's own
preprocessing.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from PIL import Image, ImageOps
from PIL.Image import Resampling
from scipy.ndimage import gaussian_filter
from tqdm.auto import tqdm

from ..errors import AfpError, ImageError, UnreadableImages
from .images import open_image

T = TypeVar("T")
# Chroma subsampling and effort are fixed: Pillow's defaults may change between versions.
_ENCODERS: dict[str, dict[str, Any]] = {"jpeg": {"subsampling": "4:2:0"}, "png": {}, "webp": {"method": 4}}


@dataclass(frozen=True)
class Normalisation:
    """The one path that both classes take before any model sees them.

    The centre square is resized to ``size`` pixels a side (Lanczos with antialiasing; not at all where it has
    that size already), then encoded and decoded in memory: every image carries traces of the same codec.

    Args:
        size: side of the result in pixels, 32 to 2048.
        codec: ``"jpeg"`` (4:2:0), ``"webp"`` (lossy), ``"png"`` (lossless: the pixels stay), or ``"none"``: the
            identity, where the image stays as it is, at its own size, for recipes that see the file's own pixels.
        quality: 1 to 100; has no meaning for ``"png"`` and ``"none"``.
    """

    size: int = 256
    codec: str = "jpeg"
    quality: int = 95

    def __post_init__(self) -> None:
        for field, low, high in (("size", 32, 2048), ("quality", 1, 100)):
            value = getattr(self, field)
            if type(value) is not int or not low <= value <= high:
                raise AfpError(f"Normalisation.{field}={value!r}: expected an integer from {low} to {high}")
        if self.codec not in (known := (*_ENCODERS, "none")):
            raise AfpError(f"Normalisation.codec={self.codec!r}: expected one of {', '.join(known)}")

    def __call__(self, image: Image.Image) -> Image.Image:
        """Normalise an RGB image of any size to RGB of ``size`` x ``size`` (of its own size for ``"none"``)."""
        if self.codec == "none":
            return image.convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.convert("RGB").crop((left, top, left + side, top + side))
        if side != self.size:
            square = square.resize((self.size, self.size), Resampling.LANCZOS)
        return reencode(square, self.codec, self.quality)

    @property
    def key(self) -> str:
        """Short name for caches and run folders, such as ``256-jpeg95``."""
        if self.codec == "none":
            return "none"
        return f"{self.size}-{self.codec}" + ("" if self.codec == "png" else str(self.quality))


IDENTITY = Normalisation(codec="none")


def reencode(image: Image.Image, codec: str, quality: int) -> Image.Image:
    """Encode an RGB image in memory as ``"jpeg"``, ``"webp"`` (lossy) or ``"png"``, and decode it again."""
    buffer = io.BytesIO()
    image.save(buffer, codec, quality=quality, **_ENCODERS[codec])
    with Image.open(buffer, formats=[codec]) as decoded:
        return decoded.convert("RGB")


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
        ValueError: a bad spec (see `check_perturbation`), or an image that is not RGB.
    """
    parts = _parse(spec)
    if image.mode != "RGB":
        raise AfpError(f"image mode {image.mode!r}: expected 'RGB' (open it with afp.data.images.open_image)")
    used: Counter[str] = Counter()
    for name, value in parts:
        # A part draws its own numbers, so "a+b" is b after a, and a second noise differs from the first.
        digest = hashlib.sha256(f"{seed}|{name}|{used[name]}".encode()).digest()
        used[name] += 1
        image = PERTURBATIONS[name].apply(image, value, np.random.default_rng(int.from_bytes(digest)))
    return image


def check_perturbation(spec: str) -> str:
    """Return the canonical form of ``spec`` (``"blur:1.0"`` becomes ``"blur:1"``), for tables and caches.

    Raises:
        ValueError: unknown name, missing value or value out of range; names the spec, the part and the range.
    """
    return "+".join(f"{name}:{value}" for name, value in _parse(spec)) or "none"


def _parse(spec: str) -> list[tuple[str, float]]:
    if not isinstance(spec, str):
        raise AfpError(f"perturbation {spec!r}: expected text such as 'jpeg:75'")
    return [] if spec.strip().lower() == "none" else [_parse_part(spec, part) for part in spec.split("+")]


def _parse_part(spec: str, part: str) -> tuple[str, float]:
    name, _, text = part.strip().lower().partition(":")
    where = f"perturbation {spec!r}, part {part!r}"
    if name not in PERTURBATIONS:
        raise AfpError(f"{where}: {name!r} is none of {', '.join(PERTURBATIONS)} (or 'none' alone)")
    _, low, high, unit, whole = PERTURBATIONS[name]
    allowed = f"expected {'a whole number' if whole else 'a number'} from {low:g} to {high:g} ({unit})"
    try:
        value = float(text)
    except ValueError:
        raise AfpError(f"{where}: value {text!r}, {allowed}") from None
    if not low <= value <= high or (whole and not value.is_integer()):  # NaN fails the comparison
        raise AfpError(f"{where}: value {text}, {allowed}")
    return name, int(value) if value.is_integer() else value


def _blur(image: Image.Image, sigma: float, _: np.random.Generator) -> Image.Image:
    # A true Gaussian (cut at 4 sigma, edges mirrored): Pillow's GaussianBlur is a few box filters.
    return _to_image(gaussian_filter(np.asarray(image, np.float64), (sigma, sigma, 0)))


def _rescale(image: Image.Image, factor: float, _: np.random.Generator) -> Image.Image:
    width, height = (max(1, round(side * factor)) for side in image.size)
    if (width, height) == image.size:
        return image
    return image.resize((width, height), Resampling.BICUBIC).resize(image.size, Resampling.BICUBIC)


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


def _coded(codec: str, kind: str) -> Perturbation:
    unit = f"{codec.upper()} quality, {kind}"
    return Perturbation(
        lambda image, quality, _: reencode(image, codec, int(quality)), 1, 100, unit, whole=True
    )


PERTURBATIONS: dict[str, Perturbation] = {
    "jpeg": _coded("jpeg", "4:2:0"),
    "webp": _coded("webp", "lossy"),
    "blur": Perturbation(_blur, 0, 64, "standard deviation of the Gaussian in pixels"),
    "rescale": Perturbation(_rescale, 0.01, 1, "factor of each side, bicubic down and up again"),
    "noise": Perturbation(_noise, 0, 255, "standard deviation in grey levels"),
    "crop": Perturbation(_crop, 0.01, 1, "share of each side kept, at a seeded place, bicubic back to size"),
}
SCALE = (0.08, 1.0)  # share of the area
RATIO = (3 / 4, 4 / 3)  # width to height


def random_view(image: Image.Image, size: int, seed: int | str) -> Image.Image:
    """A random resized crop, mirrored every other time: the augmentation of CoOp's recipe, drawn as by torchvision.

    Args:
        size: side of the result in pixels.
        seed: the same one draws the same view.
    Returns:
        RGB, ``size`` x ``size``, bicubic.
    """
    rng = seeded(seed)
    for _ in range(10):  # a long crop of nearly the whole area does not fit: draw again
        area = rng.uniform(*SCALE) * image.width * image.height
        ratio = np.exp(rng.uniform(*np.log(RATIO)))
        width, height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < width <= image.width and 0 < height <= image.height:
            left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
            break
    else:  # the centre, no longer than RATIO allows
        width = min(image.width, round(image.height * RATIO[1]))
        height = min(image.height, round(image.width / RATIO[0]))
        left, top = (image.width - width) // 2, (image.height - height) // 2
    crop = image.crop((left, top, left + width, top + height))
    view = crop.resize((size, size), Resampling.BICUBIC)
    return ImageOps.mirror(view) if rng.random() < 0.5 else view


def seeded(seed: int | str) -> np.random.Generator:
    """A generator of random numbers that any text or number fixes."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:8]))


def prepare(file: str, digest: str, normalisation: Normalisation, perturbation: str = "none") -> Image.Image:
    """One image as every model sees it: decoded, normalised, then perturbed (seeded by its hash).

    Raises:
        ImageError: not decodable, or not the file whose hash the manifest holds.
    """
    return perturb(normalisation(open_image(file, digest)), perturbation, seed=digest)


def prepare_all(
    frame: pd.DataFrame, normalisation: Normalisation, perturbation: str = "none", progress: bool = False
) -> list[Image.Image]:
    """`prepare` for every row; raises UnreadableImages with all the bad files."""

    def work(file: str, digest: str) -> Image.Image:
        return prepare(file, digest, normalisation, perturbation)

    return for_every_image(work, frame, progress)


def for_every_image(
    work: Callable[[str, str], T], frame: pd.DataFrame, progress: bool = False, description: str = "images"
) -> list[T]:
    """``work(file, sha256)`` of every row, in the rows' order.

    Raises:
        UnreadableImages: names every file for which ``work`` raised ImageError, after all the others.
    """
    found, errors = [], {}
    rows = zip(frame["file"], frame["sha256"], strict=True)
    for file, digest in tqdm(rows, total=len(frame), desc=description, disable=not progress, leave=False):
        try:
            found.append(work(file, digest))
        except ImageError as error:
            errors[file] = str(error)
    if errors:
        raise UnreadableImages(errors)
    return found
