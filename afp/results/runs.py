"""Runs: a fitted detector in a folder, the scores it gave, and where both came from."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from .. import detectors
from ..data.splits import N_FOLDS, use_fold
from ..detectors.base import IMAGES, Detector, check_seal, image_roles, read_config, run_key, seal
from ..detectors.operating_point import TARGET_FPR, OperatingPoint, choose_operating_point, fewest_for
from ..errors import DataError, ModelError
from ..files import check_folder, checksum, read_json, write_json, write_text, written_folder, written_whole
from ..models import processes
from ..paths import ROOT, backbone_folder, cache_dir, runs_dir
from .scores import score_frame, unscored_table, write_rows

ENVIRONMENT = "environment.json"  # what was fitted where
PACKAGES = ("torch", "transformers", "peft", "accelerate", "scikit-learn", "numpy", "pandas", "pillow")


def fit_run(
    name: str,
    frame: pd.DataFrame,
    out: str | Path | None = None,
    *,
    config: dict | None = None,
    fold: int | None = None,
    without: Sequence[str] = (),
    target_fpr: float | None = TARGET_FPR,
    start: str | Path | None = None,
    progress: bool = True,
) -> Path:
    """Fit a detector on a manifest's train rows and leave it in a folder.

    A folder that already holds the same fit (see `_identity`) is returned as it is. A run is written whole or not at
    all.

    Args:
        name: registered detector.
        frame: manifest rows with their splits.
        out: folder; default ``runs/<name>-<hash>``.
        config: constructor arguments that differ from the defaults.
        fold: re-assign the splits for this fold (see `afp.data.splits.use_fold`).
        without: generators left out of training and validation.
        target_fpr: the share of validation's real images that the threshold may call fake; None for the best
            balanced accuracy.
        start: a run of the same detector, whose weights the training starts from.
    Returns:
        The run folder.
    Raises:
        DataError: bad config, an empty or one-class split, or a folder that holds another run or other files.
    """
    detector = detectors.create(name, **config or {})
    if fold is not None:
        frame = use_fold(frame, fold)
    if unknown := set(without) - set(frame["generator"]):
        raise DataError(f"without: no generator {sorted(unknown)[0]!r} in the manifest")
    used = frame[~frame["generator"].isin(without)]
    train, validation = (used[used["split"] == s] for s in ("train", "validation"))
    key = _identity(detector, train, validation, target_fpr)
    if start:
        key = _hashed([key, run_key(start)])[:8]
    folder = Path(out) if out else runs_dir() / f"{name}-{key}"
    backbone = getattr(detector, "backbone", "")
    if backbone and (folder / ENVIRONMENT).is_file() and _weights(detector) is None:
        raise ModelError(f"backbone {backbone}: is not on this machine; the run in {folder} stays as it is")
    with _only_fit(folder):
        if processes.gather(_is_fitted(folder, key))[0]:
            return folder
        # Of this folder's fit alone: the same one in another folder may be going on.
        place = f"{key}-{_hashed(os.path.realpath(folder))[:8]}"
        started, checkpoint = time.perf_counter(), cache_dir() / "checkpoints" / place
        detector.fit(train, validation, progress, target_fpr, checkpoint, start)
        seconds = round(time.perf_counter() - started, 2)
        if processes.rank() == 0:
            table = unscored_table(detector, validation, folder.name, fold, "none")
            content = {"identity": key, "fold": fold, "without": list(without), "fit_seconds": seconds}
            content |= {"n_train": len(train), "n_validation": len(validation)} | environment()
            if hasattr(detector, "backbone"):
                content["hub_commit"] = hub_commit(detector)
            with written_folder(folder, "afp fit") as partial:
                detector.save(partial)
                _write_table(table.assign(score=detector.validation_scores_), partial / "validation.csv")
                seal(partial, ["validation.csv"])
                write_json(partial / ENVIRONMENT, content)
            shutil.rmtree(checkpoint, ignore_errors=True)
        processes.gather(None)  # nobody reads the run before it is there
    return folder


@contextmanager
def _only_fit(folder: Path) -> Iterator[None]:
    """Lets one command at a time fit a run; the next one waits, and finds it."""
    if processes.rank():
        yield
        return
    place = Path(os.path.realpath(folder))
    place.parent.mkdir(parents=True, exist_ok=True)
    mark = place.parent / f".{place.name}.lock"
    lock = FileLock(mark)
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        logging.getLogger(__name__).warning("%s: another process fits it; waiting for it", folder)
        held = lock.acquire()
    with held:
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)


def _is_fitted(folder: Path, key: str) -> bool:
    """Whether the folder holds this fit, whole. Raises DataError where it holds another one, or other files."""
    content = read_json(folder / ENVIRONMENT)
    if found := content.get("identity") if isinstance(content, dict) else None:
        if found != key:
            raise DataError(f"{folder}: holds another run ({found}); give another folder or delete it")
        try:
            check_seal(folder)
            return True
        except ModelError as error:
            logging.getLogger(__name__).warning("%s: fitted anew", error)
    check_folder(folder, "afp fit")
    return False


def _identity(
    detector: Detector, train: pd.DataFrame, validation: pd.DataFrame, target_fpr: float | None
) -> str:
    """Hash of all that the result of a fit depends on: detector, config, code, weights, images in their order."""
    code = _code(inspect.getfile(type(detector)))
    parts = [detector.name, detector.config(), target_fpr, code, _weights(detector)]
    return _hashed([*parts, _rows(train), _rows(validation)])[:8]


def _rows(frame: pd.DataFrame) -> str:
    """Hash of a manifest's rows: what each image is, and which one it is, by its hash or else its place."""
    image = frame["sha256"].where(frame["sha256"] != "", frame["file"])
    columns = [c for c in ("label", "generator", "source") if c in frame]
    return _hashed([image.tolist(), *(frame[c].astype(str).tolist() for c in columns)])


