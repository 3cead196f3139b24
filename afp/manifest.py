"""Manifests: one row an image. What it is, where it came from, which split it belongs to."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from .images import ImageError, list_images, sha256

COLUMNS = ["path", "label", "generator", "kind", "split", "source", "sha256"]
SPLITS = ("train", "validation", "test", "none")


class ManifestError(ValueError):
    """A manifest is not usable; the message names the file, the column or the row."""


def read_manifest(path: str | Path) -> pd.DataFrame:
    """Read a CSV or Parquet manifest and check its schema (not its images: see `afp.audit`).

    Returns:
        DataFrame with `COLUMNS`, any further columns of the file, and ``file``: the absolute path of each image
        (``path`` is relative to the manifest's folder).
    Raises:
        ManifestError: unreadable file, missing column, no row, a label other than 0/1, an unknown split, a
            repeated path.

    Notebook: 01_prepare_data
    """
    path = Path(path)
    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            frame = pd.read_csv(path, dtype={c: str for c in COLUMNS if c != "label"}, keep_default_na=False)
    except FileNotFoundError:
        hint = "; build the demo benchmark with `afp demo`" if path.parent.name == "demo" else ""
        raise ManifestError(f"{path}: no such manifest{hint}") from None
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}: not a readable CSV or Parquet manifest ({error})") from error
    missing = [c for c in COLUMNS if c not in frame.columns]
    if missing:
        raise ManifestError(f"{path}: columns missing: {', '.join(missing)}; expected {', '.join(COLUMNS)}")
    if frame.empty:
        raise ManifestError(f"{path}: no row, expected one an image")
    frame = frame.reset_index(drop=True)
    label = pd.to_numeric(frame["label"], errors="coerce")
    for column, bad in [
        ("label", ~label.isin([0, 1])),
        ("split", ~frame["split"].isin(SPLITS)),
        ("path", frame["path"].duplicated() | frame["path"].eq("")),
    ]:
        if bad.any():
            row = frame[bad].iloc[0]
            expected = {"label": "0 (real) or 1 (fake)", "split": " | ".join(SPLITS), "path": "each once"}[
                column
            ]
            raise ManifestError(
                f"{path}: row {row.name + 2}: {column} is {str(row[column])!r}, expected {expected}"
            )
    frame["label"] = label.astype(int)
    frame["file"] = [str(path.parent.absolute() / p) for p in frame["path"]]
    return frame


def write_manifest(frame: pd.DataFrame, path: str | Path) -> Path:
    """Write a manifest as CSV or Parquet (by suffix), atomically, paths relative to its folder."""
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = frame.drop(columns="file", errors="ignore").assign(
        path=[Path(os.path.relpath(f, path.parent)).as_posix() for f in frame["file"]]
    )
    partial = path.with_name(path.name + ".partial")
    if path.suffix == ".parquet":
        frame.to_parquet(partial, index=False)
    else:
        frame.to_csv(partial, index=False)
    partial.replace(path)
    return path


def from_files(files: Iterable[str | Path]) -> pd.DataFrame:
    """A frame of ``path, file, sha256`` for images of which nothing else is known.

    A file that cannot be read has an empty hash; decoding it later says why. ``path`` is a name that can be
    written as UTF-8, whatever the bytes on disk.
    """
    files = [Path(f) for f in files]
    return pd.DataFrame(
        {
            "path": [_printable(f) for f in files],
            "file": [str(f.absolute()) for f in files],
            "sha256": [_hash_or_empty(f) for f in files],
        },
        dtype=object,
    )


def _printable(file: Path) -> str:
    return os.fsencode(file).decode("utf-8", "backslashreplace")


def _hash_or_empty(file: Path) -> str:
    try:
        return sha256(file)
    except ImageError:
        return ""


def from_folders(
    real: Sequence[Path], fake: dict[str, Path], split: bool = False, seed: int = 0
) -> pd.DataFrame:
    """Build a manifest from folders of images.

    Args:
        real: folders of real images.
        fake: generator name -> folder of its images.
        split: assign 60/20/20 % of the *sources* to train/validation/test; otherwise all rows are ``test``.
        seed: changes which source goes where.
    Returns:
        DataFrame as `read_manifest` gives it. The source is the file's stem, so ``real/dog.jpg`` and
        ``fake/lama/dog.png`` derive from the same photograph and share a split.
    Raises:
        ManifestError: no image in a folder, or a file name that is not UTF-8.
    """
    rows = []
    groups = [(0, "real", "real", folder) for folder in real]
    groups += [(1, name, "unknown", folder) for name, folder in fake.items()]
    for label, generator, kind, folder in groups:
        files, _ = list_images([folder])
        if not files:
            raise ManifestError(f"{folder}: no image with a listed extension")
        for file in tqdm(files, desc=f"hashing {generator}", leave=False):
            if (name := _printable(file)) != str(file):
                raise ManifestError(f"{name}: this name is not UTF-8 and cannot stand in a manifest; rename it")
            rows.append((str(file.absolute()), label, generator, kind, file.stem, _hash_or_empty(file)))
    frame = pd.DataFrame(rows, columns=["file", "label", "generator", "kind", "source", "sha256"])
    frame["path"] = frame["file"]
    frame["source"] = _merge_identical(frame)
    frame["split"] = "test"
    if split:
        fold = frame["source"].map(_folds(frame["source"], 5, seed))
        frame["split"] = fold.map({0: "test", 1: "validation"}).fillna("train")
    return frame[[*COLUMNS, "file"]]


def _merge_identical(frame: pd.DataFrame) -> pd.Series:
    """Give byte-identical files one source, so that no hash can end up in two splits."""
    parent: dict[str, str] = {s: s for s in frame["source"]}

    def root(s: str) -> str:
        while parent[s] != s:
            parent[s] = parent[parent[s]]
            s = parent[s]
        return s

    for _, sources in frame[frame["sha256"] != ""].groupby("sha256")["source"]:
        for other in sources[1:]:
            parent[root(other)] = root(sources.iloc[0])
    return frame["source"].map(root)


def _folds(sources: Iterable[str], n_folds: int, seed: int = 0) -> dict[str, int]:
    """Source -> fold, balanced and independent of the rows' order."""
    order = sorted(set(sources), key=lambda s: hashlib.sha256(f"{seed}:{s}".encode()).hexdigest())
    return {source: i % n_folds for i, source in enumerate(order)}


def thin(frame: pd.DataFrame, most: int) -> pd.DataFrame:
    """Rows of some sources, for what is too slow for all: ``most`` images at most (the first source always stays).

    Whole sources are taken in the order of their names' hashes, so the same ones are drawn each time.

    Raises:
        ManifestError: ``most`` under 1.

    Notebook: 05_map_feature_space
    """
    if most < 1:
        raise ManifestError(f"most: {most} images, expected 1 or more")
    counts = frame["source"].value_counts()
    order = sorted(counts.index, key=lambda source: hashlib.sha256(source.encode()).hexdigest())
    total = counts[order].cumsum()
    return frame[frame["source"].isin(total.index[(total <= most) | (total.index == order[0])])]


def held_in_generators(frame: pd.DataFrame) -> list[str]:
    """Names of the fake generators that have images in the training split."""
    return sorted(frame.loc[(frame["split"] == "train") & (frame["label"] == 1), "generator"].unique())


def use_fold(frame: pd.DataFrame, fold: int, n_folds: int = 5, seed: int = 0) -> pd.DataFrame:
    """Re-assign the splits for cross-fitting: every source is in the test split of exactly one fold.

    The fold's sources become ``test``, the next fold's ``validation``, the others ``train``. Held-out generators
    (those without a training row in ``frame``) stay out of training and validation: their rows outside of the
    test sources become ``none``. Sources of real photographs and others (wild images) are dealt separately.

    Raises:
        ManifestError: a fold outside of 0 .. n_folds - 1, or fewer sources than folds.

    Notebook: 04_evaluate_held_out
    """
    if not 0 <= fold < n_folds:
        raise ManifestError(f"fold: {fold}, expected 0 to {n_folds - 1}")
    photos = set(frame.loc[frame["label"] == 0, "source"])
    if len(photos) < n_folds:
        raise ManifestError(f"{len(photos)} sources of real images cannot make {n_folds} folds")
    folds = _folds(photos, n_folds, seed) | _folds(set(frame["source"]) - photos, n_folds, seed)
    held_in = held_in_generators(frame)
    distance = (frame["source"].map(folds) - fold) % n_folds
    split = distance.map({0: "test", 1: "validation"}).fillna("train")
    trained = (frame["label"] == 0) | frame["generator"].isin(held_in)
    return frame.assign(split=split.where(trained | (split == "test"), "none"))
