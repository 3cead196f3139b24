"""Which image is for what: sources, folds, and smaller selections that keep sources whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..errors import DataError

N_FOLDS = 5


def connect_sources(parents: Sequence[Sequence[str]], hashes: Iterable[str]) -> list[str]:
    """One source an image: images that share a parent, directly or through others, or their bytes, are one.

    Args:
        parents: for each image the photographs that it derives from, by any names.
        hashes: for each image its SHA-256; empty where it is not known.
    Returns:
        The first name, in sorted order, of all that are connected.
    """
    rows, names = [], []
    for i, (own, digest) in enumerate(zip(parents, hashes, strict=True)):
        keys = [f"parent {name}" for name in own]
        if digest:
            keys.append(f"hash {digest}")
        rows += [i] * len(keys)
        names += keys
    codes, distinct = pd.factorize(np.array(names, dtype=object), sort=True)
    size = len(parents) + len(distinct)
    edges = coo_array((np.ones(len(rows)), (rows, len(parents) + codes)), shape=(size, size))
    groups = connected_components(edges, directed=False)[1]
    # Sorted, "hash ..." stands before "parent ...": the first of the parents is the group's name.
    named = pd.Series(distinct, index=groups[len(parents) :]).loc[lambda s: s.str.startswith("parent ")]
    first = named.groupby(level=0).first().str.removeprefix("parent ")
    return first.loc[groups[: len(parents)]].tolist()


def fold_of(source: str, n_folds: int = N_FOLDS, seed: int = 0) -> int:
    """The fold of a source, from a hash of its name alone: no other image can move it."""
    digest = hashlib.sha256(f"{seed}:{source}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % n_folds


def hash_folds(frame: pd.DataFrame, seed: int = 0) -> pd.Series:
    """`fold_of` each row's source."""
    folds = {source: fold_of(source, seed=seed) for source in frame["source"].unique()}
    return frame["source"].map(folds).astype(int)


def deal_folds(frame: pd.DataFrame, n_folds: int = N_FOLDS, seed: int = 0) -> pd.Series:
    """Folds of equal size, whatever the rows' order; sources of real photographs and others are dealt apart.

    For few sources, where hashes may leave a fold empty. Another source changes the folds of those that are there.
    """
    photos = set(frame.loc[frame["label"] == 0, "source"])
    folds: dict[str, int] = {}
    for sources in (photos, set(frame["source"]) - photos):
        order = sorted(sources, key=lambda s: hashlib.sha256(f"{seed}:{s}".encode()).hexdigest())
        folds |= {source: i % n_folds for i, source in enumerate(order)}
    return frame["source"].map(folds).astype(int)


def held_in_generators(frame: pd.DataFrame) -> list[str]:
    """Names of the fake generators that have images in the training split."""
    return sorted(frame.loc[(frame["split"] == "train") & (frame["label"] == 1), "generator"].unique())


def hold_in(frame: pd.DataFrame, generators: Sequence[str]) -> pd.DataFrame:
    """The manifest with these generators in training and validation, and no other.

    Their images go where the photograph of their source is. Those of others stay in the test split, or leave.

    Args:
        frame: a manifest with its splits.
        generators: names of fake ones, at least one.
    Raises:
        DataError: a name that no fake image has.
    """
    fake = frame["label"] == 1
    if unknown := sorted(set(generators) - set(frame.loc[fake, "generator"])):
        known = ", ".join(sorted(set(frame.loc[fake, "generator"])))
        raise DataError(f"held-in: no fake image by {unknown[0]!r}, expected some of {known}")
    photographs = frame[~fake].drop_duplicates("source").set_index("source")["split"]
    of_source = frame["source"].map(photographs).fillna(frame["split"].replace("none", "train"))
    split = frame["split"].where(~fake | (frame["split"] == "test"), "none")
    return frame.assign(split=split.where(~(fake & frame["generator"].isin(generators)), of_source))


def use_fold(frame: pd.DataFrame, fold: int, n_folds: int = N_FOLDS, seed: int = 0) -> pd.DataFrame:
    """Re-assign the splits for cross-fitting: every source is in the test split of exactly one fold.

    The fold's sources become ``test``, the next fold's ``validation``, the others ``train``. Held-out generators
    (those without a training row in ``frame``) stay out of training and validation: their rows outside of the
    test sources become ``none``.

    Args:
        frame: a manifest; its column ``fold`` counts, so that a selection of its rows keeps each row's role.
        fold: 0 to n_folds - 1.
        n_folds: another number than a manifest's 5, or a frame without the column: dealt over the rows there are.
        seed: of the dealing.
    Raises:
        DataError: a fold outside of 0 .. n_folds - 1, or one in which no source has a real image.
    """
    if not 0 <= fold < n_folds:
        raise DataError(f"fold: {fold}, expected 0 to {n_folds - 1}")
    kept = n_folds == N_FOLDS and "fold" in frame
    folds = frame["fold"] if kept else deal_folds(frame, n_folds, seed)
    real = frame["label"] == 0
    if empty := set(range(n_folds)) - set(folds[real]):
        sources = frame.loc[real, "source"].nunique()
        raise DataError(
            f"{sources} sources of real images cannot make {n_folds} folds: none is in fold {min(empty)}"
        )
    distance = (folds - fold) % n_folds
    split = distance.map({0: "test", 1: "validation"}).fillna("train")
    trained = real | frame["generator"].isin(held_in_generators(frame))
    return frame.assign(split=split.where(trained | (split == "test"), "none"))


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


def few_tiles(frame: pd.DataFrame, per_source: int, kinds: Sequence[str] = ()) -> pd.DataFrame:
    """The first ``per_source`` images of each source and generator: a smaller test of the same photographs.

    Args:
        frame: a manifest.
        per_source: images, 1 or more.
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
