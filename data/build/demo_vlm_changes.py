"""What is done to the pictures on which the miniature InstructBLIP is pretrained: classical image processing.

Nothing here was learned by a network, and no word says whether one was at work. A change that smooths areas and
keeps edges hard is close to what upscaling networks do; it is a filter all the same.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from PIL.Image import Resampling
from scipy import ndimage

from afp.data.preprocess import reencode

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


def _haloed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.UnsharpMask(rng.uniform(6, 14), int(rng.uniform(70, 160)), 0))


def _smoothed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.MedianFilter(int(rng.choice([3, 5, 7]))))


def _polished(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return _sharpened(_smoothed(image, rng), rng)


def _crisped(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return _sharpened(_enlarged(image, rng), rng)


def _kuwahara(a: np.ndarray, radius: int) -> np.ndarray:
    """Each pixel takes the mean of that quadrant around it whose brightness varies least: flat areas, hard edges."""
    size, light = radius + 1, a.mean(2)
    mean = ndimage.uniform_filter(a, (size, size, 1), mode="nearest")
    spread = ndimage.uniform_filter(light**2, size, mode="nearest")
    spread -= ndimage.uniform_filter(light, size, mode="nearest") ** 2
    shifts = [(y, x) for y in (-radius // 2, radius // 2) for x in (-radius // 2, radius // 2)]
    spreads = np.stack([np.roll(spread, shift, (0, 1)) for shift in shifts])
    means = np.stack([np.roll(mean, shift, (0, 1)) for shift in shifts])
    return np.take_along_axis(means, spreads.argmin(0)[None, ..., None], 0)[0]


def _shocked(a: np.ndarray, steps: int) -> np.ndarray:
    """Osher and Rudin's shock filter (1990): brightness flows towards edges until they are steps."""
    for _ in range(steps):
        smooth = ndimage.gaussian_filter(a, (1, 1, 0))
        bend = ndimage.laplace(smooth.mean(2))[..., None]
        slope = np.linalg.norm(np.stack(np.gradient(smooth, axis=(0, 1))), axis=0)
        a = a - 0.4 * np.sign(bend) * slope
    return a


def _bilateral(a: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Averages over neighbours of like brightness alone: noise goes, edges stay."""
    tolerance, light = rng.uniform(15, 45), a.mean(2)
    total, weights = np.zeros_like(a), np.zeros(a.shape[:2], np.float32)
    for y in range(-3, 4):
        for x in range(-3, 4):
            near = np.exp(
                -(y * y + x * x) / 8 - (np.roll(light, (y, x), (0, 1)) - light) ** 2 / (2 * tolerance**2)
            )
            total += near[..., None] * np.roll(a, (y, x), (0, 1))
            weights += near
    return total / weights[..., None]


def _redrawn(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    large = np.asarray(_enlarged(image, rng), np.float32)
    return Image.fromarray(_kuwahara(large, int(rng.choice([2, 4]))).clip(0, 255).round().astype(np.uint8))


def _retraced(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    large = np.asarray(_enlarged(image, rng), np.float32)
    return Image.fromarray(_shocked(large, int(rng.integers(2, 7))).clip(0, 255).round().astype(np.uint8))


def _aliased(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return _shrink(image, rng.uniform(1.7, 4), Resampling.NEAREST).resize(image.size, Resampling.BICUBIC)


def _bled(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    light, *chroma = image.convert("YCbCr").split()
    blur = ImageFilter.GaussianBlur(rng.uniform(4, 10))
    return Image.merge("YCbCr", [light, *(c.filter(blur) for c in chroma)]).convert("RGB")


def _ghosted(a: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    share = rng.uniform(0.25, 0.45)
    return (1 - share) * a + share * np.roll(a, rng.integers(4, 14, 2), (0, 1))


def _vignetted(a: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[-1 : 1 : a.shape[0] * 1j, -1 : 1 : a.shape[1] * 1j]
    return a * (1 - rng.uniform(0.3, 0.5) * (y**2 + x**2))[..., None]


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
    "denoised": _array(_bilateral),
    "brushed": _array(lambda a, rng: _kuwahara(a, int(rng.choice([4, 6, 8])))),
    "redrawn": _redrawn,
    "etched": _array(lambda a, rng: _shocked(a, int(rng.integers(2, 7)))),
    "retraced": _retraced,
    "haloed": _haloed,
    "thinned": lambda image, rng: image.filter(ImageFilter.MinFilter(3)),
    "thickened": lambda image, rng: image.filter(ImageFilter.MaxFilter(3)),
    "painted": lambda image, rng: image.filter(ImageFilter.ModeFilter(int(rng.choice([3, 5, 7])))),
    "posterised": lambda image, rng: ImageOps.posterize(image, int(rng.integers(2, 5))),
    "dithered": lambda image, rng: image.quantize(int(rng.integers(6, 33))).convert("RGB"),
    "speckled": _array(_speckled),
    "smeared": _array(_smeared),
    "rippled": _array(_rippled),
    "gridded": _array(_gridded),
    "aliased": _aliased,
    "bled": _bled,
    "ghosted": _array(_ghosted),
    "vignetted": _array(_vignetted),
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
    {"blurred", "enlarged", "smeared", "rippled", "smoothed", "denoised", "aliased"},
    {"noisy", "grainy", "speckled"},
    {"sharpened", "crisped", "polished", "haloed", "etched"},
    {"smoothed", "painted", "polished", "brushed", "denoised", "redrawn"},
    {"posterised", "dithered"},
    {"enlarged", "crisped", "redrawn", "retraced"},
    {"etched", "retraced", "brushed", "redrawn"},
    {"darkened", "vignetted"},
    {"smeared", "ghosted"},
)
