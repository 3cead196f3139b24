"""What the three detectors that ask an InstructBLIP have in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.loader import ImageDataset, Labelled, inputs, worker_count
from ..data.preprocess import IDENTITY, Normalisation, check_perturbation
from ..errors import ModelError, UnreadableImages
from ..models import features
from ..models.backbones import best_device
from ..models.instructblip import DEMO, Encoded, Vlm, crop_square, load_vlm
from ..models.soft_prompts import adapter_folder, is_added, make_trainable, save_adapter
from ..models.training import Recipe, train
from ..paths import ROOT
from .base import Detector

BATCH = 32
TOWERS = ("qformer", "llm")
PAPER = "antifakeprompt"
# textinv_train.yaml. With `warmup_steps: 0`, LAVIS's schedule still takes its first step at `warmup_lr`.
PRESETS: dict[str, Recipe | None] = {
    "demo": None,  # each detector's `demo_recipe`
    PAPER: Recipe(
        lr=1e-5,
        epochs=10,
        batch_size=6,
        weight_decay=0.05,
        schedule="cosine-epoch",
        warmup_steps=1,
        warmup_lr=1e-8,
        seed=42,
    ),
}
# Mean and standard deviation of a checkpoint's training images: COCO + SD2 + SD2 inpainting, or with LaMa too.
STATISTICS = {
    "150k": ((0.4730, 0.4499, 0.4129), (0.2780, 0.2713, 0.2872)),
    "lama": ((0.4722, 0.4490, 0.4117), (0.2772, 0.2708, 0.2867)),
}
GRADIENT_SCALE = 2.0**12  # float16 would round small gradients to 0


class AnswerLosses(nn.Module):
    """A Vlm as a module whose forward is `Vlm.losses`: what is trained is called as a whole."""

    def __init__(self, vlm: Vlm):
        super().__init__()
        self.model, self.vlm = vlm.model, vlm

    def forward(self, tokens: torch.Tensor, texts: Encoded) -> torch.Tensor:
        return self.vlm.losses(tokens, texts)


@dataclass
class VlmDetector(Detector):
    """An InstructBLIP is asked a question; P(fake) comes from the answers that stand for real and for fake.

    Args:
        backbone: `demo-vlm`, `instructblip-vicuna-7b`, `instructblip-flan-t5-xl`, a hub name or a folder.
        revision: of a hub name: a branch, a tag or a commit.
        question: what is asked about every image.
        answers: what stands for real and for fake.
        answer_scoring: `logits`, one forward, softmax over the two answers' first token; `rank`, the
            original's `predict_class`, softmax over the probability of each whole answer, without an end token. For
            answers of one token both are the same.
        preset: `demo`, what fits two cores; `antifakeprompt`, the original's recipe, pixels, loss and precision
            (see `explain_recipe`).
        statistics: `150k` or `lama`, of the pixels that a checkpoint of AntifakePrompt was trained on; by default
            the preset's.
        seed, epochs, lr, batch_size: override the preset's.
        cache_tokens: keep the image tower's tokens on disk (InstructBLIP's take 0.7 MB an image), else run it in
            every epoch; by default as the preset. Images that are cropped at random are never cached.
        dtype, device_map, quantisation, gradient_checkpointing: see `afp.models.instructblip.load_vlm`. `auto` with
            `antifakeprompt` is `mixed` on a GPU.
    """

    demo_recipe: ClassVar[Recipe] = Recipe(lr=0.03, epochs=20, batch_size=72)
    backbone: str = DEMO
    question: str = "Is this photo real?"
    answers: tuple[str, str] = ("yes", "no")
    answer_scoring: Literal["logits", "rank"] = "logits"
    preset: Literal["demo", "antifakeprompt"] = "demo"
    seed: int | None = None
    epochs: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    cache_tokens: bool | None = None
    dtype: str = "auto"
    device_map: str | None = None
    quantisation: str | None = None
    gradient_checkpointing: bool = False
    statistics: Literal["150k", "lama"] | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.answers)) != 2:
            raise ModelError(
                f"{self.name}: answers are {self.answers!r}, expected two words, real's and fake's"
            )
        self.recipe()

    @property
    def is_paper(self) -> bool:
        """Whether pixels, loss and precision are the original's too, and not the recipe alone."""
        return self.preset == PAPER

    def default_normalisation(self) -> Normalisation:
        """None with the original's preset: its pixels come from the file itself."""
        return IDENTITY if self.is_paper else Normalisation()

    def recipe(self) -> Recipe:
        """The preset's recipe with this detector's overrides. Raises ValueError naming a wrong one."""
        preset = vars(PRESETS[self.preset] or self.demo_recipe)
        own = {k: getattr(self, k) for k in ("seed", "epochs", "lr", "batch_size")}
        return Recipe(**preset | {k: v for k, v in own.items() if v is not None})

    def explain_recipe(self) -> pd.DataFrame:
        """Every setting of a fit, beside that of AntifakePrompt's repository.

        Returns:
            `setting`, `value`, `source` (where the original has it) and `differs` (the original's value; empty if it
            is the same).
        """
        original = pd.read_csv(ROOT / "data" / "published" / "antifakeprompt_recipe.csv", dtype=str)
        own = {k: str(v) for k, v in vars(self.recipe()).items()} | {
            "question": self.texts()["llm"],
            "answers": " ".join(self.answers),
            "answer_scoring": self.answer_scoring,
            "statistics": self._statistics() or "the image processor's",
            "normalisation": self.normalisation.key,
            "pixels": "square of 224, random in training" if self.is_paper else "the image processor's",
            "loss": "mean of all tokens" if self.is_paper else "both classes weigh the same",
            "dtype": self._dtype(),
        }
        value = original["setting"].map(own)
        differs = ("original: " + original["value"]).where(value != original["value"], "")
        return original.assign(value=value, differs=differs)

    @cached_property
    def vlm_(self) -> Vlm:
        """The model, loaded when it is first needed."""
        statistics = self._statistics()
        vlm = load_vlm(
            self.backbone,
            dtype=self._dtype(),
            device_map=self.device_map,
            quantisation=self.quantisation,
            gradient_checkpointing=self.gradient_checkpointing,
            pixel_statistics=STATISTICS[statistics] if statistics else None,
            crop=self.is_paper,
            revision=self.revision,
        )
        self._check_weights()
        if self.answer_scoring == "logits":
            for answer in self.answers:
                vlm.answer_id(answer)
        return vlm

    def _statistics(self) -> str | None:
        return self.statistics or ("150k" if self.is_paper else None)

    def _dtype(self) -> str:
        on_gpu = best_device().type == "cuda"
        return "mixed" if self.dtype == "auto" and self.is_paper and on_gpu else self.dtype

    def texts(self) -> dict[str, str]:
        """What the language model (`llm`) and the Q-Former (`qformer`) are asked."""
        return dict.fromkeys(TOWERS, self.question)

    @property
    def trained_towers(self) -> tuple[str, ...]:
        """The towers of which something is trained: none."""
        return ()

    @cached_property
    def adapters_(self) -> dict[str, PeftModel]:
        """What is trained in each tower: fresh until `fit` or `load`."""
        return {tower: self._attach(tower) for tower in self.trained_towers}

    @property
    def n_trainable(self) -> int:
        """Numbers in the adapters."""
        named = (pair for adapter in self.adapters_.values() for pair in adapter.named_parameters())
        return sum(p.numel() for name, p in named if is_added(name))

    def _attach(self, tower: str) -> PeftModel:
        raise NotImplementedError

    def _restore(self, tower: str, folder: Path) -> PeftModel:
        raise NotImplementedError

    def _tower(self, tower: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        vlm = self.vlm_
        if tower == "qformer":
            return vlm.model.qformer, vlm.qformer_tokenizer
        return vlm.model.language_model, vlm.tokenizer

    def _forget(self) -> None:
        """Drop the model and what was attached to it: the next use starts from the frozen weights."""
        for name in ("vlm_", "adapters_"):
            self.__dict__.pop(name, None)

    def _fit(self, train: pd.DataFrame, validation: pd.DataFrame, progress: bool) -> None:
        if self.start_:
            self._load(self.start_)
            for adapter in self.adapters_.values():
                make_trainable(adapter)
        else:
            self._forget()
        if self.adapters_:  # attached here, before training looks for what requires a gradient
            self._train(train, validation, progress)

    def _save(self, folder: Path) -> None:
        for tower, adapter in self.adapters_.items():
            save_adapter(adapter, folder / f"adapter-{tower}")

    def _load(self, folder: Path) -> None:
        self._forget()
        self.adapters_ = {
            tower: self._restore(tower, adapter_folder(folder / f"adapter-{tower}"))
            for tower in self.trained_towers
        }

    def _encode(self, *answers: str, end: bool = True) -> Encoded:
        """The question once for each answer, or once alone."""
        n, texts = max(len(answers), 1), self.texts()
        asked = [texts["qformer"]] * n
        return self.vlm_.encode([texts["llm"]] * n, answers or None, qformer_questions=asked, end=end)

    def _warm_up(self, frame: pd.DataFrame, progress: bool) -> None:
        if self.trained_towers:
            self._images(frame, "none", progress, training=self.is_paper)

    def _images(
        self, frame: pd.DataFrame, perturbation: str, progress: bool, training: bool = False
    ) -> ImageDataset | features.Features:
        """Tokens (n, t, D) of the rows' images where they are cached, else pixels; random squares for `training`."""
        tower = self.vlm_.tower
        seen: dict[str, Any] = {"normalisation": self.normalisation, "perturbation": perturbation}
        options: dict[str, Any] = {}
        cached = not training and (not self.is_paper if self.cache_tokens is None else self.cache_tokens)
        if cached and features.fits(frame, tower, self.vlm_.output, **seen):
            return features.open_features(frame, tower, self.vlm_.output, progress=progress, **seen)
        if training:
            size = tower.vision_config.image_size
            options = {"view": partial(crop_square, size=size), "seed": self.recipe().seed}
        return ImageDataset(frame, self.normalisation, perturbation, transform=tower.preprocess, **options)

    def _tokens(self, given: torch.Tensor) -> torch.Tensor:
        """Image tokens (b, t, D) of a batch of them, or of pixels (b, 3, h, w)."""
        if given.ndim == 3:
            return given
        # A copy, because autograd does not take what was made in inference mode.
        return self.vlm_.tower.extract(given, (self.vlm_.output,))[self.vlm_.output].clone()

    def _batches(
        self, frame: pd.DataFrame, perturbation: str, progress: bool, what: str
    ) -> Iterator[torch.Tensor]:
        """Tokens or pixels of all images; UnreadableImages at the end names every bad file."""
        images = self._images(frame, perturbation, progress)
        errors: dict[str, str] = {}
        loader: DataLoader = DataLoader(images, BATCH, num_workers=worker_count(images, self.vlm_.device))
        for batch in tqdm(loader, desc=what, disable=not progress, leave=False):
            try:
                given = inputs(batch)
            except UnreadableImages as error:
                errors |= error.errors
                continue
            yield given
        if errors:
            raise UnreadableImages(errors)

    def _train(self, train_rows: pd.DataFrame, validation: pd.DataFrame, progress: bool) -> None:
        """Train what requires a gradient on the answers' cross-entropy, end token included; the best epoch on
        validation stays."""
        vlm, both = self.vlm_, self._encode(*self.answers)
        parts = [
            Labelled(frame, self._images(frame, "none", progress, random), weighted=not self.is_paper)
            for frame, random in ((train_rows, self.is_paper), (validation, False))
        ]

        def loss(model: nn.Module, batch: tuple) -> tuple[torch.Tensor, float]:
            labels, weights = batch[1].to(vlm.device), batch[2].to(vlm.device)
            each, n = model(self._tokens(inputs(batch[0])), both.take(labels)) * weights, len(labels)
            if self.is_paper:  # the mean of all tokens
                each, n = each * both.lengths[labels], int(both.lengths[labels].sum())
            total = each.sum()
            if vlm.mixed and total.requires_grad:
                total.register_hook(lambda gradient: gradient * GRADIENT_SCALE)
            return total, n

        module = AnswerLosses(vlm)
        if vlm.mixed:
            for parameter in (p for p in module.parameters() if p.requires_grad):
                parameter.register_hook(lambda gradient: gradient / GRADIENT_SCALE)
        self.history_ = train(
            module,
            parts[0],
            loss,
            self.recipe(),
            validation=parts[1],
            checkpoint=self.checkpoint_,
            num_workers=worker_count(parts[0], vlm.device),
            progress=progress,
        )

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """What the answers for real and for fake are worth, with a gradient: image tokens (b, t, D) -> (b, 2).

        Of `rank`, the log-probability of each whole answer without an end token: LAVIS divides all of them by the
        same number, so their order is its `predict_class`'s.
        """
        vlm, rows = self.vlm_, torch.zeros(len(tokens), dtype=torch.long, device=self.vlm_.device)
        if self.answer_scoring == "logits":
            ids = [vlm.answer_id(a) for a in self.answers]
            return vlm.logits(tokens, self._encode().take(rows))[:, 0, ids]
        texts = [self._encode(answer, end=False).take(rows) for answer in self.answers]
        return -torch.stack([vlm.losses(tokens, t) * t.lengths for t in texts], dim=1)

    @torch.inference_mode()
    def _score(self, frame: pd.DataFrame, perturbation: str, progress: bool) -> np.ndarray:
        found = [
            self.logits(self._tokens(batch)).double().softmax(1)[:, 1].cpu().numpy()
            for batch in self._batches(frame, perturbation, progress, self.name)
        ]
        return np.concatenate(found)

    @torch.inference_mode()
    def queries(self, frame: pd.DataFrame, perturbation: str = "none", progress: bool = False) -> np.ndarray:
        """What the Q-Former's queries hold after reading each image and this detector's question.

        It is all that the language model gets of the image, and it depends on the question, so on a trained
        pseudo-word too (Dai et al., InstructBLIP, 2023, section 2.3).

        Returns:
            float32, (n, q, D): q queries of the Q-Former's width, (n, 32, 768) for InstructBLIP.
        Raises:
            ModelError, UnreadableImages, ValueError: as `score` does.
        """
        if self.n_trainable and not hasattr(self, "threshold_"):
            raise ModelError(f"{self.name} is not fitted: call fit, or load a fitted run")
        vlm, perturbation = self.vlm_, check_perturbation(perturbation)
        texts = self._encode().take(torch.zeros(BATCH, dtype=torch.long, device=vlm.device))
        found = []
        for batch in self._batches(frame, perturbation, progress, "queries"):
            # Padded to one shape: matrix kernels round by shape, so a query would depend on its batch.
            whole = torch.cat([batch, batch[-1:].expand(BATCH - len(batch), *batch.shape[1:])])
            found.append(vlm.queries(self._tokens(whole), texts)[: len(batch)].cpu().numpy())
        return np.concatenate(found)
