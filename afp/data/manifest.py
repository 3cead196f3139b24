"""Manifests: one row an image. What it is, where it came from, which split it belongs to."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from ..errors import DataError, ImageError
from ..files import printable
from .images import sha256

COLUMNS = ["path", "label", "generator", "kind", "split", "source", "sha256"]
SPLITS = ("train", "validation", "test", "none")


def read_manifest(path: str | Path) -> pd.DataFrame:
    """Read a CSV or Parquet manifest and check its schema (not its images: see `afp.data.audit`).

    Returns:
        DataFrame with `COLUMNS`, any further columns of the file, and ``file``: the absolute path of each image
        (``path`` is relative to the manifest's folder).
    Raises:
        DataError: unreadable file, missing column, no row, a label other than 0/1, an unknown split, a
            repeated path.
    """
    path = Path(path)
    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            frame = pd.read_csv(path, dtype={c: str for c in COLUMNS if c != "label"}, keep_default_na=False)
    except FileNotFoundError:
        hint = "; build the demo benchmark with `afp demo`" if path.parent.name == "demo" else ""
        raise DataError(f"{path}: no such manifest{hint}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable CSV or Parquet manifest ({error})") from error
    missing = [c for c in COLUMNS if c not in frame.columns]
    if missing:
        raise DataError(f"{path}: columns missing: {', '.join(missing)}; expected {', '.join(COLUMNS)}")
    if frame.empty:
        raise DataError(f"{path}: no row, expected one an image")
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
            raise DataError(
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
            "path": [printable(f) for f in files],
            "file": [str(f.absolute()) for f in files],
            "sha256": [hash_or_empty(f) for f in files],
        },
        dtype=object,
    )


def hash_or_empty(file: Path) -> str:
    try:
        return sha256(file)
    except ImageError:
        return ""
