"""What the three detectors that ask an InstructBLIP have in common."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..data import preprocess
from ..data.preprocess import Normalisation, check_perturbation
from ..errors import ModelError
from ..models import features
from ..models.instructblip import DEMO, Encoded, Vlm, load_vlm
from ..models.training import Recipe, train
from .base import Detector

BATCH = 32
TOWERS = ("qformer", "llm")
# Recipe and pixel statistics. `antifakeprompt`: the paper's recipe and its training data's statistics.
PRESETS: dict[str, dict] = {
    "demo": {"recipe": None, "mean": None, "std": None},  # each detector's `demo_recipe`
    "antifakeprompt": {
        "recipe": Recipe(
            lr=1e-5, epochs=10, batch_size=6, weight_decay=0.05, warmup_steps=1000, warmup_lr=1e-8, seed=42
        ),
        "mean": (0.4730, 0.4499, 0.4129),
        "std": (0.2780, 0.2713, 0.2872),
    },
}


class Pixels(Dataset):
    """Preprocessed pixels, read anew each time: for data whose tokens do not fit on the disk."""

    def __init__(self, frame: pd.DataFrame, vlm: Vlm, normalisation: Normalisation, perturbation: str):
        self.rows = list(zip(frame["file"], frame["sha256"], strict=True))
        self.tower, self.normalisation, self.perturbation = vlm.tower, normalisation, perturbation

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.tower.preprocess(
            [preprocess.prepare(*self.rows[i], self.normalisation, self.perturbation)]
        )[0]


class Examples(Dataset):
    """(tokens or pixels, label, weight) of each row; both classes weigh the same."""

    def __init__(self, frame: pd.DataFrame, inputs: np.ndarray | Pixels):
        self.inputs, self.labels = inputs, frame["label"].to_numpy()
        share = np.where(self.labels == 1, self.labels.mean(), 1 - self.labels.mean())
        self.weights = (0.5 / share).astype(np.float32)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple:
        return self.inputs[i], self.labels[i], self.weights[i]


@dataclass
class VlmDetector(Detector):
    """An InstructBLIP is asked a question; P(fake) comes from the answers that stand for real and for fake.

    Args:
        backbone: `demo-vlm`, `instructblip-vicuna-7b`, `instructblip-flan-t5-xl`, a hub name or a folder.
        question: what is asked about every image.
        answers: what stands for real and for fake.
        answer_scoring: `logits`, one forward, softmax over the two answers' first token; `rank`, the
        paper's, the softmax of minus each whole answer's mean loss. preset: `demo`, what fits two cores;
        `antifakeprompt`, the paper's recipe and pixel statistics. seed, epochs, lr, batch_size: override
        the preset's. cache_tokens: keep the image tower's tokens on disk (InstructBLIP's take 0.7 MB an
        image), else run it in every epoch. dtype, device_map, quantisation, gradient_checkpointing: see
        `afp.models.instructblip.load_vlm`.
    """

    demo_recipe: ClassVar[Recipe] = Recipe(lr=0.03, epochs=5, batch_size=72)
    backbone: str = DEMO
    question: str = "Is this photo real?"
    answers: tuple[str, str] = ("yes", "no")
    answer_scoring: str = "logits"
    preset: str = "demo"
    seed: int | None = None
    epochs: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    cache_tokens: bool = True
    dtype: str = "auto"
    device_map: str | None = None
    quantisation: str | None = None
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.answers = tuple(self.answers)
        if len(set(self.answers)) != 2:
            raise ModelError(
                f"{self.name}: answers are {self.answers}, expected two words, real's and fake's"
            )
        for name, known in (("answer_scoring", ("logits", "rank")), ("preset", tuple(PRESETS))):
            if getattr(self, name) not in known:
                raise ModelError(f"{self.name}: {name} is {getattr(self, name)!r}, expected one of {known}")
        self.recipe()

    def recipe(self) -> Recipe:
        """The preset's recipe with this detector's overrides. Raises ValueError naming a wrong one."""
        preset = vars(PRESETS[self.preset]["recipe"] or self.demo_recipe)
        own = {k: getattr(self, k) for k in ("seed", "epochs", "lr", "batch_size")}
        return Recipe(**preset | {k: v for k, v in own.items() if v is not None})

    @cached_property
    def vlm_(self) -> Vlm:
        """The model, loaded when it is first needed."""
        preset = PRESETS[self.preset]
        vlm = load_vlm(
            self.backbone,
            dtype=self.dtype,
            device_map=self.device_map,
            quantisation=self.quantisation,
            gradient_checkpointing=self.gradient_checkpointing,
            pixel_mean=preset["mean"],
            pixel_std=preset["std"],
        )
        if self.answer_scoring == "logits":
            for answer in self.answers:
                vlm.answer_id(answer)
        return vlm

    def texts(self) -> dict[str, str]:
        """What the language model (`llm`) and the Q-Former (`qformer`) are asked."""
        return dict.fromkeys(TOWERS, self.question)

    def _forget(self) -> None:
        """Drop the model and what was attached to it: the next use starts from the frozen weights."""
        for name in ("vlm_", "prompts_", "lora_"):
            self.__dict__.pop(name, None)

    def _encode(self, *answers: str) -> Encoded:
        """The question once for each answer, or once alone."""
        n, texts = max(len(answers), 1), self.texts()
        return self.vlm_.encode([texts["llm"]] * n, answers or None, qformer_questions=[texts["qformer"]] * n)

    def _inputs(self, frame: pd.DataFrame, perturbation: str, progress: bool) -> np.ndarray | Pixels:
        if not self.cache_tokens:
            return Pixels(frame, self.vlm_, self.normalisation, perturbation)
        return features.extract(
            frame,
            self.vlm_.tower,
            self.vlm_.output,
            normalisation=self.normalisation,
            perturbation=perturbation,
            progress=progress,
        )

    def _tokens(self, inputs: torch.Tensor) -> torch.Tensor:
        """Image tokens (b, t, D) of what `_inputs` gave."""
        if self.cache_tokens:
            return inputs
        # A copy, because autograd does not take what was made in inference mode.
        return self.vlm_.tower.extract(inputs, (self.vlm_.output,))[self.vlm_.output].clone()

    def _train(self, train_rows: pd.DataFrame, validation: pd.DataFrame, progress: bool) -> None:
        """Train what requires a gradient on the answers' cross-entropy; the best epoch on validation
        stays."""
        both = self._encode(*self.answers)

        def loss(model, batch) -> torch.Tensor:
            inputs, labels, weights = batch
            each = self.vlm_.losses(self._tokens(inputs), both.take(labels.to(self.vlm_.device)))
            return (each * weights.to(each.device)).mean()

        sets = [Examples(f, self._inputs(f, "none", progress)) for f in (train_rows, validation)]

        def validate(model) -> float:
            return -sum(loss(model, b).item() * len(b[1]) for b in DataLoader(sets[1], BATCH)) / len(sets[1])

        self.history_ = train(
            self.vlm_.model, sets[0], loss, self.recipe(), validate=validate, progress=progress
        )

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """What the answers for real and for fake are worth, with a gradient: image tokens (b, t, D) -> (b, 2)."""
        vlm, rows = self.vlm_, torch.zeros(len(tokens), dtype=torch.long, device=self.vlm_.device)
        if self.answer_scoring == "logits":
            ids = [vlm.answer_id(a) for a in self.answers]
            return vlm.logits(tokens, self._encode().take(rows))[:, 0, ids]
        losses = [vlm.losses(tokens, self._encode(a).take(rows)) for a in self.answers]
        return -torch.stack(losses, dim=1)

    @torch.inference_mode()
    def _score(self, frame: pd.DataFrame, perturbation: str, progress: bool) -> np.ndarray:
        inputs = self._inputs(frame, perturbation, progress)
        batches = tqdm(DataLoader(inputs, BATCH), desc=self.name, disable=not progress, leave=False)
        found = [
            self.logits(self._tokens(batch)).double().softmax(1)[:, 1].cpu().numpy() for batch in batches
        ]
        return np.concatenate(found)

    @torch.inference_mode()
    def queries(self, frame: pd.DataFrame, perturbation: str = "none", progress: bool = False) -> np.ndarray:
        """What the Q-Former's queries hold after reading each image and this detector's question.

        It is all that the language model gets of the image, and it depends on the question, so on a trained
        pseudo-word too (Dai et al., InstructBLIP, 2023, section 2.3).

        Args:
            frame, perturbation: as for `score`.
        Returns:
            float32, (n, q, D): q queries, D the Q-Former's width; (32, 768) for InstructBLIP, (8, 128) for
            `demo-vlm`.
        Raises:
            ModelError: something is trained here, and it was not.
            UnreadableImages: names every image that cannot be decoded.
            ValueError: no image, or an unknown perturbation.
        """
        if self.n_trainable and not hasattr(self, "threshold_"):
            raise ModelError(f"{self.name} is not fitted: call fit, or load a fitted run")
        vlm, inputs = self.vlm_, self._inputs(frame, check_perturbation(perturbation), progress)
        texts = self._encode().take(torch.zeros(BATCH, dtype=torch.long, device=vlm.device))
        found = []
        for batch in tqdm(DataLoader(inputs, BATCH), desc="queries", disable=not progress, leave=False):
            # Padded to one shape: matrix kernels round by shape, so a query would depend on its batch.
            whole = torch.cat([batch, batch[-1:].repeat(BATCH - len(batch), *[1] * (batch.ndim - 1))])
            found.append(vlm.queries(self._tokens(whole), texts)[: len(batch)].cpu().numpy())
        return np.concatenate(found)
