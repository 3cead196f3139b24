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
NaN, never an error, without a class that it needs. Where all fakes of a comparison share one threshold, its real
images are judged at that one too.

Folds: scores of different models are no common scale. A metric is computed within each fold of a cross-fitted table
and then averaged over the folds that have a value, in the data and in every replicate.

Real images are known by their label. A generator's images are compared with the real ones of their own `set` where
the table has such; else with all real images, pooled, whatever these are called. Only the controls (`CONTROLS`),
real images that went through something on purpose, stand apart.

Bootstrap (clusters: Field & Welsh, JRSS B 69, 2007): whole sources are drawn with replacement; all tiles and
fakes of a source come along, in every generator at once. Sources with and without real rows are drawn apart, so
a replicate has as many photographs as the data. Replicates where a metric is undefined are dropped for it.
Where a class comes from one source alone, low and high are NaN: the spread is not known. A photograph drawn
twice meets its own fakes as often as one drawn once, or AUC and AP of fakes that are nearly copies of their
photographs would lean by far (the AUC did, in 300 made-up tables of 61 photographs in five folds: by .02, and
.45 of the intervals held the mean of all tables; now .97; in folds of five such photographs one may still miss
its own value). Intervals of `ap`, `eer` and `tpr_at_` still lean to the good side, those of `ap` so far for
such copies in folds of ten photographs that one may miss its own value; those of `ece` and of the worst of
several generators lean to the bad side. Where fake and photograph are alike, AUC and AP themselves are a little
higher than among strangers, as each fake meets its own photograph too (correlation .6 in folds of 12: by .01).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from tqdm.auto import tqdm

from ..detectors.operating_point import check_labels_and_scores
from ..errors import DataError

METRICS = (
    *("accuracy", "accuracy_val", "real_accuracy", "real_accuracy_val", "fake_accuracy", "fake_accuracy_val"),
    *("auc", "ap", "eer", "tpr_at_1_fpr", "tpr_at_5_fpr", "tpr_at_10_fpr", "ece", "nll"),
)
REAL_METRICS = ("false_positive_rate", "false_positive_rate_val")
LOWER_IS_BETTER = frozenset({"eer", "ece", "nll", *REAL_METRICS})
CONTROLS = ("real-resampled",)
FARTHEST = ("inpainting", "text-to-image", "commercial")  # kinds of generator, the farthest last
N_BINS = 15
FEW_REAL = 10  # images, of which a bootstrap shows too little
POOL_BELOW = 5  # images: too few for an estimate of their own
KEY = ["detector", "perturbation", "path", "place"]  # tells a table's rows apart
# What stands for nothing known.
_DEFAULTS: dict[str, Any] = dict.fromkeys(["kind", "source", "set", "place", "error", "detector"], "")
_DEFAULTS |= {"generator": "unnamed", "perturbation": "none", "fold": -1, "seen": 0}
_COMPARED = ["detector", "perturbation", "group", "generator", "kind", "set", "source", "fold", "label"]
_COMPARED += ["seen", "score", "threshold", "failed"]
_CHUNK = 1_000_000  # weights held at once: as many as stay in a processor's cache
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
    """A value and its 95 % interval; `f"{e:.2f}"` is "0.95 [0.93, 0.97]", which no table breaks."""

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
        if np.isnan(self.value):
            return "n/a"
        return value if np.isnan(self.low) else f"{value}\N{NO-BREAK SPACE}[{low},\N{NO-BREAK SPACE}{high}]"

    __str__ = __format__


