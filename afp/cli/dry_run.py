"""Before hours are spent: is everything there that notebooks with these parameters need, and what will it cost?

The estimates are arithmetic that is shown, not measurement, and lower bounds: one pass of the image tower for
every image and perturbation, and one fit of a pseudo-word. Other training comes on top.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from torch import nn
from transformers import AutoConfig, AutoModel

from ..data.audit import Finding
from ..data.manifest import read_manifest
from ..detectors import NAMES
from ..detectors.vlm_prompt import VlmPrompt
from ..errors import AfpError, DataError
from ..models import backbones
from ..models.weights import hub_name
from ..paths import NOTEBOOKS, backbone_folder, cache_disk
from ..studies.training_size import check_kind
from ..workbook import check_values, parameters

GIB = 2**30
HELD_OUT = re.compile(r"\bcheck_kind\(")  # in a notebook that needs a held-out generator
GPU_FLOPS = 125e12  # 40 % of the 312 TFLOP/s in bfloat16 that an A100 is sold with
N_READ = 44  # tokens that a language model reads of an image: 32 queries, and a question of about 12
IMAGES_PER_SECOND = 100  # decoded and normalised by one core; measured: 125 of 600 x 400 pixels


@dataclass(frozen=True)
class BackboneSize:
    """Parameters of all of a backbone, of its image tower and of a language model behind it; what an image costs.

    Args:
        n_tokens: that the tower reads of an image.
        cached: bytes of float16 features of an image that stay on disk, at most.
    """

    n_parameters: float
    n_tower: float
    n_tokens: int
    cached: int
    n_language: float = 0.0

    @classmethod
    def of(cls, folder: str | Path) -> BackboneSize:
        """Of a saved model, from its config alone: no weight is read."""
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModel.from_config(config, trust_remote_code=False)
        vision = getattr(config, "vision_config", config)
        parts = (model, getattr(model, "vision_model", model), getattr(model, "language_model", nn.Module()))
        whole, tower, language = (float(sum(p.numel() for p in part.parameters())) for part in parts)
        n_tokens = (vision.image_size // vision.patch_size) ** 2 + 1
        # CLIP: class tokens of all layers and the embedding are cached; InstructBLIP: all tokens of the last layer.
        states = (vision.num_hidden_layers + 1) * vision.hidden_size + getattr(config, "projection_dim", 0)
        cached = 2 * (n_tokens * vision.hidden_size if language else states)
        return cls(whole, tower, n_tokens, cached, language)


# Of the models that may not be here yet.
SIZES = {
    "clip-vit-b32": BackboneSize(151e6, 88e6, 50, 2 * (13 * 768 + 512)),
    "clip-vit-l14": BackboneSize(428e6, 304e6, 257, 2 * (25 * 1024 + 768)),
    "instructblip-vicuna-7b": BackboneSize(7.9e9, 1.0e9, 257, 2 * 257 * 1408, 6.7e9),
    "instructblip-flan-t5-xl": BackboneSize(4.0e9, 1.0e9, 257, 2 * 257 * 1408, 2.8e9),
}


def check_notebooks(notebooks: list[Path], given: dict[str, dict[str, str]]) -> Iterator[Finding]:
    """What notebooks with these parameters find, a finding each; nothing is downloaded or run.

    Args:
        notebooks: as `afp.workbook.find` gives them.
        given: notebook -> parameter -> value as text; a parameter that is not given has its default.
    Returns:
        Findings: data, weights, detectors, then disk and memory with the estimates behind them.
    """
    disk = memory = 0.0
    for notebook in notebooks:
        values, name = given.get(notebook.stem, {}), notebook.stem
        if not values:
            yield Finding(name, True, "no parameters given: runs with its defaults, on the demo")
        try:
            check_values(notebook, values)
        except AfpError as error:
            yield Finding(f"{name} parameters", False, str(error))
            continue
        frame = None
        if path := values.get("manifest_path"):
            finding, frame = _manifest((NOTEBOOKS / path).resolve())
            yield Finding(f"{name} data", *finding)
        if runs := values.get("own_runs"):
            there = any((NOTEBOOKS / runs).glob("*/scores.csv"))
            mend = "" if there else " holds no */scores.csv; make one with `afp fit --fold all`"
            yield Finding(f"{name} runs", there, f"{runs}{mend}")
        if unknown := _unknown(_defaults(notebook) | values, frame):
            yield Finding(f"{name} names", False, unknown)
        elif frame is not None and HELD_OUT.search(notebook.read_text(encoding="utf-8")):
            try:
                check_kind(frame, (_defaults(notebook) | values).get("kind", "all"))
            except DataError as error:
                yield Finding(f"{name} data", False, str(error))
        for backbone in filter(None, map(values.get, ("backbone", "vlm"))):
            there, detail, size = _weights(backbone)
            yield Finding(f"{name} weights", there, detail)
            if size is None:
                continue
            memory = max(memory, size.n_parameters * backbones.best_dtype(backbones.best_device()).itemsize)
            if frame is not None:
                perturbed = ",".join(values.get(key, "") for key in ("perturbations", "augment"))
                specs = {spec.strip() for spec in perturbed.split(",")} - {"", "none"}
                n_views = len(frame) * (1 + len(specs))
                disk = max(disk, n_views * size.cached)
                yield Finding(f"{name} time", True, f"{backbone}: {_time(size, n_views)}")
                if size.n_language:
                    yield Finding(f"{name} training", *_fit(size, frame, values.get("preset", "demo")))
    yield from _room(disk, memory)


@cache
def _manifest(path: Path) -> tuple[tuple[bool, str], pd.DataFrame | None]:
    try:
        frame = read_manifest(path)
    except DataError as error:
        hint = "" if path.is_file() else "; make it with `afp manifest` (data/README.md)"
        return (False, f"{error}{hint}"), None
    if missing := [file for file in frame["file"] if not Path(file).is_file()]:
        detail = f"{path}: {len(missing)} of {len(frame)} images are missing, such as {missing[0]}"
        return (False, detail), frame
    fakes = frame[frame["label"] == 1]
    counts = f"{len(frame):,} images, {len(fakes):,} fake, {fakes['generator'].nunique()} generators"
    return (True, f"{counts}: {path}"), frame


def _defaults(notebook: Path) -> dict[str, str]:
    """What a notebook takes where nothing is given, as written, without quotes."""
    return {name: p.default.strip("'\"") for name, p in parameters(notebook).items()}


def _unknown(values: dict[str, str], frame: pd.DataFrame | None) -> str:
    """A detector, or a kind or generator of the manifest, that is asked for and that there is not; "" if none."""
    known: dict[str, Iterable[str]] = {"detector": NAMES, "detectors": NAMES}
    if frame is not None:
        kinds = frame.loc[frame["label"] == 1, "kind"]
        known |= {"kind": [*kinds, "all"], "kinds": kinds}
        known |= {"generators": frame["generator"], "edited": frame["generator"]}
    for key, names in known.items():
        asked = {part.strip() for part in values.get(key, "").split(",")} - {""}
        if missing := sorted(asked - set(names)):
            expected = ", ".join(sorted(set(names))) + (", or '' for all" if key == "kinds" else "")
            return f"{key}: there is no {missing[0]!r}, expected some of {expected} (-p {key} ...)"
    return ""


def _weights(name: str) -> tuple[bool, str, BackboneSize | None]:
    """Whether a backbone is there, in words, and its size."""
    folder = NOTEBOOKS / backbone_folder(name)
    if name == "demo-clip" and not folder.is_dir():
        return False, f"{name} is not built; make it with `afp demo`", None
    if not folder.is_dir():
        hub, revision = hub_name(name)
        try:
            folder = Path(snapshot_download(hub, revision=revision, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError):
            mend = f"is neither a folder nor in the hub's cache; fetch it with `hf download {hub}`"
            return False, f"{name} {mend}", SIZES.get(name.partition("@")[0])
    try:
        return True, f"{name}: {folder}", BackboneSize.of(folder)
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        return False, f"{folder}: no model that transformers knows ({reason})", None


def _time(size: BackboneSize, n_views: int) -> str:
    flops = 2 * size.n_tower * size.n_tokens  # a multiplication and an addition for every weight and token
    gpu, core = n_views * flops / GPU_FLOPS / 3600, n_views / IMAGES_PER_SECOND / 3600
    return (
        f"at least {max(gpu, core):.2g} hours: {n_views:,} views of images x {flops / 1e12:.2g} TFLOP / "
        f"{GPU_FLOPS / 1e12:.0f} TFLOP/s = {gpu:.2g} GPU-hours; decoding at {IMAGES_PER_SECOND} per second and core "
        f"= {core:.2g} hours; features {n_views * size.cached / GIB:.2g} GiB"
    )


def _fit(size: BackboneSize, frame: pd.DataFrame, preset: Any) -> tuple[bool, str]:
    """Of one pseudo-word: each epoch asks once about each training image; only activations have gradients."""
    try:
        epochs = VlmPrompt(preset=preset).recipe().epochs
    except AfpError as error:
        return False, str(error)
    n_train, flops = int((frame["split"] == "train").sum()), 2 * size.n_language * N_READ
    hours = 2 * epochs * n_train * flops / GPU_FLOPS / 3600
    steps = f"{epochs} epochs x {n_train:,} training images x 2 (forward, gradient)"
    cost = f"{steps} x {flops / 1e12:.2g} TFLOP / {GPU_FLOPS / 1e12:.0f} TFLOP/s"
    return True, f"at least {hours:.2g} GPU-hours a fit of the pseudo-word: {cost}"


def _room(disk: float, memory: float) -> Iterator[Finding]:
    """Is there room for the largest cache of features and the largest model?"""
    folder, free = cache_disk()
    detail = f"{free / GIB:.0f} GiB free in {folder}, features of the data found need {disk / GIB:.2g} GiB"
    yield Finding("disk", free > disk, detail)
    on_gpu = backbones.best_device().type == "cuda"
    available = torch.cuda.mem_get_info()[0] if on_gpu else psutil.virtual_memory().available
    needed = 1.25 * memory + GIB  # activations and the framework
    detail = f"{available / GIB:.1f} GiB free, the largest model needs {memory / GIB:.2g} x 1.25 + 1 GiB"
    yield Finding("GPU memory" if on_gpu else "memory", available > needed, detail)
    if not on_gpu and memory > GIB:
        yield Finding("device", False, "no GPU here: what takes hours on one takes days")
