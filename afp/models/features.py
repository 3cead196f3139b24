"""Features of a frozen backbone: extracted once an image, cached on disk, the same bytes ever after."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm.auto import tqdm

from ..data import preprocess
from ..data.images import FORMAT_OF
from ..data.preprocess import Normalisation, prepare, random_view
from ..errors import AfpError, ImageError, UnreadableImages
from ..paths import cache_dir
from .backbones import Backbone

BATCH = 16  # images a pass on an accelerator
CPU_BATCH = 4  # as fast as 16 there, and a single image waits for three others instead of fifteen
POOLED = ("embedding", "cls")  # small, and both come out of one pass: cached together


def extract(
    frame: pd.DataFrame,
    backbone: Backbone,
    output: str,
    *,
    normalisation: Normalisation | None = None,
    perturbation: str = "none",
    view: int = 0,
    progress: bool = True,
) -> np.ndarray:
    """Features of all rows, in the rows' order.

    Args:
        frame: needs ``file`` and ``sha256``.
        output: ``embedding``, ``cls`` or ``tokens:K`` (see `Backbone.extract`).
        perturbation: applied after normalisation, before the backbone's preprocessing.
        view: 0 is the image; 1, 2, … are random crops of it, each cached like an image (see `afp.data.preprocess`).
    Returns:
        float32, (n, ...); float16 precision, as cached.
    Raises:
        UnreadableImages: names every bad file, after all the others have been cached.
    """
    normalisation = normalisation or Normalisation()
    perturbation = preprocess.check_perturbation(perturbation)
    outputs = POOLED if output in POOLED else (output,)
    if output not in POOLED:
        backbone.check_output(output)
    store = _Store(backbone, outputs, normalisation, perturbation, view)
    names = [_stored_name(f, digest) for f, digest in zip(frame["file"], frame["sha256"], strict=True)]
    values: list[np.ndarray | None] = [store.read(name, output) for name in names]
    todo: dict[str, list[int]] = {}  # an image that stands twice is extracted once
    for i, name in enumerate(names):
        if values[i] is None:
            todo.setdefault(name or f"row {i}", []).append(i)
    errors: dict[str, str] = {}
    groups = list(todo.values())
    bar = tqdm(
        total=len(groups), desc=f"{backbone.name} features", unit="image", disable=not progress or not groups
    )
    size = CPU_BATCH if backbone.device.type == "cpu" else BATCH
    for start in range(0, len(groups), size):
        batch, images = [], []
        for rows in groups[start : start + size]:
            row = frame.iloc[rows[0]]
            try:
                image = prepare(row["file"], row["sha256"], normalisation, perturbation)
                if view:
                    image = random_view(image, backbone.vision_config.image_size, f"{row['sha256']}:{view}")
                images.append(image)
                batch.append(rows)
            except ImageError as error:
                errors |= {row["file"]: str(error)} | _reasons(frame.iloc[rows[1:]], normalisation)
        if images:
            # Padded to one shape: matrix kernels round by shape, so a feature would depend on its batch.
            pixels = backbone.preprocess(images + [images[-1]] * (size - len(images)))
            found = backbone.extract(pixels, outputs)
            for j, rows in enumerate(batch):
                arrays = {name: tensor[j].numpy().astype(np.float16) for name, tensor in found.items()}
                store.write(names[rows[0]], arrays)
                for i in rows:
                    values[i] = arrays[output]
        bar.update(len(groups[start : start + size]))
    bar.close()
    if errors:
        raise UnreadableImages(errors)
    if not values:
        raise AfpError("no image to extract features from: the frame has no row")
    return np.stack(values).astype(np.float32)


def _stored_name(file: str, digest: str) -> str:
    """What decides how a file decodes: its bytes, and the format that its extension claims. Empty: not stored."""
    return digest and f"{digest}.{FORMAT_OF.get(Path(file).suffix.lower(), 'other').lower()}"


def _reasons(rows: pd.DataFrame, normalisation: Normalisation) -> dict[str, str]:
    """Why copies of an unusable image cannot be used either, each in words that name its own file."""
    reasons = {}
    for file, digest in zip(rows["file"], rows["sha256"], strict=True):
        try:
            prepare(file, digest, normalisation)
        except ImageError as error:
            reasons[file] = str(error)
    return reasons


class _Store:
    """One safetensors file an image, under a folder named by everything that the feature depends on."""

    def __init__(
        self,
        backbone: Backbone,
        outputs: tuple,
        normalisation: Normalisation,
        perturbation: str,
        view: int = 0,
    ):
        parts = (backbone.fingerprint, "+".join(outputs), normalisation.key, perturbation)
        parts += (f"view{view}",) * bool(view)
        self.key = hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]
        self.folder = cache_dir() / "features" / self.key

    def file(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}.safetensors"

    def read(self, name: str, output: str) -> np.ndarray | None:
        """The cached array, or None: absent, truncated, or written for something else."""
        if not name:
            return None
        try:
            with safe_open(self.file(name), framework="numpy") as stored:
                if stored.metadata() != {"key": self.key, "image": name}:
                    return None
                return stored.get_tensor(output)
        except (OSError, SafetensorError, KeyError):
            return None

    def write(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        if not name:
            return
        file = self.file(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.partial")  # two processes may extract the same image
        save_file(arrays, partial, metadata={"key": self.key, "image": name})
        partial.replace(file)
