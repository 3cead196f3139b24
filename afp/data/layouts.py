"""Folders of images, as data sets come, to a manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from ..errors import DataError
from ..files import printable
from .images import list_images
from .manifest import COLUMNS, hash_or_empty
from .splits import deal_folds, merge_identical


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
        DataError: no image in a folder, or a file name that is not UTF-8.
    """
    rows = []
    groups = [(0, "real", "real", folder) for folder in real]
    groups += [(1, name, "unknown", folder) for name, folder in fake.items()]
    for label, generator, kind, folder in groups:
        files, _ = list_images([folder])
        if not files:
            raise DataError(f"{folder}: no image with a listed extension")
        for file in tqdm(files, desc=f"hashing {generator}", leave=False):
            if (name := printable(file)) != str(file):
                raise DataError(f"{name}: this name is not UTF-8 and cannot stand in a manifest; rename it")
            rows.append((str(file.absolute()), label, generator, kind, file.stem, hash_or_empty(file)))
    frame = pd.DataFrame(rows, columns=["file", "label", "generator", "kind", "source", "sha256"])
    frame["path"] = frame["file"]
    frame["source"] = merge_identical(frame)
    frame["split"] = "test"
    if split:
        fold = frame["source"].map(deal_folds(frame["source"], 5, seed))
        frame["split"] = fold.map({0: "test", 1: "validation"}).fillna("train")
    return frame[[*COLUMNS, "file"]]
