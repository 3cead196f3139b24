"""The contract that every detector keeps, and what every run folder holds: config, learned state, checksums."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd
from pydantic import TypeAdapter, ValidationError

from ..data.images import open_image
from ..data.preprocess import IDENTITY, Normalisation, check_perturbation, for_every_image
from ..data.splits import held_in_generators
from ..errors import ModelError, UnreadableImages
from ..files import check_input, checksum, follow_umask, read_json, write_json, written_whole
from ..models import processes
from .operating_point import OperatingPoint, choose_operating_point, fewest_for

CHECKSUMS = "checksums.json"
SCORED_AT_ONCE = 4096  # images whose features a head holds in memory
IMAGES = "images.csv"  # what the run was fitted, validated and calibrated on: sha256, source, role
# What a run may have otherwise that a training starts from.
MAY_CHANGE = ("preset", "normalisation", "seed", "epochs", "lr", "batch_size", "cache_tokens")
# Everything else in a run is what it learned.
RECORDS = ("config.json", IMAGES, "validation.csv", "calibration.csv", "history.csv", "environment.json")
_LIMITS = {"ge": "of at least", "gt": "above", "le": "at most", "lt": "under"}
# What stands in a run's config.
_FIELDS: dict[str, tuple[Any, str]] = {
    "detector": (str, "a name"),
    "config": (dict, "settings by name"),
    "threshold": ((float, int), "a number"),
    "generators": (list, "a list of names"),
    "operating_point": (dict | None, "settings by name, or null"),
    "weights": (str, "a hash, or an empty text"),
}


@dataclass
class Detector(ABC):
    """A detector of AI-generated images.

    Subclasses are dataclasses: their fields are the config, checked in ``__post_init__``, which does nothing else.
    What is learned ends in an underscore: ``threshold_`` (chosen on validation), ``generators_`` (trained on),
    ``images_`` (sha256, source and role of all images that had a part in it). ``validation_scores_`` and, where
    training keeps one, ``history_`` are there after a fit, not after a load. ``weights_`` is there after a load: the
    hash that the backbone's weights must have, until it is opened.
    """

    name: ClassVar[str]
    trains_on: ClassVar[bool] = False  # whether a fit can start from a run's weights
    normalisation: Normalisation = field(default=None, kw_only=True)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for key in fields(self):
            if key.name != "normalisation":
                setattr(self, key.name, self._checked(key.name, getattr(self, key.name), hints[key.name]))
        self.normalisation = self._checked_normalisation(self.normalisation)

    def _checked(self, key: str, value: Any, hint: Any) -> Any:
        """The value as a config field of this type, within its limits; a JSON list becomes a tuple."""
        if hint is str and type(value) in (int, float):  # --set block=6
            value = str(value)
        if get_origin(hint) is tuple and type(value) in (int, float):  # --set c=0.1
            value = [value]
        try:
            return TypeAdapter(hint).validate_json(json.dumps(value, allow_nan=False), strict=True)
        except (ValidationError, TypeError, ValueError):
            raise ModelError(f"{self.name}: {key} is {value!r}, expected {_in_words(hint)}") from None

    def _checked_normalisation(self, value: Any) -> Normalisation:
        known = [f.name for f in fields(Normalisation)]
        if value is None:
            return self.default_normalisation()
        if value == "none":
            return IDENTITY
        if isinstance(value, dict) and set(value) <= set(known):
            value = Normalisation(**value)
        if not isinstance(value, Normalisation):
            expected = f"none, or some of {', '.join(known)} by name"
            raise ModelError(f"{self.name}: normalisation is {value!r}, expected {expected}")
        return value

    def default_normalisation(self) -> Normalisation:
        """What images go through where the config does not say: a preset may have its own."""
        return Normalisation()

    def fit(
        self,
        train: pd.DataFrame,
        validation: pd.DataFrame,
        progress: bool = True,
        target_fpr: float | None = None,
        checkpoint: str | Path | None = None,
        start: str | Path | None = None,
    ) -> Self:
        """Learn from manifest rows; hyperparameters and the threshold come from ``validation`` alone.

        Args:
            train, validation: rows of a manifest.
            target_fpr: the share of validation's real images that the threshold may call fake; None for the best
                balanced accuracy.
            checkpoint: folder of the state of a training that may be stopped; the same fit goes on from there.
            start: a run of the same detector, whose weights the training starts from; what it met, the new run met.
        Raises:
            ModelError: a class is missing in either set.
            UnreadableImages: names every image of both sets that cannot be decoded.
        """
        if target_fpr is not None:
            fewest_for(target_fpr)  # refused before any work
        for part, frame in (("train", train), ("validation", validation)):
            found = sorted(frame["label"].unique().tolist())
            if found != [0, 1]:
                hint = "" if len(frame) else "; `afp manifest FOLDER --split` says which images are for what"
                raise ModelError(
                    f"{part}: labels {found} in {len(frame)} images, expected both 0 and 1{hint}"
                )
        self.weights_ = ""
        self.checkpoint_, progress = checkpoint, progress and processes.rank() == 0
        self.start_ = self._checked_start(start) if start else None
        try:
            if processes.count() > 1:  # what one of them extracts, all of them find

                def warm_up(part: pd.DataFrame) -> pd.Series:
                    self._warm_up(part, progress)
                    return part["label"]

                for frame in (train, validation):
                    processes.by_rows(warm_up, frame)
            self._fit(train, validation, progress)
        except UnreadableImages:
            # A fit stops at the first set that holds bad images, one on pixels at the first batch.
            both = pd.concat([train, validation])
            for_every_image(lambda file, _: open_image(file).close(), both, progress, "checking")
            raise
        self.generators_ = held_in_generators(train.assign(split="train"))
        self.validation_scores_ = self._score_in_parts(validation, "none", progress)
        self.operating_point_: OperatingPoint | None = choose_operating_point(
            validation["label"], self.validation_scores_, photographs(validation), target_fpr
        )
        self.threshold_ = self.operating_point_.threshold
        roles = {"train": train, "validation": validation}
        met = [image_roles(part, role) for role, part in roles.items()]
        if self.start_:
            self.generators_ = sorted({*self.generators_, *read_config(self.start_)["generators"]})
            if (self.start_ / IMAGES).is_file():  # its weights have met these
                met.append(read_images(self.start_))
        self.images_ = pd.concat(met, ignore_index=True)
        return self

    def score(self, frame: pd.DataFrame, perturbation: str = "none", progress: bool = False) -> np.ndarray:
        """P(fake) of every row.

        Args:
            frame: needs ``file`` and ``sha256``; a manifest, or `afp.data.manifest.from_files`.
            perturbation: see `afp.data.preprocess`; applied after normalisation.
        Returns:
            float64, (n,), in [0, 1].
        Raises:
            ModelError: not fitted, or scores that are no numbers.
            UnreadableImages: names every image that cannot be decoded.
            ValueError: unknown perturbation.
        """
        if not hasattr(self, "threshold_"):
            raise ModelError(f"{self.name} is not fitted: call fit, or load a fitted run")
        perturbation = check_perturbation(perturbation)
        if frame.empty:
            return np.empty(0)
        return self._score_in_parts(frame, perturbation, progress and processes.rank() == 0)

    def _score_in_parts(self, frame: pd.DataFrame, perturbation: str, progress: bool) -> np.ndarray:
        def of_part(part: pd.DataFrame) -> np.ndarray:
            found: list[np.ndarray] = []
            errors: dict[str, str] = {}
            for start in range(0, len(part), SCORED_AT_ONCE):
                try:
                    found.append(
                        self._score(part.iloc[start : start + SCORED_AT_ONCE], perturbation, progress)
                    )
                except UnreadableImages as error:
                    errors |= error.errors
            if errors:
                raise UnreadableImages(errors)
            return np.concatenate(found)

        scores = processes.by_rows(of_part, frame)
        if bad := int((~np.isfinite(scores)).sum()):
            raise ModelError(
                f"{self.name}: {bad} of {len(frame)} scores are no numbers; the weights are damaged"
            )
        return scores.astype(np.float64)

    def config(self) -> dict:
        """The constructor's arguments as JSON values."""
        return json.loads(json.dumps(asdict(self)))

    def save(self, folder: str | Path) -> Path:
        """Write the learned state (safetensors, or a peft adapter), ``config.json``, what it was fitted on, and the
        checksums of them all.

        What is learned is written beside its place first: a save that stops leaves no half of it.
        """
        if not hasattr(self, "threshold_"):
            raise ModelError(f"{self.name} is not fitted: nothing to save")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as partial:
            self._save(Path(partial))
            follow_umask(partial)
            learned = [f.relative_to(partial) for f in sorted(Path(partial).rglob("*")) if f.is_file()]
            for file in learned:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(partial) / file, folder / file)
        point = getattr(self, "operating_point_", None)
        content = {"detector": self.name, "config": self.config(), "n_trainable": self.n_trainable}
        content |= {"threshold": self.threshold_, "operating_point": asdict(point) if point else None}
        content["weights"] = self._weights_here()
        write_json(folder / "config.json", content | {"generators": self.generators_})
        tables = {IMAGES: getattr(self, "images_", None), "history.csv": getattr(self, "history_", None)}
        written = {name: table for name, table in tables.items() if table is not None}
        for name, table in written.items():
            with written_whole(folder / name) as partial_table:
                table.to_csv(partial_table, index=False)
        (folder / CHECKSUMS).unlink(missing_ok=True)  # of a run that stood here before
        seal(folder, ["config.json", *written, *map(Path.as_posix, learned)])
        return folder

    @classmethod
    def configured(cls, folder: str | Path, content: dict) -> Self:
        """As a run's config (see `read_config`) describes it, without what it learned.

        Raises:
            ModelError: names what is wrong.
        """
        try:
            check_known(cls, content["config"])
            detector = cls(**content["config"])
            point = content.get("operating_point")
            detector.operating_point_ = OperatingPoint(**point) if point else None
            detector.weights_ = content["weights"]
        except (TypeError, ValueError) as error:
            raise ModelError(f"{Path(folder) / 'config.json'}: {error}") from error
        return detector

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """A fitted detector from its folder. Raises ModelError naming what is missing, changed or foreign."""
        folder = Path(folder)
        content = read_config(folder)
        if content["detector"] != cls.name:
            raise ModelError(f"{folder}: holds a {content['detector']}, expected {cls.name}")
        check_seal(folder)
        detector = cls.configured(folder, content)
        try:
            detector._load(folder)
        except OSError as error:  # transformers' own, for a missing file, is no FileNotFoundError
            raise ModelError(f"{folder}: {error.filename or error} is missing; fit the run again") from error
        detector.threshold_, detector.generators_ = content["threshold"], content["generators"]
        if (folder / IMAGES).is_file():
            detector.images_ = read_images(folder)
        return detector

    @property
    @abstractmethod
    def n_trainable(self) -> int:
        """How many numbers training may change."""

    def _checked_start(self, folder: str | Path) -> Path:
        """A run that a training of this detector can start from. Raises ModelError naming what differs."""
        if not self.trains_on:
            raise ModelError(f"{self.name} is not trained by steps: it cannot start from a run")
        content, own = read_config(folder), self.config()
        if content["detector"] != self.name:
            raise ModelError(f"{folder}: holds a {content['detector']}, expected {self.name} to start from")
        for key, value in content["config"].items():
            if key not in MAY_CHANGE and value != own.get(key):
                raise ModelError(f"{folder}: its {key} is {value!r}, expected {own.get(key)!r} to start from")
        check_seal(folder)
        self.weights_ = content["weights"]
        self._check_weights()
        return Path(folder)

    def _weights_here(self) -> str:
        """The hash of the backbone's weights on this machine; empty without a backbone, or if they are not here."""
        if not (backbone := getattr(self, "backbone", "")):
            return ""
        from ..models.weights import weights_hash

        return weights_hash(backbone, getattr(self, "revision", None))

    def _check_weights(self) -> None:
        """Once, when a run's backbone is opened. Raises ModelError where it has other weights than in the fit."""
        expected, backbone = getattr(self, "weights_", ""), getattr(self, "backbone", "")
        here = self._weights_here() if expected else ""
        if here not in ("", expected):
            raise ModelError(
                f"{self.name}: {backbone} holds other weights (hash {here[:8]}) than the run was fitted on "
                f"({expected[:8]}); put those back, or fit the run again"
            )
        self.weights_ = ""

    def _warm_up(self, frame: pd.DataFrame, progress: bool) -> None:
        """Cache what a fit reads of these rows: several processes do it together, before each of them fits."""
        return

    @abstractmethod
    def _fit(self, train: pd.DataFrame, validation: pd.DataFrame, progress: bool) -> None: ...

    @abstractmethod
    def _score(self, frame: pd.DataFrame, perturbation: str, progress: bool) -> np.ndarray: ...

    @abstractmethod
    def _save(self, folder: Path) -> None: ...

    @abstractmethod
    def _load(self, folder: Path) -> None: ...


