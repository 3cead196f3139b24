"""Figures of notebook 06: curves over perturbations, what each one costs, and the papers' points beside ours."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from ..errors import AfpError
from ..studies.robustness import LABELS, perturbation_level, perturbation_order, perturbation_title
from .style import DOUBLE, Drawn, series_style, style

AXES = {
    "jpeg": "JPEG quality",
    "webp": "WEBP quality",
    "blur": "blur: sigma of the Gaussian, pixels",
    "noise": "noise: standard deviation, grey levels",
}


@style()
def strength_curves(results: pd.DataFrame, family: str, metrics: Sequence[str] = tuple(LABELS)) -> Drawn:
    """Each metric (rows) of each detector (columns) over the strength of one kind of perturbation.

    Args:
        results: `afp.results.metrics.evaluate` of scores under several perturbations; fakes against photographs.
        family: such as "jpeg"; its perturbations are placed after the clean images, mildest first.
    Raises:
        ValueError: no perturbation of that family in the results.
    """
    df = results[(results["kind"] != "real") & results["against"].isin(["real", ""])]
    df = df[~df["group"].str.match("(mean|min|max) held-") & df["metric"].isin(metrics)]
    specs = sorted(
        (s for s in df["perturbation"].unique() if perturbation_level(s)[0] in (family, "none")),
        key=perturbation_order,
    )
    if len(specs) < 2:
        raise AfpError(
            f"family {family!r}: no such perturbation in {sorted(results['perturbation'].unique())}"
        )
    df = df[df["perturbation"].isin(specs)]
    groups = df.sort_values("seen", ascending=False, kind="stable")["group"].unique()
    detectors = df["detector"].unique()
    size = (DOUBLE * min(1, 0.3 + 0.25 * len(detectors)), 0.7 + 1.1 * len(metrics))
    fig, axes = plt.subplots(
        len(metrics), len(detectors), figsize=size, squeeze=False, sharex=True, sharey="row"
    )
    for (i, metric), (j, detector) in ((m, d) for m in enumerate(metrics) for d in enumerate(detectors)):
        ax = axes[i, j]
        part = df[(df["metric"] == metric) & (df["detector"] == detector)]
        for k, group in enumerate(groups):
            rows = part[part["group"] == group].set_index("perturbation").reindex(specs)
            x = np.arange(len(specs)) + min(0.07, 0.6 / len(groups)) * (k - (len(groups) - 1) / 2)
            hue, marker = series_style(k)
            ax.vlines(x, rows["low"], rows["high"], color=hue, linewidth=0.8, alpha=0.7)
            ax.plot(x, rows["value"], color=hue, marker=marker, markersize=3.2, linewidth=1)
        if metric != "tpr_at_5_fpr":
            ax.axhline(0.5, color="0.5", linewidth=0.7, linestyle=":")
        ax.set_xticks(range(len(specs)), [perturbation_title(s).split()[-1] for s in specs])
        if i == 0:
            ax.set_title(detector)
        if j == 0:
            ax.set_ylabel(LABELS[metric].replace(" at ", "\nat "))
    fig.supxlabel(AXES.get(family, family), size=plt.rcParams["axes.labelsize"])
    seen = set(df.loc[df["seen"] == 1, "group"])
    keys = [
        Line2D(
            [],
            [],
            color=series_style(k)[0],
            marker=series_style(k)[1],
            label=g + (" (held-in)" if g in seen else ""),
        )
        for k, g in enumerate(groups)
    ]
    fig.legend(handles=keys, loc="outside upper center", ncols=min(4, len(keys)))
    plt.close(fig)
    return fig, df.reset_index(drop=True)


@style()
def loss_bars(found: pd.DataFrame, panels: Sequence[str], column: str, axis: str) -> Drawn:
    """Differences with their intervals: a row a perturbation, a colour a detector, a panel a kind of difference.

    Args:
        found: of `afp.studies.robustness.losses` or `gains`; with a column ``detector``.
        panels: values of ``column``, left to right.
        axis: what the difference is; its label.
    """
    specs = sorted(found["perturbation"].unique(), key=perturbation_order)
    detectors = found["detector"].unique()
    size = (DOUBLE, 0.9 + (0.16 + 0.11 * len(detectors)) * len(specs))
    fig, axes = plt.subplots(1, len(panels), figsize=size, sharex=True, sharey=True, squeeze=False)
    for ax, panel in zip(axes[0], panels, strict=True):
        for i in range(0, len(specs), 2):
            ax.axhspan(i - 0.5, i + 0.5, color="0.95", zorder=0, linewidth=0)
        ax.axvline(0, color="0.4", linewidth=0.8, linestyle=":")
        for k, detector in enumerate(detectors):
            rows = found[(found["detector"] == detector) & (found[column] == panel)]
            rows = rows.set_index("perturbation").reindex(specs)
            y = np.arange(len(specs)) + 0.6 * ((k + 0.5) / len(detectors) - 0.5)
            hue, marker = series_style(k)
            ax.hlines(y, rows["low"], rows["high"], color=hue, linewidth=1.1)
            ax.plot(rows["value"], y, marker, color=hue, label=detector)
        ax.set_title(LABELS.get(panel, panel), loc="left")
        ax.tick_params(axis="y", length=0)
    axes[0, 0].set_yticks(range(len(specs)), [perturbation_title(s) for s in specs])
    axes[0, 0].set_ylim(len(specs) - 0.5, -0.5)
    fig.supxlabel(axis, fontsize=7.5)
    if len(detectors) > 1:
        handles, labels = axes[0, 0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside upper center", ncols=len(detectors))
    plt.close(fig)
    return fig, found.reset_index(drop=True)


@style()
def beside_papers(results: pd.DataFrame, paper: pd.DataFrame, specs: Sequence[str]) -> Drawn:
    """Average precision and accuracy at .5 under the papers' perturbations: theirs (open), ours (filled, interval).

    Args:
        results: `afp.results.metrics.evaluate`; the mean over held-out generators is drawn.
        paper: method, perturbation (as here), accuracy, average_precision in %: means over the paper's test sets.
        specs: perturbations from left to right.
    """
    own = results[(results["group"] == "mean held-out") & (results["kind"] == "all")]
    own = own[own["against"] == "real"]
    fig, axes = plt.subplots(1, 2, figsize=(DOUBLE, 2.9), sharey=True)
    tables = []
    names = [*own["detector"].unique(), *paper["method"].unique()]
    for ax, metric, column in ((axes[0], "ap", "average_precision"), (axes[1], "accuracy", "accuracy")):
        for k, name in enumerate(names):
            ours = own[(own["detector"] == name) & (own["metric"] == metric)].set_index("perturbation")
            theirs = paper[paper["method"] == name].set_index("perturbation")[column] / 100
            values = ours["value"].reindex(specs) if len(ours) else theirs.reindex(specs)
            x = np.arange(len(specs)) + 0.08 * (k - (len(names) - 1) / 2)
            whose = "ours" if len(ours) else "paper"
            hue, marker = series_style(k)
            face = hue if len(ours) else "white"
            ax.plot(
                x,
                values,
                "-" if len(ours) else "--",
                marker=marker,
                color=hue,
                mfc=face,
                label=f"{name} ({whose})",
            )
            if len(ours):
                rows = ours.reindex(specs)
                ax.vlines(x, rows["low"], rows["high"], color=hue, linewidth=1)
            tables.append(
                pd.DataFrame(
                    {
                        "name": name,
                        "whose": whose,
                        "metric": metric,
                        "perturbation": specs,
                        "value": values.to_numpy(),
                    }
                )
            )
        ax.axhline(0.5, color="0.5", linewidth=0.7, linestyle=":")
        ax.set_xticks(range(len(specs)), [perturbation_title(s).replace(" ", "\n") for s in specs])
        ax.set_title({"ap": "average precision", "accuracy": "accuracy at .5"}[metric], loc="left")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=3)
    plt.close(fig)
    return fig, pd.concat(tables, ignore_index=True)
