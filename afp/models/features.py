"""Features of a frozen backbone: extracted once an image, cached on disk, the same bytes ever after."""

from __future__ import annotations

import hashlib
import logging
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..data.loader import ImageDataset, worker_count
from ..data.preprocess import Normalisation, check_perturbation
from ..errors import AfpError, ModelError, UnreadableImages
from ..paths import cache_dir, cache_disk
from .backbones import Backbone
from .feature_store import NOWHERE, FeatureStore

VERSION = 3  # of the cache: another number for another layout of its files
POOLED = ("cls", "embedding")  # from one pass: where all blocks' class tokens are kept, so is the embedding
RESERVE = 2 * 10**9  # bytes that image tokens leave free on the disk
_stores = True


class Features(Dataset[np.ndarray]):
    """A feature of n images, read from the stores row by row; ``np.asarray`` reads all of it.

    Args:
        sources: a store, and where the feature begins in its rows.
        places: of each image, (n, 3): its source, shard and number there.
        shape: of one image's feature.
        others: float16, of images that are in no store: row -> feature.
    """

    def __init__(
        self,
        sources: list[tuple[FeatureStore, int]],
        places: np.ndarray,
        shape: tuple[int, ...],
        others: dict[int, np.ndarray],
    ):
        self.sources, self.places, self.shape, self.others = sources, places, (len(places), *shape), others

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: int) -> np.ndarray:
        """One image's feature, float32."""
        if i in self.others:
            return self.others[i].astype(np.float32)
        source, shard, number = self.places[i]
        store, start = self.sources[source]
        values = store.read(shard, number, start, math.prod(self.shape[1:]))
        return values.astype(np.float32).reshape(self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = np.empty(self.shape, dtype or np.float32)
        for i in range(len(self)):
            whole[i] = self[i]
        return whole

    def block(self, k: int) -> Features:
        """Of class tokens of all blocks: hidden state k's."""
        shape = self.shape[2:]
        sources = [(store, start + k * math.prod(shape)) for store, start in self.sources]
        return Features(sources, self.places, shape, {i: feature[k] for i, feature in self.others.items()})


def extract(frame: pd.DataFrame, backbone: Backbone, output: str, **options: Any) -> np.ndarray:
    """All of `open_features`: float32, (n, ...); float16 precision, as cached."""
    return np.asarray(open_features(frame, backbone, output, **options))


def open_features(
    frame: pd.DataFrame,
    backbone: Backbone,
    output: str,
    *,
    normalisation: Normalisation | None = None,
    perturbation: str = "none",
    progress: bool = True,
) -> Features:
    """Features of all rows, in the rows' order; what is not cached yet is extracted first.

    Only what is asked for is cached, but with the class tokens of all blocks the embedding too.

    Args:
        frame: needs ``file`` and ``sha256``; an image without a hash is extracted each time.
        backbone: whose image tower is run.
        output: ``embedding``, ``cls``, ``cls:K`` (hidden state K's part of it) or ``tokens:K`` (see
            `Backbone.extract`).
        normalisation: what images go through first; default `Normalisation()`.
        perturbation: applied after normalisation, before the backbone's preprocessing.
        progress: show a bar.
    Raises:
        AfpError: a frame without rows.
        UnreadableImages: names every bad file, after all the others have been cached.
        ModelError: values that are not finite.
    """
    if frame.empty:
        raise AfpError("no image to extract features from: the frame has no row")
    normalisation = normalisation or Normalisation()
    perturbation = check_perturbation(perturbation)
    shape = feature_shape(backbone, output)
    dataset = ImageDataset(frame, normalisation, perturbation, transform=backbone.preprocess)
    sources = _sources(backbone, output, normalisation, perturbation)
    places = np.full((len(dataset), 3), NOWHERE)
    for number, (store, _) in enumerate(sources):
        rows = np.flatnonzero(places[:, 0] == NOWHERE)
        found, damaged = store.find([dataset.rows[i][1] for i in rows], progress)
        known = found[:, 0] != NOWHERE
        places[rows[known], 0], places[rows, 1:] = number, found
        if damaged:
            text = "%d cached features are damaged and are computed anew: %s"
            logging.getLogger(__name__).warning(text, damaged, store.folder)
    others = _extract_missing(dataset, places, backbone, _layouts(output)[-1], sources, progress)
    start, length = sources[-1][1], math.prod(shape)
    others = {i: row[start : start + length].reshape(shape) for i, row in others.items()}
    return Features(sources, places, shape, others)


def _sources(
    backbone: Backbone, output: str, normalisation: Normalisation, perturbation: str
) -> list[tuple[FeatureStore, int]]:
    """The stores in which an output may be, and where it begins in their rows."""
    sources = []
    for layout in _layouts(output):
        parts = (backbone.fingerprint, "+".join(layout), normalisation.key, perturbation)
        folder = _folder() / hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]
        store = _store(folder, sum(math.prod(feature_shape(backbone, name)) for name in layout))
        sources.append((store, _start(layout, output, backbone)))
    return sources


