"""AntifakePrompt's released pseudo-words as fitted detectors, and the reverse."""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import ModelError
from ..models import soft_prompts
from ..models.checkpoints import KEYS, read_checkpoint
from ..models.instructblip import load_vlm
from .base import read_config
from .vlm_prompt import VlmPrompt


def import_checkpoint(
    file: str | Path,
    out: str | Path,
    backbone: str = "instructblip-vicuna-7b",
    threshold: float = 0.5,
    **config,
) -> Path:
    """Write a `vlm-prompt` run folder from a released file; from there every command works as with an own
    run.

    `config` goes to `VlmPrompt` (position, question, preset, ...). The backbone's weights are not read: its
    config and its tokenizers suffice.

    Raises `ModelError` if the file is not AntifakePrompt's, has another width than the backbone, the threshold
    is outside of [0, 1], or `out` holds a run.
    """
    if not 0 <= threshold <= 1:
        raise ModelError(f"threshold is {threshold}, expected 0 to 1")
    if (Path(out) / "config.json").exists():
        raise ModelError(f"{out}: holds a run; give another folder or delete it")
    rows = read_checkpoint(file)
    towers = "both" if len(rows) == 2 else next(iter(rows))
    config = {
        "preset": "antifakeprompt",
        "towers": towers,
        "n_vectors": len(next(iter(rows.values()))),
    } | config
    detector = VlmPrompt(backbone=backbone, **config)
    detector.vlm_ = load_vlm(backbone, device="meta")
    for tower, row in rows.items():
        expected = tuple(soft_prompts.vectors(detector.prompts_[tower]).shape)
        if expected != tuple(row.shape):
            raise ModelError(
                f"{file}: {KEYS[tower]} has shape {tuple(row.shape)}, {backbone} needs {expected}; name the"
                " backbone that it was trained on"
            )
        soft_prompts.set_vectors(detector.prompts_[tower], row)
    detector.threshold_, detector.generators_ = threshold, []
    return detector.save(out)


def export_checkpoint(run: str | Path, file: str | Path) -> Path:
    """Write the rows of a `vlm-prompt` run as a `.pth` in the released layout.

    Raises `ModelError` if the folder holds no run, `ModelError` if it is another
    detector's.
    """
    if (name := read_config(run)["detector"]) != VlmPrompt.name:
        raise ModelError(f"{run}: holds a {name}, expected {VlmPrompt.name}")
    folders = {tower: Path(run) / f"adapter-{tower}" for tower in KEYS}
    state = {KEYS[t]: soft_prompts.read_vectors(f) for t, f in folders.items() if f.is_dir()}
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": state}, file)
    return file
