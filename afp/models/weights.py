"""Which weights a backbone has: the folder of its files, and a hash of their tensors."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from safetensors import safe_open
from tqdm.auto import tqdm
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..paths import backbone_folder


def local_folder(backbone: str, revision: str | None = None) -> Path | None:
    """The folder of a backbone's files: an embedded one, one's own, or the hub's snapshot (which is asked for).

    Args:
        backbone: as in `afp.models.backbones.load_backbone`, or in `afp.models.instructblip.load_vlm`.
        revision: of the hub, where ``backbone`` does not name it: a branch, a tag or a commit.
    Returns:
        None if there is none. The name of a hub's snapshot is its commit.
    """
    if (folder := backbone_folder(backbone)).is_dir():
        return folder if (folder / "config.json").is_file() else None
    name, branch = hub_name(backbone)
    try:
        return Path(hf_hub_download(name, "config.json", revision=revision or branch)).parent
    except (OSError, ValueError):
        return None


def hub_name(backbone: str) -> tuple[str, str | None]:
    """A backbone's name on the hub, whatever its alias, and the revision that stands behind an ``@``."""
    from . import backbones, instructblip

    name, _, revision = backbone.partition("@")
    return (backbones.ALIASES | instructblip.ALIASES).get(name, name), revision or None


def weights_hash(backbone: str, revision: str | None = None) -> str:
    """SHA-256 of a backbone's tensors, each with its name, type and shape; empty if there are none here.

    The same in one file or in many, and whatever precision they are loaded in.

    Args:
        backbone, revision: as of `local_folder`.
    """
    folder = local_folder(backbone, revision)
    if folder is None:
        return ""
    files = [folder / SAFE_WEIGHTS_NAME]
    if not files[0].is_file() and (index := folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = [folder / name for name in sorted(set(names))]
    if not all(file.is_file() for file in files):
        return ""
    return _hash(tuple((file, file.stat().st_mtime_ns) for file in files))


@cache
def _hash(files: tuple[tuple[Path, int], ...]) -> str:
    """Of safetensors files, and when each was changed."""
    tensors: dict[str, Path] = {}
    for file, _ in files:
        with safe_open(file, "pt") as opened:
            tensors |= dict.fromkeys(opened.keys(), file)
    digest = hashlib.sha256()
    for name, file in tqdm(sorted(tensors.items()), "hashing weights", leave=False, delay=2):
        with safe_open(file, "pt") as opened:
            tensor = opened.get_tensor(name)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
