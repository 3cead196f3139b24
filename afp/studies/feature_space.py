"""What a feature space holds: numbers first, each against chance, then maps of it in two dimensions.

A map by t-SNE or UMAP shows islands in noise too. So each claim ("fakes lie apart", "this is a photograph's island")
is a number in the *original* space, beside what the same number would be if the labels meant nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeClassifier
from sklearn.manifold import TSNE
from sklearn.metrics import balanced_accuracy_score, silhouette_score
from sklearn.model_selection import GroupKFold, cross_val_predict

from ..data.splits import thin
from ..errors import AfpError, DataError, require

MEASURES = ("purity", "purity, other photographs", "silhouette", "separability")


def select_images(frame: pd.DataFrame, kinds: Sequence[str] = (), most: int = 2000) -> pd.DataFrame:
    """The rows of a map: photographs that no detector was trained on, and the fakes made of them or of others.

    Measures compare each image with each other one, so large manifests are thinned (`afp.data.splits.thin`).

    Args:
        frame: a manifest with its splits.
        kinds: kinds of generator to keep beside the real images; default all.
        most: images to keep at most.
    Returns:
        The rows, numbered from 0, in the manifest's order.
    Raises:
        DataError: ``most`` under 1, or no image of one of the classes is left.
    """
    trained_on = frame.loc[frame["split"] == "train", "source"]
    shown = frame[~frame["source"].isin(trained_on)]
    known = sorted(shown.loc[shown["label"] == 1, "kind"].unique())
    if kinds:
        shown = shown[(shown["label"] == 0) | shown["kind"].isin(kinds)]
    if shown["label"].nunique() < 2:
        raise DataError(
            f"kinds: {list(kinds)} leaves labels {sorted(shown['label'].unique().tolist())} among the sources that "
            f"are not in training, expected 0 and 1; the kinds there are: {known} (none given takes all)"
        )
    return thin(shown, most).reset_index(drop=True)


def unmatched(frame: pd.DataFrame, seed: int = 0) -> np.ndarray:
    """Rows of a map as papers draw it: real images of half of the sources, and fakes of the other half.

    Returns:
        (n,), True for those rows; no source has both labels among them.
    """
    sources = np.random.default_rng(seed).permutation(frame["source"].unique())
    return (frame["source"].isin(sources[: len(sources) // 2]) == (frame["label"] == 0)).to_numpy()


def unit_features(features: np.ndarray) -> np.ndarray:
    """(n, d) features, each dimension standardised, then each row of length 1.

    A few dimensions of a CLIP tower's middle blocks are a hundred times larger than the others; without this they
    alone would be the distance.
    """
    scale = features.std(0)
    centred = (features - features.mean(0)) / np.where(scale > 1e-6, scale, 1)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)


def measure(
    features: np.ndarray,
    labels: Sequence,
    sources: Sequence,
    *,
    k: int = 10,
    n_permutations: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """How far labels show in a feature space, against labels dealt anew.

    - purity: mean share of an image's ``k`` nearest neighbours (cosine) that bear its label; of a label of k images
      or fewer, as many neighbours as it has others, so that a label that lies together has purity 1;
    - purity, other photographs: the same among images of other sources, so that "the same photograph" cannot help;
    - silhouette: scikit-learn's, with the cosine distance;
    - separability: balanced accuracy of a ridge classifier, 5-fold by source.

    Under the null the labels are dealt anew *within* each source where they vary in most (real and fake versions of
    a photograph), and among whole sources where they vary in none. They are dealt over all images where a label is
    one source's alone (the sources themselves, say). p is (1 + #{null >= value}) / (1 + n_permutations).

    Args:
        features: (n, d), as of `unit_features`.
        labels, sources: (n,).
    Returns:
        Index: `MEASURES` (without those that need several sources a label, where a label is one source's alone);
        columns value, null, null_high (97.5 %), p.
    Raises:
        ValueError: k outside of 1 .. n - 1, one label only, a label for each image, or fewer than 2 sources.
    """
    y, s = pd.factorize(np.asarray(labels), sort=True)[0], pd.factorize(np.asarray(sources), sort=True)[0]
    n = len(y)
    if not 1 <= k < n:
        raise AfpError(f"k: {k}, expected 1 to {n - 1} for {n} images")
    if y.max(initial=0) < 1 or s.max(initial=0) < 1:
        raise AfpError(f"{y.max() + 1} labels of {s.max() + 1} sources: expected 2 or more of each")
    if y.max() == n - 1:
        raise AfpError(f"{n} labels of {n} images: expected several images of a label")
    varies = pd.Series(y).groupby(s).transform("nunique").gt(1)
    shared = pd.Series(s).groupby(y).nunique().gt(1).all()  # every label is borne by several sources
    distance = np.clip(1 - features @ features.T, 0, None)
    np.fill_diagonal(distance, 0)
    folds = GroupKFold(min(5, s.max() + 1))

    def purity(left_out: np.ndarray) -> Callable[[np.ndarray], float]:
        near = np.argsort(np.where(left_out, np.inf, distance), axis=1, kind="stable")[:, :k]

        def share(y: np.ndarray) -> float:
            n_alike = ((y[:, None] == y) & ~left_out).sum(1)
            looked = np.arange(k) < np.minimum(n_alike, k)[:, None]  # (n, k)
            alike = (y[near] == y[:, None]) & looked
            return (alike.sum(1) / np.maximum(looked.sum(1), 1))[n_alike > 0].mean().round(12)

        return share

    def separability(y: np.ndarray) -> float:
        model = RidgeClassifier(alpha=1.0, class_weight="balanced")
        return balanced_accuracy_score(y, cross_val_predict(model, features, y, groups=s, cv=folds))

    ways = {
        "purity": purity(np.eye(n, dtype=bool)),
        "purity, other photographs": purity(s[:, None] == s[None]),
        "silhouette": lambda y: silhouette_score(distance, y, metric="precomputed"),
        "separability": separability,
    }
    if not (varies.any() or shared):
        ways = {name: ways[name] for name in ("purity", "silhouette")}
    rng = np.random.default_rng(seed)
    if shared and not varies.any():
        dealt = [_deal_sources(y, s, rng) for _ in range(n_permutations)]
    else:
        within = s if varies.mean() > 0.5 else np.zeros(n, int)
        dealt = [_deal(y, within, rng) for _ in range(n_permutations)]
    rows = {}
    for name, way in ways.items():
        value, null = way(y), np.array([way(other) for other in dealt])
        p = (1 + (null >= value).sum()) / (1 + n_permutations)
        rows[name] = {"value": value, "null": null.mean(), "null_high": np.percentile(null, 97.5), "p": p}
    return pd.DataFrame(rows).T


def _deal(y: np.ndarray, within: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels in a new order, within each group."""
    order = np.lexsort((rng.random(len(y)), within))
    dealt = np.empty_like(y)
    dealt[np.argsort(within, kind="stable")] = y[order]
    return dealt


def _deal_sources(y: np.ndarray, sources: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels in a new order among whole sources, whose images bear one label each."""
    of_source = y[np.unique(sources, return_index=True)[1]]
    return rng.permutation(of_source)[sources]


def project(features: np.ndarray, method: str, neighbours: int = 30, seed: int = 0) -> np.ndarray:
    """A map of (n, d) features, as of `unit_features`: (n, 2).

    Args:
        method: "pca"; "tsne" (van der Maaten & Hinton, 2008; scikit-learn) or "umap" (McInnes et al., 2018).
        neighbours: perplexity of t-SNE, n_neighbors of UMAP; 2 to a third of the images.
    Raises:
        ValueError: another method, or too few or too many neighbours.
    """
    n = len(features)
    if method == "pca":
        return PCA(2, random_state=seed).fit_transform(features)
    if not 2 <= neighbours <= n / 3:
        raise AfpError(f"neighbours: {neighbours}, expected 2 to {n // 3} for {n} images")
    shared = {"metric": "cosine", "random_state": seed, "n_jobs": 1}
    if method == "tsne":
        return TSNE(perplexity=neighbours, init="pca", **shared).fit_transform(features)
    if method == "umap":
        umap = require("umap", extra="maps")  # compiles for seconds
        return umap.UMAP(n_neighbors=neighbours, **shared).fit_transform(features)
    raise AfpError(f"method: {method!r}, expected pca, tsne or umap")
