"""Safe decoding: from files of unknown origin to pixels that can be compared.

Both classes enter through :func:`open_image` and one normalisation, so that file format, size and JPEG tables
cannot tell real from fake. A file is a path, or ``shard.tar::member`` (see `afp.data.archives`).
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import threading
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError
from tqdm.auto import tqdm

from ..errors import ImageError
from ..files import printable
from .archives import is_hidden, open_regular, read_member, split_member

FORMAT_OF = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".gif": "GIF",
    ".avif": "AVIF",
    ".heic": "HEIF",
    ".heif": "HEIF",
}
MAX_BYTES = 256 * 2**20
MAX_PIXELS = 100_000_000
MAX_JPEG_PIXELS = 2**28  # a baseline JPEG over MAX_PIXELS is decoded at half its size, in bounded memory
MIN_SIDE = 16  # pixels; below it nothing is left that a detector could judge
GREY_SIDE = 32  # pixels of the small grey picture that the audit compares
_FORMATS = sorted({*FORMAT_OF.values()} - {"HEIF"})
# How the content of these formats begins: tells an image that has no extension, or an unknown one.
_BEGINNINGS = re.compile(
    rb"\xff\xd8\xff|\x89PNG|GIF8|BM....\0{4}|RIFF....WEBP|II[*+]\0|MM\0[*+]|....ftyp(?:avi|mif1|msf1|hei|hev)",
    re.DOTALL,
)
# Changing Pillow's limits and the warning filters is process-wide, so one thread decodes at a time.
_DECODING = threading.Lock()
# Pillow reports some damage through logging; without a handler that would land on the user's screen.
logging.getLogger("PIL").addHandler(logging.NullHandler())


def open_image(file: str | Path, digest: str = "") -> Image.Image:
    """Decode a file's first frame, upright, as 8-bit sRGB of any size; transparency lies on white.

    Reads JPEG, PNG, WEBP, BMP, TIFF, GIF, AVIF and, with the extra ``heic``, HEIC. The content decides, whatever
    the extension says (see :func:`extension_caution`). A baseline JPEG of 100 to 268 million pixels comes at
    half its size.

    Args:
        digest: hex SHA-256 that the file's bytes must have; empty for any.
    Raises:
        ImageError: the file is another than that of ``digest``, missing, not a regular file, empty, cut short within
            the first frame, damaged, of another format, over 256 MiB or 100 million pixels, or a side is under 16
            pixels.
    """
    content, name = read_file(file), printable(file)
    if digest and hashlib.sha256(content).hexdigest() != digest:
        changed = f"changed since its hash {digest[:12]}… was written; make the manifest anew"
        raise ImageError(f"{name}: {changed}")
    with _opened(content, name) as image:
        return _to_upright_rgb(name, image)


def read_file(file: str | Path) -> bytes:
    """All bytes of a file or of a member of an archive; raises ImageError where it is empty or over 256 MiB."""
    if member := split_member(file):
        content = read_member(*member, MAX_BYTES)
    else:
        with open_regular(file) as stream:
            content = stream.read(MAX_BYTES + 1)
    if not 0 < len(content) <= MAX_BYTES:
        reason = f"over {MAX_BYTES // 2**20} MiB" if content else "empty file"
        raise ImageError(f"{printable(file)}: {reason}")
    return content


def sha256(file: str | Path) -> str:
    """Hex SHA-256 of a file's bytes; raises ImageError as `read_file` does."""
    return hashlib.sha256(read_file(file)).hexdigest()


def list_images(
    paths: str | Path | Iterable[str | Path], progress: bool = False
) -> tuple[list[Path], dict[str, str]]:
    """Expand files and folders (recursively) to the sorted image files in them.

    A file given by itself is taken whatever it is; in a folder, files with an extension in :data:`FORMAT_OF`
    (any case) are taken, and of the others those that begin like an image. Hidden files and folders and
    ``__MACOSX`` are ignored. Linked folders are entered once.

    Returns:
        The files, each once; and what was skipped: its name -> its extension, or why a folder cannot be listed.
    Raises:
        ImageError: a path does not exist.
    """
    files: dict[tuple[str, str], Path] = {}
    skipped: dict[str, str] = {}
    for path in [paths] if isinstance(paths, str | Path) else paths:
        if os.path.isdir(path):
            inside = _walk(path, skipped)
        elif os.path.lexists(path):
            inside = iter([Path(path)])
        else:
            raise ImageError(f"{printable(path)}: no such file or folder")
        for file in tqdm(inside, "listing", unit=" files", leave=False, disable=not progress):
            if file == Path(path) or file.suffix.lower() in FORMAT_OF or begins_like_an_image(_head(file)):
                files.setdefault((os.path.realpath(file.parent), file.name), file)
            else:
                plain = re.fullmatch(r"\.\w{1,9}", suffix := file.suffix.lower())
                skipped[printable(file)] = suffix if plain else "no extension"
    return sorted(files.values()), skipped


def count_reasons(skipped: Mapping[str, str]) -> str:
    """Such as ``3 skipped (2 .txt, 1 no extension)``, of what `list_images` skipped."""
    counts = Counter(skipped.values())
    parts = ", ".join(f"{n} {reason}" for reason, n in sorted(counts.items()))
    return f"{counts.total()} skipped" + (f" ({parts})" if parts else "")


