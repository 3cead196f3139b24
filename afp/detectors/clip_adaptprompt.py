"""``clip-adaptprompt``: prompt and adapter, trained together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field

from ..errors import ModelError
from ..models.backbones import Backbone
from ..models.training import Recipe
from .clip import FEW_SHOT, PUBLISHED_RECIPE, SOURCES, Preset
from .clip_adapter import AdaptedClip
from .clip_prompt import ClipPrompt

READ = ("class_position", "per_class", "init", "ratio", "drop_blocks", "epochs", "schedule")


@dataclass
class ClipAdaptPrompt(AdaptedClip, ClipPrompt):
    """AdaptPrompt (Jiang et al., arXiv 2512.17730): a context for each class and a bottleneck under one loss.

    Stated by the abstract: CLIP is frozen, both are trained together, and cutting the last block of the image tower
    helps. The method section could not be read. All else is the first author's development code, which may differ
    from the paper: the bottleneck's output replaces the embedding (``ratio`` 1), the context stands before the class
    word, no full stop behind it. Unknown: the number of pseudo-words (16 is CLIPping the Deception's), the epochs
    (10 in the one configuration that could be read), what follows a cut block (here final norm and projection). Not
    taken over: positions past the text tower's length, a text that is read off before its class word, a cut of
    nothing.

    Args, besides `ClipPrompt`'s:
        ratio: share of the bottleneck's output; CLIP-Adapter's is .4.
        drop_blocks: last blocks of the image tower that are cut off; 1 is likely the paper's better variant.
    """

    name: ClassVar[str] = "clip-adaptprompt"
    presets: ClassVar = {
        "demo": Preset(Recipe(lr=3e-3, epochs=30, batch_size=72)),
        "paper": Preset(replace(PUBLISHED_RECIPE, epochs=10, schedule="cosine-epoch"), True),
        "few-shot": FEW_SHOT,
    }
    sources: ClassVar = SOURCES | dict.fromkeys(
        READ, "the first author's trainers/adapter_prompt.py and its config"
    )
    class_position: Literal["front", "middle", "end"] = "end"
    per_class: bool = True
    ratio: Annotated[float, Field(gt=0, le=1)] = 1.0
    drop_blocks: Annotated[int, Field(ge=0)] = 0

    @property
    def backbone_(self) -> Backbone:
        """The frozen model, without its last blocks."""
        return self._frozen(dtype=self.dtype, drop_blocks=self.drop_blocks)

    def texts(self) -> list[str]:
        """The text of each class, in the order of the labels."""
        return [text.removesuffix(".") for text in super().texts()]

    def _fit(self, train: pd.DataFrame, validation: pd.DataFrame, progress: bool) -> None:
        super()._fit(train, validation, progress)
        adapted = self.adapter_.cpu()(
            torch.from_numpy(np.asarray(self._features(validation, "none", progress)))
        )
        if empty := int((adapted == 0).all(1).sum()):  # behind a last ReLU nothing may be left
            raise ModelError(
                f"{self.name}: the adapter leaves nothing of {empty} of {len(adapted)} validation images;"
                " lower lr, or ratio"
            )
