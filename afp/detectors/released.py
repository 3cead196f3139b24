"""Weights that others released, as runs of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.preprocess import IDENTITY
from ..errors import ModelError
from ..files import written_folder, written_whole
from ..models import soft_prompts
from ..models.backbones import load_backbone
from ..models.checkpoints import KEYS, check_numbers, read_checkpoint, read_state
from ..models.instructblip import load_vlm
from . import create
from .base import Detector, read_config
from .logistic import Logistic


def import_checkpoint(
    file: str | Path, out: str | Path, backbone: str | None = None, threshold: float = 0.5, **config: Any
) -> tuple[Path, str]:
    """Write a run folder from a released file; from there every command works as with an own run.

    Args:
        file: AntifakePrompt's `.pth` (a `vlm-prompt`), UniversalFakeDetect's `fc_weights.pth` (a `linear-probe`), or
            the state of CoOp's prompt learner (a `clip-prompt`).
        backbone: what it was trained on; by default `instructblip-vicuna-7b` or `clip-vit-l14`.
        threshold: P(fake) from which an image is called fake; the authors' is .5.
        config: the detector's fields: `position`, `question`, `statistics`, `class_position`, ...
    Returns:
        The run's folder, and what is worth knowing about the file; empty if there is nothing.
    Raises:
        ModelError: another kind of file, another width than the backbone's, a threshold outside of [0, 1], or
            `out` holds a run.
    """
    if not 0 <= threshold <= 1:
        raise ModelError(f"threshold is {threshold}, expected 0 to 1")
    if (Path(out) / "config.json").exists():
        raise ModelError(f"{out}: holds a run; give another folder or delete it")
    state = {key.removeprefix("prompt_learner."): value for key, value in read_state(file).items()}
    if "ctx" in state:
        detector, note = _from_coop(file, state, backbone or "clip-vit-l14", config)
    elif set(state) == {"weight", "bias"}:
        detector, note = _from_universal(file, state, backbone or "clip-vit-l14", config)
    else:
        detector, note = _from_antifakeprompt(file, backbone or "instructblip-vicuna-7b", config)
    detector.threshold_, detector.generators_ = threshold, []
    with written_folder(out, "afp import-checkpoint") as partial:
        detector.save(partial)
    return Path(out), note


def _from_antifakeprompt(file: str | Path, backbone: str, config: dict) -> tuple[Detector, str]:
    """No model is made: the backbone's config and its tokenizers suffice."""
    rows, others = read_checkpoint(file)
    towers = "both" if len(rows) == 2 else next(iter(rows))
    n_vectors = len(next(iter(rows.values())))
    own = {"preset": "antifakeprompt", "towers": towers, "n_vectors": n_vectors}
    detector: Any = create("vlm-prompt", backbone=backbone, **own | config)
    for field, held, asked in (
        ("towers", sorted(rows), sorted(detector.trained_towers)),
        ("n_vectors", n_vectors, detector.n_vectors),
    ):
        if held != asked:
            raise ModelError(f"{file}: holds rows for {field} {held}, which is set to {asked}; leave it out")
    detector.vlm_ = load_vlm(backbone, device="meta", revision=detector.revision)
    for tower, row in rows.items():
        _put(file, KEYS[tower], row, detector.adapters_[tower], backbone)
    note = f"{len(others)} other tensors are ignored: {', '.join(others[:3])}, ..." if others else ""
    return detector, note


def _from_universal(file: str | Path, state: dict, backbone: str, config: dict) -> tuple[Detector, str]:
    """Ojha et al., Towards Universal Fake Image Detectors, 2023: a linear layer on CLIP's image embedding."""
    expected = (1, load_backbone(backbone).embedding_dim)
    check_numbers(file, "weight", state["weight"], str(expected), 2)
    check_numbers(file, "bias", state["bias"], "(1,)", 1)
    if (shape := tuple(state["weight"].shape)) != expected:
        raise ModelError(f"{file}: weight has shape {shape}, {backbone} needs {expected}")
    own = {"block": "embedding", "normalisation": IDENTITY}
    detector: Any = create("linear-probe", backbone=backbone, **own | config)
    if state["bias"].shape != (1,):
        raise ModelError(f"{file}: bias has shape {tuple(state['bias'].shape)}, expected (1,)")
    weight, bias = (state[key].double().numpy() for key in ("weight", "bias"))
    detector.model_ = Logistic(np.zeros(expected[1]), np.ones(expected[1]), weight[0], bias)
    detector.block_ = detector.c_ = None
    return (
        detector,
        "its authors crop the central 224 pixels of an image; here its short side is resized to 224",
    )


def _from_coop(file: str | Path, state: dict, backbone: str, config: dict) -> tuple[Detector, str]:
    """Zhou et al., Learning to Prompt for Vision-Language Models, 2022: one context, or one a class."""
    context = state["ctx"]
    check_numbers(file, "ctx", context, "(vectors, width) or (classes, vectors, width)", 2, 3)
    of_each_class = [state[key] for key in ("token_prefix", "token_suffix") if key in state]
    if context.ndim == 3:
        of_each_class.append(context)
    for rows in of_each_class:
        if rows.ndim < 1 or len(rows) != 2:
            shape = tuple(rows.shape)
            raise ModelError(
                f"{file}: CoOp's prompts of shape {shape}, expected those of 2 classes, real and fake"
            )
    if others := sorted(set(state) - {"ctx", "token_prefix", "token_suffix"}):
        raise ModelError(f"{file}: holds {others[0]} beside CoOp's prompts: the state of another method")
    own = {"preset": "paper", "n_context": context.shape[-2], "per_class": context.ndim == 3}
    detector: Any = create("clip-prompt", backbone=backbone, **own | config)
    texts = detector._text_module()
    _put(file, "ctx", context.flatten(0, -2), detector.side_.tower, backbone)
    detector._settle(detector._adapter(), texts)
    note = f"the file does not say where the class word stands: {detector.class_position} is taken"
    return detector, note + ("; the first context is taken for real's" if detector.per_class else "")


def _put(file: str | Path, key: str, rows: torch.Tensor, adapter: Any, backbone: str) -> None:
    expected = tuple(soft_prompts.vectors(adapter).shape)
    if expected != tuple(rows.shape):
        raise ModelError(
            f"{file}: {key} has shape {tuple(rows.shape)}, {backbone} needs {expected}; name the backbone that it"
            " was trained on"
        )
    soft_prompts.set_vectors(adapter, rows)


def export_checkpoint(run: str | Path, file: str | Path) -> Path:
    """Write the rows of a `vlm-prompt` run as a `.pth` in AntifakePrompt's layout.

    Raises:
        ModelError: the folder holds no run or another detector's, or the file exists.
    """
    if (name := read_config(run)["detector"]) != "vlm-prompt":
        raise ModelError(f"{run}: holds a {name}, expected vlm-prompt")
    if Path(file).exists():
        raise ModelError(f"{file}: exists, expected a new file")
    folders = {tower: Path(run) / f"adapter-{tower}" for tower in KEYS}
    state = {KEYS[t]: soft_prompts.read_vectors(f) for t, f in folders.items() if f.is_dir()}
    with written_whole(file) as partial:
        torch.save({"model": state}, partial)
    return Path(file)