def _extract_missing(
    dataset: ImageDataset,
    places: np.ndarray,
    backbone: Backbone,
    layout: tuple[str, ...],
    sources: list[tuple[FeatureStore, int]],
    progress: bool,
) -> dict[int, np.ndarray]:
    """Rows that no source has, appended to the last one; their places are filled in. Those not kept are returned."""
    names = [digest or file for file, digest in dataset.rows]
    missing = np.flatnonzero(places[:, 0] == NOWHERE)
    if not len(missing):
        return {}
    todo = {names[i]: int(i) for i in reversed(missing)}  # an image that stands twice is extracted once
    store, size, outputs = sources[-1][0], backbone.batch_size, {_tower_output(name) for name in layout}
    loader: DataLoader = DataLoader(
        dataset,
        size,
        sampler=sorted(todo.values()),
        num_workers=worker_count(dataset, backbone.device),
        collate_fn=list,
        generator=torch.Generator(),  # so that nothing is drawn from the one that training uses
    )
    bar = tqdm(total=len(todo), desc=f"{backbone.name} features", unit="image", disable=not progress)
    bad: set[str] = set()
    kept: dict[str, np.ndarray] = {}
    with bar, store:
        for batch in loader:
            bad |= {names[item.row] for item in batch if item.error}
            if good := [item for item in batch if not item.error]:
                # Padded to one shape: matrix kernels round by shape, so a feature would depend on its batch.
                padded = [item.image for item in good] + [good[-1].image] * (size - len(good))
                found = backbone.extract(torch.stack(padded), sorted(outputs))
            for j, item in enumerate(good):
                row = np.concatenate([_value(found, name, j) for name in layout])
                if not np.isfinite(row).all():
                    raise ModelError(
                        f"backbone {backbone.name}: features of {item.file} are not finite; its weights are damaged,"
                        " or too large for 16 bits"
                    )
                digest = dataset.rows[item.row][1]
                if digest and _stores:
                    places[item.row] = (len(sources) - 1, *store.append(digest, row))
                else:
                    kept[names[item.row]] = row
            bar.update(len(batch))
    if bad:  # each copy in words that name its own file
        again = [dataset[i] for i, name in enumerate(names) if name in bad]
        raise UnreadableImages({item.file: item.error for item in again if item.error})
    places[missing] = [places[todo[names[i]]] for i in missing]
    return {int(i): kept[names[i]] for i in missing if names[i] in kept}


def feature_shape(backbone: Backbone, output: str) -> tuple[int, ...]:
    """The shape of one image's feature. Raises AfpError for an output that the backbone does not have."""
    if output == "embedding":
        return (backbone.embedding_dim,)
    if output == "cls":
        return (backbone.n_blocks + 1, backbone.width)
    backbone.check_output(output.replace("cls:", "tokens:"))
    if output.startswith("cls:"):
        return (backbone.width,)
    config = backbone.vision_config
    return (1 + (config.image_size // config.patch_size) ** 2, backbone.width)


def _layouts(output: str) -> list[tuple[str, ...]]:
    """What the rows of the stores consist of in which an output may be; in the last, it is completed."""
    if output == "cls":
        return [POOLED]
    return [POOLED, (output,)] if output == "embedding" or output.startswith("cls:") else [(output,)]


def _start(layout: tuple[str, ...], output: str, backbone: Backbone) -> int:
    """Where an output begins in a row."""
    if layout != POOLED or output == "cls":
        return 0
    return (
        math.prod(feature_shape(backbone, "cls"))
        if output == "embedding"
        else int(output[4:]) * backbone.width
    )


def _tower_output(name: str) -> str:
    return "cls" if name.startswith("cls:") else name


def _value(found: dict[str, torch.Tensor], name: str, j: int) -> np.ndarray:
    """A batch's j-th feature as a part of a row."""
    value = found[_tower_output(name)][j]
    return (value[int(name[4:])] if name.startswith("cls:") else value).numpy().astype(np.float16).ravel()


@cache
def _store(folder: Path, length: int) -> FeatureStore:
    """A store, whose entries are read once a process."""
    return FeatureStore(folder, length)


def _folder() -> Path:
    """Of the stores. Caches of earlier versions are dropped: nothing of them can be read."""
    for old in (cache_dir() / f"features{end}" for end in ("", *(f"-{n}" for n in range(2, VERSION)))):
        if old.is_dir():
            logging.getLogger(__name__).warning("%s: a cache of an earlier version of afp is deleted", old)
            shutil.rmtree(old, ignore_errors=True)
    return cache_dir() / f"features-{VERSION}"


@contextmanager
def without_storing() -> Iterator[None]:
    """Within it, features that are not cached are not kept either."""
    global _stores
    _stores, before = False, _stores
    try:
        yield
    finally:
        _stores = before


def fits(
    frame: pd.DataFrame, backbone: Backbone, output: str, normalisation: Normalisation, perturbation: str
) -> bool:
    """Whether features of all rows may be kept: what is not cached yet leaves `RESERVE` bytes of the disk free.

    Says if it does not. Args: as of `open_features`.
    """
    if not _stores:
        return False
    digests = set(frame["sha256"])
    for store, _ in _sources(backbone, output, normalisation, check_perturbation(perturbation)):
        digests -= store.known(digests)
    n, (place, free) = len(digests), cache_disk()
    n_bytes = 2 * n * math.prod(feature_shape(backbone, output))
    if not n or n_bytes < free - RESERVE:
        return True
    text = (
        "features of %d images would take %.1f GB of the %.1f GB free in %s: they are computed anew each time"
    )
    logging.getLogger(__name__).warning(text, n, n_bytes / 1e9, free / 1e9, place)
    return False
