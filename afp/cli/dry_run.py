"""Before hours are spent: is everything there that notebooks with these parameters need, and what will it cost?

The estimates are arithmetic that is shown, not measurement, and lower bounds: one pass of the image tower for
every image and perturbation, and one fit of a pseudo-word. Other training comes on top.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from ..data.audit import Finding
from ..data.manifest import read_manifest
from ..detectors import NAMES
from ..detectors.vlm import PRESETS
from ..detectors.vlm_prompt import VlmPrompt
from ..errors import AfpError, DataError
from ..models import backbones, instructblip
from ..paths import NOTEBOOKS, cache_dir, weights_dir
from ..workbook import parameters

GIB = 2**30
GPU_FLOPS = 125e12  # 40 % of the 312 TFLOP/s in bfloat16 that an A100 is sold with
N_READ = 44  # tokens that a language model reads of an image: 32 queries, and a question of about 12
SMALLER = "; take fewer images, or fit InstructBLIP by `afp fit --set cache_tokens=false`"
IMAGES_PER_SECOND = 100  # decoded and normalised by one core; measured: 125 of 600 x 400 pixels


@dataclass(frozen=True)
class BackboneSize:
    """A backbone's size: parameters of all of it and of its image tower, and what the tower is run on.

    ``cached`` is the bytes of float16 features that stay on disk for an image; ``n_language`` the parameters of a
    language model behind the tower.
    """

    n_parameters: float
    n_tower: float
    n_tokens: int
    cached: int
    n_language: float = 0.0

    @property
    def flops(self) -> float:
        """Of one image: a multiplication and an addition for every weight and token."""
        return 2 * self.n_tower * self.n_tokens

    @property
    def answer_flops(self) -> float:
        """Of one question about an image."""
        return 2 * self.n_language * N_READ


# CLIP: class tokens of all layers and the embedding are cached; InstructBLIP: all tokens of the last layer.
SIZES = {
    "demo-clip": BackboneSize(86e6, 86e6, 197, 2 * (13 * 768 + 512)),
    "clip-vit-b32": BackboneSize(151e6, 88e6, 50, 2 * (13 * 768 + 512)),
    "clip-vit-l14": BackboneSize(428e6, 304e6, 257, 2 * (25 * 1024 + 768)),
    "instructblip-vicuna-7b": BackboneSize(7.9e9, 1.0e9, 257, 2 * 257 * 1408, 6.7e9),
    "instructblip-flan-t5-xl": BackboneSize(4.0e9, 1.0e9, 257, 2 * 257 * 1408, 2.8e9),
}


def read_parameters(path: str | Path) -> dict[str, dict[str, str]]:
    """Notebook -> parameter -> value as text, from YAML.

    Raises:
        AfpError: not such a file; a notebook or a parameter that there is not.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise AfpError(f"{path}: not readable as YAML ({error})") from error
    if not isinstance(content, dict) or not all(isinstance(v, dict) for v in content.values()):
        raise AfpError(f"{path}: expected `notebook:` with `parameter: value` lines under it")
    for name, values in content.items():
        notebook = NOTEBOOKS / f"{name}.ipynb"
        if not notebook.is_file():
            known = ", ".join(sorted(p.stem for p in NOTEBOOKS.glob("[0-9]*.ipynb")))
            raise AfpError(f"{path}: no notebook {name!r}, expected one of {known}")
        if unknown := set(values) - set(known := parameters(notebook)):
            raise AfpError(
                f"{path}: {name} has no parameter {sorted(unknown)[0]!r}, expected {', '.join(known)}"
            )
    return {name: {k: str(v) for k, v in values.items()} for name, values in content.items()}


def check_notebooks(notebooks: list[Path], given: dict[str, dict[str, str]]) -> Iterator[Finding]:
    """What notebooks with these parameters find, a finding each; nothing is downloaded or run.

    Args:
        notebooks: as `afp.workbook.find` gives them.
        given: notebook -> parameter -> value as text; a parameter that is not given has its default.
    Returns:
        Findings: data, weights, detectors, then disk and memory with the estimates behind them.
    """
    disk, held, memory, looked_at = 0.0, 0.0, 0.0, {}
    for notebook in notebooks:
        values, name = given.get(notebook.stem, {}), notebook.stem
        if not values:
            yield Finding(name, True, "no parameters given: runs with its defaults, on the demo")
            continue
        frame = None
        if path := values.get("manifest_path"):
            if path not in looked_at:
                looked_at[path] = _manifest((NOTEBOOKS / path).resolve())
            finding, frame = looked_at[path]
            yield Finding(f"{name} data", *finding)
        if runs := values.get("own_runs"):
            there = any((NOTEBOOKS / runs).glob("*/scores.csv"))
            mend = "" if there else " holds no */scores.csv; make one with `afp fit --fold all`"
            yield Finding(f"{name} runs", there, f"{runs}{mend}")
        names = ",".join(values.get(key, "") for key in ("detector", "detectors")).split(",")
        if unknown := [d for d in map(str.strip, names) if d and d not in NAMES]:
            yield Finding(
                f"{name} detectors", False, f"no detector {unknown[0]!r}, expected {', '.join(NAMES)}"
            )
        if frame is not None and (unknown := _unknown(values, frame)):
            yield Finding(f"{name} names", False, unknown)
        for backbone in filter(None, map(values.get, ("backbone", "vlm"))):
            yield Finding(f"{name} weights", *_weights(backbone))
            if backbone not in SIZES:
                continue
            tower, passes = SIZES[backbone], _passes(values)
            memory = max(memory, 2 * tower.n_parameters)
            if frame is None:
                continue
            n_train = int((frame["split"] == "train").sum())
            yield Finding(f"{name} time", True, f"{backbone}: {_time(tower, len(frame), passes)}")
            if tower.n_language:
                yield Finding(f"{name} training", *_fit(tower, n_train, values.get("preset", "demo")))
            disk = max(disk, len(frame) * passes * tower.cached)
            held = max(held, n_train * tower.cached)
    lacking = any(frame is None for _, frame in looked_at.values())
    yield from _room(disk, held, memory, " (not counting the manifests that are missing)" if lacking else "")


