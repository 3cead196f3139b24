"""What the detectors that compare CLIP's image embedding with texts have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from torch.utils.data import Dataset

from ..errors import ModelError
from ..models.backbones import Backbone, load_backbone
from ..models.features import extract
from ..models.training import Recipe, train
from .base import Detector


@dataclass(frozen=True)
class Preset:
    """A recipe, and how many augmented views of an image it draws from (0: the image itself)."""

    recipe: Recipe
    n_views: int


def paper_recipe(**changes) -> Recipe:
    """CLIPping the Deception's recipe (Khan and Dang-Nguyen, 2024), which is CoOp's: SGD, the first of two epochs at
    1e-5, then half a cosine from .002."""
    published = {"lr": 2e-3, "epochs": 2, "batch_size": 16, "optimizer": "sgd", "momentum": 0.9}
    published |= {"weight_decay": 5e-4, "schedule": "cosine", "seed": 17}
    published |= {"warmup": "constant", "warmup_epochs": 1, "warmup_lr": 1e-5}
    return Recipe(**published | changes)


class Views(Dataset):
    """(feature, label, weight) of each image; a feature is drawn anew from the image's views each time."""

    def __init__(self, views: torch.Tensor, labels: np.ndarray):
        """``views``: (k, n, P); ``labels``: (n,). Both classes weigh the same."""
        self.views, self.labels = views, torch.tensor(labels, dtype=torch.long)
        share = self.labels.float().mean()
        self.weights = 0.5 / torch.where(self.labels == 1, share, 1 - share)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        k = int(torch.randint(len(self.views), ())) if len(self.views) > 1 else 0
        return self.views[k, i], self.labels[i], self.weights[i]


def fit_head(
    head: nn.Module, train_set: Views, validation: Views, recipe: Recipe, progress: bool = True
) -> pd.DataFrame:
    """Train what requires a gradient in ``head``, features (b, P) -> logits (b, 2), on the weighted cross-entropy.

    The epoch with the smallest loss on ``validation`` stays. Returns `afp.models.training.train`'s history.
    """

    def loss(model: nn.Module, batch) -> torch.Tensor:
        features, labels, weights = batch
        return (cross_entropy(model(features), labels, reduction="none") * weights).mean()

    def validate(model: nn.Module) -> float:
        device = next(head.parameters()).device
        everything = (validation.views[0], validation.labels, validation.weights)
        return -loss(model, [part.to(device) for part in everything]).item()

    return train(head, train_set, loss, recipe, validate=validate, progress=progress)


@dataclass
class ClipDetector(Detector):
    """P(fake) is the softmax over CLIP's similarity (times its logit scale) to a text of each class.

    Args:
        backbone: ``demo-clip`` (its text tower is a stand-in: see `afp.demo.text`), ``clip-vit-l14``, any hub name
            or folder of a CLIP model or a vision-text dual encoder.
        preset: ``demo``, what fits two cores; ``paper``, the recipe of CLIPping the Deception.
        seed, epochs, lr, batch_size, n_views: override the preset's.
    """

    presets: ClassVar[dict[str, Preset]]
    backbone: str = "demo-clip"
    preset: str = "demo"
    seed: int | None = None
    epochs: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    n_views: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset not in self.presets:
            raise ModelError(f"{self.name}: preset is {self.preset!r}, expected one of {tuple(self.presets)}")
        if self.n_views is not None and self.n_views < 0:
            raise ModelError(f"{self.name}: n_views is {self.n_views}, expected 0 or more")
        self.recipe()

    def recipe(self) -> Recipe:
        """The preset's recipe with this detector's overrides. Raises ValueError naming a wrong one."""
        own = {k: getattr(self, k) for k in ("seed", "epochs", "lr", "batch_size")}
        return Recipe(
            **vars(self.presets[self.preset].recipe) | {k: v for k, v in own.items() if v is not None}
        )

    @property
    def backbone_(self) -> Backbone:
        return load_backbone(self.backbone)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Scaled similarities to both classes' texts, float64, with a gradient: features (n, P) -> (n, 2)."""
        classifier = self.classifier_.double().to(features.device)
        # Not `@`: its last digits depend on how many rows there are, and a score must not depend on its batch.
        return self._scale() * (normalize(features.double(), dim=-1)[:, None] * classifier).sum(-1)

    def _score(self, frame: pd.DataFrame, perturbation: str, progress: bool) -> np.ndarray:
        features = self._embeddings(frame, perturbation, progress)
        return self.logits(features).softmax(-1)[:, 1].cpu().numpy()

    def _scale(self) -> float:
        return float(self.backbone_.model.logit_scale.exp())

    def _embeddings(
        self, frame: pd.DataFrame, perturbation: str, progress: bool, view: int = 0
    ) -> torch.Tensor:
        """Image embeddings, not normalised: (n, P)."""
        found = extract(
            frame,
            self.backbone_,
            "embedding",
            normalisation=self.normalisation,
            perturbation=perturbation,
            view=view,
            progress=progress,
        )
        return torch.from_numpy(found)

    def _fit_head(
        self, head: nn.Module, train_rows: pd.DataFrame, validation: pd.DataFrame, progress: bool
    ) -> None:
        n_views = self.presets[self.preset].n_views if self.n_views is None else self.n_views
        views = range(1, n_views + 1) if n_views else [0]
        x = torch.stack([self._embeddings(train_rows, "none", progress, view) for view in views])
        x_val = self._embeddings(validation, "none", progress)[None]
        sets = [Views(v, f["label"].to_numpy()) for v, f in ((x, train_rows), (x_val, validation))]
        head.to(self.backbone_.device)
        self.history_ = fit_head(head, *sets, self.recipe(), progress)