class _Side:
    """Images of one class, from the highest score down.

    Args:
        label: theirs, 0 or 1.
        scores, thresholds, sources: (n,), scores falling; sources are numbers.
    """

    def __init__(self, label: int, scores: np.ndarray, thresholds: np.ndarray, sources: np.ndarray):
        self.falling, self.thresholds, self.errors = -scores, np.unique(thresholds), scores - label
        self.sources = sources
        self.called = np.where(np.isnan(thresholds), np.nan, scores >= thresholds)
        epsilon = np.finfo(float).eps
        self.losses = -np.log(np.clip(scores if label else 1 - scores, epsilon, 1 - epsilon))
        bins = np.minimum((scores * N_BINS).astype(int), N_BINS - 1)
        self.bin_ends = np.searchsorted(-bins, -np.arange(N_BINS, -1, -1), side="right")

    def reaching(self, scores: ArrayLike) -> np.ndarray:
        """How many images have at least these scores."""
        return np.searchsorted(self.falling, -np.asarray(scores), side="right")

    def over(self, scores: ArrayLike) -> np.ndarray:
        """How many images have higher scores."""
        return np.searchsorted(self.falling, -np.asarray(scores), side="left")


class _Sums(NamedTuple):
    """What one side's images weigh in some replicates.

    Args:
        above: (replicates, 1 + n), of the first 0, 1, ... n images.
        called, loss: (replicates,), of those that are called fake at their own thresholds, and their log loss.
        gaps: (replicates, N_BINS), sums of score - label.
    """

    above: np.ndarray
    called: np.ndarray
    loss: np.ndarray
    gaps: np.ndarray

    @classmethod
    def of(cls, side: _Side, weights: np.ndarray) -> _Sums:
        """Weights: (replicates, n)."""
        gaps = np.diff(_running(weights * side.errors)[:, side.bin_ends], axis=1)
        return cls(_running(weights), weights @ side.called, weights @ side.losses, gaps)

    @property
    def total(self) -> np.ndarray:
        return self.above[:, -1]


