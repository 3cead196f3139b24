"""Runs: a fitted detector in a folder, the scores it gave, and where both came from."""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from .. import detectors
from ..data.images import sha256
from ..data.splits import use_fold
from ..detectors.base import Detector
from ..errors import DataError
from ..paths import ROOT, backbone_folder, runs_dir
from .scores import score_frame, unscored_table

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "scikit-learn",
    "numpy",
    "pandas",
    "pillow",
    "ncnn",
)


def fit_run(
    name: str,
    frame: pd.DataFrame,
    out: str | Path | None = None,
    *,
    config: dict | None = None,
    fold: int | None = None,
    without: Sequence[str] = (),
    progress: bool = True,
) -> Path:
    """Fit a detector on a manifest's train rows and leave it in a folder.

    A folder that already holds the same fit (same config, same images) is returned as it is.

    Args:
        name: registered detector.
        frame: manifest rows with their splits.
        out: folder; default ``runs/<name>-<hash>``.
        config: constructor arguments that differ from the defaults.
        fold: re-assign the splits for this fold (see `afp.data.splits.use_fold`).
        without: generators left out of training and validation.
    Returns:
        The run folder.
    Raises:
        DataError: bad config, an empty or one-class split, or a folder that holds another run.
    """
    detector = detectors.create(name, **config or {})
    if fold is not None:
        frame = use_fold(frame, fold)
    if unknown := set(without) - set(frame["generator"]):
        raise DataError(f"without: no generator {sorted(unknown)[0]!r} in the manifest")
    used = frame[~frame["generator"].isin(without)]
    train, validation = (used[used["split"] == s] for s in ("train", "validation"))
    key = _identity(detector, train, validation)
    folder = Path(out) if out else runs_dir() / f"{name}-{key}"
    stamp = folder / "environment.json"
    if stamp.is_file():
        found = json.loads(stamp.read_text(encoding="utf-8")).get("identity")
        if found == key:
            return folder
        raise DataError(f"{folder}: holds another run ({found}); give another folder or delete it")
    started = time.perf_counter()
    detector.fit(train, validation, progress=progress)
    seconds = round(time.perf_counter() - started, 2)
    detector.save(folder)
    table = unscored_table(detector, validation, folder.name, fold, "none")
    table.assign(score=detector.validation_scores_).to_csv(folder / "validation.csv", index=False)
    content = {"identity": key, "fold": fold, "without": list(without), "fit_seconds": seconds}
    content |= {"n_train": len(train), "n_validation": len(validation)} | environment()
    stamp.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return folder


def _identity(detector: Detector, train: pd.DataFrame, validation: pd.DataFrame) -> str:
    """Hash of what a fit depends on: detector, its modules, config, local weights, train and validation images."""
    digest = hashlib.sha256(json.dumps([detector.name, detector.config()], sort_keys=True).encode())
    own = {inspect.getfile(c) for c in type(detector).__mro__ if c.__module__.startswith(__package__)}
    for module in sorted(own):  # edited code is another detector
        digest.update(Path(module).read_bytes())
    if backbone := getattr(detector, "backbone", ""):
        # A hub's weights stay as they are, those in a folder may change.
        for weights in sorted(backbone_folder(backbone).glob("*.safetensors")):
            digest.update(sha256(weights).encode())
    for part in (train, validation):
        digest.update("".join(sorted(part["sha256"] + part["label"].astype(str))).encode() + b"|")
    return digest.hexdigest()[:8]


def environment() -> dict:
    """Versions and machine, as a run records them."""
    found = {p: metadata.version(p) for p in PACKAGES}
    return {"python": platform.python_version(), "platform": platform.platform(), "packages": found}


def cross_fit(
    name: str,
    frame: pd.DataFrame,
    out: str | Path | None = None,
    *,
    config: dict | None = None,
    without: Sequence[str] = (),
    n_folds: int = 5,
    progress: bool = True,
) -> Path:
    """Fit one detector a fold and score every image once, by the detector that never saw its photograph.

    The folder holds fold 0's detector (so that it can be used like any run), the others in ``fold-1`` …, and
    ``scores.csv``, the cross-fitted table.

    Returns:
        The run folder; an existing complete one is returned as it is.
    """
    folds = [use_fold(frame, k, n_folds) for k in range(n_folds)]
    folder = fit_run(name, folds[0], out, config=config, without=without, progress=progress)
    key = hashlib.sha256("".join(frame["sha256"] + frame["generator"]).encode()).hexdigest()
    target, stamp = folder / "scores.csv", folder / "scores.sha256"
    if target.is_file() and stamp.is_file() and stamp.read_text().strip() == key:
        return folder
    tables = []
    for k, part in enumerate(tqdm(folds, desc=f"{name} folds", disable=not progress)):
        path = (
            folder
            if k == 0
            else fit_run(name, part, folder / f"fold-{k}", config=config, without=without, progress=progress)
        )
        test = part[part["split"] == "test"]
        tables.append(score_frame(detectors.load(path), test, run=folder.name, fold=k, progress=progress))
    table = pd.concat(tables, ignore_index=True)
    partial = target.with_suffix(".partial")
    table.to_csv(partial, index=False)
    partial.replace(target)
    stamp.write_text(key + "\n")
    return folder


def default_run() -> Path:
    """The linear probe that comes with the workbook, fitted on the demo benchmark; its backbone is `demo-clip`.

    Trained under JPEG and blur too, which images from elsewhere have met. Made by
    ``afp fit --detector linear-probe --set 'augment=["jpeg:75","blur:1"]' --out data/linear-probe``.
    """
    return ROOT / "data" / "linear-probe"
