"""Figures of notebook 08: the attack that is tried against its budget, and the poison against its share."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from .style import DOUBLE, SINGLE, Drawn, series_style, style


@style()
def budgets(results: pd.DataFrame) -> Drawn:
    """AUC and accuracy at the validation threshold against the attacker's budget.

    Args:
        results: `afp.results.metrics.evaluate` of `afp.studies.attack_trials.white_box_scores`.
    """
    df = results[
        (results["group"] == "mean held-in") & (results["kind"] == "all") & (results["against"] == "real")
    ]
    df = df[df["metric"].isin(["auc", "accuracy_val"])]
    df = df.assign(epsilon=df["perturbation"].str.extract(r"pgd ([\d.]+)/255")[0].astype(float))
    levels = sorted(df["epsilon"].unique())
    fig, ax = plt.subplots(figsize=(SINGLE, 2.6))
    for k, (metric, name) in enumerate((("auc", "AUC"), ("accuracy_val", "accuracy"))):
        rows = df[df["metric"] == metric].set_index("epsilon").loc[levels]
        x = np.arange(len(levels)) + 0.06 * (2 * k - 1)
        ax.vlines(x, rows["low"], rows["high"], color=series_style(k)[0], linewidth=1)
        ax.plot(x, rows["value"], color=series_style(k)[0], marker=series_style(k)[1], label=name)
    ax.axhline(0.5, color="0.5", linewidth=0.7, linestyle=":")
    ax.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
    ax.set(xlabel="budget of PGD, grey levels of 255", ylim=(-0.03, 1.03))
    ax.legend()
    plt.close(fig)
    return fig, df.reset_index(drop=True)


@style()
def poison(results: pd.DataFrame, scores: pd.DataFrame) -> Drawn:
    """Clean accuracy, and fakes still detected once the trigger is shown, against the poisoned share.

    Args:
        results: `afp.results.metrics.evaluate` of `afp.studies.attack_trials.poisoned_scores`.
        scores: that table, for size and share of each probe.
    """
    known = scores.drop_duplicates("detector")[["detector", "size", "share"]]
    df = results[
        (results["group"] == "mean held-in") & (results["kind"] == "all") & (results["against"] == "real")
    ]
    df = df.merge(known, on="detector")
    panels = {
        "clean images: accuracy": ("clean", "accuracy_val"),
        "fakes with the trigger: called fake": ("triggered", "fake_accuracy_val"),
    }
    fig, axes = plt.subplots(1, 2, figsize=(DOUBLE, 2.6), sharey=True)
    tables = []
    shares = sorted(known["share"].unique())
    for ax, (title, (condition, metric)) in zip(axes, panels.items(), strict=True):
        part = df[(df["perturbation"] == condition) & (df["metric"] == metric)]
        for k, (size, rows) in enumerate(part.groupby("size")):
            rows = rows.set_index("share").loc[shares].reset_index()
            x = np.arange(len(shares)) + 0.08 * (k - 1)
            ax.vlines(x, rows["low"], rows["high"], color=series_style(k)[0], linewidth=1)
            ax.plot(
                x,
                rows["value"],
                color=series_style(k)[0],
                marker=series_style(k)[1],
                label=f"patch of {size} pixels",
            )
            tables.append(rows.assign(panel=title))
        ax.set_xticks(range(len(shares)), [f"{share:.0%}" for share in shares])
        ax.set(title=title, xlabel="share of training fakes that were poisoned", ylim=(-0.03, 1.03))
    axes[0].legend(loc="lower left")
    plt.close(fig)
    return fig, pd.concat(tables, ignore_index=True)
