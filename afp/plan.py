"""Before hours are spent: is everything there that notebooks with these parameters need, and what will it cost?

The estimates are arithmetic that is shown, not measurement, and lower bounds: one pass of the image tower for
every image and perturbation. Training comes on top.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from . import backbones, vlm
from .audit import Finding
from .detectors import NAMES
from .manifest import ManifestError, read_manifest
from .paths import cache_dir, weights_dir
from .workbook import NOTEBOOKS, WorkbookError, parameters

GIB = 2**30
GPU_FLOPS = 125e12  # 40 % of the 312 TFLOP/s in bfloat16 that an A100 is sold with
IMAGES_PER_SECOND = 100  # decoded and normalised by one core; measured: 125 of 600 x 400 pixels


@dataclass(frozen=True)
class Tower:
    """A backbone's size: parameters of all of it and of its image tower, and what the tower is run on.

    ``cached`` is the bytes of float16 features that stay on disk for an image.
    """

    n_parameters: float
    n_tower: float
    n_tokens: int
    cached: int

    @property
    def flops(self) -> float:
        """Of one image: a multiplication and an addition for every weight and token."""
        return 2 * self.n_tower * self.n_tokens


# CLIP: class tokens of all layers and the embedding are cached; InstructBLIP: all tokens of the last layer.
TOWERS = {
    "demo-clip": Tower(86e6, 86e6, 197, 2 * (13 * 768 + 512)),
    "clip-vit-b32": Tower(151e6, 88e6, 50, 2 * (13 * 768 + 512)),
    "clip-vit-l14": Tower(428e6, 304e6, 257, 2 * (25 * 1024 + 768)),
    "instructblip-vicuna-7b": Tower(7.9e9, 1.0e9, 257, 2 * 257 * 1408),
}


def read_parameters(path: str | Path) -> dict[str, dict[str, str]]:
    """Notebook -> parameter -> value as text, from YAML.

    Raises:
        WorkbookError: not such a file; a notebook or a parameter that there is not.

    Notebook: 00_start_here
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise WorkbookError(f"{path}: not readable as YAML ({error})") from error
    if not isinstance(content, dict) or not all(isinstance(v, dict) for v in content.values()):
        raise WorkbookError(f"{path}: expected `notebook:` with `parameter: value` lines under it")
    for name, values in content.items():
        notebook = NOTEBOOKS / f"{name}.ipynb"
        if not notebook.is_file():
            known = ", ".join(sorted(p.stem for p in NOTEBOOKS.glob("[0-9]*.ipynb")))
            raise WorkbookError(f"{path}: no notebook {name!r}, expected one of {known}")
        if unknown := set(values) - set(known := parameters(notebook)):
            raise WorkbookError(
                f"{path}: {name} has no parameter {sorted(unknown)[0]!r}, expected {', '.join(known)}"
            )
    return {name: {k: str(v) for k, v in values.items()} for name, values in content.items()}


def checks(notebooks: list[Path], given: dict[str, dict[str, str]]) -> Iterator[Finding]:
    """What notebooks with these parameters find, a finding each; nothing is downloaded or run.

    Args:
        notebooks: as `afp.workbook.find` gives them.
        given: notebook -> parameter -> value as text; a parameter that is not given has its default.
    Returns:
        Findings: data, weights, detectors, then disk and memory with the estimates behind them.
    """
    disk, memory, looked_at = 0.0, 0.0, {}
    for notebook in notebooks:
        values, name = given.get(notebook.stem, {}), notebook.stem
        if not values:
            yield Finding(name, True, "no parameters given: runs with its defaults, on the demo")
            continue
        n_images = None
        if path := values.get("manifest_path"):
            if path not in looked_at:
                looked_at[path] = _manifest((NOTEBOOKS / path).resolve())
            finding, n_images = looked_at[path]
            yield Finding(f"{name} data", *finding)
        if runs := values.get("own_runs"):
            there = any((NOTEBOOKS / runs).glob("*/scores.csv"))
            mend = "" if there else " holds no */scores.csv; make one with `afp fit --fold all`"
            yield Finding(f"{name} runs", there, f"{runs}{mend}")
        names = ",".join(values.get(key, "") for key in ("detector", "detectors")).split(",")
        if unknown := [d for d in map(str.strip, names) if d and d not in NAMES]:
            yield Finding(f"{name} detectors", False, f"no detector {unknown[0]!r}, expected {', '.join(NAMES)}")
        if not (backbone := values.get("backbone")):
            continue
        yield Finding(f"{name} weights", *_weights(backbone))
        if backbone in TOWERS and n_images:
            tower, passes = TOWERS[backbone], _passes(values)
            yield Finding(f"{name} time", True, _time(tower, n_images, passes))
            disk = max(disk, n_images * passes * tower.cached)
            memory = max(memory, 2 * tower.n_parameters)
    yield from _room(disk, memory)


