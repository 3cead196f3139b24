"""What the detectors that compare CLIP's image embedding with texts have in common."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy, normalize, pad
from torch.utils.data import DataLoader

from ..data.loader import ImageDataset, Labelled, pixels, worker_count
from ..data.preprocess import IDENTITY, Normalisation
from ..errors import ModelError
from ..models.backbones import Backbone, load_backbone
from ..models.features import extract
from ..models.text_tower import TextSide
from ..models.training import Recipe, train
from ..paths import cache_dir
from .base import Detector

BATCH = 64  # embeddings scored at a time
PIXEL_BATCH = 16  # images validated at a time
PAPER_BACKBONE = "clip-vit-l14"


@dataclass(frozen=True)
class Preset:
    """A recipe, and whether all around it is as published too.

    ``published``: the file's own pixels, a fresh random crop and mirroring at each step, an unweighted loss, the last
    epoch. Else: normalised pixels as they are, both classes weigh the same, the epoch that is best on validation.
    """

    recipe: Recipe
    published: bool = False

    @property
    def normalisation(self) -> Normalisation:
        """Of all images, where the config does not say."""
        return IDENTITY if self.published else Normalisation()

    def settings(self) -> dict[str, object]:
        """What stands around the recipe, for `explain`."""
        if not self.published:
            return {
                "augmentation": "none",
                "loss": "cross-entropy, balanced",
                "kept epoch": "best on validation",
            }
        views = "random crop of .08 to 1 of the area, flip, drawn anew at each step"
        return {"augmentation": views, "loss": "cross-entropy", "kept epoch": "last"}


def published_recipe(**changes: Any) -> Recipe:
    """CLIPping the Deception's recipe for prompt and adapter (Khan and Dang-Nguyen, 2024), with ``changes``."""
    recipe = Recipe(lr=2e-3, epochs=2, batch_size=16, optimizer="sgd", weight_decay=5e-4, seed=17)
    recipe = replace(recipe, schedule="constant", warmup="constant", warmup_epochs=1, warmup_lr=1e-5)
    return replace(recipe, **changes)


# Few-shot training (16 real and 16 fake images of each of 20 categories) never leaves the warm-up's rate.
FEW_SHOT = Preset(published_recipe(lr=1e-5, epochs=20, warmup_epochs=0), True)
PUBLISHED = {"paper": Preset(published_recipe(), True), "few-shot": FEW_SHOT}
_CONFIG = "configs/trainers/CoOp/vit_l14_ep2.yaml (few-shot: ep20, fine-tuning: ep1)"
# Setting -> where its published value stands, in the authors' repository.
SOURCES = dict.fromkeys(
    ("optimizer", "lr", "schedule", "warmup", "warmup_epochs", "warmup_lr"), f"{_CONFIG}: OPTIM"
)
SOURCES |= dict.fromkeys(("momentum", "weight_decay"), "Dassl's defaults") | {
    "epochs": f"README, {_CONFIG}",
    "batch_size": f"{_CONFIG}: DATALOADER",
    "seed": "README: --seed 17",
    "backbone": f"{_CONFIG}: MODEL",
    "normalisation": f"{_CONFIG}: INPUT; bicubic 224, centre crop and CLIP's statistics are the backbone's",
    "augmentation": f"{_CONFIG}: INPUT.TRANSFORMS, of which compress_blur does nothing",
    "loss": "trainers/*.py: F.cross_entropy",
    "kept epoch": "Dassl's default, last_step",
}
# Setting -> how the preset `paper` still differs from the original.
DIFFERENCES = {
    "batch_size": "Dassl drops an epoch's last batch where it is not full",
    "normalisation": "the centre crop rounds down where torchvision rounds to even: a pixel, where sides are odd",
}


def explain(
    own: dict[str, object], published: dict[str, object], sources: dict[str, str], differences: dict[str, str]
) -> pd.DataFrame:
    """Where the settings of a fit come from.

    Args:
        own, published: setting -> value of this fit, and of the published one.
        sources: setting -> where the published value stands.
        differences: setting -> how even the published one differs from the original.
    Returns:
        A row a setting: ``setting``, ``value``, ``source``, ``differs`` (empty where ours is the original's).
    """
    rows = []
    for setting, value in own.items():
        if setting in published and value == published[setting]:
            source, differs = sources.get(setting, "our choice"), differences.get(setting, "")
        else:
            source, differs = "our choice", f"published: {published.get(setting, 'not there')}"
        rows.append((setting, str(value), source, differs))
    return pd.DataFrame(rows, columns=["setting", "value", "source", "differs"])


