"""What about a file makes a detector's answer doubtful, told from the file alone."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from .images import Normalisation, open_image

POOR_JPEG = 70  # estimated quality; below it compression removes much of what detectors look for
MANY_PIXELS = 4  # original side over the detector's: finer traces average out
LEAST_JUDGED = 0.5  # of the picture's area
FLAT = 0.75  # share of pixels equal to their left neighbour; a photograph of a plain wall has .7
# Width and height of common screens, portrait or landscape.
SCREENS = {
    frozenset(size)
    for size in [
        *[(1280, 720), (1280, 800), (1366, 768), (1440, 900), (1536, 864), (1600, 900), (1680, 1050)],
        *[(1920, 1080), (1920, 1200), (2256, 1504), (2560, 1440), (2560, 1600), (2880, 1800), (3024, 1964)],
        *[(3440, 1440), (3456, 2234), (3840, 2160), (750, 1334), (828, 1792), (1080, 2340), (1080, 2400)],
        *[(1125, 2436), (1170, 2532), (1179, 2556), (1206, 2622), (1284, 2778), (1290, 2796), (1320, 2868)],
        *[(1440, 3088), (1440, 3200), (1668, 2388), (2048, 2732)],
    ]
}


def cautions(file: str | Path, normalisation: Normalisation | None = None) -> list[str]:
    """Reasons to doubt a score, a sentence each: size, shape, compression, screenshot. Empty for a sound file.

    Args:
        file: an image.
        normalisation: the detector's.
    Raises:
        ImageError: the file cannot be decoded.

    Notebook: 00_start_here
    """
    pixels, side = open_image(file), (normalisation or Normalisation()).size
    width, height = pixels.size
    shortest, judged = min(width, height), min(width, height) / max(width, height)
    found = []
    if shortest < side:
        found.append(
            f"tiny: {width} x {height} pixels were enlarged to {side}, and enlarging can look like a network's work"
        )
    if shortest >= MANY_PIXELS * side:
        found.append(
            f"large: {width} x {height} pixels were scaled down {shortest / side:.0f} times; finer traces are "
            "gone. Score a crop at full size too"
        )
    if judged < LEAST_JUDGED:
        found.append(
            f"elongated: only the central square was judged, {judged:.0%} of the picture; crop what matters"
        )
    with Image.open(file) as image:
        kind, size, exif = image.format, image.size, "exif" in image.info
        tables = getattr(image, "quantization", None)
    if tables and (quality := jpeg_quality(tables[min(tables)])) < POOR_JPEG:
        found.append(f"heavily compressed: JPEG quality about {quality}; traces of generators fade with it")
    if flat_share(pixels) > FLAT:
        found.append("screenshot or drawing? Most of it is flat colour; the detector knows photographs")
    elif kind in ("PNG", "BMP", "WEBP") and not exif and frozenset(size) in SCREENS:
        found.append(
            f"screenshot? {kind} of {size[0]} x {size[1]}, the size of a screen, without camera data; "
            "then it was judged as shown, scaled and framed"
        )
    return found


def jpeg_quality(table: list[int]) -> int:
    """The libjpeg quality, 1 to 100, whose luminance table is nearest in sum to this one (64 numbers)."""
    return min(range(1, 101), key=lambda quality: abs(_table_sum(quality) - sum(table)))


@cache
def _table_sum(quality: int) -> int:
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "jpeg", quality=quality)
    with Image.open(buffer, formats=["JPEG"]) as image:
        return sum(image.quantization[0])


def flat_share(image: Image.Image) -> float:
    """Share of pixels that equal their left neighbour exactly, in at most 512 rows of an RGB image."""
    rows = np.asarray(image)[:: max(1, image.height // 512)]
    return float((rows[:, 1:] == rows[:, :-1]).all(axis=2).mean())
