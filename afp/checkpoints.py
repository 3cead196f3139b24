"""AntifakePrompt's released `.pth` files: read into a run, and written from one."""

from __future__ import annotations

from pathlib import Path

import torch

from . import soft_prompts
from .detectors.base import read_config
from .detectors.vlm_prompt import VlmPrompt
from .vlm import load_vlm

KEYS = {
    "qformer": "Qformer.bert.embeddings.train_word_embeddings.weight",
    "llm": "llm_model.model.train_embed_tokens.weight",
}


class CheckpointError(ValueError):
    """A checkpoint whose keys, shapes or values are not AntifakePrompt's, or do not fit the backbone."""


def read_checkpoint(file: str | Path) -> dict[str, torch.Tensor]:
    """The trained rows of a released file, each (k, D) float32: `qformer`, `llm`, or both.

    Raises `CheckpointError` naming the key, the shape or the value that is wrong. Nothing in the file is
    executed.
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None
    except Exception as error:  # a damaged or crafted file can raise anything
        # Not torch's own words: they advise to switch this check off.
        reason = "damaged, or it holds Python objects, which could run code and are never loaded"
        raise CheckpointError(f"{file}: not a checkpoint of tensors alone: {reason}") from error
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise CheckpointError(f"{file}: key 'model' is missing, expected a dictionary of tensors under it")
    rows = {tower: state[key] for tower, key in KEYS.items() if key in state}
    if unknown := set(state) - set(KEYS.values()):
        raise CheckpointError(
            f"{file}: key {sorted(unknown)[0]!r} is unknown, expected {list(KEYS.values())}"
        )
    if not rows:
        raise CheckpointError(f"{file}: holds none of the keys {list(KEYS.values())}")
    for tower, row in rows.items():
        if not isinstance(row, torch.Tensor) or row.ndim != 2 or not row.is_floating_point():
            found = tuple(row.shape) if isinstance(row, torch.Tensor) else type(row).__name__
            raise CheckpointError(
                f"{file}: {KEYS[tower]} is {found}, expected numbers of shape (vectors, width)"
            )
        if not row.isfinite().all():
            raise CheckpointError(f"{file}: {KEYS[tower]} holds values that are not finite")
    if len({len(row) for row in rows.values()}) != 1:
        shapes = {KEYS[tower]: tuple(row.shape) for tower, row in rows.items()}
        raise CheckpointError(f"{file}: the towers have different numbers of vectors: {shapes}")
    return {tower: row.float() for tower, row in rows.items()}


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

    Raises `CheckpointError` if the file is not AntifakePrompt's, has another width than the backbone, the threshold
    is outside of [0, 1], or `out` holds a run.

    Notebook: 02_train_soft_prompt
    """
    if not 0 <= threshold <= 1:
        raise CheckpointError(f"threshold is {threshold}, expected 0 to 1")
    if (Path(out) / "config.json").exists():
        raise CheckpointError(f"{out}: holds a run; give another folder or delete it")
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
            raise CheckpointError(
                f"{file}: {KEYS[tower]} has shape {tuple(row.shape)}, {backbone} needs {expected}; name the"
                " backbone that it was trained on"
            )
        soft_prompts.set_vectors(detector.prompts_[tower], row)
    detector.threshold_, detector.generators_ = threshold, []
    return detector.save(out)


def export_checkpoint(run: str | Path, file: str | Path) -> Path:
    """Write the rows of a `vlm-prompt` run as a `.pth` in the released layout.

    Raises `afp.detectors.base.DetectorError` if the folder holds no run, `CheckpointError` if it is another
    detector's.
    """
    if (name := read_config(run)["detector"]) != VlmPrompt.name:
        raise CheckpointError(f"{run}: holds a {name}, expected {VlmPrompt.name}")
    folders = {tower: Path(run) / f"adapter-{tower}" for tower in KEYS}
    state = {KEYS[t]: soft_prompts.read_vectors(f) for t, f in folders.items() if f.is_dir()}
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": state}, file)
    return file
