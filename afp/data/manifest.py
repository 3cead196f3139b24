"""Manifests: one row an image. What it is, where it came from, which split it belongs to."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from ..errors import DataError, ImageError
from ..files import MANIFEST, check_input, printable, written_whole
from .archives import normalised
from .images import sha256
from .splits import N_FOLDS, hash_folds

COLUMNS = ["path", "label", "generator", "kind", "split", "fold", "source", "set", "sha256"]
_EXPECTED = {
    "path": "a file, each once",
    "label": "0 (real) or 1 (fake)",
    "split": "train | validation | test | none",
    "fold": f"0 to {N_FOLDS - 1}, the same for all images of a source",
    "source": "the photograph that it derives from",
    "generator": "a name",
}


def read_manifest(path: str | Path) -> pd.DataFrame:
    """Read a CSV or Parquet manifest and check its schema (not its images: see `afp.data.audit`).

    Returns:
        DataFrame with `COLUMNS`, any further columns of the file, and ``file``: the absolute place of each image,
        without ``..`` (``path`` is relative to the manifest's folder). Without a column ``fold`` it comes from the
        source's hash, without ``set`` that is empty.
    Raises:
        DataError: unreadable file, missing column, no row, a label other than 0/1, an unknown split, a source
            in two folds, an empty generator or source, a repeated path.
    """
    path = Path(path)
    given = _read(path).reset_index(drop=True)
    missing = [c for c in COLUMNS if c not in given.columns and c not in ("fold", "set")]
    if missing:
        raise DataError(f"{path}: columns missing: {', '.join(missing)}; expected {', '.join(COLUMNS)}")
    if twice := given.columns[given.columns.duplicated()].tolist():
        raise DataError(f"{path}: column {twice[0]!r} stands twice")
    if given.empty:
        raise DataError(f"{path}: no row, expected one an image")
    frame = given.assign(set=given.get("set", ""))
    for column in ("label", "fold"):
        if column in frame:
            frame[column] = pd.to_numeric(frame[column], errors="coerce")
    for column in (c for c in COLUMNS if c not in ("label", "fold")):
        text = frame[column] if frame[column].dtype == "str" else frame[column].astype(object)
        frame[column] = text.fillna("").astype(str)
    frame["sha256"] = frame["sha256"].str.lower()
    frame["file"] = [normalised(os.path.join(path.parent, name)) for name in frame["path"]]
    if "fold" not in frame:
        frame["fold"] = hash_folds(frame)
    for column, bad in [
        ("label", ~frame["label"].isin([0, 1])),
        ("split", ~frame["split"].isin(["train", "validation", "test", "none"])),
        ("path", frame["file"].duplicated() | frame["path"].eq("") | frame["path"].str.contains("\0")),
        ("generator", frame["generator"].eq("")),
        ("source", frame["source"].eq("")),
        ("fold", ~frame["fold"].isin(range(N_FOLDS))),
        ("fold", frame["fold"] != frame.groupby("source")["fold"].transform("first")),
    ]:
        if bad.any():
            row = int(bad.idxmax())
            value = str(given.get(column, frame[column])[row])
            raise DataError(f"{path}: row {row + 2}: {column} is {value!r}, expected {_EXPECTED[column]}")
    return frame.astype({"label": int, "fold": int})


def _read(path: Path) -> pd.DataFrame:
    check_input(path)
    try:
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path)
        text = {c: str for c in COLUMNS if c not in ("label", "fold")}
        return pd.read_csv(path, dtype=text, keep_default_na=False)
    except FileNotFoundError:
        hint = "; build the demo benchmark with `afp demo`" if path.parent.name == "demo" else ""
        raise DataError(f"{path}: no such manifest{hint}") from None
    except Exception as error:  # on arbitrary bytes the two readers raise nearly anything
        raise DataError(f"{path}: not a readable CSV or Parquet manifest ({error})") from error


def write_manifest(frame: pd.DataFrame, path: str | Path) -> Path:
    """Write a manifest, whole, paths relative to its folder. Raises DataError unless it ends in .csv or .parquet."""
    path = Path(path).absolute()
    if not path.name.lower().endswith(MANIFEST.suffixes):
        raise DataError(f"{path}: cannot be written, expected a name ending in .csv or .parquet")
    folder = os.path.realpath(path.parent)  # a ``..`` behind a link would lead elsewhere
    frame = frame.drop(columns="file", errors="ignore").assign(
        path=[Path(os.path.relpath(f, folder)).as_posix() for f in frame["file"]]
    )
    with written_whole(path) as partial:
        if path.suffix.lower() == ".parquet":
            frame.to_parquet(partial, index=False)
        else:
            frame.to_csv(partial, index=False)
    return path


def from_files(files: Collection[str | Path], progress: bool = False) -> pd.DataFrame:
    """A frame of ``path, file, sha256`` for images of which nothing else is known.

    A file that cannot be read has an empty hash; decoding it later says why. ``path`` is a name that can be
    written as UTF-8, whatever the bytes on disk.
    """
    rows = []
    bar = tqdm(files, "hashing", unit="image", leave=False, disable=not progress)
    for file in map(Path, bar):
        digest = ""
        with suppress(ImageError):
            digest = sha256(file)
        rows.append((printable(file), normalised(file), digest))
    return pd.DataFrame(rows, columns=["path", "file", "sha256"], dtype=object)
