"""Other projects' `.pth` files: tensors by name, read without executing anything."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch

from ..errors import ModelError
from ..files import check_input, printable

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
KEYS = {  # AntifakePrompt's trained rows
    "qformer": "Qformer.bert.embeddings.train_word_embeddings.weight",
    "llm": "llm_model.model.train_embed_tokens.weight",
}


def read_state(file: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a file: those under `model` (LAVIS) or `state_dict` (Dassl), else those at its top.

    Raises:
        ModelError: the file holds Python objects (named; none of them is loaded), no tensors, or a tensor that is
            larger than what the file stores for it.
    """
    name = printable(file)
    check_input(file)
    if Path(file).is_dir():
        raise ModelError(f"{name}: is a folder, expected a file in it, such as model.pth.tar-50")
    if part := damaged_part(file):
        raise ModelError(f"{name}: damaged: {printable(part)} is not as it was written")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(f"{name}: no such file") from None
    except Exception as error:  # a damaged or crafted file can raise anything
        # Not torch's own words: they advise to switch this check off.
        raise ModelError(f"{name}: not a checkpoint of tensors alone: {_why(file)}") from error
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    named = content.items() if isinstance(content, dict) else ()
    state = {str(k): v.detach() for k, v in named if torch.is_tensor(v)}
    if not state:
        raise ModelError(f"{name}: holds no tensors, expected some by name, alone or under 'model'")
    for key, value in state.items():
        if value.layout != torch.strided or value.is_nested or value.is_meta:
            raise ModelError(f"{name}: {key} is no dense tensor with its values (layout {value.layout})")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ModelError(
                f"{name}: {key} claims the shape {tuple(value.shape)}, more than the file holds for it"
            )
    return state


def damaged_part(file: str | Path) -> str:
    """What in an archive of torch's is not as it was written, for which torch checks no sum itself.

    Returns:
        A member's name, or "its directory"; empty if all is whole, or the file is no such archive.
    """
    try:
        if not zipfile.is_zipfile(file):
            return ""
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() or ""
    except Exception:  # a damaged directory raises nearly anything
        return "its directory"


def read_checkpoint(file: str | Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """AntifakePrompt's trained rows, each (k, D) float32: `qformer`, `llm`, or both; and the file's other keys.

    LAVIS writes the model's persistent buffers beside them (`position_ids`, 32 x `rotary_emb.inv_freq`).

    Raises:
        ModelError: names the key, the shape or the value that is wrong.
    """
    state = read_state(file)
    rows = {tower: state.pop(key) for tower, key in KEYS.items() if key in state}
    if not rows:
        raise ModelError(f"{file}: holds none of the keys {list(KEYS.values())}, but {sorted(state)[:3]}")
    for tower, row in rows.items():
        check_numbers(file, KEYS[tower], row, "(vectors, width)", 2)
    if len({len(row) for row in rows.values()}) != 1:
        shapes = {KEYS[tower]: tuple(row.shape) for tower, row in rows.items()}
        raise ModelError(f"{file}: the towers have different numbers of vectors: {shapes}")
    return {tower: row.float() for tower, row in rows.items()}, sorted(state)


def check_numbers(file: str | Path, key: str, value: torch.Tensor, expected: str, *n_dims: int) -> None:
    """Raise ModelError unless `value` has one of these numbers of dimensions and holds finite numbers."""
    if value.ndim not in n_dims or value.dtype not in FLOATS:
        kind = f"{tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
        raise ModelError(f"{file}: {key} is {kind}, expected floating-point numbers of shape {expected}")
    if not value.isfinite().all():
        raise ModelError(f"{file}: {key} holds values that are not finite")


def _why(file: str | Path) -> str:
    try:
        objects = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # not even an archive of torch's
        return "damaged, or of another kind"
    listed = ", ".join(printable(o) for o in sorted(objects)) or "unknown ones"
    return (
        f"it holds Python objects ({listed}), which could run code and are never loaded. Dassl and CoOp store their"
        " scheduler so: whoever trusts the file can write its 'state_dict' alone with torch.save"
    )
