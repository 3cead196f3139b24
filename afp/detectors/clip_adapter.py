"""``clip-adapter``: a small bottleneck behind the image tower, the texts frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from ..errors import ModelError
from ..models.text_tower import CLASSES
from ..models.training import Recipe
from .clip import PUBLISHED, SOURCES, ClipDetector, Preset


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
class AdaptedClip(ClipDetector):
    """A bottleneck behind the image embedding.

    Args, besides `ClipDetector`'s:
        ratio: share of the bottleneck's output; the rest is CLIP's own embedding.
    """

    trains_on: ClassVar[bool] = True
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.4

    def _adapter(self) -> nn.Module:
        return Bottleneck(self.backbone_.embedding_dim, self.ratio)


@dataclass
class ClipAdapter(AdaptedClip):
    """A residual bottleneck on the image embedding (Gao et al., CLIP-Adapter, 2021, as in CLIPping the Deception).

    Args, besides `AdaptedClip`'s:
        template: text of a class, ``{}`` is the class word.
    """

    name: ClassVar[str] = "clip-adapter"
    presets: ClassVar = {
        "demo": Preset(Recipe(lr=0.02, epochs=60, batch_size=16, optimizer="sgd", weight_decay=5e-4)),
        **PUBLISHED,
    }
    sources: ClassVar = SOURCES | dict.fromkeys(("ratio", "template"), "trainers/clip_adapter.py")
    template: str = "a {} photo."

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.template.count("{}") != 1:
            raise ModelError(f"clip-adapter: template is {self.template!r}, expected a text with one {{}}")

    def texts(self) -> list[str]:
        """The template with each class word."""
        return [self.template.replace("{}", word) for word in CLASSES]
