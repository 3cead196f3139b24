"""Results as tables for people: on the screen, in the README, in notebooks. Cells are like "0.95 [0.93, 0.97]"."""

from __future__ import annotations

import pandas as pd

from ..errors import AfpError
from .metrics import Estimate, is_single

TITLES = {
    "auc": "AUC",
    "ap": "AP",
    "accuracy": "accuracy at .5",
    "accuracy_val": "accuracy at val. threshold",
    "tpr_at_5_fpr": "TPR at 5 % FPR",
}


def cells(results: pd.DataFrame) -> list[str]:
    """The estimate of each row."""
    return [f"{Estimate(*row):.2f}" for row in results[["value", "low", "high"]].to_numpy()]


def _held_out_of_kind(results: pd.DataFrame) -> pd.Series:
    """Kind -> how many generators of it are held out."""
    held_out = results[is_single(results) & (results["seen"] == 0) & (results["kind"] != "real")]
    return held_out.groupby("kind")["group"].nunique()


def _by_name(results: pd.DataFrame) -> dict[tuple[str, str, str, str], str]:
    """(group, kind, against, metric) -> the estimate, of one detector under one perturbation."""
    names = results[["group", "kind", "against", "metric"]].itertuples(index=False, name=None)
    return dict(zip(names, cells(results), strict=True))


def held_out_table(results: pd.DataFrame) -> pd.DataFrame:
    """One detector's results, a row a generator, with 95 % intervals.

    Args:
        results: `afp.results.metrics.evaluate` of one detector under one perturbation.
    Returns:
        Text columns: generator, kind, in training, images (real + fake), AUC against the real images (its title
        names them) and (where there are any) against resampled ones, then AP and accuracies against the real
        images. The last rows are the false-positive rate of each set of real images.
    """
    estimates, is_real, single = _by_name(results), results["kind"] == "real", is_single(results)
    columns = {}
    for against, reals in results[single & ~is_real].groupby("against", sort=False)["reals"]:
        whose = reals.iloc[0] if reals.nunique() == 1 else "real images of its own set"
        columns[f"AUC vs {whose}" if against else "AUC"] = (against, "auc")
    first = next(iter(columns.values()), ("", ""))[0]
    columns |= {TITLES[metric]: (first, metric) for metric in ("ap", "accuracy", "accuracy_val")}
    n_of_kind = _held_out_of_kind(results)
    several = results["kind"].isin(["all", *n_of_kind.index[n_of_kind > 1]])
    over_several = results["group"].isin(["mean held-out", "min held-out"]) & several
    rows = []
    for row in results[(single & ~is_real) | over_several].drop_duplicates(["group", "kind"]).itertuples():
        about = {"generator": row.group, "kind": row.kind, "in training": "yes" if row.seen else "no"}
        about["images"] = f"{row.n_real} + {row.n_fake}"
        found = {title: estimates.get((row.group, row.kind, *of), "") for title, of in columns.items()}
        rows.append(about | found)
    for row in results[is_real].drop_duplicates("group").itertuples():
        rate = estimates[row.group, "real", "", "false_positive_rate_val"]
        about = {"generator": f"{row.group}: called fake", "kind": "real", "images": str(row.n_real)}
        rows.append(about | {TITLES["accuracy_val"]: rate})
    return pd.DataFrame(rows).fillna("")


def comparison_table(results: pd.DataFrame) -> pd.DataFrame:
    """A row a detector: AUC with its 95 % interval, held-in and held-out, by the generators' kind.

    Args:
        results: `afp.results.metrics.evaluate` of several detectors under one perturbation.
    Returns:
        Text columns: detector; held-in; for the kind with the most generators its held-out mean, its worst
        generator and its mean against the resampled control (where there is one); the other kinds' means.
        A title says how many fake images are behind it.
    """
    auc = results[results["metric"] == "auc"]
    unseen = auc[auc["seen"] == 0]
    means = unseen[(unseen["group"] == "mean held-out") & (unseen["kind"] != "all")]
    groups, n = _held_out_of_kind(auc), means.groupby("kind")["n_fake"].max()
    kinds = sorted(n.index, key=lambda kind: (-groups[kind], -n[kind]))
    n_held_in = auc.loc[auc["group"] == "mean held-in", "n_fake"].to_numpy().max(initial=0)
    columns = {f"held-in (n = {n_held_in})": ("mean held-in", "all", "real")}
    for kind in kinds:
        title = f"{kind}, mean" if groups[kind] > 1 else kind
        columns[f"{title} (n = {n[kind]})"] = ("mean held-out", kind, "real")
        if kind == kinds[0]:
            columns[f"{kind}, worst"] = ("min held-out", kind, "real")
            if "real-resampled" in set(unseen["against"]):
                columns[f"{kind}, mean, vs resampled"] = ("mean held-out", kind, "real-resampled")
    if not kinds:
        columns["held-out"] = ("mean held-out", "all", "real")
    rows = []
    for detector, part in auc.groupby("detector", sort=False):
        estimates = _by_name(part)
        found = {title: estimates.get((*of, "auc"), "") for title, of in columns.items()}
        rows.append({"detector": detector} | found)
    return pd.DataFrame(rows)


def summary_table(results: pd.DataFrame, metrics: tuple[str, ...] = ("auc",)) -> pd.DataFrame:
    """The results of `afp.results.metrics.evaluate`, wide and for reading.

    A row a group (held-in generators, held-out ones, then mean and worst; a kind's own mean only where the
    kind has several of several), a column for each metric, detector, set of real images and perturbation that
    there are; what is the same everywhere is not repeated. AfpError for a metric that is not in the results.
    """
    if missing := set(metrics) - set(known := results["metric"].unique()):
        raise AfpError(f"metrics: {sorted(missing)} not in the results; expected some of {list(known)}")
    df = results[results["metric"].isin(metrics)].reset_index(drop=True)
    n_of_kind = _held_out_of_kind(df)
    several = n_of_kind.index[n_of_kind > 1] if len(n_of_kind) > 1 else []
    of_several = df["kind"].isin(several) & (df["seen"] == 0)
    df = df[is_single(df) | (df["kind"] == "all") | of_several]

    single = is_single(df)
    row = df["group"].where(single | (df["kind"] == "all"), df["group"] + ", " + df["kind"])
    row = row.where(~single | (df["seen"] == 0), row + " (held-in)")
    against = ("vs " + df["against"]).where(df["against"] != "", "alone")
    parts = [df["metric"], df["detector"], against, df["perturbation"]]
    varying = [part for part in parts if part.nunique() > 1] or parts[:1]
    column = varying[0].str.cat(varying[1:], sep=", ")
    long = pd.DataFrame({"group": row, "column": column, "cell": cells(df)})
    wide = long.pivot(index="group", columns="column", values="cell").fillna("")
    wide = wide.reindex(index=row.unique(), columns=column.unique())
    return wide.rename_axis(columns=None).reset_index()


def to_markdown(table: pd.DataFrame) -> str:
    """A table as GitHub's Markdown, cells as they print; a line break in one becomes a blank."""
    rows = [list(table.columns), ["---"] * table.shape[1], *table.astype(str).to_numpy().tolist()]
    return "".join(f"| {' | '.join(map(_markdown_cell, row))} |\n" for row in rows)


def _markdown_cell(value: object) -> str:
    return " ".join(str(value).splitlines()).replace("|", r"\|")
