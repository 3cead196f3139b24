"""``clip-finetune``: all of CLIP is trained, both towers, on pixels."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

from ..data.preprocess import prepare, random_view
from ..models.backbones import Backbone, load_backbone
from ..models.text_tower import CLASSES, TextSide, check_text
from ..models.training import Recipe, train
from ..paths import cache_dir
from .clip import ClipDetector, Preset, Views, paper_recipe

TEXTS = [f"a {word} photo." for word in CLASSES]
BATCH = 16


@dataclass
class ClipFinetune(ClipDetector):
    """Every parameter of CLIP follows the gradient (CLIPping the Deception, section 3.1).

    The forward pass runs in the backbone's dtype, the weights are trained in float32. Training shows its progress
    and leaves a checkpoint after each epoch; a fit that was stopped goes on from there. A run holds the tuned model
    as a transformers folder, ``model``, that serves as a ``backbone`` like any other.

    Args: `ClipDetector`'s; ``n_views`` above 0 means that every step draws a new random crop.
    """

    name: ClassVar[str] = "clip-finetune"
    presets: ClassVar = {
        "demo": Preset(Recipe(lr=1e-5, epochs=1, batch_size=8, weight_decay=0.01), 0),
        "paper": Preset(paper_recipe(lr=1e-5, epochs=1, warmup_epochs=0), 1),
    }

    @property
    def backbone_(self) -> Backbone:
        """The tuned backbone once there is one."""
        return self.__dict__.get("tuned_") or load_backbone(self.backbone)

    @property
    def n_trainable(self) -> int:
        """All of the backbone."""
        check_text(self.backbone_)
        return sum(p.numel() for p in self.backbone_.model.parameters())

    def checkpoint_folder(self, train_rows: pd.DataFrame) -> Path:
        """Where a fit on these rows leaves its checkpoints: it goes on from them, and deletes them at its end."""
        content = json.dumps(self.config(), sort_keys=True) + "".join(train_rows["sha256"])
        return cache_dir() / "checkpoints" / hashlib.sha256(content.encode()).hexdigest()[:16]

    def _fit(self, train_rows: pd.DataFrame, validation: pd.DataFrame, progress: bool) -> None:
        self.__dict__.pop("tuned_", None)
        frozen, recipe = self.backbone_, self.recipe()
        check_text(frozen)
        n_views = self.presets[self.preset].n_views if self.n_views is None else self.n_views
        pixels = _Pixels(train_rows, frozen, self, augment=n_views > 0)
        seen = _Pixels(validation, frozen, self, augment=False)
        model = _Whole(copy.deepcopy(frozen.model).float().requires_grad_(True), frozen)

        def loss(model: nn.Module, batch) -> torch.Tensor:
            images, labels, weights = batch
            return (cross_entropy(model(images), labels, reduction="none") * weights).mean()

        def validate(model: nn.Module) -> float:
            batches = [[part.to(frozen.device) for part in batch] for batch in DataLoader(seen, BATCH)]
            return -sum(loss(model, b).item() * len(b[1]) for b in batches) / len(seen)

        folder = self.checkpoint_folder(train_rows)
        chosen = validate if recipe.epochs > 1 else None  # one epoch leaves nothing to choose
        self.history_ = train(
            model, pixels, loss, recipe, validate=chosen, checkpoint=folder, progress=progress
        )
        shutil.rmtree(folder, ignore_errors=True)
        tuned = model.model.to(frozen.dtype).requires_grad_(False).eval()
        self._settle(replace(frozen, name=f"{frozen.name}, tuned", model=tuned))

    def _settle(self, tuned: Backbone) -> None:
        self.tuned_ = tuned
        with torch.inference_mode():
            self.classifier_ = TextSide.copy_of(tuned).encode(TEXTS).cpu().clone()

    def _save(self, folder: Path) -> None:
        for part in (self.tuned_.model, self.tuned_.image_processor, self.tuned_.tokenizer):
            part.save_pretrained(str(folder / "model"))

    def _load(self, folder: Path) -> None:
        if not (folder / "model" / "config.json").is_file():
            raise FileNotFoundError(errno.ENOENT, "no model", str(folder / "model"))
        base = load_backbone(self.backbone)
        model = type(base.model).from_pretrained(
            str(folder / "model"), dtype=base.dtype, use_safetensors=True
        )
        model.requires_grad_(False).eval().to(base.device)
        self._settle(replace(base, name=f"{base.name}, tuned", model=model))


class _Whole(nn.Module):
    """Pixels (b, 3, h, w) -> logits (b, 2), through both towers."""

    def __init__(self, model: PreTrainedModel, frozen: Backbone):
        super().__init__()
        self.model, self.dtype = model, frozen.dtype
        self.side = TextSide(model.text_model, model.text_projection, frozen.tokenizer)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        half = self.dtype != torch.float32
        with torch.autocast(pixels.device.type, self.dtype if half else torch.bfloat16, enabled=half):
            pooled = self.model.vision_model(pixel_values=pixels).pooler_output
            images, texts = self.model.visual_projection(pooled), self.side.encode(TEXTS)
        return self.model.logit_scale.exp() * normalize(images.float(), dim=-1) @ texts.float().T


class _Pixels(Dataset):
    """(pixels, label, weight) of each row, read anew each time."""

    def __init__(self, frame: pd.DataFrame, backbone: Backbone, detector: ClipFinetune, augment: bool):
        self.rows = list(zip(frame["file"], frame["sha256"], strict=True))
        self.labels = Views(torch.empty(1, len(frame), 0), frame["label"].to_numpy())
        self.backbone, self.normalisation, self.augment = backbone, detector.normalisation, augment

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        image = prepare(*self.rows[i], self.normalisation)
        if self.augment:
            image = random_view(image, self.backbone.vision_config.image_size, int(torch.randint(2**62, ())))
        return (self.backbone.preprocess([image])[0], *self.labels[i][1:])
