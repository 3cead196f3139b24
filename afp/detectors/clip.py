"""What the detectors that compare CLIP's image embedding with texts have in common."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy, normalize, pad

from ..data.loader import ImageDataset, Labelled, inputs, worker_count
from ..data.preprocess import IDENTITY, Normalisation, random_view
from ..errors import ModelError
from ..models.backbones import Backbone, load_backbone
from ..models.features import Features, open_features
from ..models.text_tower import TextSide
from ..models.training import Recipe, train
from .base import Detector

BATCH = 64  # embeddings scored at a time


@dataclass(frozen=True)
class Preset:
    """A recipe, and whether all around it is as published too.

    ``published``: the file's own pixels, a fresh random crop and flip at each step, an unweighted loss, the last
    epoch. Else: normalised pixels as they are, both classes weigh the same, the epoch that is best on validation.
    """

    recipe: Recipe
    published: bool = False


# CLIPping the Deception's, for prompt and adapter (Khan and Dang-Nguyen, 2024).
PUBLISHED_RECIPE = Recipe(
    lr=2e-3,
    epochs=2,
    batch_size=16,
    optimizer="sgd",
    weight_decay=5e-4,
    seed=17,
    schedule="constant",
    warmup="constant",
    warmup_epochs=1,
    warmup_lr=1e-5,
)
# Few-shot training, on 320 images a class, never leaves the warm-up's rate.
FEW_SHOT = Preset(replace(PUBLISHED_RECIPE, lr=1e-5, epochs=20, warmup_epochs=0), True)
PUBLISHED = {"paper": Preset(PUBLISHED_RECIPE, True), "few-shot": FEW_SHOT}
_CONFIG = "configs/trainers/CoOp/vit_l14_ep2.yaml (few-shot: ep20, fine-tuning: ep1)"
# Setting -> where its published value stands, in the authors' repository.
SOURCES = {
    **dict.fromkeys(
        ("optimizer", "lr", "schedule", "warmup", "warmup_epochs", "warmup_lr"), f"{_CONFIG}: OPTIM"
    ),
    **dict.fromkeys(("momentum", "weight_decay"), "Dassl's defaults"),
    "epochs": f"README, {_CONFIG}: OPTIM",
    "batch_size": f"{_CONFIG}: DATALOADER",
    "seed": "README: --seed 17",
    "backbone": f"{_CONFIG}: MODEL",
    "normalisation": f"{_CONFIG}: INPUT (bicubic 224, centre crop and CLIP's statistics come with the backbone)",
    "augmentation": f"{_CONFIG}: INPUT.TRANSFORMS, of which compress_blur does nothing",
    "loss": "trainers/*.py: F.cross_entropy",
    "precision": "trainers/*.py: float32, but the prompt's float16",
    "kept epoch": "Dassl's default, last_step",
}
# Setting -> how even the preset `paper` differs from the original.
DIFFERENCES = {
    "precision": "float32, but the prompt's float16",
    "batch_size": "Dassl leaves out an epoch's last batch where it is not full",
    "normalisation": "the centre crop rounds down, torchvision's to even: one pixel, where the rest is odd",
}


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
        texts: gives the normalised text embeddings (2, P), called without arguments.
        scale: CLIP's, of the similarities.
    """

    def __init__(self, adapter: nn.Module, texts: nn.Module, scale: float):
        super().__init__()
        self.adapter, self.texts, self.scale = adapter, texts, scale

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        return self.scale * normalize(self.adapter(embeddings), dim=-1) @ self.texts().T


class Texts(nn.Module):
    """Normalised embeddings (n, P) of texts: encoded at each call if pseudo-words in them are trained, else once."""

    def __init__(self, side: TextSide, texts: list[str], trained: bool = False):
        super().__init__()
        self.texts, self.side = texts, side if trained else None
        if not trained:
            with torch.no_grad():
                self.embeddings = nn.Buffer(side.encode(texts))

    def forward(self) -> torch.Tensor:
        return self.embeddings if self.side is None else self.side.encode(self.texts)