def _running(values: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, ... n of (replicates, n)."""
    sums = np.zeros((len(values), values.shape[1] + 1))
    np.cumsum(values, axis=1, out=sums[:, 1:])
    return sums


class _Comparison:
    """Fakes against real images. Where a score stands among the others is the same in all replicates.

    Fakes that have one threshold lend it to the real images.
    """

    def __init__(self, real: _Side, fake: _Side):
        reach, over, own = _of_own_source(real, fake)
        self.sources, self.own_reals = fake.sources, reach
        self.own_fakes, _, _ = _of_own_source(fake, fake)
        pairs, won = np.bincount(fake.sources, own), np.bincount(fake.sources, own - (reach + over) / 2)
        both = np.flatnonzero(pairs)
        self.own_pairs = both, pairs[both], won[both]
        self.at_fakes = real.reaching(-fake.falling), fake.reaching(-fake.falling)
        scores = -np.unique(fake.falling)
        self.tp, self.fp, self.fp_before = fake.reaching(scores), real.reaching(scores), real.over(scores)
        self.at_half = real.reaching(0.5), fake.reaching(0.5)
        one = len(fake.thresholds) == 1 and np.isfinite(fake.thresholds[0])
        self.at_threshold = real.reaching(fake.thresholds[0]) if one else None

    def measure(self, real: _Sums, fake: _Sums, counts: np.ndarray) -> dict[str, np.ndarray]:
        """`METRICS` and `REAL_METRICS`, each (replicates,).

        Args:
            counts: (replicates, sources), how often each was drawn.
        """
        total, found = real.total + fake.total, {}
        at_half = real.above[:, self.at_half[0]], fake.above[:, self.at_half[1]]
        called = real.called if self.at_threshold is None else real.above[:, self.at_threshold]
        with np.errstate(invalid="ignore", divide="ignore"):
            for suffix, (called_real, called_fake) in (("", at_half), ("_val", (called, fake.called))):
                found["accuracy" + suffix] = (real.total - called_real + called_fake) / total
                found["real_accuracy" + suffix] = 1 - called_real / real.total
                found["fake_accuracy" + suffix] = called_fake / fake.total
                found["false_positive_rate" + suffix] = called_real / real.total
            found |= self._of_the_curve(real, fake, counts)
            found["ece"] = np.abs(real.gaps + fake.gaps).sum(1) / total
            found["nll"] = (real.loss + fake.loss) / total
        return found

    def _of_the_curve(self, real: _Sums, fake: _Sums, counts: np.ndarray) -> dict[str, np.ndarray]:
        """AUC, AP, EER and TPR at three FPR; NaN without both classes.

        The ROC curve turns at the scores of fakes: from one to the next it runs along the real images between them.
        To each copy of a fake the other copies of its source are no images of their own (AUC, AP).
        """
        tp, fp, fp_before = fake.above[:, self.tp], real.above[:, self.fp], real.above[:, self.fp_before]
        steps = np.diff(tp, axis=1, prepend=0)
        area = (steps * (real.total[:, None] - (fp + fp_before) / 2)).sum(1)
        sources, pairs, won = self.own_pairs
        drawn = counts[:, sources] * 1.0  # (replicates, sources with both classes)
        twins = drawn * (drawn - 1)
        found = {"auc": (area - twins @ won) / (fake.total * real.total - twins @ pairs)}
        weights, more = np.diff(fake.above, axis=1), counts[:, self.sources] - 1.0  # (replicates, fakes)
        alarms = real.above[:, self.at_fakes[0]] - more * self.own_reals
        hits = fake.above[:, self.at_fakes[1]] - more * self.own_fakes
        found["ap"] = (weights * np.where(weights > 0, hits / (hits + alarms), 0.0)).sum(1) / fake.total

        fpr, tpr = _corners(fp_before, fp, real.total), _corners(tp - steps, tp, fake.total)
        excess = fpr + tpr - 1  # FPR - FNR rises from -1 to 1 along the curve; the EER is where it crosses 0
        after, rows = np.argmax(excess >= 0, axis=1), np.arange(len(tp))
        e0, e1, f0, f1 = (a[rows, at] for a in (excess, fpr) for at in (after - 1, after))
        found["eer"] = f0 - e0 / (e1 - e0) * (f1 - f0)
        for percent in (1, 5, 10):
            # Rounding must not forbid 1 of 20 images at 5 %.
            allowed = np.count_nonzero(fpr <= percent / 100 + 1e-9, axis=1)
            found[f"tpr_at_{percent}_fpr"] = tpr[rows, allowed - 1]
        both = (real.total > 0) & (fake.total > 0)
        return {name: np.where(both, values, np.nan) for name, values in found.items()}


def _of_own_source(side: _Side, fake: _Side) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each fake the side's images of its source: how many reach its score, how many are over it, and all."""
    scores = np.unique(np.concatenate([side.falling, fake.falling]))
    step = len(scores) + 1  # a key is the source, and within it the place from the highest score down
    keys = np.sort(side.sources * step + np.searchsorted(scores, side.falling))
    first = fake.sources * step
    at = first + np.searchsorted(scores, fake.falling)
    before, over, reaching, end = np.searchsorted(keys, [first, at, at + 1, first + step])
    return reaching - before, over - before, end - before


def _corners(before: np.ndarray, after: np.ndarray, total: np.ndarray) -> np.ndarray:
    """From 0 to 1, what stands before and after each distinct score: (replicates, 2 x scores + 2)."""
    inner = np.stack([before, after], axis=2).reshape(len(total), -1)
    return np.column_stack([np.zeros_like(total), inner, total]) / total[:, None]


def compute(
    labels: ArrayLike, scores: ArrayLike, thresholds: ArrayLike = np.nan, weights: ArrayLike | None = None
) -> dict[str, np.ndarray]:
    """All `METRICS` and `REAL_METRICS`, for every row of weights at once.

    Args:
        labels, scores: (n,).
        thresholds: (n,) or one; a missing one makes the `_val` metrics NaN.
        weights: (n,) or (replicates, n); default 1.
    Returns:
        Name -> array of shape () or (replicates,).
    Raises:
        ValueError: labels outside 0/1, scores outside [0, 1].
    """
    y, p = check_labels_and_scores(labels, scores)
    order = np.argsort(-p, kind="stable")
    y, p, t = y[order], p[order], np.broadcast_to(np.asarray(thresholds, float), y.shape)[order]
    given = np.ones(len(y)) if weights is None else np.asarray(weights, float)
    w = np.atleast_2d(given)[:, order]
    sides = [_Side(i, p[y == i], t[y == i], np.flatnonzero(y == i)) for i in (0, 1)]
    real, fake = (_Sums.of(side, w[:, y == i]) for i, side in enumerate(sides))
    found = _Comparison(*sides).measure(real, fake, np.ones_like(w))
    return found if given.ndim == 2 else {name: values[0] for name, values in found.items()}


def check_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """A checked copy of a scores table with two more columns.

    `failed`: the row has an error or no score. `group`: the generator; but held-out generators with under 5
    images, where a kind has several of them, share one group named after the kind. A row without a source is
    its own.

    Raises:
        DataError: names field and value: missing columns, labels outside 0/1, scores or thresholds outside [0, 1],
            one image scored twice by a detector under one perturbation.
    """
    if missing := [column for column in ("path", "label", "score") if column not in scores.columns]:
        raise DataError(f"scores table: missing column(s) {missing}; it has {list(scores.columns)}")
    df = scores.reset_index(drop=True)
    for column, default in _DEFAULTS.items():
        if column not in df:
            df[column] = default
        elif df[column].isna().any():
            df[column] = df[column].astype(object).fillna(default)
    if "threshold" not in df:
        df["threshold"] = np.nan
    for column in ("label", "score", "seen", "threshold"):
        try:
            df[column] = pd.to_numeric(df[column]).astype(float)
        except (TypeError, ValueError) as error:
            raise DataError(f"scores table: column {column!r} must hold numbers: {error}") from None
    df["source"] = df["source"].where(df["source"] != "", df["path"]).astype(str)
    df["failed"] = df["score"].isna() | (df["error"] != "")
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
    block = ["detector", "perturbation", "kind"]
    fakes = df.loc[(df["label"] == 1) & ~df["kind"].isin(["", "unknown"]), [*block, "generator", "seen"]]
    seen = fakes.groupby([*block, "generator"])["seen"]
    small = fakes[(seen.transform("size") < POOL_BELOW) & (seen.transform("max") == 0)]
    small = small[small.groupby(block)["generator"].transform("nunique") > 1]
    df.loc[small.index, "group"] = small["kind"]
    return df


def evaluate(scores: pd.DataFrame, *, n_boot: int = 1000, progress: bool = False) -> pd.DataFrame:
    """Every metric of a scores table with its interval, one a row.

    For each detector and perturbation: each fake generator (`group`, see `check_scores`) `against` the real images
    ("real") and each control ("real-resampled"; "" if there is no real image); `REAL_METRICS` of each set of
    real images alone (kind "real"); then "mean held-in", "mean held-out" and the worst held-out generator
    ("min held-out"; for `LOWER_IS_BETTER` "max held-out"), over `kind` "all" and over each kind, taken within
    each replicate and NaN if a generator has no value.

    Args:
        scores: a scores table; of what is not needed to compare, any column may lack.
        n_boot: bootstrap replicates; beyond 100,000 sources fewer, but at least 200.
        progress: show a bar for each detector and perturbation.
    Returns:
        Columns detector, perturbation, group, kind, seen (1 for held-in), against, reals (which real images these
        are), metric, value, low, high, n_real, n_fake, n_failed.
    """
    rows = []
    checked = check_scores(scores)[_COMPARED]
    for (detector, perturbation), block in checked.groupby(["detector", "perturbation"]):
        for (group, kind, against), (about, values) in _replicates(block, n_boot, progress).items():
            named = {"detector": detector, "perturbation": perturbation, "group": group, "kind": kind}
            named |= {"against": against, **about}
            rows += [named | {"metric": m, **vars(Estimate.of(drawn))} for m, drawn in values.items()]
    columns = (
        "detector perturbation group kind seen against reals metric value low high n_real n_fake n_failed"
    )
    return pd.DataFrame(rows, columns=columns.split())


def check_one_detector(scores: pd.DataFrame, name: str = "scores table") -> None:
    """Raises DataError for a table of several detectors or perturbations."""
    if len(found := scores[["detector", "perturbation"]].drop_duplicates()) != 1:
        raise DataError(f"{name}: expected one detector and perturbation; got {found.to_numpy().tolist()}")


def is_single(results: pd.DataFrame) -> pd.Series:
    """Whether each row of `evaluate` is of one generator, or of one set of real images, and not of several."""
    return ~results["group"].isin([name for name, *_ in _OVER_GENERATORS])


def mean_of_all(results: pd.DataFrame, group: str = "mean held-out") -> pd.DataFrame:
    """The rows of `evaluate` with the mean over generators of all kinds, against photographs."""
    return results[(results["group"] == group) & (results["kind"] == "all") & (results["against"] == "real")]


def paired_difference(
    scores_a: pd.DataFrame,
    scores_b: pd.DataFrame,
    metric: str = "auc",
    *,
    group: str = "mean held-out",
    kind: str | None = None,
    against: str = "real",
    n_boot: int = 1000,
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
    tables = [check_scores(table).sort_values(KEY, ignore_index=True) for table in (scores_a, scores_b)]
    for name, table in zip("ab", tables, strict=True):
        check_one_detector(table, f"scores_{name}")
    key = ["path", "perturbation", "label", "generator", "source"]
    a, b = tables
    if odd := set(map(tuple, a[key].to_numpy())) ^ set(map(tuple, b[key].to_numpy())):
        raise DataError(f"paired_difference: {len(odd)} rows are in one table only, such as {min(odd)}")
    shared = {"failed": a["failed"] | b["failed"], "seen": np.maximum(a["seen"], b["seen"]), "group": a.group}
    drawn = []
    for table in tables:
        blocks = _replicates(table.assign(**shared), n_boot)
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


_Key = tuple[str, str, str]  # group, kind, against
_Values = dict[str, np.ndarray]  # metric -> (1 + n_boot,)
_Rows = dict[tuple[str, ...], np.ndarray]  # the name of some rows -> which these are, (n,) bool


class _Pair(NamedTuple):
    """A generator's images, and the real ones that they are compared with, by the names of their rows."""

    fake: tuple[str, ...]
    real: tuple[str, ...]
    reals: str  # in words


def _replicates(block: pd.DataFrame, n_boot: int, progress: bool = False) -> dict[_Key, tuple[dict, _Values]]:
    """What `evaluate` says about each comparison of one detector, and its metrics."""
    rows, pairs = _pairs(block)
    fakes = {key: pair for key, pair in pairs.items() if rows[pair.fake].any()}
    out: dict[_Key, tuple[dict, _Values]] = {}
    for key, values in _within_folds(block, rows, pairs, n_boot, progress).items():
        wanted = METRICS if key in fakes else REAL_METRICS
        out[key] = (_about(block, rows, [pairs[key]]), {metric: values[metric] for metric in wanted})
    for against in dict.fromkeys(key[2] for key in fakes):
        for name, seen, over, metrics in _OVER_GENERATORS:
            keys = [key for key in fakes if key[2] == against and out[key][0]["seen"] == seen]
            for kind in dict.fromkeys(kind for key in keys for kind in ("all", key[1]) if kind):
                members = [key for key in keys if kind in ("all", key[1])]
                together = {m: over([out[key][1][m] for key in members], axis=0) for m in metrics}
                out[name, kind, against] = (_about(block, rows, [fakes[key] for key in members]), together)
    return out


def _about(block: pd.DataFrame, rows: _Rows, pairs: list[_Pair]) -> dict:
    """What `evaluate` says about the rows of some comparisons, taken together."""
    fake = np.any([rows[name] for name in {pair.fake for pair in pairs}], axis=0)
    real = np.any([rows[name] for name in {pair.real for pair in pairs}], axis=0)
    failed, words = block["failed"].to_numpy(), {pair.reals for pair in pairs}
    return {
        "seen": int(block["seen"].to_numpy()[fake].max(initial=0)),
        "reals": words.pop() if len(words) == 1 else "each generator's own",
        "n_real": int((real & ~failed).sum()),
        "n_fake": int((fake & ~failed).sum()),
        "n_failed": int(((fake | real) & failed).sum()),
    }


def _pairs(block: pd.DataFrame) -> tuple[_Rows, dict[_Key, _Pair]]:
    """Each generator with the real images, then with each control, then each set of real images alone."""
    is_fake, name = block["label"].to_numpy() == 1, block["generator"].astype(str)
    sides = {"real": ~is_fake & ~name.isin(CONTROLS)} | {c: ~is_fake & (name == c) for c in CONTROLS}
    sides = {against: real.to_numpy() for against, real in sides.items() if real.any()}
    rows: _Rows = {("fake",): np.zeros(len(block), bool)}  # no fakes
    pairs = {}
    fakes = block.loc[is_fake, ["group", "kind", "seen", "set"]].groupby("group")
    fakes = fakes.agg({"kind": "first", "seen": "max", "set": set})
    fakes = fakes.loc[in_order_of_distance(fakes.reset_index())]
    for against, real in (sides or {"": rows["fake",]}).items():
        for group, kind, _, sets in fakes.itertuples():
            rows["fake", group] = is_fake & (block["group"] == group).to_numpy()
            own = real & block["set"].isin(sets - {""}).to_numpy()
            mine = ("real", against, *sorted(sets - {""})) if own.any() else ("real", against)
            rows[mine] = own if own.any() else real
            reals = " + ".join(sorted(name[rows[mine]].unique()))
            reals += f" of set {', '.join(mine[2:])}" if own.any() else ""
            pairs[group, kind, against] = _Pair(("fake", group), mine, reals)
    for against, real in sides.items():
        for real_name in (names := sorted(name[real].unique())):
            mine = ("real", against) if len(names) == 1 else ("alone", real_name)
            rows[mine] = real & (name == real_name).to_numpy()
            pairs[real_name, "real", ""] = _Pair(("fake",), mine, real_name)
    return rows, pairs


def in_order_of_distance(rows: pd.DataFrame) -> list[str]:
    """Generators (column ``group``) from what was trained on to what is farthest from it.

    Held-in ones come first, then the others of a held-in kind, then other kinds by name, then `FARTHEST`.

    Args:
        rows: with ``group``, ``kind`` and ``seen``.
    """
    near = set(rows.loc[rows["seen"] == 1, "kind"])
    far = rows["kind"].map({kind: 3 + i for i, kind in enumerate(FARTHEST)}).fillna(2)
    step = np.select([rows["seen"] == 1, rows["kind"].isin(near)], [0, 1], far)
    ordered = rows.assign(step=step).sort_values(["step", "kind"], kind="stable")
    return list(ordered["group"].unique())


def _within_folds(
    block: pd.DataFrame, rows: _Rows, pairs: dict[_Key, _Pair], n_boot: int, progress: bool
) -> dict[_Key, _Values]:
    """Metrics of each comparison: the mean over the folds in which a metric has a value."""
    scored = np.flatnonzero(~block["failed"])
    scored = scored[np.argsort(-block["score"].to_numpy()[scored], kind="stable")]
    rows = {name: of[scored] for name, of in rows.items()}
    label, score, threshold = (block[c].to_numpy()[scored] for c in ("label", "score", "threshold"))
    source, fold = (pd.factorize(block[c].iloc[scored], sort=True)[0] for c in ("source", "fold"))
    counts = _resample(source, label == 0, n_boot)
    folds: dict[_Key, list[_Values]] = {key: [] for key in pairs}
    n_folds = fold.max(initial=0) + 1
    bar = tqdm(total=n_folds * len(counts), desc="intervals", leave=False, disable=not progress)
    for k in range(n_folds):
        at = {name: np.flatnonzero(of & (fold == k)) for name, of in rows.items()}
        sides = {n: _Side(int(n[0] == "fake"), score[i], threshold[i], source[i]) for n, i in at.items()}
        compared = {key: _Comparison(sides[pair.real], sides[pair.fake]) for key, pair in pairs.items()}
        step = max(1, _CHUNK // max(1, sum(map(len, at.values()))))
        parts: dict[_Key, list[_Values]] = {key: [] for key in pairs}
        for some in np.split(counts, range(step, len(counts), step)):
            sums = {name: _Sums.of(sides[name], some[:, source[i]] * 1.0) for name, i in at.items()}
            for key, pair in pairs.items():
                parts[key].append(compared[key].measure(sums[pair.real], sums[pair.fake], some))
            bar.update(len(some))
        for key, part in parts.items():
            folds[key].append({m: np.concatenate([found[m] for found in part]) for m in part[0]})
    bar.close()
    of_one_source = {name for name, of in rows.items() if of.any() and np.ptp(source[of]) == 0}
    out = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a metric without a value in any fold
        for key, found in folds.items():
            out[key] = {m: np.nanmean([values[m] for values in found], axis=0) for m in found[0]}
            if of_one_source & {pairs[key].fake, pairs[key].real}:
                for values in out[key].values():
                    values[1:] = np.nan
    return out


def _resample(source: np.ndarray, is_real: np.ndarray, n_boot: int) -> np.ndarray:
    """How often each source stands in the data (once) and was drawn in each replicate: (1 + replicates, sources)."""
    n = source.max(initial=-1) + 1
    has_real = np.isin(np.arange(n), source[is_real])
    rng = np.random.default_rng(0)
    counts = np.ones((1 + min(n_boot, max(_FEWEST, _MEMORY // max(1, n))), n), np.uint8)
    for stratum in (np.flatnonzero(has_real), np.flatnonzero(~has_real)):
        size = len(stratum)
        if size == 0:
            continue
        for replicate in counts[1:]:
            if size < _MANY:
                replicate[stratum] = rng.multinomial(size, np.full(size, 1 / size))
            else:
                replicate[stratum] = np.bincount(rng.integers(size, size=size), minlength=size)
    return counts


def mean_by_source(values: Sequence[float], sources: Sequence[str], n_boot: int = 1000) -> Estimate:
    """A mean over images, with a 95 % interval from a bootstrap over sources."""
    codes = pd.factorize(np.asarray(sources), sort=True)[0]
    weights = _resample(codes, np.ones(len(codes), bool), n_boot)[:, codes].astype(float)
    return Estimate.of(weights @ np.asarray(values, float) / weights.sum(1))


def questions(results: pd.DataFrame) -> list[str]:
    """What the results of `evaluate` make one ask: a name that contradicts its label, an AUC clearly under .5, few
    real images."""
    single = results[is_single(results)].drop_duplicates(["group", "kind", "detector", "metric"])
    is_real, name = single["kind"] == "real", single["group"].str.lower()
    odd = single.loc[
        (is_real & name.isin(["fake", "ai"])) | (~is_real & name.isin(["real", "nature", *CONTROLS])), "group"
    ]
    found = [
        f"{group!r} is labelled as the other class; are 0 (real) and 1 (fake) swapped?"
        for group in odd.unique()
    ]
    few = single.loc[single["n_real"].between(1, FEW_REAL - 1), "n_real"]
    if len(few):
        found.append(f"real images: only {few.min()}; intervals of so few are too narrow, score more of them")
    low = single[(single["metric"] == "auc") & (single["high"] < 0.5)]
    for detector, part in low.groupby("detector", sort=False):
        estimate = Estimate(*part.iloc[0][["value", "low", "high"]])
        others = f", and of {len(part) - 1} more" if len(part) > 1 else ""
        found.append(
            f"{detector}: AUC of {part['group'].iloc[0]} is {estimate:.2f}{others}, clearly under .5; are the "
            "labels swapped, or is the score P(real)?"
        )
    return found
