"""The one data set: rows of a manifest as pixels that a model can be fed with, read by any number of processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import Dataset

from ..errors import ImageError, UnreadableImages
from .preprocess import Normalisation, prepare

BLANK = (64, 64)  # pixels of the picture that stands in for a bad file


class Item(NamedTuple):
    """One row: its number, its file, its image (or what a transform made of it); ``error`` is empty for a good file.

    A bad one's image is blank, so that it can be collated; a batch is an `Item` of lists and tensors.
    """

    row: int
    file: str
    image: Any
    error: str


class ImageDataset(Dataset[Item]):
    """Rows of a frame as images, one `Item` each: read once, hash checked, decoded, normalised, perturbed.

    Map-style, so that a `torch.utils.data.DataLoader` reads it in its workers. A file that cannot be used raises
    nothing: its item says why.

    Args:
        frame: needs ``file`` and ``sha256``.
        normalisation: of all images.
        perturbation: see `afp.data.preprocess`.
        view: ``view(image, seed=text)`` is a random view of an image; the text is another one each epoch.
        seed: of the random views.
        transform: a model's preprocessing, a list of images to a tensor (b, ...); None leaves the images.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        normalisation: Normalisation,
        perturbation: str = "none",
        *,
        view: Callable[..., Image.Image] | None = None,
        seed: int = 0,
        transform: Callable[[Sequence[Image.Image]], torch.Tensor] | None = None,
    ):
        self.rows = list(zip(frame["file"], frame["sha256"], strict=True))
        self.normalisation, self.perturbation = normalisation, perturbation
        self.view, self.seed, self.transform, self.epoch = view, seed, transform, 0

    def __len__(self) -> int:
        return len(self.rows)

    def set_epoch(self, epoch: int) -> None:
        """Random views are drawn from seed, epoch and row alone: the same in every process and after a restart."""
        self.epoch = epoch

    def __getitem__(self, i: int) -> Item:
        (file, digest), error = self.rows[i], ""
        try:
            image = prepare(file, digest, self.normalisation, self.perturbation)
        except ImageError as reason:
            image, error = Image.new("RGB", BLANK), str(reason)
        if self.view is not None:
            image = self.view(image, seed=f"{self.seed}:{self.epoch}:{i}")
        return Item(i, file, image if self.transform is None else self.transform([image])[0], error)


class Labelled(Dataset[tuple[Any, np.int64, np.float32]]):
    """(input, label, weight) of each row, for training.

    Args:
        frame: needs ``label``, 0 or 1.
        inputs: of each row.
        weighted: both classes weigh the same, however many images they have; else every image does.
    """

    def __init__(self, frame: pd.DataFrame, inputs: Dataset, weighted: bool = True):
        self.inputs, self.labels = inputs, frame["label"].to_numpy(np.int64)
        share = np.float32(self.labels.mean())
        balanced = np.float32(0.5) / np.where(self.labels == 1, share, np.float32(1) - share)
        self.weights = balanced if weighted else np.ones(len(self.labels), np.float32)

    def __len__(self) -> int:
        return len(self.labels)

    def set_epoch(self, epoch: int) -> None:
        """As `ImageDataset.set_epoch`."""
        if isinstance(self.inputs, ImageDataset):
            self.inputs.set_epoch(epoch)

    def __getitem__(self, i: int) -> tuple[Any, np.int64, np.float32]:
        return self.inputs[i], self.labels[i], self.weights[i]


def inputs(batch: Item | torch.Tensor) -> torch.Tensor:
    """What a model reads of a collated batch of images, or of features.

    Raises:
        UnreadableImages: names the bad files in the batch.
    """
    if isinstance(batch, torch.Tensor):
        return batch
    if errors := {file: error for file, error in zip(batch.file, batch.error, strict=True) if error}:
        raise UnreadableImages(errors)
    return batch.image


def worker_count(dataset: Any, device: torch.device) -> int:
    """How many processes decode for a model on this device: none beside one on the CPU, which takes all cores."""
    if device.type == "cpu" or not isinstance(getattr(dataset, "inputs", dataset), ImageDataset):
        return 0
    return min(8, os.cpu_count() or 1)
