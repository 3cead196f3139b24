"""AntifakePrompt's released `.pth` files: the trained rows in them."""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import ModelError

KEYS = {
    "qformer": "Qformer.bert.embeddings.train_word_embeddings.weight",
    "llm": "llm_model.model.train_embed_tokens.weight",
}


def read_checkpoint(file: str | Path) -> dict[str, torch.Tensor]:
    """The trained rows of a released file, each (k, D) float32: `qformer`, `llm`, or both.

    Raises `ModelError` naming the key, the shape or the value that is wrong. Nothing in the file is
    executed.
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(f"{file}: no such file") from None
    except Exception as error:  # a damaged or crafted file can raise anything
        # Not torch's own words: they advise to switch this check off.
        reason = "damaged, or it holds Python objects, which could run code and are never loaded"
        raise ModelError(f"{file}: not a checkpoint of tensors alone: {reason}") from error
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise ModelError(f"{file}: key 'model' is missing, expected a dictionary of tensors under it")
    rows = {tower: state[key] for tower, key in KEYS.items() if key in state}
    if unknown := set(state) - set(KEYS.values()):
        raise ModelError(f"{file}: key {sorted(unknown)[0]!r} is unknown, expected {list(KEYS.values())}")
    if not rows:
        raise ModelError(f"{file}: holds none of the keys {list(KEYS.values())}")
    for tower, row in rows.items():
        if not isinstance(row, torch.Tensor) or row.ndim != 2 or not row.is_floating_point():
            found = tuple(row.shape) if isinstance(row, torch.Tensor) else type(row).__name__
            raise ModelError(f"{file}: {KEYS[tower]} is {found}, expected numbers of shape (vectors, width)")
        if not row.isfinite().all():
            raise ModelError(f"{file}: {KEYS[tower]} holds values that are not finite")
    if len({len(row) for row in rows.values()}) != 1:
        shapes = {KEYS[tower]: tuple(row.shape) for tower, row in rows.items()}
        raise ModelError(f"{file}: the towers have different numbers of vectors: {shapes}")
    return {tower: row.float() for tower, row in rows.items()}
