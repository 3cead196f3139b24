"""Which image is for what: sources, folds, and smaller selections that keep sources whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import pandas as pd

from ..errors import DataError


def merge_identical(frame: pd.DataFrame) -> pd.Series:
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


def deal_folds(sources: Iterable[str], n_folds: int, seed: int = 0) -> dict[str, int]:
    """Source -> fold, balanced and independent of the rows' order."""
    order = sorted(set(sources), key=lambda s: hashlib.sha256(f"{seed}:{s}".encode()).hexdigest())
    return {source: i % n_folds for i, source in enumerate(order)}


def thin(frame: pd.DataFrame, most: int) -> pd.DataFrame:
    """Rows of some sources, for what is too slow for all: ``most`` images at most (the first source always stays).

    Whole sources are taken in the order of their names' hashes, so the same ones are drawn each time.

    Raises:
        DataError: ``most`` under 1.
    """
    if most < 1:
        raise DataError(f"most: {most} images, expected 1 or more")
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
        DataError: a fold outside of 0 .. n_folds - 1, or fewer sources than folds.
    """
    if not 0 <= fold < n_folds:
        raise DataError(f"fold: {fold}, expected 0 to {n_folds - 1}")
    photos = set(frame.loc[frame["label"] == 0, "source"])
    if len(photos) < n_folds:
        raise DataError(f"{len(photos)} sources of real images cannot make {n_folds} folds")
    folds = deal_folds(photos, n_folds, seed) | deal_folds(set(frame["source"]) - photos, n_folds, seed)
    held_in = held_in_generators(frame)
    distance = (frame["source"].map(folds) - fold) % n_folds
    split = distance.map({0: "test", 1: "validation"}).fillna("train")
    trained = (frame["label"] == 0) | frame["generator"].isin(held_in)
    return frame.assign(split=split.where(trained | (split == "test"), "none"))


def few_tiles(frame: pd.DataFrame, per_source: int, kinds: Sequence[str] = ()) -> pd.DataFrame:
    """The first ``per_source`` images of each source and generator: a smaller test of the same photographs.

    Args:
        frame: a manifest.
        kinds: kinds of generator to keep, beside the real images; default all.
    Raises:
        DataError: ``per_source`` under 1, or no fake image of these kinds.
    """
    if per_source < 1:
        raise DataError(f"tiles per photograph: {per_source}, expected 1 or more")
    kept = frame[(frame["label"] == 0) | frame["kind"].isin(kinds)] if kinds else frame
    if not (kept["label"] == 1).any():
        known = sorted(set(frame.loc[frame["label"] == 1, "kind"]))
        raise DataError(f"kinds: {list(kinds)}, expected some of {known}, or none for all")
    first = kept.sort_values("path", kind="stable").groupby(["generator", "source"]).head(per_source)
    return first.sort_index()