def _hashed(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


def _weights(detector: Detector) -> object:
    """What tells a backbone's weights apart: hashes of a folder's files, or the commit of a hub's."""
    if not (backbone := getattr(detector, "backbone", "")):
        return None
    from ..models.weights import local_folder

    folder = local_folder(backbone, getattr(detector, "revision", None))
    if folder is None:  # the fit will say that there are no weights
        return None
    if not backbone_folder(backbone).is_dir():
        return folder.name
    files = sorted(f for f in folder.rglob("*") if f.suffix in (".safetensors", ".json", ".txt", ".model"))
    return [[f.relative_to(folder).as_posix(), _file_hash(f, f.stat().st_mtime_ns)] for f in files]


def hub_commit(detector: Detector) -> str:
    """The commit of the hub that a detector's weights come from; empty for a folder, or without a backbone."""
    found = _weights(detector)
    return found if isinstance(found, str) else ""


@cache
def _file_hash(file: Path, changed: int) -> str:
    return checksum(file)


@cache
def _code(file: str) -> str:
    """Hash of a module and of every module of this package that it imports, directly or through others.

    Comments, docstrings and the layout of lines are no part of it: they change no result.
    """
    package, found, todo = Path(__file__).parent.parent, {}, [Path(file)]
    while todo:
        module = todo.pop()
        if module in found or not module.is_file() or package not in module.parents:
            continue
        tree = ast.parse(module.read_text(encoding="utf-8"))
        todo += _imported(tree, module)
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
                and ast.get_docstring(node) is not None
            ):
                del node.body[0]
        found[module] = ast.dump(tree)
    return _hashed({module.relative_to(package).as_posix(): text for module, text in found.items()})