def extension_caution(file: str | Path) -> str:
    """A sentence where the content is not what the extension says, else empty; raises ImageError."""
    claimed, found = FORMAT_OF.get(Path(file).suffix.lower()), str(describe_file(file)["format"])
    if claimed is None or claimed == found.replace("MPO", "JPEG"):
        return ""
    return f"the content is {found}, although the extension says {claimed}"


def _walk(folder: str | Path, skipped: dict[str, str]) -> Iterator[Path]:
    def note(error: OSError) -> None:
        skipped[printable(error.filename)] = f"cannot be listed: {error.strerror}"

    visited = set()
    for parent, folders, files in os.walk(folder, onerror=note, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited:
            folders.clear()
        else:
            folders[:] = sorted(f for f in folders if not is_hidden(f))
            yield from (Path(parent, file) for file in sorted(files) if not is_hidden(file))
        visited.add(real)


def begins_like_an_image(content: bytes) -> bool:
    """Whether the first 16 bytes are those of a format that `open_image` reads."""
    return _BEGINNINGS.match(content) is not None


def _head(file: Path) -> bytes:
    with suppress(ImageError), open_regular(file) as stream:
        return stream.read(16)
    return b""


@contextmanager
def _opened(content: bytes, name: str) -> Iterator[Image.Image]:
    """The image, its header read and its size checked; any error in the block becomes an ImageError."""
    try:
        formats = _formats(content, name)
        with _own_limits(), Image.open(io.BytesIO(content), formats=formats) as image:
            _check_size(name, image)
            yield image
    except ImageError:
        raise
    except UnidentifiedImageError:
        reason = f"content is none of {', '.join(_FORMATS)}, or its header is damaged"
        raise ImageError(f"{name}: {reason}") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: over {MAX_JPEG_PIXELS:,} pixels; scale it down") from None
    except Exception as error:  # on crafted bytes Pillow raises nearly anything
        reason = str(error) or type(error).__name__
        raise ImageError(f"{name}: damaged, truncated or beyond what the decoder reads ({reason})") from error


def _formats(content: bytes, name: str) -> list[str]:
    if content[4:8] != b"ftyp" or not re.search(rb"he[iv][cmsx]", content[8:64]):
        return _FORMATS
    try:
        import pillow_heif
    except ImportError:
        raise ImageError(f"{name}: a HEIC photograph needs an extra; pip install 'afp[heic]'") from None
    pillow_heif.register_heif_opener()
    return ["HEIF"]


@contextmanager
def _own_limits() -> Iterator[None]:
    with _DECODING, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        before = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK
        Image.MAX_IMAGE_PIXELS = MAX_JPEG_PIXELS // 2  # Pillow refuses beyond twice this
        # Generators write whole workflows into a PNG's text; all of it together stays under 64 MiB.
        PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = before


def _check_size(name: str, image: Image.Image) -> None:
    width, height = image.size
    halved = image.format in ("JPEG", "MPO") and "progressive" not in image.info
    most = MAX_JPEG_PIXELS if halved else MAX_PIXELS
    if min(width, height) < MIN_SIDE or width * height > most:
        limits = f"at least {MIN_SIDE} a side and at most {most:,} in all"
        raise ImageError(f"{name}: {width} x {height} pixels, expected {limits}; scale it or leave it out")


def _to_upright_rgb(name: str, image: Image.Image) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        image.draft(None, (image.width // 2, image.height // 2))
    image.load()
    _check_size(name, image)  # a GIF frame may be larger than the header promised
    profile = image.info.get("icc_profile")
    with suppress(Exception):  # damaged metadata around sound pixels
        ImageOps.exif_transpose(image, in_place=True)
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
            target = ImageCms.createProfile("sRGB")
            return ImageCms.profileToProfile(image, source, target, outputMode=mode) or image
    return image


def describe_file(file: str | Path) -> dict[str, str | float]:
    """What a file tells beside its picture: format, mode, size, aspect, JPEG tables, embedded profiles.

    ``bytes_per_pixel`` is the size of the file over the number of its pixels.

    Raises:
        ImageError: the file cannot be decoded.
    """
    return dict(_examine(file)[0])


def small_grey(file: str | Path) -> bytes:
    """The picture as `GREY_SIDE` x `GREY_SIDE` grey values, row by row, whatever its shape; raises ImageError."""
    return _examine(file)[1]


def _examine(file: str | Path) -> tuple[dict[str, str | float], bytes]:
    member = split_member(file)
    try:
        status = os.stat(member[0] if member else file)
    except (OSError, ValueError):
        open_image(file)  # says what is wrong
        raise
    return _examine_once(str(file), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=2**17)  # cross-fitting asks for every file once a fold
def _examine_once(file: str, size: int, changed: int) -> tuple[dict[str, str | float], bytes]:
    content, name = read_file(file), printable(file)
    with _opened(content, name) as image:
        tables = getattr(image, "quantization", None) or {}
        about: dict[str, str | float] = {
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
            "bytes_per_pixel": len(content) / (image.width * image.height),
        }
        # refuses what no detector could score, with one message for all
        picture = _to_upright_rgb(name, image).convert("L")
    return about, picture.resize((GREY_SIDE, GREY_SIDE), Image.Resampling.BOX).tobytes()
