"""Results as tables for people: on the screen, in the README, in notebooks."""

from __future__ import annotations

import pandas as pd

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
        results: `afp.metrics.evaluate` of one detector under one perturbation.
    Returns:
        Text columns: generator, kind, in training, images (real + fake), AUC against real photographs and (where
        there are any) against resampled ones, then AP and accuracies against real photographs. The last row is
        the false-positive rate of each set of real images.
    """
    fakes = results[results["kind"] != "real"]
    against = [a for a in ("real", "real-resampled", "") if (fakes["against"] == a).any()]
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
            title = f"AUC vs {name}" if name else "AUC"
            row[title] = _cell(part, name, "auc", digits)
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


def markdown(frame: pd.DataFrame) -> str:
    """A frame of texts as a Markdown table."""
    lines = [
        list(map(str, frame.columns)),
        ["---"] * len(frame.columns),
        *frame.astype(str).to_numpy().tolist(),
    ]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
