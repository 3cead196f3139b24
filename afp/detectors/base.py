"""The contract that every detector keeps."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import pandas as pd

from ..data.images import open_images
from ..data.preprocess import Normalisation, check_perturbation
from ..data.splits import held_in_generators
from ..errors import ModelError, UnreadableImages
from .operating_point import choose_threshold


@dataclass
class Detector(ABC):
    """A detector of AI-generated images.

    Subclasses are dataclasses: their fields are the config, checked in ``__post_init__``, which does nothing else.
    What is learned ends in an underscore: ``threshold_`` (chosen on validation), ``generators_`` (trained on);
    ``validation_scores_`` is there after a fit, not after a load.
    """

    name: ClassVar[str]
    normalisation: Normalisation = field(default=None, kw_only=True)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.normalisation is None:
            self.normalisation = self.default_normalisation()

    def default_normalisation(self) -> Normalisation:
        """What images go through where the config does not say: a preset may have its own."""
        return Normalisation()

    def fit(self, train: pd.DataFrame, validation: pd.DataFrame, progress: bool = True) -> Self:
        """Learn from manifest rows; hyperparameters and the threshold come from ``validation`` alone.

        Raises:
            ModelError: a class is missing in either set.
            UnreadableImages: names every image of both sets that cannot be decoded.
        """
        for part, frame in (("train", train), ("validation", validation)):
            found = sorted(frame["label"].unique().tolist())
            if found != [0, 1]:
                hint = "" if len(frame) else "; `afp manifest FOLDER --split` says which images are for what"
                raise ModelError(
                    f"{part}: labels {found} in {len(frame)} images, expected both 0 and 1{hint}"
                )
        try:
            self._fit(train, validation, progress)
        except UnreadableImages as error:  # of the set that was read first
            both = pd.concat([train, validation])  # a fit on pixels stops at its first bad batch
            raise UnreadableImages(error.errors | _unreadable(both, progress)) from error
        self.generators_ = held_in_generators(train.assign(split="train"))
        self.validation_scores_ = self._score(validation, "none", progress)
        self.threshold_ = choose_threshold(validation["label"].to_numpy(), self.validation_scores_)
        return self

    def score(self, frame: pd.DataFrame, perturbation: str = "none", progress: bool = False) -> np.ndarray:
        """P(fake) of every row.

        Args:
            frame: needs ``file`` and ``sha256``; a manifest, or `afp.data.manifest.from_files`.
            perturbation: see `afp.data.preprocess`; applied after normalisation.
        Returns:
            float64, (n,), in [0, 1].
        Raises:
            ModelError: not fitted.
            UnreadableImages: names every image that cannot be decoded.
            ValueError: unknown perturbation.
        """
        if not hasattr(self, "threshold_"):
            raise ModelError(f"{self.name} is not fitted: call fit, or load a fitted run")
        perturbation = check_perturbation(perturbation)
        if frame.empty:
            return np.empty(0)
        scores = np.asarray(self._score(frame, perturbation, progress), dtype=np.float64)
        if scores.shape != (len(frame),) or not np.isfinite(scores).all():
            raise FloatingPointError(
                f"{self.name}: scores of shape {scores.shape} with values that are not finite"
            )
        return scores

    def config(self) -> dict:
        """The constructor's arguments as JSON values."""
        return json.loads(json.dumps(asdict(self)))

    def save(self, folder: str | Path) -> Path:
        """Write ``config.json`` and the learned state (safetensors, or a peft adapter)."""
        if not hasattr(self, "threshold_"):
            raise ModelError(f"{self.name} is not fitted: nothing to save")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._save(folder)
        content = {"detector": self.name, "config": self.config(), "n_trainable": self.n_trainable}
        content |= {"threshold": self.threshold_, "generators": self.generators_}
        (folder / "config.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """A fitted detector from its folder. Raises ModelError naming what is missing or foreign."""
        folder = Path(folder)
        content = read_config(folder)
        if content["detector"] != cls.name:
            raise ModelError(f"{folder}: holds a {content['detector']}, expected {cls.name}")
        config = content["config"]
        detector = cls(**config | {"normalisation": Normalisation(**config["normalisation"])})
        try:
            detector._load(folder)
        except OSError as error:  # transformers' own, for a missing file, is no FileNotFoundError
            raise ModelError(f"{folder}: {error.filename or error} is missing; fit the run again") from error
        detector.threshold_, detector.generators_ = content["threshold"], content["generators"]
        return detector

    @property
    @abstractmethod
    def n_trainable(self) -> int:
        """How many numbers training may change."""

    @abstractmethod
    def _fit(self, train: pd.DataFrame, validation: pd.DataFrame, progress: bool) -> None: ...

    @abstractmethod
    def _score(self, frame: pd.DataFrame, perturbation: str, progress: bool) -> np.ndarray: ...

    @abstractmethod
    def _save(self, folder: Path) -> None: ...

    @abstractmethod
    def _load(self, folder: Path) -> None: ...


def _unreadable(frame: pd.DataFrame, progress: bool) -> dict[str, str]:
    try:
        open_images(frame["file"], progress)
    except UnreadableImages as error:
        return error.errors
    return {}


def read_config(folder: str | Path) -> dict:
    """The ``config.json`` of a run folder. Raises ModelError if there is none that can be used."""
    path = Path(folder) / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if missing := {"detector", "config", "threshold", "generators"} - content.keys():
            raise ModelError(f"{path}: field {sorted(missing)[0]!r} is missing")
    except FileNotFoundError:
        raise ModelError(f"{folder}: no run here (no config.json); make one with `afp fit`") from None
    except (OSError, json.JSONDecodeError, AttributeError) as error:
        raise ModelError(f"{path}: not a readable run config ({error})") from error
    return content