def _imported(tree: ast.Module, module: Path) -> Iterable[Path]:
    """Files of the modules that a module imports from its own package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = module.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            yield folder.with_suffix(".py")
            yield from (folder / f"{alias.name}.py" for alias in node.names)


def environment() -> dict:
    """Versions and machine, as a run records them."""
    packages = versions(PACKAGES)
    return {"python": platform.python_version(), "platform": platform.platform(), "packages": packages}


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Package -> its version, or "not installed"."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def calibrate(
    folder: str | Path, reals: pd.DataFrame, target_fpr: float = TARGET_FPR, progress: bool = True
) -> OperatingPoint:
    """Move a run's threshold to one's own photographs, of which it may call only a share fake.

    The photographs and their scores stay in the run, so that they are never evaluated on. Those that it was fitted
    or validated on are left out: on them it calls too few fake.

    Args:
        folder: a run, changed in place.
        reals: real images, such as `afp.data.manifest.from_files`.
        target_fpr: above 0, under 1.
    Raises:
        DataError: an image that is labelled fake, or so few readable ones that not one of them may be called fake.
    """
    folder = Path(folder)
    if fakes := int((reals.reindex(columns=["label"])["label"] == 1).sum()):
        raise DataError(f"{fakes} of {len(reals)} images are labelled fake, expected photographs alone")
    detector = detectors.load(folder)
    reals = reals.assign(label=0, generator="real", kind="real")
    good = scored = reals
    if len(reals) >= (fewest := fewest_for(target_fpr)):
        scored = score_frame(detector, reals, run=folder.resolve().name, progress=progress)
        met = scored["role"].isin(["train", "validation"])
        good = scored[scored["score"].notna() & ~met]
    if len(good) < fewest:
        raise DataError(
            f"{len(good)} photographs ({len(scored) - len(good)} left out: unreadable, or the run was fitted on "
            f"them): too few for a rate of "
            f"{target_fpr:g}; expected at least {fewest}, and better ten times as many"
        )
    sources = good["sha256"].where(good["sha256"] != "", good["path"])
    point = choose_operating_point(good["label"], good["score"], sources, target_fpr, "calibration")
    met = getattr(detector, "images_", image_roles(reals.iloc[:0], ""))
    met = pd.concat([met[met["role"] != "calibration"], image_roles(good, "calibration")])
    content = read_config(folder) | {"threshold": point.threshold, "operating_point": vars(point)}
    with (  # all of them, then their checksums: as little time as can be between the first and the last
        written_whole(folder / "calibration.csv") as table,
        written_whole(folder / IMAGES) as images,
        written_whole(folder / "config.json") as config,
    ):
        write_rows(good.assign(threshold=point.threshold, role="calibration"), table, header=True)
        met.to_csv(images, index=False)
        write_json(config, content)
    seal(folder, ["calibration.csv", IMAGES, "config.json"])
    return point


def _write_table(table: pd.DataFrame, path: Path) -> None:
    with written_whole(path) as partial:
        write_rows(table, partial, header=True)


def cross_fit(
    name: str,
    frame: pd.DataFrame,
    out: str | Path | None = None,
    *,
    config: dict | None = None,
    without: Sequence[str] = (),
    target_fpr: float | None = None,
    start: str | Path | None = None,
    progress: bool = True,
) -> Path:
    """Fit one detector a fold and score every image once, by the detector that never saw its photograph.

    The folder holds fold 0's detector (so that it can be used like any run), the others in ``fold-1`` …, and
    ``scores.csv``, the cross-fitted table. Thresholds are those of the best balanced accuracy, if not told
    otherwise: what is measured here is compared, while `fit_run` makes what is used.

    Returns:
        The run folder; an existing complete one is returned as it is.
    """
    folds = [use_fold(frame, k) for k in range(N_FOLDS)]
    options: dict[str, Any] = {
        "config": config,
        "without": without,
        "target_fpr": target_fpr,
        "start": start,
        "progress": progress,
    }
    folder = fit_run(name, folds[0], out, **options)
    key = _hashed([_rows(part) for part in folds] + [part["split"].tolist() for part in folds])
    target, stamp = folder / "scores.csv", folder / "scores.sha256"
    known = target.is_file() and stamp.is_file() and stamp.read_text(encoding="utf-8").strip() == key
    if processes.gather(known)[0]:
        return folder
    tables, quiet = [], not progress or processes.rank() > 0
    # All fits come first: they extract more of an image than a score needs.
    for k, part in enumerate(tqdm(folds[1:], desc=f"{name} folds", disable=quiet), start=1):
        fit_run(name, part, fold_folder(folder, k), **options)
    for k, part in enumerate(folds):
        fitted, test = detectors.load(fold_folder(folder, k)), part[part["split"] == "test"]
        tables.append(score_frame(fitted, test, run=folder.name, fold=k, progress=progress))
    if processes.rank() == 0:
        _write_table(pd.concat(tables, ignore_index=True), target)
        write_text(stamp, key + "\n")
    processes.gather(None)
    return folder


def fold_folder(folder: str | Path, k: int) -> Path:
    """Where `cross_fit` leaves the detector of fold ``k``."""
    return Path(folder) / f"fold-{k}" if k else Path(folder)


def default_run() -> Path:
    """The linear probe that comes with the workbook, fitted on the demo benchmark; its backbone is `demo-clip`.

    Trained under JPEG and blur too, which images from elsewhere have met. Made by
    ``afp fit --detector linear-probe --set 'augment=["jpeg:75","blur:1"]' --out data/linear-probe``.
    """
    return ROOT / "data" / "linear-probe"