@dataclass
class TowerDetector(Detector):
    """A detector on CLIP's image tower that has presets, trained by gradient descent in at least one of them.

    Args:
        backbone: ``demo-clip`` (its text tower is a stand-in: see `afp.demo.text`), ``clip-vit-l14``, any hub name
            or folder of a CLIP model or a vision-text dual encoder.
        preset: ``demo``, what fits two cores; ``paper``, all as in CLIPping the Deception (see `explain_recipe`);
            ``few-shot``, its setting of 320 images a class.
        seed, epochs, lr, batch_size: override the preset's.
        dtype: of the frozen tower's features: ``float32``, ``bfloat16``, ``float16``, ``int8``, or ``auto`` (see
            `afp.models.backbones.load_backbone`). Heads, texts and gradients are float32.
    """

    presets: ClassVar[dict[str, Preset]]
    sources: ClassVar[dict[str, str]] = SOURCES
    differences: ClassVar[dict[str, str]] = DIFFERENCES
    dtypes: ClassVar[tuple[str, ...]] = ("auto", "float32", "bfloat16", "float16", "int8")
    precision: ClassVar[str] = "image tower bfloat16 on a GPU that has it, else float32; the rest float32"
    backbone: str = "demo-clip"
    preset: str = "demo"
    seed: int | None = None
    epochs: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if self.preset not in tuple(self.presets):  # it may be of any type here
            raise ModelError(f"{self.name}: preset is {self.preset!r}, expected one of {tuple(self.presets)}")
        super().__post_init__()
        self.recipe()
        if self.dtype not in self.dtypes:
            raise ModelError(f"{self.name}: dtype is {self.dtype!r}, expected one of {self.dtypes}")

    @property
    def backbone_(self) -> Backbone:
        """The frozen model, loaded once a process."""
        return self._frozen(dtype=self.dtype)

    def _frozen(self, **options: Any) -> Backbone:
        """The frozen model as `load_backbone` takes it; ModelError where it is not the one of the run."""
        backbone = load_backbone(self.backbone, **options)
        self._check_weights()
        return backbone

    @property
    def published(self) -> bool:
        """Whether the preset is a published one: see `Preset`."""
        return self.presets[self.preset].published

    def default_normalisation(self) -> Normalisation:
        """The file's own pixels for a published preset."""
        return IDENTITY if self.published else Normalisation()

    def recipe(self) -> Recipe:
        """The preset's recipe with this detector's overrides. Raises ValueError naming a wrong one."""
        own = {k: getattr(self, k) for k in ("seed", "epochs", "lr", "batch_size")}
        return replace(self.presets[self.preset].recipe, **{k: v for k, v in own.items() if v is not None})

    def settings(self) -> dict[str, object]:
        """Setting -> value of all that a fit depends on, but for its images."""
        own = {f.name: getattr(self, f.name) for f in fields(self)} | asdict(self.recipe())
        dtype = own.pop("dtype")
        own["precision"] = self.precision if dtype == "auto" else f"image tower {dtype}, the rest float32"
        own |= {"augmentation": "none", "loss": "cross-entropy, balanced", "kept epoch": "best on validation"}
        if self.published:
            views = "random crop of .08 to 1 of the area and flip, drawn anew at each step"
            own |= {"augmentation": views, "loss": "cross-entropy", "kept epoch": "last"}
        return own | {"normalisation": self.normalisation.key}

    def explain_recipe(self) -> pd.DataFrame:
        """Where the settings come from, and where they differ from the published ones.

        Returns:
            A row a setting: ``setting``, ``value``, ``source``, ``differs`` (empty where ours is the original's).
        """
        rows, published = [], type(self)(backbone="clip-vit-l14", preset="paper").settings()
        for setting, value in self.settings().items():
            source, differs = self.sources.get(setting, "our choice"), self.differences.get(setting, "")
            if value != published.get(setting):
                source, differs = "our choice", f"published: {published.get(setting, 'not there')}"
            rows.append((setting, str(value), source, differs))
        return pd.DataFrame(rows, columns=["setting", "value", "source", "differs"])

    def _features(
        self, frame: pd.DataFrame, perturbation: str, progress: bool, output: str = "embedding"
    ) -> Features:
        """What the frozen tower makes of each row: image embeddings, not normalised (n, P), or another output."""
        options: dict[str, Any] = {"normalisation": self.normalisation, "perturbation": perturbation}
        return open_features(frame, self.backbone_, output, progress=progress, **options)

    def _warm_up(self, frame: pd.DataFrame, progress: bool) -> None:
        if not self.published:
            self._features(frame, "none", progress)

    def _pixels(self, frame: pd.DataFrame) -> Labelled:
        """Rows as the tower's input, with views and weights as the preset wants them."""
        tower = self.backbone_
        options: dict[str, Any] = {}
        if self.published:
            options = {"view": partial(random_view, size=tower.image_size), "seed": self.recipe().seed}
        images = ImageDataset(frame, self.normalisation, transform=tower.preprocess, **options)
        return Labelled(frame, images, weighted=not self.published)

    def _train_head(
        self, head: nn.Module, train: pd.DataFrame, validation: pd.DataFrame, progress: bool
    ) -> None:
        """Train a module, embeddings (b, P) -> logits (b, 2): on cached ones, or on those of fresh random views."""
        if self.published:
            self._train_on_pixels(OnPixels(self.backbone_, head), train, validation, progress)
        else:
            train_set, known = (Labelled(f, self._features(f, "none", progress)) for f in (train, validation))
            self._train(head, train_set, known, progress)

    def _train_on_pixels(
        self, model: nn.Module, train: pd.DataFrame, validation: pd.DataFrame, progress: bool
    ) -> None:
        """Train a module, pixels (b, 3, h, w) -> logits (b, 2)."""
        self._train(model, self._pixels(train), self._pixels(validation), progress)

    def _train(self, model: nn.Module, train_set: Labelled, validation: Labelled, progress: bool) -> None:
        def loss(model: nn.Module, batch: tuple) -> tuple[torch.Tensor, float]:
            device = next(model.parameters()).device
            seen, labels, weights = inputs(batch[0]).to(device), batch[1].to(device), batch[2].to(device)
            return (cross_entropy(model(seen), labels, reduction="none") * weights).sum(), len(labels)

        last = self.published or self.recipe().epochs == 1  # one epoch leaves nothing to choose
        self.history_ = train(
            model,
            train_set,
            loss,
            self.recipe(),
            validation=None if last else validation,
            checkpoint=self.checkpoint_,
            num_workers=worker_count(train_set, self.backbone_.device),
            progress=progress,
        )


