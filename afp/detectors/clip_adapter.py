"""``clip-adapter``: a small bottleneck behind the image tower, the texts frozen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import normalize, pad

from ..errors import ModelError
from ..models.text_tower import CLASSES, TextSide
from ..models.training import Recipe
from .clip import ClipDetector, Preset, paper_recipe

BATCH = 64  # images scored at a time


class Bottleneck(nn.Module):
    """``ratio * A(f) + (1 - ratio) * f``; A is P -> P/2 -> P, no bias, a ReLU behind each layer, as published."""

    def __init__(self, width: int, ratio: float):
        super().__init__()
        half, self.ratio = width // 2, ratio
        self.layers = nn.Sequential(
            nn.Linear(width, half, bias=False), nn.ReLU(), nn.Linear(half, width, bias=False), nn.ReLU()
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(b, P) -> (b, P)."""
        return self.ratio * self.layers(features) + (1 - self.ratio) * features


@dataclass
class ClipAdapter(ClipDetector):
    """A residual bottleneck on the image embedding (Gao et al., CLIP-Adapter, 2021, as in CLIPping the Deception).

    Args, besides `ClipDetector`'s:
        ratio: share of the bottleneck's output; the rest is CLIP's own embedding.
        template: text of a class, ``{}`` is the class word.
    """

    name: ClassVar[str] = "clip-adapter"
    presets: ClassVar = {
        "demo": Preset(Recipe(lr=0.02, epochs=60, batch_size=16, optimizer="sgd", weight_decay=5e-4), 0),
        "paper": Preset(paper_recipe(), 2),
    }
    ratio: float = 0.4
    template: str = "a {} photo."

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio <= 1:
            raise ModelError(f"clip-adapter: ratio is {self.ratio}, expected above 0 and at most 1")
        if self.template.count("{}") != 1:
            raise ModelError(f"clip-adapter: template is {self.template!r}, expected a text with one {{}}")

    @property
    def n_trainable(self) -> int:
        """P x P/2, twice."""
        width = self.backbone_.embedding_dim
        return 2 * width * (width // 2)

    def _fit(self, train: pd.DataFrame, validation: pd.DataFrame, progress: bool) -> None:
        side = TextSide.copy_of(self.backbone_)
        with torch.inference_mode():
            classifier = side.encode([self.template.format(word) for word in CLASSES])
        self.classifier_ = classifier.cpu().clone()
        torch.manual_seed(self.recipe().seed)
        self.model_ = Bottleneck(self.backbone_.embedding_dim, self.ratio)
        self._fit_head(_Head(self.model_, self.classifier_, self._scale()), train, validation, progress)
        self.model_.requires_grad_(False)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """As `ClipDetector.logits`, of the adapted features."""
        features = features.to(next(self.model_.parameters()).device)
        # Padded to one shape: matrix kernels round by shape, so a score would depend on its batch.
        batches = pad(features, (0, 0, 0, -len(features) % BATCH)).split(BATCH)
        return super().logits(torch.cat([self.model_(batch) for batch in batches])[: len(features)])

    def _save(self, folder: Path) -> None:
        state = {k: v.cpu().contiguous() for k, v in self.model_.state_dict().items()}
        save_file(state | {"classifier": self.classifier_}, folder / "model.safetensors")

    def _load(self, folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        self.classifier_ = state.pop("classifier")
        self.model_ = Bottleneck(self.classifier_.shape[1], self.ratio).requires_grad_(False)
        self.model_.load_state_dict(state)


class _Head(nn.Module):
    """Features (b, P) -> logits (b, 2)."""

    def __init__(self, model: Bottleneck, classifier: torch.Tensor, scale: float):
        super().__init__()
        self.model, self.scale = model, scale
        self.register_buffer("classifier", classifier)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.scale * normalize(self.model(features), dim=-1) @ self.classifier.T