def _in_words(hint: Any) -> str:
    """The type of a config field as a user knows it: "a number above 0", "one of a, b or nothing"."""
    kinds = get_args(hint) or (hint,)
    if get_origin(hint) is Annotated:
        limits = (pair for limit in kinds[1].metadata for pair in asdict(limit).items())
        return f"{_in_words(kinds[0])} {' and '.join(f'{_LIMITS[name]} {value}' for name, value in limits)}"
    if get_origin(hint) is Literal:
        return f"one of {', '.join(kinds)}"
    if get_origin(hint) is tuple:
        n = "" if ... in kinds else f"{len(kinds)} "
        return f"a list of {n}{'words' if kinds[0] is str else 'numbers'}"
    words = {
        str: "text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        NoneType: "nothing",
    }
    return " or ".join(words.get(kind) or _in_words(kind) for kind in kinds)


def photographs(frame: pd.DataFrame) -> pd.Series:
    """Each row's source; a row without one is its own."""
    own = frame["file"].astype(str)
    return frame["source"].where(frame["source"] != "", own) if "source" in frame else own


def image_roles(frame: pd.DataFrame, role: str) -> pd.DataFrame:
    """Rows of a run's list of images: ``sha256, source, role`` (see `Detector.images_`)."""
    return frame.reindex(columns=["sha256", "source"]).astype(object).fillna("").assign(role=role)