@dataclass
class ClipDetector(TowerDetector):
    """P(fake) is the softmax over CLIP's similarity (times its logit scale) to a text of each class."""

    def texts(self) -> list[str]:
        """The text of each class, in the order of the labels."""
        raise NotImplementedError

    @property
    def n_trainable(self) -> int:
        """Numbers of the adapter, if there is one."""
        return sum(p.numel() for p in self._adapter().parameters())

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Scaled similarities to both classes' texts, float64, with a gradient: embeddings (n, P) -> (n, 2)."""
        classifier, adapter = self.classifier_.to(features.device), self.adapter_.to(features.device)
        # Padded to one shape: matrix kernels round by shape, so a score would depend on its batch.
        batches = pad(features, (0, 0, 0, -len(features) % BATCH)).split(BATCH)
        adapted = torch.cat([adapter(batch) for batch in batches])[: len(features)]
        # Not `@`, for the same reason.
        return self._scale() * (normalize(adapted.double(), dim=-1)[:, None] * classifier.double()).sum(-1)

    def _adapter(self) -> nn.Module:
        """What stands between image embedding (b, P) and comparison; as it is before training."""
        return nn.Identity()

    def _text_module(self) -> Texts:
        """The embeddings of both classes' texts; as they are before training."""
        return Texts(TextSide.copy_of(self.backbone_), self.texts())

    def _scale(self) -> float:
        return float(self.backbone_.model.logit_scale.exp())

    def _fit(self, train: pd.DataFrame, validation: pd.DataFrame, progress: bool) -> None:
        texts = self._text_module()
        torch.manual_seed(self.recipe().seed)
        head = Head(self._adapter(), texts, self._scale())
        if self.start_:
            head.adapter.load_state_dict(self._read_state(self.start_)[0])
        self._train_head(head, train, validation, progress)
        self._settle(head.adapter, texts)

    @torch.no_grad()
    def _settle(self, adapter: nn.Module, texts: Texts) -> None:
        self.adapter_, self.classifier_ = adapter.requires_grad_(False), texts().cpu().clone()

    def _score(self, frame: pd.DataFrame, perturbation: str, progress: bool) -> np.ndarray:
        features = torch.from_numpy(np.asarray(self._features(frame, perturbation, progress)))
        return self.logits(features).softmax(-1)[:, 1].cpu().numpy()

    def _save(self, folder: Path) -> None:
        state = {k: v.cpu().contiguous() for k, v in self.adapter_.state_dict().items()}
        save_file(state | {"classifier": self.classifier_}, folder / "model.safetensors")

    def _load(self, folder: Path) -> None:
        state, self.classifier_ = self._read_state(folder)
        self.adapter_ = self._adapter().requires_grad_(False)
        self.adapter_.load_state_dict(state)

    @staticmethod
    def _read_state(folder: Path) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """A run's adapter and classifier."""
        state = load_file(folder / "model.safetensors")
        classifier = state.pop("classifier")
        return state, classifier
