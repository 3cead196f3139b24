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

Bootstrap (clusters: Field & Welsh, JRSS B 69, 2007): whole sources are drawn with replacement; all tiles and
fakes of a source come along, in every generator at once. Sources with and without real rows are drawn apart,
so a replicate has as many photographs as the data. Replicates where a metric is undefined are dropped for it.
Where a class comes from one source alone, low and high are NaN: the spread is not known. Replicates of `ece`
and of the worst of several generators lean to the bad side of the value, and so do their intervals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ..detectors.operating_point import check_labels_and_scores
from ..errors import AfpError

METRICS = (
    "accuracy",
    "accuracy_val",
    "real_accuracy",
    "real_accuracy_val",
    "fake_accuracy",
    "fake_accuracy_val",
    "auc",
    "ap",
    "eer",
    "tpr_at_1_fpr",
    "tpr_at_5_fpr",
    "tpr_at_10_fpr",
    "ece",
    "nll",
)
REAL_METRICS = ("false_positive_rate", "false_positive_rate_val")
LOWER_IS_BETTER = frozenset({"eer", "ece", "nll", *REAL_METRICS})
N_BINS = 15
POOL_BELOW = 5  # images: too few for an estimate of their own
_NEEDED = (
    "path",
    "label",
    "generator",
    "kind",
    "source",
    "perturbation",
    "detector",
    "seen",
    "threshold",
    "score",
    "error",
)
_CHUNK = 2_000_000  # weights held at once
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


def compute(
    labels: ArrayLike,
    scores: ArrayLike,
    thresholds: ArrayLike | float = np.nan,
    weights: ArrayLike | None = None,
) -> dict[str, np.ndarray]:
    """All `METRICS` and `REAL_METRICS` for every row of weights at once.

    labels, scores, thresholds: (n,); weights: (n,) or (replicates, n), default 1. Returns name -> array of
    shape () or (replicates,). A missing threshold makes the `_val` metrics NaN. ValueError for labels outside
    0/1 and scores outside [0, 1].
    """
    y, p = check_labels_and_scores(labels, scores)
    weights = np.ones(len(y)) if weights is None else np.asarray(weights, float)
    order = np.argsort(-p, kind="stable")
    y, p, t = y[order], p[order], np.broadcast_to(np.asarray(thresholds, float), y.shape)[order]
    w = np.atleast_2d(weights)[:, order]
    right = (p >= 0.5) == y
    right_val = np.where(np.isnan(t), np.nan, (p >= t) == y)
    loss = -np.log(np.clip(np.where(y == 1, p, 1 - p), np.finfo(float).eps, 1 - np.finfo(float).eps))
    bins = np.minimum((p * N_BINS).astype(int), N_BINS - 1)
    gaps = np.where(bins[:, None] == np.arange(N_BINS), (p - y)[:, None], 0.0)
    columns = (1 - y, y, right * (1 - y), right * y, right_val * (1 - y), right_val * y, loss)
    n_real, n_fake, real, fake, real_val, fake_val, nll = (w @ np.column_stack(columns)).T
    total, out = n_real + n_fake, {}
    with np.errstate(invalid="ignore", divide="ignore"):
        for suffix, right_real, right_fake in (("", real, fake), ("_val", real_val, fake_val)):
            out["accuracy" + suffix] = (right_real + right_fake) / total
            out["real_accuracy" + suffix] = right_real / n_real
            out["fake_accuracy" + suffix] = right_fake / n_fake
            out["false_positive_rate" + suffix] = 1 - right_real / n_real
        out |= {**_curve_metrics(y, p, w), "ece": np.abs(w @ gaps).sum(1) / total, "nll": nll / total}
    return out if weights.ndim == 2 else {name: values[0] for name, values in out.items()}