def read_images(folder: str | Path) -> pd.DataFrame:
    """A run's list of the images that it met: ``sha256, source, role``."""
    return pd.read_csv(Path(folder) / IMAGES, dtype=str, keep_default_na=False)


def check_known(cls: type[Detector], config: dict) -> None:
    """Raises ModelError naming a config field that the class does not have."""
    known = [f.name for f in fields(cls)]
    if unknown := sorted(set(config) - set(known)):
        raise ModelError(f"{cls.name}: unknown config field {unknown[0]!r}, expected {', '.join(known)}")


def read_config(folder: str | Path) -> dict:
    """The ``config.json`` of a run folder. Raises ModelError if there is none that can be used."""
    path = Path(folder) / "config.json"
    check_input(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder}: no run here (no config.json); make one with `afp fit`") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not a readable run config ({error})") from error
    content = {"operating_point": None, "weights": "", **content} if isinstance(content, dict) else {}
    for key, (kind, words) in _FIELDS.items():
        if key not in content:
            raise ModelError(f"{path}: field {key!r} is missing")
        if not isinstance(content[key], kind):
            raise ModelError(f"{path}: {key} is {content[key]!r}, expected {words}")
    for generator in content["generators"]:
        if not isinstance(generator, str):
            raise ModelError(f"{path}: generators hold {generator!r}, expected names")
    if not 0 <= content["threshold"] <= 1:  # nor NaN
        raise ModelError(f"{path}: threshold is {content['threshold']}, expected 0 to 1")
    return content


