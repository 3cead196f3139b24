"""Runs: a fitted detector in a folder, the scores it gave, and where both came from."""

from __future__ import annotations

import csv
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

from . import detectors
from .detectors import Detector, DetectorError
from .images import UnreadableImages, sha256
from .manifest import use_fold
from .paths import ROOT, runs_dir

SCORE_COLUMNS = [
    *("path", "sha256", "label", "generator", "kind", "split", "source", "perturbation"),
    *("detector", "run", "fold", "seen", "threshold", "score", "error"),
]
CHUNK = 64  # images between two flushes of a scores table
PACKAGES = ("torch", "transformers", "peft", "accelerate", "scikit-learn", "numpy", "pandas", "pillow", "ncnn")


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
        fold: re-assign the splits for this fold (see `afp.manifest.use_fold`).
        without: generators left out of training and validation.
    Returns:
        The run folder.
    Raises:
        DetectorError: bad config, an empty or one-class split, or a folder that holds another run.
    """
    detector = detectors.create(name, **config or {})
    if fold is not None:
        frame = use_fold(frame, fold)
    if unknown := set(without) - set(frame["generator"]):
        raise DetectorError(f"without: no generator {sorted(unknown)[0]!r} in the manifest")
    used = frame[~frame["generator"].isin(without)]
    train, validation = (used[used["split"] == s] for s in ("train", "validation"))
    key = _identity(detector, train, validation)
    folder = Path(out) if out else runs_dir() / f"{name}-{key}"
    stamp = folder / "environment.json"
    if stamp.is_file():
        found = json.loads(stamp.read_text(encoding="utf-8")).get("identity")
        if found == key:
            return folder
        raise DetectorError(f"{folder}: holds another run ({found}); give another folder or delete it")
    started = time.perf_counter()
    detector.fit(train, validation, progress=progress)
    seconds = round(time.perf_counter() - started, 2)
    detector.save(folder)
    table = _unscored(detector, validation, folder.name, fold, "none")
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
        from . import demo_clip, vlm  # they import torch, which scores tables and baselines do without

        local = {"demo-clip": demo_clip.folder()} | dict.fromkeys((vlm.DEMO, vlm.UNTRAINED), vlm.DEMO_FOLDER)
        for weights in sorted(local.get(backbone, Path(backbone)).glob("*.safetensors")):
            digest.update(sha256(weights).encode())  # a hub's stay as they are, those in a folder may change
    for part in (train, validation):
        digest.update("".join(sorted(part["sha256"] + part["label"].astype(str))).encode() + b"|")
    return digest.hexdigest()[:8]


def environment() -> dict:
    """Versions and machine, as a run records them."""
    found = {p: metadata.version(p) for p in PACKAGES}
    return {"python": platform.python_version(), "platform": platform.platform(), "packages": found}


def score_frame(
    detector: Detector,
    frame: pd.DataFrame,
    *,
    run: str = "",
    fold: int | None = None,
    perturbation: str = "none",
    progress: bool = True,
) -> pd.DataFrame:
    """The scores table of a frame: one row an image, an unreadable one with its ``error`` and no score.

    Args:
        frame: a manifest, or `afp.manifest.from_files`; columns that it lacks stay empty.
    Returns:
        DataFrame with `SCORE_COLUMNS`, in the frame's order.
    """
    table = _unscored(detector, frame, run, fold, perturbation)
    scores, errors = _score_readable(detector, frame.reset_index(drop=True), perturbation, progress)
    table["score"] = scores
    for i, message in errors.items():
        table.loc[i, "error"] = message
    return table


def _unscored(
    detector: Detector, frame: pd.DataFrame, run: str, fold: int | None, perturbation: str
) -> pd.DataFrame:
    table = frame.reindex(columns=[c for c in SCORE_COLUMNS if c in frame.columns]).reset_index(drop=True)
    table = table.assign(perturbation=perturbation, detector=detector.name, run=run, fold=fold)
    seen = table["generator"].isin(detector.generators_).astype(int) if "generator" in table else None
    table = table.assign(seen=seen, threshold=detector.threshold_, error="")
    return table.reindex(columns=SCORE_COLUMNS)


def _score_readable(
    detector: Detector, frame: pd.DataFrame, perturbation: str, progress: bool
) -> tuple[pd.Series, dict[int, str]]:
    scores = pd.Series(float("nan"), index=frame.index)
    errors: dict[int, str] = {}
    good = frame
    try:
        values = detector.score(good, perturbation, progress)
    except UnreadableImages as error:
        errors = {i: error.errors[f] for i, f in frame["file"].items() if f in error.errors}
        good = frame.drop(index=list(errors))
        values = detector.score(good, perturbation, progress)
    scores[good.index] = values
    return scores, errors


def score_to_csv(
    folder: str | Path,
    frame: pd.DataFrame,
    out: str | Path,
    *,
    perturbation: str = "none",
    progress: bool = True,
) -> pd.DataFrame:
    """Score a frame with a run, row by row into a CSV that survives an interruption.

    Rows already in ``out`` (same path, hash and perturbation) are kept and not computed again, as are those of
    other images; a half-written last row is dropped. The finished file is the same as that of one uninterrupted run.

    Raises:
        DetectorError: ``out`` holds another run's scores, or is no scores table.
    """
    detector, out = detectors.load(folder), Path(out)
    run = Path(folder).resolve().name
    done = _completed(out, detector.name, run)
    key = list(zip(frame["path"], frame["sha256"], strict=True))
    todo = frame[[(p, h, perturbation) not in done for p, h in key]]
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    kept = [done[(p, h, perturbation)] for p, h in key if (p, h, perturbation) in done]
    wanted = {(p, perturbation) for p, _ in key}
    # Scores of other images stay; those of an image that has changed since are replaced.
    others = [row for k, row in done.items() if (k[0], k[2]) not in wanted]
    with partial.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([SCORE_COLUMNS, *others, *kept])
    partial.replace(out)
    with out.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        with tqdm(
            total=len(frame), initial=len(frame) - len(todo), unit="image", disable=not progress
        ) as bar:
            for start in range(0, len(todo), CHUNK):
                chunk = todo.iloc[start : start + CHUNK]
                rows = score_frame(detector, chunk, run=run, perturbation=perturbation, progress=False)
                writer.writerows(rows.astype(object).where(rows.notna(), "").to_numpy().tolist())
                stream.flush()
                bar.update(len(chunk))
    table = read_scores(out)
    asked = (table["perturbation"] == perturbation) & table["path"].isin(frame["path"])
    return table[asked].reset_index(drop=True)


def _completed(out: Path, detector: str, run: str) -> dict[tuple[str, str, str], list[str]]:
    """(path, sha256, perturbation) -> complete row of an interrupted scores table; empty if there is none."""
    if not out.exists():
        return {}
    try:
        with out.open(newline="", encoding="utf-8") as stream:
            header, *rows = list(csv.reader(stream)) or [SCORE_COLUMNS]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DetectorError(f"{out}: not a scores table ({error}); give another --out") from error
    if header != SCORE_COLUMNS[: len(header)] or (rows and header != SCORE_COLUMNS):
        raise DetectorError(f"{out}: not a scores table (its columns: {header[:4]}…); give another --out")
    at = SCORE_COLUMNS.index
    content = out.read_bytes()
    # A line end within open quotes belongs to a file's name, and not to the end of a row.
    complete_end = content.endswith(b"\n") and content.count(b'"') % 2 == 0
    rows = rows if complete_end else rows[:-1]
    rows = [r for r in rows if len(r) == len(SCORE_COLUMNS)]
    for row in rows:
        if (row[at("detector")], row[at("run")]) != (detector, run):
            raise DetectorError(
                f"{out}: holds scores of run {row[at('run')]}, not of {run}; give another --out"
            )
    return {(r[at("path")], r[at("sha256")], r[at("perturbation")]): r for r in rows}


def read_scores(path: str | Path) -> pd.DataFrame:
    """A scores table from CSV. Raises DetectorError naming the file if it cannot be read as one."""
    text = {c: str for c in SCORE_COLUMNS if c not in ("label", "fold", "seen", "threshold", "score")}
    try:
        # "NA" and "null" are names of files and generators here; only a number can be missing.
        empty = {c: [""] for c in SCORE_COLUMNS if c not in text}
        table = pd.read_csv(path, dtype=text, keep_default_na=False, na_values=empty)
    except FileNotFoundError:
        raise DetectorError(f"{path}: no such scores table; make one with `afp score`") from None
    except (OSError, ValueError) as error:
        raise DetectorError(f"{path}: not a readable scores table ({error})") from error
    if missing := [c for c in SCORE_COLUMNS if c not in table.columns]:
        raise DetectorError(f"{path}: columns missing: {', '.join(missing)}")
    return table.fillna({c: "" for c in text})


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
        path = folder if k == 0 else fit_run(
            name, part, folder / f"fold-{k}", config=config, without=without, progress=progress
        )  # fmt: skip
        test = part[part["split"] == "test"]
        tables.append(score_frame(detectors.load(path), test, run=folder.name, fold=k, progress=progress))
    table = pd.concat(tables, ignore_index=True)
    partial = target.with_suffix(".partial")
    table.to_csv(partial, index=False)
    partial.replace(target)
    stamp.write_text(key + "\n")
    return folder


def default_run() -> Path:
    """The linear probe that comes with the workbook, fitted on the demo benchmark; its backbone is made if need be.

    Trained under JPEG and blur too, which images from elsewhere have met. Made by
    ``afp fit --detector linear-probe --set 'augment=["jpeg:75","blur:1"]' --out data/linear-probe``.

    Raises:
        afp.wheels.WheelError: the backbone's pinned wheels cannot be had.
    """
    from . import demo_clip

    demo_clip.build()
    return ROOT / "data" / "linear-probe"
