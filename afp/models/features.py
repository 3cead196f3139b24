"""Features of a frozen backbone: extracted once an image, cached on disk, the same bytes ever after."""

from __future__ import annotations

import hashlib
import logging
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.loader import ImageDataset, worker_count
from ..data.preprocess import Normalisation, check_perturbation
from ..errors import AfpError, UnreadableImages
from ..files import written_whole
from ..paths import cache_dir
from .backbones import Backbone

POOLED = ("embedding", "cls")  # small, and both come out of one pass: cached together


def extract(
    frame: pd.DataFrame,
    backbone: Backbone,
    output: str,
    *,
    normalisation: Normalisation | None = None,
    perturbation: str = "none",
    progress: bool = True,
) -> np.ndarray:
    """Features of all rows, in the rows' order.

    Args:
        frame: needs ``file`` and ``sha256``.
        output: ``embedding``, ``cls`` or ``tokens:K`` (see `Backbone.extract`).
        perturbation: applied after normalisation, before the backbone's preprocessing.
    Returns:
        float32, (n, ...); float16 precision, as cached.
    Raises:
        UnreadableImages: names every bad file, after all the others have been cached.
    """
    if frame.empty:
        raise AfpError("no image to extract features from: the frame has no row")
    normalisation = normalisation or Normalisation()
    perturbation = check_perturbation(perturbation)
    outputs = POOLED if output in POOLED else (output,)
    if output not in POOLED:
        backbone.check_output(output)
    store = _Store(backbone, outputs, normalisation, perturbation)
    dataset = ImageDataset(frame, normalisation, perturbation, transform=backbone.preprocess)
    names = [digest or file for file, digest in dataset.rows]  # an image that stands twice is extracted once
    values: dict[str, Any] = {digest: store.read(digest, output) for _, digest in dataset.rows if digest}
    if store.damaged:
        text = "%d cached features are damaged and are computed anew: %s …"
        logging.getLogger(__name__).warning(text, len(store.damaged), store.damaged[0])
    todo = [i for name, i in {name: i for i, name in enumerate(names)}.items() if values.get(name) is None]
    size = backbone.batch_size
    loader: DataLoader = DataLoader(
        dataset,
        size,
        sampler=todo,
        num_workers=worker_count(dataset, backbone.device),
        collate_fn=list,
        generator=torch.Generator(),  # so that nothing is drawn from the one that training uses
    )
    bad: set[str] = set()
    bar = tqdm(
        total=len(todo), desc=f"{backbone.name} features", unit="image", disable=not progress or not todo
    )
    for batch in loader:
        bad |= {names[item.row] for item in batch if item.error}
        if good := [item for item in batch if not item.error]:
            # Padded to one shape: matrix kernels round by shape, so a feature would depend on its batch.
            padded = [item.image for item in good] + [good[-1].image] * (size - len(good))
            found = backbone.extract(torch.stack(padded), outputs)
        for j, item in enumerate(good):
            arrays = {key: tensor[j].numpy().astype(np.float16) for key, tensor in found.items()}
            store.write(dataset.rows[item.row][1], arrays)
            values[names[item.row]] = arrays[output]
        bar.update(len(batch))
    bar.close()
    if bad:  # each copy in words that name its own file
        again = [dataset[i] for i, name in enumerate(names) if name in bad]
        raise UnreadableImages({item.file: item.error for item in again if item.error})
    return np.stack([values[name] for name in names]).astype(np.float32)


class _Store:
    """One safetensors file an image, under a folder named by everything that the feature depends on.

    A file says what it was made of and holds a checksum of each array. What does not fit counts as absent and is
    listed in ``damaged``.
    """

    def __init__(
        self, tower: Backbone, outputs: tuple[str, ...], normalisation: Normalisation, perturbation: str
    ):
        parts = (tower.fingerprint, "+".join(outputs), normalisation.key, perturbation)
        self.key = hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]
        self.folder = cache_dir() / "features" / self.key
        self.damaged: list[Path] = []

    def file(self, digest: str) -> Path:
        """The place of the image with this hash."""
        return self.folder / digest[:2] / f"{digest}.safetensors"

    def read(self, digest: str, output: str) -> np.ndarray | None:
        """The cached array, or None."""
        file = self.file(digest)
        if not digest or not file.exists():
            return None
        try:
            with safe_open(file, framework="numpy") as stored:
                values, about = stored.get_tensor(output), stored.metadata()
            if about == about | {"key": self.key, "image": digest, output: _checksum(values)}:
                return values
        except (OSError, SafetensorError, TypeError):  # TypeError: no metadata
            pass
        self.damaged.append(file)
        return None

    def write(self, digest: str, arrays: dict[str, np.ndarray]) -> None:
        """Keep an image's arrays; without a hash there is nothing to find them by."""
        if digest:
            about = {"key": self.key, "image": digest} | {k: _checksum(v) for k, v in arrays.items()}
            with written_whole(self.file(digest)) as partial:
                save_file(arrays, partial, metadata=about)


def _checksum(values: np.ndarray) -> str:
    return f"{zlib.crc32(values.tobytes()):08x}"