def _manifest(path: Path) -> tuple[tuple[bool, str], int | None]:
    hint = "; make it as data/README.md says under `Full size`"
    try:
        frame = read_manifest(path)
    except ManifestError as error:
        return (False, f"{error}{'' if path.is_file() else hint}"), None
    missing = [file for file in frame["file"] if not Path(file).is_file()]
    if missing:
        detail = f"{path}: {len(missing)} of {len(frame)} images are missing, such as {missing[0]}"
        return (False, detail), len(frame)
    fakes = frame[frame["label"] == 1]
    counts = f"{len(frame):,} images, {len(fakes):,} fake, {fakes['generator'].nunique()} generators"
    return (True, f"{counts}: {path}"), len(frame)


def _weights(name: str) -> tuple[bool, str]:
    hub = (backbones.ALIASES | vlm.ALIASES).get(name, name)
    if name == "demo-clip" and not (there := (weights_dir() / name).is_dir()):
        return there, f"{name} is not built; make it with `afp demo`"
    if name in ("demo-clip", vlm.DEMO) or Path(name).is_dir():
        return True, name
    try:
        return True, f"{name}: {snapshot_download(hub, local_files_only=True)}"
    except (LocalEntryNotFoundError, HFValidationError):
        return False, f"{name} is neither a folder nor in the hub's cache; fetch it with `hf download {hub}`"


def _passes(values: dict[str, str]) -> int:
    return 1 + sum(len([p for p in values.get(k, "").split(",") if p]) for k in ("perturbations", "augment"))


def _time(tower: Tower, n_images: int, passes: int) -> str:
    gpu = n_images * passes * tower.flops / GPU_FLOPS / 3600
    core = n_images * passes / IMAGES_PER_SECOND / 3600
    return (
        f"at least {max(gpu, core):.2g} hours: {n_images:,} images x {passes} passes x {tower.flops / 1e12:.2g} "
        f"TFLOP / {GPU_FLOPS / 1e12:.0f} TFLOP/s = {gpu:.2g} GPU-hours; decoding x {passes} / {IMAGES_PER_SECOND} "
        f"per second and core = {core:.2g} hours; features {n_images * passes * tower.cached / GIB:.2g} GiB"
    )


def _room(disk: float, memory: float) -> Iterator[Finding]:
    """Is there room for the largest cache of features and the largest model (2 bytes a parameter)?"""
    folder = next(p for p in (cache_dir(), *cache_dir().parents) if p.exists())
    free, available = shutil.disk_usage(folder).free, psutil.virtual_memory().available
    yield Finding("disk", free > disk, f"{free / GIB:.0f} GiB free in {folder}, features need {disk / GIB:.2g} GiB")
    device, place = backbones.best_device(), "memory"
    if device.type == "cuda":
        import torch

        available, place = torch.cuda.mem_get_info()[0], "GPU memory"
    needed = 1.25 * memory + GIB  # activations and the framework
    detail = f"{available / GIB:.1f} GiB free, the largest model needs {memory / GIB:.2g} x 1.25 + 1 GiB"
    yield Finding(place, available > needed, detail)
    if device.type == "cpu" and memory > 2 * TOWERS["demo-clip"].n_parameters:
        yield Finding("device", False, "no GPU here: the hours above become days")