def _manifest(path: Path) -> tuple[tuple[bool, str], pd.DataFrame | None]:
    hint = "; make it as data/README.md says under `Full size`"
    try:
        frame = read_manifest(path)
    except DataError as error:
        return (False, f"{error}{'' if path.is_file() else hint}"), None
    missing = [file for file in frame["file"] if not Path(file).is_file()]
    if missing:
        detail = f"{path}: {len(missing)} of {len(frame)} images are missing, such as {missing[0]}"
        return (False, detail), frame
    fakes = frame[frame["label"] == 1]
    counts = f"{len(frame):,} images, {len(fakes):,} fake, {fakes['generator'].nunique()} generators"
    return (True, f"{counts}: {path}"), frame


def _unknown(values: dict[str, str], frame: pd.DataFrame) -> str:
    """A kind or generator that is asked for and is not in the manifest; "" if there is none."""
    for key, column in (("kind", "kind"), ("kinds", "kind"), ("generators", "generator")):
        asked = {part.strip() for part in values.get(key, "").split(",")} - {"", "all"}
        if missing := sorted(asked - (known := set(frame[column]))):
            return f"{key}: no {column} {missing[0]!r} in the manifest, expected some of {', '.join(sorted(known))}"
    return ""


def _weights(name: str) -> tuple[bool, str]:
    hub = (backbones.ALIASES | instructblip.ALIASES).get(name, name)
    if name == "demo-clip" and not (there := (weights_dir() / name).is_dir()):
        return there, f"{name} is not built; make it with `afp demo`"
    if name in ("demo-clip", instructblip.DEMO) or Path(name).is_dir():
        return True, name
    try:
        return True, f"{name}: {snapshot_download(hub, local_files_only=True)}"
    except (LocalEntryNotFoundError, HFValidationError):
        return False, f"{name} is neither a folder nor in the hub's cache; fetch it with `hf download {hub}`"


def _passes(values: dict[str, str]) -> int:
    return 1 + sum(len([p for p in values.get(k, "").split(",") if p]) for k in ("perturbations", "augment"))


def _time(tower: BackboneSize, n_images: int, passes: int) -> str:
    gpu = n_images * passes * tower.flops / GPU_FLOPS / 3600
    core = n_images * passes / IMAGES_PER_SECOND / 3600
    return (
        f"at least {max(gpu, core):.2g} hours: {n_images:,} images x {passes} passes x {tower.flops / 1e12:.2g} "
        f"TFLOP / {GPU_FLOPS / 1e12:.0f} TFLOP/s = {gpu:.2g} GPU-hours; decoding x {passes} / {IMAGES_PER_SECOND} "
        f"per second and core = {core:.2g} hours; features {n_images * passes * tower.cached / GIB:.2g} GiB"
    )


def _fit(tower: BackboneSize, n_train: int, preset: str) -> tuple[bool, str]:
    """Of one pseudo-word: each epoch asks once about each training image; only activations have gradients."""
    if preset not in PRESETS:
        return False, f"preset {preset!r}, expected one of {', '.join(PRESETS)}"
    epochs = (PRESETS[preset] or VlmPrompt.demo_recipe).epochs
    gpu = 2 * epochs * n_train * tower.answer_flops / GPU_FLOPS / 3600
    return True, (
        f"at least {gpu:.2g} GPU-hours a fit of the pseudo-word: {epochs} epochs x {n_train:,} training images x 2 "
        f"(forward, gradient) x {tower.answer_flops / 1e12:.2g} TFLOP / {GPU_FLOPS / 1e12:.0f} TFLOP/s"
    )


def _room(disk: float, held: float, memory: float, but: str) -> Iterator[Finding]:
    """Is there room for the largest cache of features, those held in memory, the largest model (2 bytes a number)?

    ``but`` is what the estimate of the cache leaves out.
    """
    folder = next(p for p in (cache_dir(), *cache_dir().parents) if p.exists())
    free, available = shutil.disk_usage(folder).free, psutil.virtual_memory().available
    detail = f"{free / GIB:.0f} GiB free in {folder}, features need {disk / GIB:.2g} GiB{but}"
    yield Finding("disk", free > disk, detail)
    device, place = backbones.best_device(), "memory"
    features = 3 * held  # float32, made of the float16 that was read
    if device.type == "cuda":
        import torch

        detail = f"{available / GIB:.1f} GiB free, the features of the training images need 3 x {held / GIB:.2g} GiB"
        yield Finding("memory", available > features, f"{detail}{'' if available > features else SMALLER}")
        available, place, features = torch.cuda.mem_get_info()[0], "GPU memory", 0
    needed = 1.25 * memory + GIB + features  # activations and the framework
    detail = f"{available / GIB:.1f} GiB free, the largest model needs {memory / GIB:.2g} x 1.25 + 1 GiB"
    detail += f", the features of the training images 3 x {held / GIB:.2g} GiB" if features else ""
    yield Finding(place, available > needed, f"{detail}{SMALLER if features and available < needed else ''}")
    if device.type == "cpu" and memory > 2 * SIZES["demo-clip"].n_parameters:
        yield Finding("device", False, "no GPU here: the hours above become days")