def seal(folder: str | Path, files: list[str]) -> None:
    """Note the checksums of these files of a run, beside those that it has."""
    folder = Path(folder)
    sums = read_json(folder / CHECKSUMS) or {}
    write_json(folder / CHECKSUMS, sums | {name: checksum(folder / name) for name in files})


def check_seal(folder: str | Path) -> None:
    """Raises ModelError naming a file of the run that is missing or no longer as it was written.

    A run of an earlier version has no checksums, which is said and let pass.
    """
    folder = Path(folder)
    if not (folder / CHECKSUMS).is_file():
        logging.getLogger(__name__).warning("%s: an older run without checksums, not verified", folder)
        return
    sums = read_json(folder / CHECKSUMS)
    if not isinstance(sums, dict):
        raise ModelError(f"{folder / CHECKSUMS}: not readable; fit the run again")
    for name, expected in sums.items():
        if not (folder / name).is_file():
            raise ModelError(f"{folder / name} is missing; fit the run again")
        if checksum(folder / name) != expected:
            raise ModelError(
                f"{folder / name} is not as it was written (its checksum differs); fit the run again"
            )


def run_key(folder: str | Path) -> str:
    """Eight hex digits that tell runs apart: the hash of detector, config and what was learned."""
    folder = Path(folder)
    content, sums = read_config(folder), read_json(folder / CHECKSUMS)
    if not isinstance(sums, dict):  # an older run
        learned = [*folder.glob("*.json"), *folder.glob("*.safetensors"), *folder.glob("adapter*/*")]
        sums = {f.relative_to(folder).as_posix(): checksum(f) for f in sorted(learned)}
    parts = {name: digest for name, digest in sums.items() if name not in RECORDS}
    text = json.dumps([content["detector"], content["config"], parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
