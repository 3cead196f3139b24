"""What several test files share. No test writes into the checkout: runs and figures go to a temporary folder."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from commands import Command
from models import write_tower
from PIL import Image

from afp import cli, detectors
from afp.data.layouts import make_manifest, read_places
from afp.data.manifest import read_manifest, write_manifest
from afp.data.splits import deal_folds, few_tiles, use_fold
from afp.demo import benchmark
from afp.results import runs

LONG = (
    "test_a_chapter_runs",
    "test_the_soft_prompt_is_trained",
    "test_the_first_notebook",
    "test_it_does_not_grow",
)


def pytest_collection_modifyitems(items):
    """What takes longest comes first in both halves, so that each of two processes starts with it.

    Those that read the demo's tower stand in one half: what the first of them extracts, the next finds.
    """
    long = [item for item in items if item.name.startswith(LONG)]
    rest = [item for item in items if item not in long]
    half = len(long) // 2
    cut = len(items) // 2 - half
    items[:] = long[:half] + rest[:cut] + long[half:] + rest[cut:]


def pytest_configure() -> None:
    os.environ.pop("TQDM_DELAY", None)  # of `afp.cli`, which is imported above; no worker must inherit it


@pytest.fixture(scope="session", autouse=True)
def _outputs_elsewhere(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFP_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setenv("AFP_FIGURES", str(tmp_path_factory.mktemp("figures")))
        patch.setenv("HF_HUB_OFFLINE", "1")  # no test waits for the hub; its client has read this already
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="session")
def demo_manifest() -> Path:
    """The demo benchmark's manifest; built if it is not there."""
    return benchmark.build_benchmark()


@pytest.fixture(scope="session")
def few_manifest(demo_manifest, tmp_path_factory) -> Path:
    """The demo benchmark with one tile of each of six photographs, and six wild images of both kinds."""
    few = few_tiles(read_manifest(demo_manifest), 1)
    wild = few["kind"].isin(benchmark.WILD)
    group = few["generator"].mask(wild, few["kind"])
    first = wild & (few["source"].groupby(group).rank() <= 6)
    few = few[
        first | few["source"].isin(["astronaut", "chelsea", "china", "coffee", "flower", "grace_hopper"])
    ]
    few = use_fold(few.assign(fold=deal_folds(few)), 0)
    masks = few["mask"].where(few["mask"].isna(), str(demo_manifest.parent) + "/" + few["mask"].astype(str))
    return write_manifest(few.assign(mask=masks), tmp_path_factory.mktemp("few") / "manifest.csv")


@pytest.fixture(scope="session")
def demo_frame(demo_manifest) -> pd.DataFrame:
    return read_manifest(demo_manifest)


@pytest.fixture
def unlistable(monkeypatch) -> None:
    """Folders named ``locked`` cannot be listed, not even by root."""
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)


def picture(seed: int, size: int = 64) -> Image.Image:
    """A picture with coarse structure and fine grain, as a photograph has; the same for the same seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)).resize((size, size))
    grain = rng.normal(0, 12, (size, size, 3))
    return Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8))


def flip(file: Path, at: int | None = None, bit: int = 1) -> None:
    """Flip a bit of a file, by default one in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2 if at is None else at] ^= bit
    file.write_bytes(content)


def smoothed(image: Image.Image) -> Image.Image:
    """The picture scaled down and up again: a stand-in for what a network paints."""
    small = image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)
    return small.resize(image.size, Image.Resampling.BICUBIC)


def save(path: str, seed: int, fake: bool = False, **options) -> Path:
    """A picture, or what stands in for a network's, in a file of its own."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    (smoothed(picture(seed)) if fake else picture(seed)).save(file, **options)
    return file


class Shown(NamedTuple):
    """A command's exit code, and what it printed."""

    code: int
    text: str


@pytest.fixture
def start(tmp_path_factory):
    """Starts a command in a process of its own, or one that stops itself; see `Command`."""
    return partial(Command, tmp_path_factory.mktemp("said"))


@pytest.fixture
def afp(monkeypatch, capsys, tmp_path):
    """Runs a command as the console script does, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> Shown:
        monkeypatch.setattr(sys, "argv", ["afp", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capsys.readouterr()
        return Shown(stop.value.code or 0, printed.out + printed.err)

    return run


def write_folders(folder: Path, n: int = 12) -> Path:
    """``real/`` and two generators under ``fake/``, n pictures of n sources each."""
    for i in range(n):
        real, half = picture(i), smoothed(picture(i))
        for name, image in {"real": real, "fake/half": half, "fake/half-twice": smoothed(half)}.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            image.save(folder / name / f"{i:02}.png")
    return folder


def from_folders(real: Path, fakes: dict[str, Path], split: bool = False, seed: int = 0) -> pd.DataFrame:
    """The manifest of folders, files of one name being of one source."""
    return make_manifest(read_places([("real", real)], fakes.items()), "stem", split, seed)[0]


@pytest.fixture(scope="session")
def small_manifest(tmp_path_factory) -> Path:
    """36 small pictures of 12 sources; generator ``half`` is held-in, ``half-twice`` held-out."""
    folder = write_folders(tmp_path_factory.mktemp("small"))
    fakes = {p.name: p for p in sorted((folder / "fake").iterdir())}
    frame = from_folders(folder / "real", fakes, split=True)
    away = (frame["generator"] == "half-twice") & (frame["split"] != "test")
    return write_manifest(frame.assign(split=frame["split"].mask(away, "none")), folder / "m.csv")


@pytest.fixture(scope="session")
def small_frame(small_manifest) -> pd.DataFrame:
    return read_manifest(small_manifest)


@pytest.fixture(scope="session")
def tiny_tower(tmp_path_factory) -> str:
    return write_tower(tmp_path_factory.mktemp("tiny"), width=32)


@pytest.fixture(scope="session")
def probe(small_frame, tiny_tower):
    """A linear probe on the second block of the tiny tower."""
    parts = [small_frame[small_frame["split"] == s] for s in ("train", "validation")]
    config = {"backbone": tiny_tower, "block": "2", "c": [1.0]}
    return detectors.create("linear-probe", **config).fit(*parts, progress=False)


@pytest.fixture(scope="session")
def run(small_frame, tmp_path_factory) -> Path:
    """A run of `spectrum`; no test writes into it."""
    return runs.fit_run("spectrum", small_frame, tmp_path_factory.mktemp("run") / "spectrum", progress=False)
