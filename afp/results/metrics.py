"""Metrics of a scores table, each with a 95 % interval from a bootstrap over source photographs.

Label 0 is real, 1 is fake; a score is P(fake); an image is called fake when its score >= the threshold.

| metric | is |
|---|---|
| `accuracy`, `real_accuracy`, `fake_accuracy` | fraction of all / real / fake images called rightly at 0.5 |
| the same with `_val` | at each row's own threshold, which its run chose on validation images |
| `auc` | area under the ROC curve by trapezoids; a tie between a real and a fake image counts half |
| `ap` | sum over distinct scores of (step in recall) x precision, without interpolation |
| `eer` | where FPR = 1 - TPR on the ROC curve, linear between its points |
| `tpr_at_1_fpr`, `_5_`, `_10_` | largest TPR among ROC points with FPR <= 1, 5, 10 % (no interpolation) |
| `ece` | 15 equal bins of P(fake): mean, weighted by count, of abs(mean score - fraction fake) |
| `nll` | mean of -log P(true label), natural logarithm, scores clipped by 2.2e-16 |
| `false_positive_rate`, `_val` | fraction of real images called fake at 0.5 / at the row's threshold |

`accuracy`, `ap`, `ece`, `nll` depend on the share of fakes: compare only within one test set. A metric is
NaN, never an error, without a class that it needs.

Folds: scores of different models are no common scale. A metric is computed within each fold of a cross-fitted table
and then averaged over the folds that have a value, in the data and in every replicate.

Real images are known by their label. A generator's images are compared with the real ones of their own `set` where
the table has such; else with all real images, pooled, whatever these are called. Only the controls (`CONTROLS`),
real images that went through something on purpose, stand apart.

Bootstrap (clusters: Field & Welsh, JRSS B 69, 2007): whole sources are drawn with replacement; all tiles and
fakes of a source come along, in every generator at once. Sources with and without real rows are drawn apart,
so a replicate has as many photographs as the data. Replicates where a metric is undefined are dropped for it.
Where a class comes from one source alone, low and high are NaN: the spread is not known. Replicates of `ece`
and of the worst of several generators lean to the bad side of the value, and so do their intervals; those of folds
of few photographs to the good side, since a photograph drawn twice meets its own fakes more often (28 photographs in
five folds, 150 made-up tables: by .007 of AUC, and .92 of the intervals held the truth).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ..detectors.operating_point import check_labels_and_scores
from ..errors import DataError

METRICS = (
    *("accuracy", "accuracy_val", "real_accuracy", "real_accuracy_val", "fake_accuracy", "fake_accuracy_val"),
    *("auc", "ap", "eer", "tpr_at_1_fpr", "tpr_at_5_fpr", "tpr_at_10_fpr", "ece", "nll"),
)
REAL_METRICS = ("false_positive_rate", "false_positive_rate_val")
LOWER_IS_BETTER = frozenset({"eer", "ece", "nll", *REAL_METRICS})
CONTROLS = ("real-resampled",)
N_BINS = 15
POOL_BELOW = 5  # images: too few for an estimate of their own
KEY = ["detector", "perturbation", "path", "place"]  # tells a table's rows apart
# What a table may lack: column -> the value that stands for nothing known.
_DEFAULTS = {"kind": "", "error": "", "source": "", "set": "", "place": "", "generator": "unnamed"}
_NEEDED = ["path", "label", "generator", "kind", "source", "perturbation", "detector", "seen", "threshold"]
_NEEDED += ["score", "error"]
_CHUNK = 300_000  # weights held at once: as many as stay in a processor's cache
_MANY = 10_000  # sources, from which drawing them by number is faster than drawing their counts
_MEMORY = 100_000_000  # counts held at once; with more sources than 100,000 fewer replicates do
_FEWEST = 200  # replicates
_OVER_GENERATORS = (
    ("mean held-in", 1, np.mean, METRICS),
    ("mean held-out", 0, np.mean, METRICS),
    ("min held-out", 0, np.min, [m for m in METRICS if m not in LOWER_IS_BETTER]),
    ("max held-out", 0, np.max, [m for m in METRICS if m in LOWER_IS_BETTER]),
)


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval; `f"{e:.2f}"` is "0.95 [0.93, 0.97]"."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, replicates: np.ndarray) -> Estimate:
        """From an array (1 + n_boot,): the value on the data itself, then the bootstrap replicates."""
        drawn = replicates[1:][np.isfinite(replicates[1:])]
        low, high = np.percentile(drawn, [2.5, 97.5]) if drawn.size else (np.nan, np.nan)
        return cls(float(replicates[0]), float(low), float(high))

    def __format__(self, spec: str = "") -> str:
        value, low, high = (format(x, spec or ".3f") for x in (self.value, self.low, self.high))
        return "n/a" if np.isnan(self.value) else value if np.isnan(self.low) else f"{value} [{low}, {high}]"

    __str__ = __format__


class Sample:
    """Images with their scores, sorted once; their metrics under any weights.

    Args:
        labels, scores: (n,).
        thresholds: (n,) or one; a missing one makes the `_val` metrics NaN.
    Raises:
        ValueError: labels outside 0/1, scores outside [0, 1].
    """

    def __init__(self, labels: ArrayLike, scores: ArrayLike, thresholds: ArrayLike | float = np.nan):
        y, p = check_labels_and_scores(labels, scores)
        self.order = np.argsort(-p, kind="stable")
        y, p = y[self.order], p[self.order]
        t = np.broadcast_to(np.asarray(thresholds, float), y.shape)[self.order]
        right = (p >= 0.5) == y
        right_val = np.where(np.isnan(t), np.nan, (p >= t) == y)
        epsilon = np.finfo(float).eps
        loss = -np.log(np.clip(np.where(y == 1, p, 1 - p), epsilon, 1 - epsilon))
        bins = np.minimum((p * N_BINS).astype(int), N_BINS - 1)
        gaps = np.where(bins[:, None] == np.arange(N_BINS), (p - y)[:, None], 0.0)
        self.real, self.fake = 1 - y, y
        rightly_called = [of * right for right in (right, right_val) for of in (self.real, self.fake)]
        self.sums = np.column_stack([self.real, self.fake, *rightly_called, loss, gaps])
        self.ends = np.flatnonzero(np.append(np.diff(p) != 0, True)[: len(p)])  # tied scores: one point

    def metrics(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Name of each of `METRICS` and `REAL_METRICS` -> (replicates,); weights (replicates, n) in `order`."""
        n_real, n_fake, real, fake, real_val, fake_val, loss, *gaps = (weights @ self.sums).T
        total, found = n_real + n_fake, {}
        with np.errstate(invalid="ignore", divide="ignore"):
            for suffix, right_real, right_fake in (("", real, fake), ("_val", real_val, fake_val)):
                found["accuracy" + suffix] = (right_real + right_fake) / total
                found["real_accuracy" + suffix] = right_real / n_real
                found["fake_accuracy" + suffix] = right_fake / n_fake
                found["false_positive_rate" + suffix] = 1 - right_real / n_real
            both = self.real.any() and self.fake.any()
            found |= self._of_the_curve(weights) if both else dict.fromkeys(METRICS[6:12], np.nan * total)
            return found | {"ece": np.abs(gaps).sum(0) / total, "nll": loss / total}

    def _of_the_curve(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Metrics of the ROC curve; NaN without both classes."""
        tp, fp = (
            np.pad(np.cumsum(weights * of, axis=1)[:, self.ends], ((0, 0), (1, 0)))
            for of in (self.fake, self.real)
        )
        n_fake, n_real = tp[:, -1], fp[:, -1]
        tpr, fpr = tp / n_fake[:, None], fp / n_real[:, None]
        steps = np.diff(tp, axis=1)
        precision = np.where(steps > 0, tp[:, 1:] / (tp[:, 1:] + fp[:, 1:]), 0.0)
        excess = fpr + tpr - 1  # FPR - FNR rises from -1 to 1 along the curve; the EER is where it crosses 0
        after, rows = np.argmax(excess >= 0, axis=1), np.arange(len(weights))
        before = np.maximum(after - 1, 0)
        e0, e1, f0, f1 = (a[rows, at] for a in (excess, fpr) for at in (before, after))
        found = {
            "auc": (np.diff(fp, axis=1) * (tp[:, 1:] + tp[:, :-1])).sum(1) / (2 * n_fake * n_real),
            "ap": (steps * precision).sum(1) / n_fake,
            "eer": f0 - e0 / (e1 - e0) * (f1 - f0),
        }
        for percent in (1, 5, 10):
            # Rounding must not forbid 1 of 20 images at 5 %.
            allowed = np.count_nonzero(fpr <= percent / 100 + 1e-9, axis=1)
            found[f"tpr_at_{percent}_fpr"] = tpr[rows, allowed - 1]
        both = (n_fake > 0) & (n_real > 0)
        return {name: np.where(both, values, np.nan) for name, values in found.items()}


def compute(
    labels: ArrayLike,
    scores: ArrayLike,
    thresholds: ArrayLike | float = np.nan,
    weights: ArrayLike | None = None,
) -> dict[str, np.ndarray]:
    """All `METRICS` and `REAL_METRICS` of a `Sample`, for every row of weights at once.

    Args:
        labels, scores, thresholds: see `Sample`.
        weights: (n,) or (replicates, n); default 1.
    Returns:
        Name -> array of shape () or (replicates,).
    """
    sample = Sample(labels, scores, thresholds)
    given = np.ones(len(sample.order)) if weights is None else np.asarray(weights, float)
    found = sample.metrics(np.atleast_2d(given)[:, sample.order])
    return found if given.ndim == 2 else {name: values[0] for name, values in found.items()}


def check_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """A checked copy of a scores table, in a fixed order of rows, with two more columns.

    `failed`: the row has an error or no score. `group`: the generator; but held-out generators with under 5
    images, where a kind has several of them, share one group named after the kind. A row without a source is
    its own.

    Raises:
        DataError: names field and value: missing columns, labels outside 0/1, scores or thresholds outside [0, 1],
            one image scored twice by a detector under one perturbation.
    """
    if missing := [column for column in _NEEDED if column not in scores.columns]:
        raise DataError(f"scores table: missing column(s) {missing}; it has {list(scores.columns)}")
    df = scores.reset_index(drop=True)
    for column in ("label", "score", "seen", "threshold"):
        try:
            df[column] = pd.to_numeric(df[column]).astype(float)
        except (TypeError, ValueError) as error:
            raise DataError(f"scores table: column {column!r} must hold numbers: {error}") from None
    for column, default in {**_DEFAULTS, "detector": "", "perturbation": "none", "fold": -1}.items():
        if column not in df:
            df[column] = default
        elif df[column].isna().any():
            df[column] = df[column].astype(object).fillna(default)
    df["source"] = df["source"].where(df["source"] != "", df["path"]).astype(str)
    df = df.assign(seen=df["seen"].fillna(0.0), failed=df["score"].isna() | (df["error"] != ""))
    check_labels_and_scores(df["label"], df["score"].where(~df["failed"], 0.0))
    if (bad := ~df["threshold"].fillna(0.0).between(0, 1)).any():
        raise DataError(f"scores table: threshold {df.loc[bad, 'threshold'].iloc[0]}, expected 0 to 1")
    if (twice := df.duplicated(KEY)).any():
        raise DataError(
            f"scores table: {df.loc[twice, KEY[:3]].iloc[0].to_dict()} is there more than once; "
            "expected one row for each detector, perturbation and path"
        )
    df["kind"] = df["kind"].mask((df["label"] == 1) & (df["kind"] == "real"), "unknown")
    df["group"] = df["generator"].astype(str)
    fakes = df[(df["label"] == 1) & ~df["kind"].isin(["", "unknown"])]
    for (_, _, kind), block in fakes.groupby(["detector", "perturbation", "kind"]):
        n = block.groupby("generator")["seen"].agg(["size", "max"])
        small = n.index[(n["size"] < POOL_BELOW) & (n["max"] == 0)]
        if len(small) > 1:
            df.loc[block.index[block["generator"].isin(small)], "group"] = kind
    return df.sort_values(KEY, ignore_index=True)


def evaluate(scores: pd.DataFrame, *, n_boot: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Every metric of a scores table with its interval, one a row.

    For each detector and perturbation: each fake generator (`group`, see `check_scores`) `against` the real images
    ("real") and each control ("real-resampled"; "" if there is no real image); `REAL_METRICS` of each set of
    real images alone (kind "real"); then "mean held-in", "mean held-out" and the worst held-out generator
    ("min held-out"; for `LOWER_IS_BETTER` "max held-out"), over `kind` "all" and over each kind, taken within
    each replicate and NaN if a generator has no value.

    Args:
        scores: a scores table.
        n_boot: bootstrap replicates; beyond 100,000 sources fewer, but at least 200.
        seed: of the bootstrap.
    Returns:
        Columns detector, perturbation, group, kind, seen (1 for held-in), against, reals (which real images these
        are), metric, value, low, high, n_real, n_fake, n_failed.
    """
    rows = []
    for (detector, perturbation), block in check_scores(scores).groupby(["detector", "perturbation"]):
        for (group, kind, against), (about, values) in _replicates(block, n_boot, seed).items():
            named = {"detector": detector, "perturbation": perturbation, "group": group, "kind": kind}
            named |= {"against": against, **about}
            rows += [named | {"metric": m, **vars(Estimate.of(drawn))} for m, drawn in values.items()]
    columns = (
        "detector perturbation group kind seen against reals metric value low high n_real n_fake n_failed"
    )
    return pd.DataFrame(rows, columns=columns.split())


def paired_difference(
    scores_a: pd.DataFrame,
    scores_b: pd.DataFrame,
    metric: str = "auc",
    *,
    group: str = "mean held-out",
    kind: str | None = None,
    against: str = "real",
    n_boot: int = 1000,
    seed: int = 0,
) -> Estimate:
    """metric(a) - metric(b) on the same images and the same resampled sources.

    An image that failed in one table is left out of both; a generator seen by one is seen by both.

    Args:
        scores_a, scores_b: one detector under one perturbation each.
        metric: one of `METRICS` and `REAL_METRICS`.
        group, kind, against: a row of `evaluate`; without a kind the generator's own, or "all".
    Raises:
        DataError: other images, no such row.
    """
    tables = [check_scores(scores_a), check_scores(scores_b)]
    for name, table in zip("ab", tables, strict=True):
        if len(found := table[["detector", "perturbation"]].drop_duplicates()) != 1:
            raise DataError(f"scores_{name}: expected one detector and perturbation; got {found.to_numpy()}")
    key = ["path", "perturbation", "label", "generator", "source"]
    a, b = tables
    if odd := set(map(tuple, a[key].to_numpy())) ^ set(map(tuple, b[key].to_numpy())):
        raise DataError(f"paired_difference: {len(odd)} rows are in one table only, such as {min(odd)}")
    shared = {"failed": a["failed"] | b["failed"], "seen": np.maximum(a["seen"], b["seen"]), "group": a.group}
    drawn = []
    for table in tables:
        blocks = _replicates(table.assign(**shared), n_boot, seed)
        named = [
            values[metric]
            for (g, k, r), (_, values) in blocks.items()
            if g == group and r == against and kind in (k, None) and metric in values
        ]
        if not named:
            raise DataError(
                f"no metric {metric!r} of group {group!r}, kind {kind!r}, against {against!r}; "
                f"expected one of {METRICS + REAL_METRICS} of {list(blocks)}"
            )
        drawn.append(named[0])
    return Estimate.of(drawn[0] - drawn[1])


@dataclass(frozen=True)
class _Comparison:
    """Rows of a generator's images, those of the real images that they are compared with, and what these are."""

    fake: np.ndarray
    real: np.ndarray
    reals: str

    def counts(self, block: pd.DataFrame) -> dict:
        """What `evaluate` says about the rows."""
        failed, seen = block["failed"].to_numpy(), block["seen"].to_numpy()[self.fake].max(initial=0)
        n = {"n_real": self.real & ~failed, "n_fake": self.fake & ~failed}
        n["n_failed"] = (self.fake | self.real) & failed
        return {"seen": int(seen), "reals": self.reals, **{name: int(rows.sum()) for name, rows in n.items()}}


_Key = tuple[str, str, str]  # group, kind, against
_Values = dict[str, np.ndarray]  # metric -> (1 + n_boot,)


def _replicates(block: pd.DataFrame, n_boot: int, seed: int) -> dict[_Key, tuple[dict, _Values]]:
    """What `evaluate` says about each comparison of one detector, and its metrics."""
    scored = ~block["failed"].to_numpy()
    good = block[scored]
    source, names = pd.factorize(good["source"], sort=True)
    n_boot = min(n_boot, max(_FEWEST, _MEMORY // max(1, len(names))))
    counts = _resample(source, len(names), good["label"].to_numpy() == 0, n_boot, seed)
    comparisons, out = _comparisons(block), {}
    for key, pair in comparisons.items():
        values = _within_folds(good, (pair.fake | pair.real)[scored], source, counts)
        sides = [side for side in (pair.fake, pair.real) if side.any()]
        if min(len(np.unique(source[side[scored]])) for side in sides) < 2:
            values = {m: np.append(drawn[:1], np.full(n_boot, np.nan)) for m, drawn in values.items()}
        wanted = METRICS if pair.fake.any() else REAL_METRICS
        out[key] = (pair.counts(block), {m: values[m] for m in wanted})
    return out | _over_generators(comparisons, out, block)


def _within_folds(good: pd.DataFrame, wanted: np.ndarray, source: np.ndarray, counts: np.ndarray) -> _Values:
    """Metrics of the wanted rows: the mean over the folds in which a metric has a value.

    Where a generator has a threshold of its own, the real images are judged by it too.

    Args:
        good: rows that have a score.
        wanted: (n,) bool.
        source: (n,) number of each row's source.
        counts: (1 + n_boot, sources), see `_resample`.
    """
    fold, parts = pd.factorize(good["fold"])[0], []
    for k in np.unique(fold[wanted]).tolist() or [0]:
        rows = np.flatnonzero(wanted & (fold == k))
        label, score, threshold = (good[c].to_numpy(float)[rows] for c in ("label", "score", "threshold"))
        own = np.unique(threshold[label == 1])
        sample = Sample(label, score, own[0] if len(own) == 1 else threshold)
        codes, step = source[rows][sample.order], max(1, _CHUNK // max(1, len(rows)))
        drawn = [sample.metrics(counts[i : i + step, codes] * 1.0) for i in range(0, len(counts), step)]
        parts.append({m: np.concatenate([part[m] for part in drawn]) for m in drawn[0]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a metric without a value in any fold
        return {m: np.nanmean([part[m] for part in parts], axis=0) for m in parts[0]}


def _over_generators(
    comparisons: dict[_Key, _Comparison], single: dict[_Key, tuple[dict, _Values]], block: pd.DataFrame
) -> dict[_Key, tuple[dict, _Values]]:
    """Mean and worst over the generators, within each replicate."""
    out = {}
    for against in dict.fromkeys(key[2] for key, pair in comparisons.items() if pair.fake.any()):
        for name, seen, over, metrics in _OVER_GENERATORS:
            keys = [key for key in comparisons if key[2] == against and single[key][0]["seen"] == seen]
            keys = [key for key in keys if comparisons[key].fake.any()]
            for kind in dict.fromkeys(kind for key in keys for kind in ("all", key[1]) if kind):
                members = [key for key in keys if kind in ("all", key[1])]
                values = {m: over([single[key][1][m] for key in members], axis=0) for m in metrics}
                pairs = [comparisons[key] for key in members]
                fake, real = (np.any([getattr(p, side) for p in pairs], axis=0) for side in ("fake", "real"))
                reals = {p.reals for p in pairs}
                words = reals.pop() if len(reals) == 1 else "each generator's own"
                out[name, kind, against] = (_Comparison(fake, real, words).counts(block), values)
    return out


def _comparisons(block: pd.DataFrame) -> dict[_Key, _Comparison]:
    """Each generator with the real images, then with each control, then each set of real images alone."""
    is_fake, name = block["label"].to_numpy() == 1, block["generator"].astype(str)
    of_set, nothing = block["set"], np.zeros(len(block), bool)
    sides = {"real": ~is_fake & ~name.isin(CONTROLS)} | {c: ~is_fake & (name == c) for c in CONTROLS}
    sides = {against: real.to_numpy() for against, real in sides.items() if real.any()}
    fakes = block[is_fake].groupby("group").agg(kind=("kind", "first"), seen=("seen", "max"))
    fakes = fakes.sort_values(["seen", "kind"], ascending=[False, True], kind="stable")
    found = {}
    for against, real in (sides or {"": nothing}).items():
        for group, kind in fakes["kind"].items():
            fake = is_fake & (block["group"] == group).to_numpy()
            sets = sorted(set(of_set[fake]) - {""})
            own = real & of_set.isin(sets).to_numpy()
            reals = " + ".join(sorted(set(name[own if own.any() else real])))
            if own.any():
                reals += f" of set {', '.join(sets)}"
            found[group, kind, against] = _Comparison(fake, own if own.any() else real, reals)
    for real_name in [r for against in sides for r in sorted(set(name[sides[against]]))]:
        real = ~is_fake & (name == real_name).to_numpy()
        found[real_name, "real", ""] = _Comparison(nothing, real, real_name)
    return found


def _resample(source: np.ndarray, n: int, is_real: np.ndarray, n_boot: int, seed: int) -> np.ndarray:
    """How often each of n sources stands in the data (once) and was drawn in each replicate: (1 + n_boot, n)."""
    has_real = np.isin(np.arange(n), source[is_real])
    rng = np.random.default_rng(seed)
    counts = np.ones((1 + n_boot, n), np.uint8)
    for stratum in (np.flatnonzero(has_real), np.flatnonzero(~has_real)):
        size = len(stratum)
        for replicate in counts[1:] if size else ():
            if size < _MANY:
                replicate[stratum] = rng.multinomial(size, np.full(size, 1 / size))
            else:
                replicate[stratum] = np.bincount(rng.integers(size, size=size), minlength=size)
    return counts


def mean_by_source(values: Sequence[float], sources: Sequence[str], n_boot: int = 1000) -> Estimate:
    """A mean over images, with a 95 % interval from a bootstrap over sources."""
    gain = np.asarray(values, float)
    codes, names = pd.factorize(np.asarray(sources), sort=True)
    counts = _resample(codes, len(names), np.ones(len(gain), bool), n_boot, seed=0)
    weights = counts[:, codes].astype(float)
    return Estimate.of(weights @ gain / weights.sum(1))


def questions(results: pd.DataFrame) -> list[str]:
    """What the results of `evaluate` make one ask: a name that contradicts its label, an AUC clearly under .5."""
    single = results[~results["group"].str.contains(" held-")].drop_duplicates(
        ["group", "kind", "detector", "metric"]
    )
    is_real, name = single["kind"] == "real", single["group"].str.lower()
    odd = single.loc[
        (is_real & name.isin(["fake", "ai"])) | (~is_real & name.isin(["real", "nature", *CONTROLS])), "group"
    ]
    found = [
        f"{group!r} is labelled as the other class; are 0 (real) and 1 (fake) swapped?"
        for group in odd.unique()
    ]
    low = single[(single["metric"] == "auc") & (single["high"] < 0.5)]
    for detector, part in low.groupby("detector", sort=False):
        estimate = Estimate(*part.iloc[0][["value", "low", "high"]])
        others = f", and of {len(part) - 1} more" if len(part) > 1 else ""
        found.append(
            f"{detector}: AUC of {part['group'].iloc[0]} is {estimate:.2f}{others}, clearly under .5; are the "
            "labels swapped, or is the score P(real)?"
        )
    return found