def _curve_metrics(y: np.ndarray, p: np.ndarray, w: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of the ROC curve; y, p (n,) by falling score, w (replicates, n). NaN without both classes."""
    ends = np.flatnonzero(np.append(np.diff(p) != 0, True)[: len(p)])  # tied scores: one point
    tp, fp = (np.pad(np.cumsum(w * of, axis=1)[:, ends], ((0, 0), (1, 0))) for of in (y, 1 - y))
    n_fake, n_real = tp[:, -1], fp[:, -1]
    tpr, fpr = tp / n_fake[:, None], fp / n_real[:, None]
    steps = np.diff(tp, axis=1)
    precision = np.where(steps > 0, tp[:, 1:] / (tp[:, 1:] + fp[:, 1:]), 0.0)
    excess = fpr + tpr - 1  # FPR - FNR rises from -1 to 1 along the curve; the EER is where it crosses 0
    after = np.argmax(excess >= 0, axis=1)[:, None]
    before = np.maximum(after - 1, 0)
    e0, e1, f0, f1 = (np.take_along_axis(a, at, 1)[:, 0] for a in (excess, fpr) for at in (before, after))
    out = {
        "auc": (np.diff(fp, axis=1) * (tp[:, 1:] + tp[:, :-1])).sum(1) / (2 * n_fake * n_real),
        "ap": (steps * precision).sum(1) / n_fake,
        "eer": f0 - e0 / (e1 - e0) * (f1 - f0),
    }
    for percent in (1, 5, 10):
        allowed = fpr <= percent / 100 + 1e-9  # rounding must not forbid 1 of 20 images at 5 %
        out[f"tpr_at_{percent}_fpr"] = np.where(allowed, tpr, 0.0).max(1)
    return {name: np.where((n_fake > 0) & (n_real > 0), values, np.nan) for name, values in out.items()}


def check_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """A checked copy of a scores table, in a fixed order of rows, with two more columns.

    `failed`: the row has an error or no score. `group`: the generator; but held-out generators with under 5
    images, where a kind has several of them, share one group named after the kind. A row without a source is
    its own. ValueError naming field and value: missing columns, labels outside 0/1, scores outside [0, 1],
    one image scored twice by a detector under one perturbation.
    """
    if missing := [column for column in _NEEDED if column not in scores.columns]:
        raise AfpError(f"scores table: missing column(s) {missing}; it has {list(scores.columns)}")
    df = scores.reset_index(drop=True)
    for column in ("label", "score", "seen", "threshold"):
        try:
            df[column] = pd.to_numeric(df[column]).astype(float)
        except (TypeError, ValueError) as error:
            raise AfpError(f"scores table: column {column!r} must hold numbers: {error}") from None
    blank = dict.fromkeys(("kind", "detector", "error", "source"), "")
    for column, default in {**blank, "generator": "unnamed", "perturbation": "none"}.items():
        df[column] = df[column].astype(object).where(df[column].notna(), default)
    df["source"] = df["source"].where(df["source"] != "", df["path"]).astype(str)
    df = df.assign(seen=df["seen"].fillna(0.0), failed=df["score"].isna() | (df["error"] != ""))
    check_labels_and_scores(df["label"], df["score"].where(~df["failed"], 0.0))
    key = ["detector", "perturbation", "path"]
    if (twice := df.duplicated(key)).any():
        raise AfpError(
            f"scores table: {df.loc[twice, key].iloc[0].to_dict()} is there more than once; "
            "expected one row for each detector, perturbation and path"
        )
    df["group"] = df["generator"].astype(str)
    fakes = df[(df["label"] == 1) & ~df["kind"].isin(["", "unknown"])]
    for (_, _, kind), block in fakes.groupby(["detector", "perturbation", "kind"]):
        n = block.groupby("generator")["seen"].agg(["size", "max"])
        small = n.index[(n["size"] < POOL_BELOW) & (n["max"] == 0)]
        if len(small) > 1:
            df.loc[block.index[block["generator"].isin(small)], "group"] = kind
    return df.sort_values(key, ignore_index=True)


def evaluate(scores: pd.DataFrame, *, n_boot: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Every metric of a scores table with its interval, one a row.

    For each detector and perturbation: each fake generator (`group`, see `check_scores`) `against` each set
    of real images ("real", the control "real-resampled"; "" if there are none); `REAL_METRICS` of each set of
    real images alone (kind "real"); then "mean held-in", "mean held-out" and the worst held-out generator
    ("min held-out"; for `LOWER_IS_BETTER` "max held-out"), over `kind` "all" and over each kind, taken within
    each replicate and NaN if a generator has no value. `seen` is 1 for held-in. Columns: detector,
    perturbation, group, kind, seen, against, metric, value, low, high, n_real, n_fake, n_failed.
    """
    rows = []
    for (detector, perturbation), block in check_scores(scores).groupby(["detector", "perturbation"]):
        for (group, kind, against), (counts, values) in _replicates(block, n_boot, seed).items():
            for metric, drawn in values.items():
                rows.append(
                    {
                        "detector": detector,
                        "perturbation": perturbation,
                        "group": group,
                        "kind": kind,
                        "against": against,
                        "metric": metric,
                        **vars(Estimate.of(drawn)),
                        **counts,
                    }
                )
    columns = "detector perturbation group kind seen against metric value low high n_real n_fake n_failed"
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

    Each table holds one detector under one perturbation; `group`, `kind` and `against` name a row of
    `evaluate` (no kind: the generator's own, or "all"). An image that failed in one table is left out of
    both; a generator seen by one is seen by both. ValueError: other images, no such row.
    """
    a, b = tables = [check_scores(scores_a), check_scores(scores_b)]
    for name, table in zip("ab", tables, strict=True):
        if len(found := table[["detector", "perturbation"]].drop_duplicates()) != 1:
            raise AfpError(f"scores_{name}: expected one detector and perturbation; got {found.to_numpy()}")
    key = ["path", "perturbation", "label", "generator", "source"]
    if odd := set(map(tuple, a[key].to_numpy())) ^ set(map(tuple, b[key].to_numpy())):
        raise AfpError(f"paired_difference: {len(odd)} rows are in one table only, such as {min(odd)}")
    shared = {"failed": a["failed"] | b["failed"], "seen": np.maximum(a["seen"], b["seen"]), "group": a.group}
    found = []
    for table in tables:
        blocks = _replicates(table.assign(**shared), n_boot, seed)
        named = [
            values
            for (g, k, r), (_, values) in blocks.items()
            if g == group and r == against and kind in (k, None) and metric in values
        ]
        if not named:
            raise AfpError(
                f"no metric {metric!r} of group {group!r}, kind {kind!r}, against {against!r}; "
                f"expected one of {METRICS + REAL_METRICS} of {list(blocks)}"
            )
        found.append(named[0][metric])
    return Estimate.of(found[0] - found[1])


def _replicates(block: pd.DataFrame, n_boot: int, seed: int) -> dict[tuple[str, str, str], tuple[dict, dict]]:
    """(group, kind, against) -> (seen and counts of rows, metric -> (1 + n_boot,)) for one detector."""
    fake, name = block["label"].to_numpy() == 1, block["generator"].to_numpy()
    reals = sorted(set(name[~fake]), key=lambda real: (real != "real", real))
    fakes = block[fake].groupby("group").agg(kind=("kind", "first"), seen=("seen", "max"))
    fakes = fakes.sort_values(["seen", "kind"], ascending=[False, True], kind="stable")
    masks = {
        (g, f.kind, against): (fake & (block["group"] == g).to_numpy(), ~fake & (name == against))
        for against in reals or [""]
        for g, f in fakes.iterrows()
    }
    masks |= {(real, "real", ""): (fake & False, ~fake & (name == real)) for real in reals}
    scored = ~block["failed"].to_numpy()
    source, *columns = (block.loc[scored, c].to_numpy() for c in ("source", "label", "score", "threshold"))
    parts = {key: [] for key in masks}
    for weights in _resamples(source, columns[0] == 0, n_boot, seed):
        for key, masks_of_key in masks.items():
            rows = np.any(masks_of_key, axis=0)[scored]
            parts[key].append(compute(*(column[rows] for column in columns), weights[:, rows]))
    out = {}
    for key, (of_fake, of_real) in masks.items():
        metrics = METRICS if of_fake.any() else REAL_METRICS
        values = {m: np.concatenate([part[m] for part in parts[key]]) for m in metrics}
        if min(len(set(source[of[scored]])) for of in (of_fake, of_real) if of.any()) < 2:
            values = {m: np.append(drawn[:1], np.full(n_boot, np.nan)) for m, drawn in values.items()}
        out[key] = (_counts(of_fake, of_real, block), values)
    for against in reals or [""]:
        for name, seen, over, metrics in _OVER_GENERATORS:
            keys = [key for key in masks if key[2] == against and out[key][0]["seen"] == seen]
            for kind in dict.fromkeys(kind for key in keys for kind in ("all", key[1]) if kind):
                members = [key for key in keys if kind in ("all", key[1])]
                values = {m: over([out[key][1][m] for key in members], axis=0) for m in metrics}
                of_fake, of_real = (np.any([masks[key][i] for key in members], axis=0) for i in (0, 1))
                out[name, kind, against] = (_counts(of_fake, of_real, block), values)
    return out


def _counts(of_fake: np.ndarray, of_real: np.ndarray, block: pd.DataFrame) -> dict[str, int]:
    failed, seen = block["failed"].to_numpy(), block["seen"].to_numpy()[of_fake].max(initial=0)
    n = [int(rows.sum()) for rows in (of_real & ~failed, of_fake & ~failed, (of_fake | of_real) & failed)]
    return {"seen": int(seen), "n_real": n[0], "n_fake": n[1], "n_failed": n[2]}


def _resamples(source: np.ndarray, is_real: np.ndarray, n_boot: int, seed: int) -> Iterator[np.ndarray]:
    """Weights (replicates, n) in parts: ones (the data itself), then how often each source was drawn."""
    codes, names = pd.factorize(source, sort=True)
    has_real = np.isin(np.arange(len(names)), codes[is_real])
    rng, step = np.random.default_rng(seed), max(1, _CHUNK // max(1, len(source)))
    yield np.ones((1, len(source)))
    for start in range(0, n_boot, step):
        counts = np.zeros((min(step, n_boot - start), len(names)))
        for stratum in (np.flatnonzero(has_real), np.flatnonzero(~has_real)):
            if n := len(stratum):
                counts[:, stratum] = rng.multinomial(n, np.full(n, 1 / n), size=len(counts))
        yield counts[:, codes]


def mean_by_source(values: Sequence[float], sources: Sequence[str], n_boot: int = 1000) -> Estimate:
    """A mean over images, with a 95 % interval from a bootstrap over sources."""
    gain = np.asarray(values, float)
    codes, names = pd.factorize(np.asarray(sources), sort=True)
    counts = np.random.default_rng(0).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=n_boot
    )
    weights = np.concatenate([np.ones((1, len(gain))), counts[:, codes]])
    return Estimate.of(weights @ gain / weights.sum(1))
