"""``linear-probe``: one linear layer on a frozen CLIP image tower."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import ClassVar
from zlib import crc32

import numpy as np
import pandas as pd
import torch

from ..data.loader import worker_count
from ..data.preprocess import Normalisation, check_perturbation
from ..errors import ModelError
from ..models.backbones import load_backbone
from ..models.features import extract
from ..models.training import Recipe
from .base import Detector
from .clip import (
    DIFFERENCES,
    PAPER_BACKBONE,
    SOURCES,
    OnPixels,
    Preset,
    explain,
    fit_logits,
    image_set,
    published_recipe,
)
from .logistic import C_GRID, Logistic, fit_best

_CODE = "train_linear.py, models.py"
PAPER = Preset(published_recipe(lr=3e-3, momentum=0.0, weight_decay=0.0, warmup_epochs=0), True)
PAPER_STD = 0.01  # of the weights that the paper's layer starts from


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
        preset: ``demo``, scikit-learn's logistic regression; ``paper``, CLIPping the Deception's: a linear layer with an
            output a class on the image embedding, trained on pixels (see `explain_recipe`).
        seed: of the paper's training.
    """

    name: ClassVar[str] = "linear-probe"
    backbone: str = "demo-clip"
    block: str = "auto"
    c: tuple[float, ...] = C_GRID
    augment: tuple[str, ...] = ()
    preset: str = "demo"
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
        if self.preset == "paper" and (self.block not in ("auto", "embedding") or self.augment):
            raise ModelError(
                f"linear-probe: block is {self.block!r}, augment {self.augment}: the paper's preset reads the"
                " embedding of random crops"
            )

    def default_normalisation(self) -> Normalisation:
        """The preset's."""
        if self.preset not in ("demo", "paper"):
            raise ModelError(f"linear-probe: preset is {self.preset!r}, expected demo or paper")
        return PAPER.normalisation if self.preset == "paper" else Normalisation()

    def settings(self) -> dict[str, object]:
        """Setting -> value of all that a fit depends on, but for its images."""
        own = {f.name: getattr(self, f.name) for f in fields(self)} | {
            "normalisation": self.normalisation.key
        }
        if self.preset == "demo":
            return own | {"augmentation": self.augment or "none", "loss": "logistic, balanced, L2 by c"}
        return own | asdict(self.recipe()) | PAPER.settings() | {"weights": f"N(0, {PAPER_STD}), bias 0"}

    def explain_recipe(self) -> pd.DataFrame:
        """Where the settings come from, and where they differ from the published ones: see `afp.detectors.clip.explain`."""
        published = LinearProbe(backbone=PAPER_BACKBONE, preset="paper").settings()
        sources = SOURCES | dict.fromkeys(asdict(PAPER.recipe), _CODE) | {"weights": _CODE, "block": _CODE}
        views = "the original resizes to 224 x 224, flips, and scales, turns, shifts or cuts out (imgaug)"
        return explain(self.settings(), published, sources, DIFFERENCES | {"augmentation": views})

    def recipe(self) -> Recipe:
        """Of the preset ``paper``."""
        return replace(PAPER.recipe, seed=self.seed)

    @property
    def n_trainable(self) -> int:
        """Width of the features + 1; the paper's layer has one such output a class."""
        if self.preset == "paper":
            return 2 * (load_backbone(self.backbone).embedding_dim + 1)
        return self.model_.size

    def _features(self, frame: pd.DataFrame, perturbation: str, progress: bool) -> np.ndarray:
        output = "embedding" if self.block == "embedding" or self.preset == "paper" else "cls"
        return extract(
            frame,
            load_backbone(self.backbone),
            output,
            normalisation=self.normalisation,
            perturbation=perturbation,
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

    def _fit_paper(self, train: pd.DataFrame, progress: bool) -> None:
        backbone, recipe = load_backbone(self.backbone), self.recipe()
        torch.manual_seed(self.seed)
        layer = torch.nn.Linear(backbone.embedding_dim, 2)
        torch.nn.init.normal_(layer.weight, std=PAPER_STD)
        torch.nn.init.zeros_(layer.bias)
        data = image_set(train, backbone, self.normalisation, PAPER, self.seed)
        workers = worker_count(backbone.device)
        model = OnPixels(backbone, layer)
        self.history_ = fit_logits(model, data, None, recipe, num_workers=workers, progress=progress)
        weight, bias = (p.detach().cpu().double().numpy() for p in (layer.weight, layer.bias))
        plain = np.zeros(weight.shape[1]), np.ones(weight.shape[1])
        self.model_ = Logistic(*plain, weight[1] - weight[0], bias[1:] - bias[:1])
        self.block_ = self.c_ = None

    def _fit(self, train: pd.DataFrame, validation: pd.DataFrame, progress: bool) -> None:
        if self.preset == "paper":
            self._fit_paper(train, progress)
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
