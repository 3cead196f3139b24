"""``clip-zero-shot``: which of two texts does CLIP find closer to the image?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from torch.nn.functional import normalize

from ..errors import ModelError
from ..models.text_tower import CLASSES, TextSide
from ..models.training import Recipe
from .clip import ClipDetector, Preset

TEMPLATES = (
    "a {} photo.",
    "a photo that is {}.",
    "this is a {} image.",
    "a {} picture.",
    "{}, a photo of something.",
)
NO_RECIPE = Recipe(lr=1.0, epochs=1, batch_size=1)


@dataclass
class ClipZeroShot(ClipDetector):
    """Nothing is trained; a class is the mean embedding of its texts (Radford et al., 2021, section 3.1.4).

    Args, besides `ClipDetector`'s (whose recipe has nothing to do here):
        templates: texts with one ``{}`` each, where a class word goes.
        words: what stands for real and for fake.
    """

    name: ClassVar[str] = "clip-zero-shot"
    presets: ClassVar = {"demo": Preset(NO_RECIPE), "paper": Preset(NO_RECIPE, True)}
    templates: tuple[str, ...] = TEMPLATES
    words: tuple[str, str] = CLASSES

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.templates or any(t.count("{}") != 1 for t in self.templates):
            raise ModelError(
                f"{self.name}: templates are {self.templates}, expected texts with one {{}} each"
            )
        if len(set(self.words)) != 2:
            raise ModelError(f"{self.name}: words are {self.words}, expected two, real's and fake's")

    def _fit(self, train: pd.DataFrame, validation: pd.DataFrame, progress: bool) -> None:
        side = TextSide.copy_of(self.backbone_)
        with torch.no_grad():
            means = [
                side.encode([t.replace("{}", word) for t in self.templates]).mean(0) for word in self.words
            ]
        self.adapter_, self.classifier_ = self._adapter(), normalize(torch.stack(means), dim=-1).cpu()
