"""Results as tables for people: on the screen, in the README, in notebooks."""

from __future__ import annotations

import pandas as pd

from ..errors import AfpError
from .metrics import Estimate

COLUMNS = {
    "auc": "AUC",
    "ap": "AP",
    "accuracy": "accuracy at .5",
    "accuracy_val": "accuracy at val. threshold",
}


def held_out_table(results: pd.DataFrame, digits: int = 2) -> pd.DataFrame:
    """One detector's results, a row a generator, with 95 % intervals.

    Args:
        results: `afp.results.metrics.evaluate` of one detector under one perturbation.
    Returns:
        Text columns: generator, kind, in training, images (real + fake), AUC against the real images (its title
        names them) and (where there are any) against resampled ones, then AP and accuracies against the real
        images. The last rows are the false-positive rate of each set of real images.
    """
    fakes = results[results["kind"] != "real"]
    against = list(fakes["against"].unique())
    rows = []
    order = fakes[["group", "kind"]].drop_duplicates()
    members = fakes[~fakes["group"].str.contains(" held-")].groupby("kind")["group"].nunique()
    for group, kind in order.itertuples(index=False):
        part = fakes[(fakes["group"] == group) & (fakes["kind"] == kind)]
        summary = " held-" in group
        if summary and ("held-in" in group or group.startswith("max ") or members.get(kind, 9) < 2):
            continue
        first = part.iloc[0]
        row = {"generator": group, "kind": kind, "in training": "yes" if first["seen"] else "no"}
        row["images"] = f"{first['n_real']} + {first['n_fake']}"
        for name in against:
            reals = fakes.loc[
                (fakes["against"] == name) & ~fakes["group"].str.contains(" held-"), "reals"
            ].unique()
            whose = reals[0] if len(reals) == 1 else "real images of its own set"
            row[f"AUC vs {whose}" if name else "AUC"] = _cell(part, name, "auc", digits)
        row |= {COLUMNS[m]: _cell(part, against[0] if against else "", m, digits) for m in list(COLUMNS)[1:]}
        rows.append(row)
    for group, part in results[results["kind"] == "real"].groupby("group", sort=False):
        estimate = _cell(part, "", "false_positive_rate_val", digits)
        row = {"generator": f"{group}: called fake", "kind": "real", "in training": ""}
        row |= {"images": str(part["n_real"].iloc[0]), list(COLUMNS.values())[-1]: estimate}
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def _cell(part: pd.DataFrame, against: str, metric: str, digits: int) -> str:
    row = part[(part["against"] == against) & (part["metric"] == metric)]
    if row.empty:
        return ""
    return format(Estimate(*row.iloc[0][["value", "low", "high"]]), f".{digits}f")


def summary_table(
    results: pd.DataFrame, metrics: tuple[str, ...] = ("auc",), digits: int = 2
) -> pd.DataFrame:
    """The results of `afp.results.metrics.evaluate`, wide and for reading: cells like "0.95 [0.93, 0.97]".

    A row a group (held-in generators, held-out ones, then mean and worst; a kind's own mean only where the
    kind has several of several), a column for each metric, detector, set of real images and perturbation that
    there are; what is the same everywhere is not repeated. ValueError for a metric that is not in the
    results.
    """
    if missing := set(metrics) - set(known := results["metric"].unique()):
        raise AfpError(f"metrics: {sorted(missing)} not in the results; expected some of {list(known)}")
    df = results[results["metric"].isin(metrics)].reset_index(drop=True)
    over_generators = df["group"].str.match("(mean|min|max) held-(in|out)$")
    held_out = df[~over_generators & (df["seen"] == 0) & (df["kind"] != "real")]
    several = held_out.groupby("kind")["group"].nunique()
    several = several[several > 1].index if len(several) > 1 else []
    df = df[~over_generators | (df["kind"] == "all") | (df["kind"].isin(several) & (df["seen"] == 0))]
    over_generators = over_generators[df.index]

    row = df["group"].where(~over_generators | (df["kind"] == "all"), df["group"] + ", " + df["kind"])
    row = row.where(over_generators | (df["seen"] == 0), row + " (held-in)")
    against = ("vs " + df["against"]).where(df["against"] != "", "alone")
    parts = {
        "metric": df["metric"],
        "detector": df["detector"],
        "against": against,
        "perturbation": df["perturbation"],
    }
    varying = [part for part in parts.values() if part.nunique() > 1] or [parts["metric"]]
    column = varying[0].str.cat(varying[1:], sep=", ") if len(varying) > 1 else varying[0]
    cells = [f"{Estimate(*cell):.{digits}f}" for cell in df[["value", "low", "high"]].to_numpy()]
    long = pd.DataFrame({"group": row, "column": column, "cell": cells})
    wide = long.pivot(index="group", columns="column", values="cell").fillna("")
    wide = wide.reindex(index=row.unique(), columns=column.unique())
    return wide.rename_axis(columns=None).reset_index()


def to_markdown(table: pd.DataFrame) -> str:
    """A table as GitHub's Markdown, cells as they print."""
    rows = [list(table.columns), ["---"] * table.shape[1], *table.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows) + "\n"


def comparison_table(results: pd.DataFrame, digits: int = 2) -> pd.DataFrame:
    """A row a detector: AUC with its 95 % interval, held-in and held-out, by the generators' kind.

    Args:
        results: `afp.results.metrics.evaluate` of several detectors under one perturbation.
    Returns:
        Text columns: detector; held-in; for the kind with the most generators its held-out mean, its worst
        generator and its mean against the resampled control (where there is one); the other kinds' means.
        A title says how many fake images are behind it.
    """
    auc = results[(results["metric"] == "auc") & (results["seen"] == 0)]
    means = auc[(auc["group"] == "mean held-out") & (auc["kind"] != "all")]
    groups = auc[~auc["group"].str.contains(" held-")].groupby("kind")["group"].nunique()
    n = means.groupby("kind")["n_fake"].max()
    kinds = sorted(n.index, key=lambda kind: (-groups[kind], -n[kind]))
    titles = {kind: f"{kind}, mean" if groups[kind] > 1 else kind for kind in kinds}
    n_held_in = results.loc[results["group"] == "mean held-in", "n_fake"].to_numpy().max(initial=0)
    columns = {f"held-in (n = {n_held_in})": ("mean held-in", "all", "real")}
    for kind in kinds[:1]:
        columns[f"{titles[kind]} (n = {n[kind]})"] = ("mean held-out", kind, "real")
        columns[f"{kind}, worst"] = ("min held-out", kind, "real")
        if "real-resampled" in set(auc["against"]):
            columns[f"{kind}, mean, vs resampled"] = ("mean held-out", kind, "real-resampled")
    columns |= {f"{titles[kind]} (n = {n[kind]})": ("mean held-out", kind, "real") for kind in kinds[1:]}
    if not kinds:
        columns["held-out"] = ("mean held-out", "all", "real")
    rows = []
    for detector, part in results[results["metric"] == "auc"].groupby("detector", sort=False):
        row = {"detector": detector}
        for title, (group, kind, against) in columns.items():
            row[title] = _cell(
                part[(part["group"] == group) & (part["kind"] == kind)], against, "auc", digits
            )
        rows.append(row)
    return pd.DataFrame(rows)
