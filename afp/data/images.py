"""Safe decoding and normalisation: from files of unknown origin to pixels that can be compared.

Both classes enter through :func:`open_image` and one :class:`Normalisation`, so that file format, size and
JPEG tables cannot tell real from fake.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import stat
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms
from PIL.Image import Transpose
from tqdm.auto import tqdm

from ..errors import ImageError, UnreadableImages
from ..files import printable

FORMAT_OF = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".gif": "GIF",
}
EXTENSIONS = frozenset(FORMAT_OF)
MAX_BYTES = 256 * 2**20
MAX_PIXELS = 100_000_000
MIN_SIDE = 16  # pixels; below it nothing is left that a detector could judge
_FORMATS = sorted(set(FORMAT_OF.values()))
_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
# Changing the warning filters is process-wide, so one thread decodes at a time.
_DECODING = threading.Lock()
# Pillow reports some damage through logging; without a handler that would land on the user's screen.
logging.getLogger("PIL").addHandler(logging.NullHandler())


def open_image(path: str | Path, digest: str = "") -> Image.Image:
    """Decode a file's first frame, upright, as 8-bit sRGB of any size; transparency lies on white.

    Reads JPEG, PNG, WEBP, BMP, TIFF and GIF; the content must be what the extension says.

    Args:
        digest: hex SHA-256 that the file's bytes must have; empty for any.
    Raises:
        ImageError: the file is another than that of ``digest``, missing, not a regular file, empty, cut short within
            the first frame, damaged, disguised as another format, over 256 MiB or 100 million pixels, or a side is
            under 16 pixels.
    """
    name = printable(path)
    expected = FORMAT_OF.get(Path(path).suffix.lower())
    if expected is None:
        listed = ", ".join(sorted(EXTENSIONS))
        raise ImageError(f"{name}: extension {Path(path).suffix!r} is none of {listed}")
    with _open_regular(path) as file:
        data = file.read(MAX_BYTES + 1)
    if not 0 < len(data) <= MAX_BYTES:
        raise ImageError(f"{name}: {f'over {MAX_BYTES // 2**20} MiB' if data else 'empty file'}")
    if digest and hashlib.sha256(data).hexdigest() != digest:
        raise ImageError(f"{name}: changed since its hash {digest[:12]}… was written; make the manifest anew")
    try:
        with _quiet(), Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            # Phones store several pictures in one JPEG, which Pillow calls MPO.
            found = "JPEG" if image.format == "MPO" else image.format
            if found != expected:
                raise ImageError(f"{name}: content is {found}, but the extension says {expected}")
            _check_size(name, image)
            image.load()
            _check_size(name, image)  # a GIF frame may be larger than the header promised
            return _to_upright_rgb(name, image)
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        listed = ", ".join(_FORMATS)
        reason = f"content is none of {listed}, or its header is damaged; the extension says {expected}"
        raise ImageError(f"{name}: {reason}") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: over {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # on crafted bytes Pillow raises nearly anything
        reason = str(error) or type(error).__name__
        raise ImageError(f"{name}: damaged or truncated {expected} ({reason})") from error


def open_images(files: Iterable[str | Path], progress: bool = False) -> list[Image.Image]:
    """Decode files in their order; raises UnreadableImages, which names all the bad ones."""
    images, errors = [], {}
    for file in tqdm(list(files), desc="decode", unit="image", disable=not progress):
        try:
            images.append(open_image(file))
        except ImageError as error:
            errors[str(file)] = str(error)
    if errors:
        raise UnreadableImages(errors)
    return images


def list_images(paths: str | Path | Iterable[str | Path]) -> tuple[list[Path], int]:
    """Expand files and folders (recursively) to the sorted image files in them.

    A file given by itself is taken whatever its extension; in a folder, files with an extension in
    :data:`EXTENSIONS` (any case, hidden ones too) are taken and the others counted. Linked folders are
    entered once. No file is opened. Returns the files, each once, and how many others were skipped.

    Raises:
        ImageError: a path does not exist, or a folder cannot be listed.
    """
    files: dict[tuple[str, str], Path] = {}
    skipped = 0
    for path in [paths] if isinstance(paths, str | Path) else paths:
        if os.path.isdir(path):
            inside = list(_walk(path))
            taken = [file for file in inside if file.suffix.lower() in EXTENSIONS]
            skipped += len(inside) - len(taken)
        elif os.path.lexists(path):
            taken = [Path(path)]
        else:
            raise ImageError(f"{printable(path)}: no such file or folder")
        for file in taken:
            files.setdefault((os.path.realpath(file.parent), file.name), file)
    return sorted(files.values()), skipped


def sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes; raises ImageError where it is missing or not a regular file."""
    with _open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _walk(folder: str | Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise ImageError(f"{printable(error.filename)}: cannot be listed, {error.strerror}") from error

    visited = set()
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited:
            folders.clear()
        else:
            folders.sort()
            yield from (Path(parent, file) for file in files)
        visited.add(real)


@contextmanager
def _open_regular(path: str | Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading; a pipe or device must neither hang nor feed bytes without end."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(0, "not a regular file")
            yield file
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ImageError(f"{printable(path)}: {getattr(error, 'strerror', None) or error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    with _DECODING, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _check_size(name: str, image: Image.Image) -> None:
    width, height = image.size
    if min(width, height) < MIN_SIDE or width * height > MAX_PIXELS:
        limits = f"at least {MIN_SIDE} a side and at most {MAX_PIXELS:,} in all"
        raise ImageError(f"{name}: {width} x {height} pixels, expected {limits}")


def _to_upright_rgb(name: str, image: Image.Image) -> Image.Image:
    orientation = None
    with suppress(Exception):  # damaged metadata around sound pixels
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    profile = image.info.get("icc_profile")
    if image.mode.startswith(("I", "F")):
        image = _to_8_bit(name, image)
    elif image.mode in ("La", "RGBa"):  # premultiplied alpha
        image = image.convert(image.mode.upper())
    if image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    if profile:
        image = _to_srgb(image, profile)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    image.info.clear()
    return image


def _to_8_bit(name: str, image: Image.Image) -> Image.Image:
    """Grey of 16 bits (0 to 65535) or floating point (0 to 1) as 8 bits, scaled and not clipped."""
    values = np.asarray(image)
    high = 1 if values.dtype.kind == "f" else 65535
    lowest, highest = values.min(), values.max()
    if not (lowest >= 0 and highest <= high):  # so is NaN refused
        raise ImageError(f"{name}: {image.mode} values from {lowest} to {highest}, expected 0 to {high}")
    grey = np.rint(values * 255.0) if high == 1 else (values.astype(np.uint32) + 128) // 257
    return Image.fromarray(grey.astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Apply an embedded colour profile; one that is damaged or of another colour space is ignored."""
    mode = "RGBA" if image.mode == "RGBA" else "RGB"
    with suppress(Exception):
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if not ImageCms.getProfileDescription(source).startswith("sRGB"):
            image = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    return image


def describe_file(file: str | Path) -> dict[str, str | float]:
    """What a file tells without being looked at: format, mode, size, aspect, JPEG tables, embedded profiles.

    ``bytes_per_pixel`` is the size of the file over the number of its pixels.

    Raises:
        ImageError: the file cannot be decoded.
    """
    if not Path(file).is_file():
        open_image(file)  # says what is wrong
    status = Path(file).stat()
    return dict(_describe(str(file), status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=2**17)  # cross-fitting asks for every file once a fold
def _describe(file: str, size: int, changed: int) -> dict[str, str | float]:
    open_image(file)  # refuses what no detector could score, with one message for all
    with Image.open(file) as image:
        tables = getattr(image, "quantization", None) or {}
        return {
            "format": image.format or "?",
            "mode": image.mode,
            "size": f"{image.width}x{image.height}",
            "log_width": float(np.log2(image.width)),
            "log_height": float(np.log2(image.height)),
            "aspect": image.width / image.height,
            "jpeg_tables": str([list(tables[k]) for k in sorted(tables)]),
            "jpeg_mean": float(np.mean([v for t in tables.values() for v in t])) if tables else 0.0,
            "exif": float("exif" in image.info),
            "icc": float("icc_profile" in image.info),
            "bytes_per_pixel": size / (image.width * image.height),
        }