def image_set(
    frame: pd.DataFrame, backbone: Backbone, normalisation: Normalisation, preset: Preset, seed: int
) -> Labelled:
    """Rows as pixels to train on, with the views and the weights that the preset wants."""
    size = backbone.image_size if preset.published else 0
    images = ImageDataset(frame, normalisation, view_size=size, seed=seed, transform=backbone.preprocess)
    return Labelled(frame, images, weighted=not preset.published)


def fit_logits(
    model: nn.Module,
    train_set: Labelled,
    validation: Labelled | None,
    recipe: Recipe,
    *,
    checkpoint: Path | None = None,
    num_workers: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Train what requires a gradient in ``model``, inputs -> logits (b, 2), on the weighted cross-entropy.

    Args:
        validation: the epoch with the smallest loss on it stays; without it, the last one.
        checkpoint, num_workers: see `afp.models.training.train`; a finished fit's checkpoint is deleted.
    Returns:
        `afp.models.training.train`'s history.
    """

    def loss(model: nn.Module, batch: tuple) -> torch.Tensor:
        inputs, labels, weights = batch
        inputs = inputs if isinstance(inputs, torch.Tensor) else pixels(inputs)
        device = next(model.parameters()).device
        found = cross_entropy(model(inputs.to(device)), labels.to(device), reduction="none")
        return (found * weights.to(device)).mean()

    def validate(model: nn.Module) -> float:
        batches = DataLoader(validation, size, num_workers=num_workers)
        return -sum(loss(model, b).item() * len(b[1]) for b in batches) / len(validation)

    size = 0 if validation is None else len(validation)
    if validation is not None and isinstance(validation.inputs, ImageDataset):
        size = PIXEL_BATCH
    history = train(
        model,
        train_set,
        loss,
        recipe,
        validate=validate if size and recipe.epochs > 1 else None,  # one epoch leaves nothing to choose
        checkpoint=checkpoint,
        num_workers=num_workers,
        progress=progress,
    )
    if checkpoint is not None:
        shutil.rmtree(checkpoint, ignore_errors=True)
    return history


class OnPixels(nn.Module):
    """A head behind a frozen tower: pixels (b, 3, h, w) -> what the head makes of the embeddings (b, P)."""

    def __init__(self, backbone: Backbone, head: nn.Module):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.backbone.extract(images, ("embedding",))["embedding"]
        return self.head(
            found.to(images.device).clone()
        )  # a copy: autograd takes nothing from inference mode


class Head(nn.Module):
    """Image embeddings (b, P) -> logits (b, 2): adapted, then compared with the text of each class.

    Args:
        adapter: of the embeddings, (b, P) -> (b, P).
        texts: normalised text embeddings (2, P), called without arguments.
        scale: CLIP's, of the similarities.
    """

    def __init__(self, adapter: nn.Module, texts: nn.Module, scale: float):
        super().__init__()
        self.adapter, self.texts, self.scale = adapter, texts, scale

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        return self.scale * normalize(self.adapter(embeddings), dim=-1) @ self.texts().T


class Constant(nn.Module):
    """A tensor that stands where a module computes one."""

    def __init__(self, value: torch.Tensor):
        super().__init__()
        self.value = nn.Buffer(value)

    def forward(self) -> torch.Tensor:
        return self.value


@dataclass
class ClipDetector(Detector):
    """P(fake) is the softmax over CLIP's similarity (times its logit scale) to a text of each class.

    Args:
        backbone: ``demo-clip`` (its text tower is a stand-in: see `afp.demo.text`), ``clip-vit-l14``, any hub name
            or folder of a CLIP model or a vision-text dual encoder.
        preset: ``demo``, what fits two cores; ``paper``, all as in CLIPping the Deception (see `explain_recipe`);
            ``few-shot``, its setting of 320 images a class.
        seed, epochs, lr, batch_size: override the preset's.
    """

    presets: ClassVar[dict[str, Preset]]
    sources: ClassVar[dict[str, str]] = SOURCES
    differences: ClassVar[dict[str, str]] = DIFFERENCES
    backbone: str = "demo-clip"
    preset: str = "demo"
    seed: int | None = None
    epochs: int | None = None
    lr: float | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.preset not in self.presets:
            raise ModelError(f"{self.name}: preset is {self.preset!r}, expected one of {tuple(self.presets)}")
        super().__post_init__()
        self.recipe()

    def default_normalisation(self) -> Normalisation:
        """The preset's."""
        return self.presets[self.preset].normalisation

    def recipe(self) -> Recipe:
        """The preset's recipe with this detector's overrides. Raises ValueError naming a wrong one."""
        own = {k: getattr(self, k) for k in ("seed", "epochs", "lr", "batch_size")}
        return replace(self.presets[self.preset].recipe, **{k: v for k, v in own.items() if v is not None})

    def settings(self) -> dict[str, object]:
        """Setting -> value of all that a fit depends on, but for its images."""
        own = {f.name: getattr(self, f.name) for f in fields(self)} | {
            "normalisation": self.normalisation.key
        }
        return own | asdict(self.recipe()) | self.presets[self.preset].settings()

    def explain_recipe(self) -> pd.DataFrame:
        """Where the settings come from, and where they differ from the published ones: see `explain`."""
        published = type(self)(backbone=PAPER_BACKBONE, preset="paper").settings()
        return explain(self.settings(), published, self.sources, self.differences)

    @property
    def backbone_(self) -> Backbone:
        """The frozen model, loaded once a process."""
        return load_backbone(self.backbone)

    def texts(self) -> list[str]:
        """The text of each class, in the order of the labels."""
        raise NotImplementedError

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Scaled similarities to both classes' texts, float64, with a gradient: embeddings (n, P) -> (n, 2)."""
        classifier, adapter = self.classifier_.to(features.device), self.adapter_.to(features.device)
        # Padded to one shape: matrix kernels round by shape, so a score would depend on its batch.
        batches = pad(features, (0, 0, 0, -len(features) % BATCH)).split(BATCH)
        adapted = torch.cat([adapter(batch) for batch in batches])[: len(features)]
        # Not `@`, for the same reason.
        return self._scale() * (normalize(adapted.double(), dim=-1)[:, None] * classifier.double()).sum(-1)

    def checkpoint_folder(self, train_rows: pd.DataFrame) -> Path:
        """Where a fit on these rows' pixels leaves its checkpoints: it goes on from them, and deletes them at its end."""
        content = json.dumps([self.name, self.config()], sort_keys=True)
        content += "".join(train_rows["sha256"] + train_rows["label"].astype(str))
        return cache_dir() / "checkpoints" / hashlib.sha256(content.encode()).hexdigest()[:16]

    def _adapter(self) -> nn.Module:
        """What stands between image embedding (b, P) and comparison; as it is before training."""
        return nn.Identity()

    def _text_module(self) -> nn.Module:
        """Gives the normalised embeddings of both classes' texts (2, P); as it is before training."""
        with torch.inference_mode():
            embeddings = TextSide.copy_of(self.backbone_).encode(self.texts())
        return Constant(embeddings.cpu().clone())

    def _fit(self, train: pd.DataFrame, validation: pd.DataFrame, progress: bool) -> None:
        texts, recipe, preset = self._text_module(), self.recipe(), self.presets[self.preset]
        torch.manual_seed(recipe.seed)
        head = Head(self._adapter(), texts, self._scale())
        if preset.published:
            data = image_set(train, self.backbone_, self.normalisation, preset, recipe.seed)
            options: dict[str, Any] = {"checkpoint": self.checkpoint_folder(train), "progress": progress}
            workers = worker_count(self.backbone_.device)
            model = OnPixels(self.backbone_, head)
            self.history_ = fit_logits(model, data, None, recipe, num_workers=workers, **options)
        else:
            sets = [Labelled(f, self._embeddings(f, "none", progress)) for f in (train, validation)]
            self.history_ = fit_logits(head, *sets, recipe, progress=progress)
        self.adapter_ = head.adapter.requires_grad_(False)
        with torch.inference_mode():
            self.classifier_ = texts().cpu().clone()

    def _score(self, frame: pd.DataFrame, perturbation: str, progress: bool) -> np.ndarray:
        features = self._embeddings(frame, perturbation, progress)
        return self.logits(features).softmax(-1)[:, 1].cpu().numpy()

    def _scale(self) -> float:
        return float(self.backbone_.model.logit_scale.exp())

    def _embeddings(self, frame: pd.DataFrame, perturbation: str, progress: bool) -> torch.Tensor:
        """Image embeddings, not normalised: (n, P)."""
        options: dict[str, Any] = {"normalisation": self.normalisation, "perturbation": perturbation}
        return torch.from_numpy(extract(frame, self.backbone_, "embedding", progress=progress, **options))

    def _save(self, folder: Path) -> None:
        state = {k: v.cpu().contiguous() for k, v in self.adapter_.state_dict().items()}
        save_file(state | {"classifier": self.classifier_}, folder / "model.safetensors")

    def _load(self, folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        self.classifier_ = state.pop("classifier")
        self.adapter_ = self._adapter().requires_grad_(False)
        self.adapter_.load_state_dict(state)
