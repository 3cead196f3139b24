"""What reaches a detector from files of unknown origin: right pixels, or an error that names the file."""

from __future__ import annotations

import hashlib
import io
import os
import random
import sys
import warnings
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms, ImageFile, PngImagePlugin
from PIL.Image import Transpose
from sklearn.datasets import load_sample_image

from afp.data.images import (
    MAX_PIXELS,
    count_reasons,
    describe_file,
    extension_caution,
    list_images,
    open_image,
    sha256,
)
from afp.data.preprocess import Normalisation
from afp.errors import ImageError

PHOTO = Image.fromarray(load_sample_image("china.jpg")).resize((96, 64))
GREY = np.asarray(PHOTO.convert("L"))


def encoded(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def written(path, image, **options):
    image.save(path, **options)
    return path


def difference(a, b):
    assert a.size == b.size
    return np.abs(np.asarray(a, int) - np.asarray(b, int)).max()


def heic():
    pillow_heif.register_heif_opener()
    return encoded(PHOTO, "HEIF")


def words(length):
    """As ComfyUI writes its workflow, compressed or not."""
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "node " * (length // 5), zip=True)
    info.add_itxt("prompt", "node " * (length // 50))
    return info


@cache
def samples():
    """One small file of each kind that decoders treat apart."""
    second = PHOTO.rotate(9)
    return {
        "plain.jpg": encoded(PHOTO, "JPEG"),
        "progressive.JPEG": encoded(PHOTO, "JPEG", progressive=True),
        "phone.jpg": encoded(PHOTO, "MPO", save_all=True, append_images=[second]),
        "plain.png": encoded(PHOTO, "PNG"),
        "palette.png": encoded(PHOTO.quantize(16), "PNG", transparency=3),
        "deep.png": encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"),
        "lossy.webp": encoded(PHOTO, "WEBP"),
        "moving.webp": encoded(PHOTO, "WEBP", save_all=True, append_images=[second]),
        "plain.bmp": encoded(PHOTO, "BMP"),
        "plain.tif": encoded(PHOTO, "TIFF"),
        "packed.tiff": encoded(PHOTO, "TIFF", compression="tiff_adobe_deflate"),
        "big": encoded(PHOTO, "TIFF", big_tiff=True),
        "moving.gif": encoded(PHOTO, "GIF", save_all=True, append_images=[second]),
        "new.avif": encoded(PHOTO, "AVIF"),
        "old.jfif": encoded(PHOTO, "JPEG"),
        "phone.heic": heic(),
        "bare": encoded(PHOTO, "PNG"),
        "named.jpg": encoded(PHOTO, "PNG"),
        "wordy.png": encoded(PHOTO, "PNG", pnginfo=words(5 * 2**20)),
    }


@pytest.mark.parametrize("name", samples())
def test_reads_the_first_frame_of_every_format(tmp_path, name):
    (tmp_path / name).write_bytes(samples()[name])
    image = open_image(tmp_path / name)
    assert image.mode == "RGB" and image.size == PHOTO.size
    reference = PHOTO.convert("L").convert("RGB") if name == "deep.png" else PHOTO
    assert np.abs(np.asarray(image, int) - np.asarray(reference, int)).mean() < 16  # a palette is 11 off


@pytest.mark.parametrize("name", samples())
def test_a_cut_file_is_refused_unless_its_pixels_are_whole(tmp_path, name):
    whole, path = samples()[name], tmp_path / name
    path.write_bytes(whole)
    image, refused = open_image(path), 0
    lengths = np.linspace(0, len(whole) - 1, 25).astype(int)
    for length in lengths:
        path.write_bytes(whole[:length])
        try:
            assert difference(open_image(path), image) == 0
        except ImageError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused >= (10 if name in ("phone.jpg", "moving.gif") else len(lengths) - 1)


@pytest.mark.parametrize("name", samples())
def test_damaged_bytes_give_an_image_or_an_image_error(tmp_path, name):
    rng, whole, path = random.Random(name), samples()[name], tmp_path / name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(40):
            damaged = bytearray(whole)
            for _ in range(rng.choice([1, 3, 20])):
                damaged[rng.randrange(min(len(whole), rng.choice([64, 512, 10**6])))] = rng.randrange(256)
            path.write_bytes(damaged)
            try:
                assert open_image(path).mode == "RGB"
            except ImageError as error:
                assert str(path) in str(error)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def promising(width, height):
    """A small PNG whose header announces another size."""
    data = bytearray(encoded(PHOTO, "PNG"))
    data[16:24] = width.to_bytes(4) + height.to_bytes(4)
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("empty.png", b"", "empty file"),
        ("page.jpg", b"<!DOCTYPE html><html></html>", "none of AVIF, BMP, GIF, JPEG"),
        ("program.png", b"MZ\x90\x00" + bytes(300), "none of AVIF, BMP, GIF, JPEG"),
        ("page.pdf", encoded(PHOTO, "PDF"), "none of AVIF, BMP, GIF, JPEG"),
        ("unlisted.png", encoded(PHOTO, "TGA"), "none of AVIF, BMP, GIF, JPEG"),
        ("tiny.png", encoded(PHOTO.resize((15, 900)), "PNG"), "15 x 900 pixels, expected at least 16 a side"),
        ("huge.png", promising(MAX_PIXELS // 5000 + 1, 5000), "at most 100,000,000"),
        ("bomb.png", promising(60_000, 60_000), "over 268,435,456 pixels"),
        ("words.png", encoded(PHOTO, "PNG", pnginfo=words(80 * 2**20)), "MAX_TEXT_CHUNK"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses_by_name(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    with warnings.catch_warnings(), pytest.raises(ImageError) as caught:
        warnings.simplefilter("error")
        open_image(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name)) and expected in str(caught.value)


def test_refuses_what_is_no_regular_file(tmp_path):
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")  # opening one for reading would wait for ever
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere")
    for name in ("folder.png", "pipe.png", "device.png", "dangling.png", "missing.png", "nul\0.png"):
        for function in (open_image, sha256):
            with pytest.raises(ImageError, match=name.split("\0")[0]):
                function(tmp_path / name)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (2, Transpose.FLIP_LEFT_RIGHT),
        (3, Transpose.ROTATE_180),
        (5, Transpose.TRANSPOSE),
        (6, Transpose.ROTATE_90),
        (8, Transpose.ROTATE_270),
    ],
)
def test_exif_orientation_equals_an_upright_image(tmp_path, suffix, orientation, stored):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == ".webp" else {"quality": 100, "subsampling": 0}
    turned = open_image(written(tmp_path / f"turned{suffix}", PHOTO.transpose(stored), exif=exif, **options))
    assert turned.size == PHOTO.size
    assert difference(turned, PHOTO) <= (8 if suffix == ".jpg" else 0)


def test_16_bit_equals_8_bit(tmp_path):
    grey = open_image(written(tmp_path / "8.png", Image.fromarray(GREY)))
    deep = GREY.astype(np.uint16) * 257
    same = {
        "16.png": deep,
        "16.tif": deep,
        "big-endian.tif": deep.astype(">u2"),
        "32.tif": deep.astype("i4"),
        "float.tif": (GREY / 255).astype("f4"),
    }
    for name, array in same.items():
        assert difference(open_image(written(tmp_path / name, Image.fromarray(array))), grey) <= 1, name
    unknown = {
        "hdr.tif": GREY.astype("f4"),
        "nan.tif": np.full(GREY.shape, np.nan, "f4"),
        "32.tif": deep.astype("i4") * 256,
    }
    for name, array in unknown.items():
        with pytest.raises(ImageError, match="expected 0 to"):
            open_image(written(tmp_path / name, Image.fromarray(array)))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB"])
def test_every_mode_becomes_rgb_of_about_the_right_colours(tmp_path, mode):
    image = (
        PHOTO.convert(mode)
        if mode != "LAB"
        else ImageCms.profileToProfile(
            PHOTO, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    )
    reference = PHOTO.convert(mode).convert("RGB") if mode in ("1", "L", "P") else PHOTO
    assert difference(open_image(written(tmp_path / "image.tif", image)), reference) <= 8
    if mode == "CMYK":
        image = open_image(written(tmp_path / "image.jpg", image, quality=100, subsampling=0))
        assert difference(image, PHOTO) <= 12


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparency_lies_on_white(tmp_path, mode):
    black = Image.new("RGBA", (32, 32), (0, 0, 0, 255))
    black.paste((0, 0, 0, 0), (0, 0, 16, 32))
    options = {}
    if mode == "P":
        black = black.quantize(2)
    elif mode == "RGB":  # one colour is marked as transparent
        black = Image.new("RGB", (32, 32), "black")
        black.paste("red", (0, 0, 16, 32))
        options = {"transparency": (255, 0, 0)}
    else:
        black = black.convert(mode)
    image = open_image(written(tmp_path / "image.png", black, **options))
    assert image.getpixel((4, 16)) == (255, 255, 255)
    assert max(image.getpixel((28, 16))) <= 1


def test_colour_profile_is_applied_and_a_broken_one_ignored(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "sBGR".encode("utf-16-be"))
    image = open_image(written(tmp_path / "swapped.png", PHOTO, icc_profile=swapped))
    assert difference(image, Image.merge("RGB", PHOTO.split()[::-1])) <= 2
    for name, broken in {"srgb.png": profile, "short.png": swapped[:200], "cut.png": swapped[:-300]}.items():
        assert difference(open_image(written(tmp_path / name, PHOTO, icc_profile=broken)), PHOTO) == 0, name


@pytest.mark.parametrize(("size", "halved"), [((12_000, 9_000), 2), ((4_000, 3_000), 1)])
def test_a_photograph_of_a_hundred_megapixels_comes_at_half_its_size(tmp_path, size, halved):
    file = written(tmp_path / "large.jpg", PHOTO.resize(size, Image.Resampling.NEAREST), quality=30)
    image = open_image(file)
    assert image.size == (size[0] // halved, size[1] // halved)
    assert difference(image.resize((96, 64), Image.Resampling.NEAREST), PHOTO) < 40
    assert describe_file(file)["size"] == f"{size[0]}x{size[1]}"


def test_a_large_progressive_jpeg_is_refused(tmp_path):  # its decoder would hold all of it in memory
    image = Image.new("L", (10_001, 10_000))
    with pytest.raises(ImageError, match="at most 100,000,000"):
        open_image(written(tmp_path / "large.jpg", image, progressive=True))


def test_a_heic_photograph_without_the_extra_names_it(tmp_path, monkeypatch):
    (tmp_path / "phone.heic").write_bytes(heic())
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"phone.heic: .* pip install 'afp\[heic\]'"):
        open_image(tmp_path / "phone.heic")


def test_an_extension_that_says_something_else_is_a_caution(tmp_path):
    for name in ("named.jpg", "old.jfif", "phone.jpg", "bare"):
        (tmp_path / name).write_bytes(samples()[name])
        caution = extension_caution(tmp_path / name)
        assert caution == (
            "the content is PNG, although the extension says JPEG" if name == "named.jpg" else ""
        )


def test_lists_images(tmp_path):
    names = [
        "b/2.JPG",
        "b/1.tiff",
        "a.webp",
        "b/c/deep.Gif",
        "new.avif",
        "bare",
        "notes.txt",
        "b/x.pdf",
        "empty",
    ]
    ignored = ["._a.webp", "__MACOSX/b/2.JPG", ".ipynb_checkpoints/a.png", ".DS_Store"]
    for name in names + ignored:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(samples()["bare"] if name == "bare" else b"")
    (tmp_path / "b" / "loop").symlink_to(tmp_path, target_is_directory=True)
    files, skipped = list_images([tmp_path])
    assert files == sorted(tmp_path / name for name in names[:6])
    assert {Path(file).name: reason for file, reason in skipped.items()} == {
        **{"notes.txt": ".txt", "x.pdf": ".pdf", "empty": "no extension"}
    }
    assert (
        count_reasons(skipped) == "3 skipped (1 .pdf, 1 .txt, 1 no extension)"
        and count_reasons({}) == "0 skipped"
    )
    assert list_images(tmp_path / "notes.txt") == ([tmp_path / "notes.txt"], {})
    again, _ = list_images([tmp_path / "b" / "2.JPG", str(tmp_path / "b"), tmp_path])
    assert sorted(file.resolve() for file in again) == files  # each once, whichever way it was reached
    with pytest.raises(ImageError, match="nowhere: no such file or folder"):
        list_images([tmp_path, tmp_path / "nowhere"])


def test_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"abc" * 10**6)
    assert sha256(tmp_path / "file") == hashlib.sha256(b"abc" * 10**6).hexdigest()


@pytest.mark.parametrize("codec", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("size", [(96, 64), (33, 300), (64, 64)])
def test_normalisation_gives_one_size_and_is_repeatable(codec, size):
    normalise = Normalisation(64, codec, 90)
    image = PHOTO.resize(size)
    once = normalise(image)
    assert once.mode == "RGB" and once.size == (64, 64)
    assert difference(normalise(image), once) == 0
    assert np.abs(np.asarray(normalise(once), int) - np.asarray(once, int)).mean() < 2
    if codec == "png":
        assert difference(normalise(once), once) == 0
        if size == (64, 64):
            assert difference(once, image) == 0
    else:
        assert difference(once, image.resize((64, 64))) > 0


def test_normalisation_takes_the_centre():
    middle = Normalisation(64, "png")(PHOTO)
    assert difference(middle, PHOTO.crop((16, 0, 80, 64))) == 0


def test_normalisation_removes_the_format(tmp_path):
    """The same pixels in different lossless files come out the same: the container is no shortcut."""
    results = []
    exif = Image.Exif()
    exif[0x010F] = "camera"
    for name in ("a.png", "a.bmp", "a.tif", "a.webp"):
        options = {".webp": {"lossless": True}, ".png": {"exif": exif}}.get(name[1:], {})
        image = open_image(written(tmp_path / name, PHOTO, **options))
        results.append(Normalisation(64)(image))
        assert not image.info and not image.getexif()
    assert all(difference(result, results[0]) == 0 for result in results)


def test_normalisation_key_and_checks():
    assert Normalisation().key == "256-jpeg95"
    assert Normalisation(224, "png", 50).key == Normalisation(224, "png").key == "224-png"
    for field, value in [
        ("size", 31),
        ("size", 2049),
        ("size", 64.0),
        ("quality", 0),
        ("quality", 101),
        ("quality", True),
        ("codec", "JPEG2000"),
        ("codec", None),
    ]:
        with pytest.raises(ValueError, match=f"Normalisation.{field}={value!r}: expected"):
            Normalisation(**{field: value})
