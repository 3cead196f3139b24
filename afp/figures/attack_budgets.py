"""Figures of notebook 08: the attack that is tried against its budget, and the poison against its share."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ..results.metrics import mean_of_all
from .style import DOUBLE, SINGLE, Drawn, chance_line, draw_intervals, drawing, method_styles, shades

PANELS = {  # of `poison_curves`: condition, metric
    "clean images: accuracy": ("clean", "accuracy_val"),
    "fakes with the trigger: called fake": ("triggered", "fake_accuracy_val"),
}


@drawing
def budget_curves(results: pd.DataFrame) -> Drawn:
    """AUC (filled) and accuracy at the validation threshold (open) against the attacker's budget.

    Args:
        results: `afp.results.metrics.evaluate` of `afp.studies.attack_trials.white_box_scores`.
    """
    df = mean_of_all(results, "mean held-in")
    df = df[df["metric"].isin(["auc", "accuracy_val"])]
    df = df.assign(epsilon=df["perturbation"].str.extract(r"pgd ([\d.]+)/255")[0].astype(float))
    levels = sorted(df["epsilon"].unique())
    look = next(iter(method_styles(df["detector"]).values()))
    fig, ax = plt.subplots(figsize=(SINGLE, 2.6))
    for k, (metric, name, line) in enumerate((("auc", "AUC", "-"), ("accuracy_val", "accuracy", "--"))):
        rows = df[df["metric"] == metric].set_index("epsilon").loc[levels]
        at = np.arange(len(levels)) + 0.06 * (2 * k - 1)
        face = "white" if k else look["color"]
        draw_intervals(ax, at, rows, line=line, label=name, markerfacecolor=face, **look)
    chance_line(ax)
    ax.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
    ax.set(xlabel="budget of PGD, grey levels of 255", ylim=(-0.03, 1.03))
    ax.legend()
    return fig, df


@drawing
def poison_curves(results: pd.DataFrame, scores: pd.DataFrame) -> Drawn:
    """Clean accuracy, and fakes still detected once the trigger is shown, against the poisoned share.

    Args:
        results: `afp.results.metrics.evaluate` of `afp.studies.attack_trials.poisoned_scores`.
        scores: that table, for size and share of each probe.
    """
    known = scores.drop_duplicates("detector")[["detector", "size", "share"]]
    df = mean_of_all(results, "mean held-in").merge(known, on="detector")
    fig, axes = plt.subplots(1, 2, figsize=(DOUBLE, 2.6), sharey=True)
    tables = []
    shares, hues = sorted(known["share"].unique()), shades(known["size"].nunique())
    for ax, (title, (condition, metric)) in zip(axes, PANELS.items(), strict=True):
        part = df[(df["perturbation"] == condition) & (df["metric"] == metric)]
        for k, (size, rows) in enumerate(part.groupby("size")):
            rows = rows.set_index("share").loc[shares].reset_index()
            at = np.arange(len(shares)) + 0.08 * (k - 1)
            draw_intervals(ax, at, rows, color=hues[k], marker="os^D"[k % 4], label=f"patch of {size} pixels")
            tables.append(rows.assign(panel=title))
        ax.set_xticks(range(len(shares)), [f"{share:.0%}" for share in shares])
        ax.set(title=title, xlabel="share of training fakes that were poisoned", ylim=(-0.03, 1.03))
    axes[0].legend(loc="lower left")
    return fig, pd.concat(tables)
