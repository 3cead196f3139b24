"""``linear-probe``: one linear layer on a frozen CLIP image tower."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar
from zlib import crc32

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from ..data.preprocess import check_perturbation
from ..errors import ModelError
from ..models.features import Features
from ..models.training import Recipe
from .clip import DIFFERENCES, PUBLISHED_RECIPE, SOURCES, Preset, TowerDetector
from .logistic import C_GRID, Logistic, fit_best, matrix

_CODE = dict.fromkeys(
    ("lr", "epochs", "momentum", "weight_decay", "schedule", "block", "weights"), "train_linear.py"
)
WEIGHT_STD = 0.01


@dataclass
class LinearProbe(TowerDetector):
    """Logistic regression on the class token of one block of the tower (or on the image embedding).

    What generators leave behind is seen best in the middle of the tower, not at its end, where only the content is
    left (Koutlis and Papadopoulos, RINE, 2024). Which block is best is chosen on validation. The preset ``paper``
    is CLIPping the Deception's instead: a linear layer with an output a class on the image embedding.

    Args, besides `TowerDetector`'s (of which the preset ``demo``, scikit-learn's, needs none):
        block: ``auto`` (chosen by validation loss), a block's number as text (``0`` is the embedding layer), or
            ``embedding`` for the projected image embedding.
        c: inverse regularisation strengths to choose from.
        augment: perturbations. Each training and validation image is then used twice: as it is, and under one of
            these, drawn by its hash. The threshold is chosen on clean images all the same.
    """

    name: ClassVar[str] = "linear-probe"
    presets: ClassVar = {
        "demo": Preset(Recipe(lr=1.0, epochs=1, batch_size=1)),
        "paper": Preset(
            replace(PUBLISHED_RECIPE, lr=3e-3, momentum=0.0, weight_decay=0.0, warmup_epochs=0), True
        ),
    }
    sources: ClassVar = SOURCES | _CODE
    differences: ClassVar = DIFFERENCES | {
        "augmentation": "the original squeezes to 224 x 224, flips, and scales, turns, shifts or cuts out (imgaug)",
    }
    block: str = "auto"
    c: tuple[float, ...] = C_GRID
    augment: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block not in ("auto", "embedding") and not self.block.isdecimal():
            raise ModelError(f"linear-probe: block is {self.block!r}, expected auto, embedding or a number")
        if not self.c or min(self.c) <= 0:
            raise ModelError(f"linear-probe: c is {self.c}, expected positive numbers")
        self.augment = tuple(dict.fromkeys(check_perturbation(spec) for spec in self.augment))
        if "none" in self.augment:
            raise ModelError("linear-probe: augment holds 'none', expected perturbations that change images")
        if self.published and (self.block not in ("auto", "embedding") or self.augment):
            raise ModelError(
                f"linear-probe: block is {self.block!r}, augment {self.augment}: the preset {self.preset} reads the"
                " embedding of random crops"
            )

    def settings(self) -> dict[str, object]:
        """Setting -> value of all that a fit depends on, but for its images."""
        if self.published:
            return super().settings() | {"weights": f"N(0, {WEIGHT_STD}), bias 0"}
        own = {"augmentation": ", ".join(self.augment) or "none", "loss": "logistic, balanced, L2 by c"}
        keep = ("backbone", "preset", "block", "c", "normalisation", "precision")
        return {k: v for k, v in super().settings().items() if k in keep} | own

    @property
    def n_trainable(self) -> int:
        """Width of the features + 1; the paper's layer has one such output a class."""
        return 2 * (self.backbone_.embedding_dim + 1) if self.published else self.model_.size

    def _augmented(self, frame: pd.DataFrame, progress: bool) -> tuple[list[Features], np.ndarray]:
        """Features and labels of the images and, with ``augment``, of one perturbed copy of each."""
        parts = {"none": frame}
        if self.augment:
            drawn = np.array([crc32(digest.encode()) % len(self.augment) for digest in frame["sha256"]])
            parts |= {spec: frame[drawn == i] for i, spec in enumerate(self.augment)}
        parts = {spec: part for spec, part in parts.items() if len(part)}
        output = {"auto": "cls", "embedding": "embedding"}.get(self.block, f"cls:{self.block}")
        x = [self._features(part, spec, progress, output) for spec, part in parts.items()]
        return x, np.concatenate([part["label"] for part in parts.values()])

    def _warm_up(self, frame: pd.DataFrame, progress: bool) -> None:
        if not self.published:
            self._augmented(frame, progress)

    def _fit(self, train: pd.DataFrame, validation: pd.DataFrame, progress: bool) -> None:
        self.block_: int | None = None
        self.c_: float | None = None
        if self.published:
            self._fit_layer(train, validation, progress)
            return
        last = self.backbone_.n_blocks
        if self.block.isdecimal() and int(self.block) > last:
            raise ModelError(f"linear-probe: block is {self.block}, {self.backbone} has 0 to {last}")
        (x, y), (x_val, y_val) = (self._augmented(f, progress) for f in (train, validation))

        def fitted(block: int | None) -> tuple[Logistic, float, float]:
            def of_block(parts: list[Features]) -> list[Features]:
                return parts if block is None else [part.block(block) for part in parts]

            with matrix(of_block(x)) as own, matrix(of_block(x_val)) as known:
                return fit_best((own, y), (known, y_val), self.c, progress and block is None)

        if self.block != "auto":
            self.block_ = None if self.block == "embedding" else int(self.block)
            self.model_, self.c_, _ = fitted(None)
            return
        blocks = tqdm(range(last + 1), "blocks", leave=False, disable=not progress)
        fits = {b: fitted(b) for b in blocks}
        best = min(fits, key=lambda b: fits[b][2])
        self.block_, (self.model_, self.c_, _) = best, fits[best]

    def _fit_layer(self, train: pd.DataFrame, validation: pd.DataFrame, progress: bool) -> None:
        torch.manual_seed(self.recipe().seed)
        layer = nn.Linear(self.backbone_.embedding_dim, 2)
        nn.init.normal_(layer.weight, std=WEIGHT_STD)
        nn.init.zeros_(layer.bias)
        self._train_head(layer, train, validation, progress)
        weight, bias = (p.detach().cpu().double().numpy() for p in (layer.weight, layer.bias))
        plain = np.zeros(weight.shape[1]), np.ones(weight.shape[1])
        self.model_ = Logistic(*plain, weight[1] - weight[0], bias[1:] - bias[:1])

    def _score(self, frame: pd.DataFrame, perturbation: str, progress: bool) -> np.ndarray:
        output = "embedding" if self.block_ is None else f"cls:{self.block_}"
        return self.model_.predict(np.asarray(self._features(frame, perturbation, progress, output)))

    def _save(self, folder: Path) -> None:
        self.model_.save(folder)
        (folder / "chosen.json").write_text(json.dumps({"block": self.block_, "c": self.c_}) + "\n")

    def _load(self, folder: Path) -> None:
        self.model_ = Logistic.load(folder)
        chosen = json.loads((folder / "chosen.json").read_text())
        self.block_, self.c_ = chosen["block"], chosen["c"]
