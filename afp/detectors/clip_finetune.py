"""``clip-finetune``: all of CLIP is trained, both towers, on pixels."""

from __future__ import annotations

import copy
import errno
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import nn
from torch.nn.functional import normalize

from ..models.backbones import Backbone, DualModel, read_weights
from ..models.text_tower import CLASSES, TextSide, check_text
from ..models.training import Recipe
from .clip import DIFFERENCES, FEW_SHOT, PUBLISHED_RECIPE, ClipDetector, Preset


@dataclass
class ClipFinetune(ClipDetector):
    """Every parameter of CLIP follows the gradient (CLIPping the Deception, section 3.1).

    Weights are trained, kept and used in float32: bfloat16 would lose most of what a rate of 1e-5 teaches. Training
    leaves a checkpoint; a fit that was stopped goes on from there. A run holds the tuned model as a transformers
    folder, ``model``, that serves as a ``backbone`` like any other.
    """

    name: ClassVar[str] = "clip-finetune"
    trains_on: ClassVar[bool] = True
    dtypes: ClassVar = ("auto", "float32")
    precision: ClassVar = "float32"
    differences: ClassVar = {k: v for k, v in DIFFERENCES.items() if k != "precision"}
    presets: ClassVar = {
        "demo": Preset(Recipe(lr=1e-5, epochs=1, batch_size=8, weight_decay=0.01)),
        "paper": Preset(replace(PUBLISHED_RECIPE, lr=1e-5, epochs=1, warmup_epochs=0), True),
        "few-shot": FEW_SHOT,
    }

    @property
    def backbone_(self) -> Backbone:
        """The tuned backbone once there is one."""
        return self.__dict__.get("tuned_") or self._frozen(dtype="float32")

    @property
    def n_trainable(self) -> int:
        """All of the backbone."""
        check_text(self.backbone_)
        return sum(p.numel() for p in self.backbone_.model.parameters())

    def texts(self) -> list[str]:
        """The text of each class, in the order of the labels."""
        return [f"a {word} photo." for word in CLASSES]

    def _trainable(self, model: DualModel) -> DualModel:
        """The model, frozen and in float32, with what is trained."""
        return model.requires_grad_(True)

    def _warm_up(self, frame: pd.DataFrame, progress: bool) -> None:
        """Nothing is frozen."""

    def _fit(self, train: pd.DataFrame, validation: pd.DataFrame, progress: bool) -> None:
        self.__dict__.pop("tuned_", None)
        frozen = self.backbone_
        check_text(frozen)
        torch.manual_seed(self.recipe().seed)
        model = self._trainable(self._read(self.start_) if self.start_ else copy.deepcopy(frozen.model))
        self._train_on_pixels(BothTowers(model, frozen, self.texts()), train, validation, progress)
        self._tuned(frozen, model)

    def _tuned(self, frozen: Backbone, model: DualModel) -> None:
        model.requires_grad_(False).eval().to(frozen.device)
        self.tuned_ = replace(frozen, name=f"{frozen.name}, tuned", model=model)
        self._settle(self._adapter(), self._text_module())

    def _save(self, folder: Path) -> None:
        parts: list[Any] = [self.tuned_.model, self.tuned_.image_processor, self.tuned_.tokenizer]
        for part in parts:
            part.save_pretrained(str(folder / "model"))

    def _load(self, folder: Path) -> None:
        self._tuned(self._frozen(dtype="float32"), self._read(folder))

    def _read(self, folder: Path) -> DualModel:
        """The tuned model in a run."""
        source, base = folder / "model", self._frozen(dtype="float32")
        if not (source / "config.json").is_file():
            raise FileNotFoundError(errno.ENOENT, "no model", str(source))
        where = {"pretrained_model_name_or_path": str(source), "trust_remote_code": False}
        return read_weights(type(base.model), str(source), dtype=torch.float32, **where)


class BothTowers(nn.Module):
    """Pixels (b, 3, h, w) -> logits (b, 2), through both towers."""

    def __init__(self, model: DualModel, frozen: Backbone, texts: list[str]):
        super().__init__()
        self.model, self.texts = model, texts
        self.side = TextSide(model.text_model, model.text_projection, frozen.tokenizer)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pooled = self.model.vision_model(pixel_values=images).pooler_output
        seen, texts = self.model.visual_projection(pooled), self.side.encode(self.texts)
        return self.model.logit_scale.exp() * normalize(seen, dim=-1) @ texts.T
