"""``linear-probe``: one linear layer on a frozen CLIP image tower."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from zlib import crc32

import numpy as np
import pandas as pd
import torch

from ..data.preprocess import check_perturbation
from ..errors import ModelError
from ..models.backbones import load_backbone
from ..models.features import extract
from .base import Detector
from .clip import Views, fit_head, paper_recipe
from .logistic import C_GRID, Logistic, fit_best


@dataclass
class LinearProbe(Detector):
    """Logistic regression on the class token of one block of the tower (or on the image embedding).

    What generators leave behind is seen best in the middle of the tower, not at its end, where only the content is
    left (Koutlis and Papadopoulos, RINE, 2024). Which block is best is chosen on validation.

    Args:
        backbone: see `afp.models.backbones.load_backbone`.
        block: ``auto`` (chosen by validation loss), a block's number as text (``0`` is the embedding layer), or
            ``embedding`` for the projected image embedding.
        c: inverse regularisation strengths to choose from.
        augment: perturbations. Each training and validation image is then used twice: as it is, and under one of
            these, drawn by its hash. The threshold is chosen on clean images all the same.
        recipe: ``logistic``, scikit-learn's; ``paper``, CLIPping the Deception's: a linear layer with an output a
            class on the image embedding, SGD 3e-3, two epochs, drawn from ``n_views`` random crops of an image.
        seed: of the paper's recipe.
    """

    name: ClassVar[str] = "linear-probe"
    backbone: str = "demo-clip"
    block: str = "auto"
    c: tuple[float, ...] = C_GRID
    augment: tuple[str, ...] = ()
    recipe: str = "logistic"
    n_views: int = 2
    seed: int = 17

    def __post_init__(self) -> None:
        super().__post_init__()
        self.block = str(self.block)
        self.c = tuple(self.c) if isinstance(self.c, list | tuple) else (self.c,)
        if self.block not in ("auto", "embedding") and not self.block.isdigit():
            raise ModelError(f"linear-probe: block is {self.block!r}, expected auto, embedding or a number")
        if not self.c or not all(isinstance(c, int | float) and c > 0 for c in self.c):
            raise ModelError(f"linear-probe: c is {self.c}, expected positive numbers")
        if isinstance(self.augment, str):
            raise ModelError(f'linear-probe: augment is {self.augment!r}, expected a list: ["jpeg:75"]')
        self.augment = tuple(dict.fromkeys(check_perturbation(spec) for spec in self.augment))
        if "none" in self.augment:
            raise ModelError("linear-probe: augment holds 'none', expected perturbations that change images")
        if self.recipe not in ("logistic", "paper"):
            raise ModelError(f"linear-probe: recipe is {self.recipe!r}, expected logistic or paper")
        if self.recipe == "paper" and (self.block not in ("auto", "embedding") or self.augment):
            raise ModelError(
                f"linear-probe: block is {self.block!r}, augment {self.augment}: the paper's recipe reads the"
                " embedding of random crops"
            )

    @property
    def n_trainable(self) -> int:
        """Width of the features + 1; the paper's layer has one such output a class."""
        if self.recipe == "paper":
            return 2 * (load_backbone(self.backbone).embedding_dim + 1)
        return self.model_.size

    def _features(self, frame: pd.DataFrame, perturbation: str, progress: bool, view: int = 0) -> np.ndarray:
        output = "embedding" if self.block == "embedding" or self.recipe == "paper" else "cls"
        return extract(
            frame,
            load_backbone(self.backbone),
            output,
            normalisation=self.normalisation,
            perturbation=perturbation,
            view=view,
            progress=progress,
        )

    def _augmented(self, frame: pd.DataFrame, progress: bool) -> tuple[np.ndarray, np.ndarray]:
        """Features and labels of the images and, with ``augment``, of one perturbed copy of each."""
        parts = {"none": frame}
        if self.augment:
            drawn = np.array([crc32(digest.encode()) % len(self.augment) for digest in frame["sha256"]])
            parts |= {spec: frame[drawn == i] for i, spec in enumerate(self.augment)}
        parts = {spec: part for spec, part in parts.items() if len(part)}
        x = [self._features(part, spec, progress) for spec, part in parts.items()]
        return np.concatenate(x), np.concatenate([part["label"] for part in parts.values()])

    def _fit_paper(self, train: pd.DataFrame, validation: pd.DataFrame, progress: bool) -> None:
        views = range(1, self.n_views + 1) if self.n_views else [0]
        x = np.stack([self._features(train, "none", progress, view) for view in views])
        x_val = self._features(validation, "none", progress)[None]
        sets = [
            Views(torch.from_numpy(v), f["label"].to_numpy()) for v, f in ((x, train), (x_val, validation))
        ]
        torch.manual_seed(self.seed)
        layer = torch.nn.Linear(x.shape[-1], 2).to(load_backbone(self.backbone).device)
        self.history_ = fit_head(layer, *sets, paper_recipe(lr=3e-3, seed=self.seed), progress)
        weight, bias = (p.detach().cpu().double().numpy() for p in (layer.weight, layer.bias))
        plain = np.zeros(x.shape[-1]), np.ones(x.shape[-1])
        self.model_ = Logistic(*plain, weight[1] - weight[0], bias[1:] - bias[:1])
        self.block_ = self.c_ = None

    def _fit(self, train: pd.DataFrame, validation: pd.DataFrame, progress: bool) -> None:
        if self.recipe == "paper":
            self._fit_paper(train, validation, progress)
            return
        (x, y), (x_val, y_val) = (self._augmented(f, progress) for f in (train, validation))
        if self.block == "embedding":
            self.model_, self.c_, _ = fit_best((x, y), (x_val, y_val), self.c)
            self.block_ = None
            return
        blocks = range(x.shape[1]) if self.block == "auto" else [int(self.block)]
        if blocks[-1] >= x.shape[1]:
            raise ModelError(
                f"linear-probe: block is {self.block}, {self.backbone} has 0 to {x.shape[1] - 1}"
            )
        fits = {b: fit_best((x[:, b], y), (x_val[:, b], y_val), self.c) for b in blocks}
        self.block_ = min(fits, key=lambda b: fits[b][2])
        self.model_, self.c_, _ = fits[self.block_]

    def _score(self, frame: pd.DataFrame, perturbation: str, progress: bool) -> np.ndarray:
        x = self._features(frame, perturbation, progress)
        return self.model_.predict(x if self.block_ is None else x[:, self.block_])

    def _save(self, folder: Path) -> None:
        self.model_.save(folder)
        (folder / "chosen.json").write_text(json.dumps({"block": self.block_, "c": self.c_}) + "\n")

    def _load(self, folder: Path) -> None:
        self.model_ = Logistic.load(folder)
        chosen = json.loads((folder / "chosen.json").read_text())
        self.block_, self.c_ = chosen["block"], chosen["c"]
