"""Figures of notebook 06: curves over perturbations, what each one costs, and the papers' points beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..errors import AfpError
from ..results.metrics import is_single, mean_of_all
from ..results.tables import TITLES
from ..studies.robustness import perturbation_level, perturbation_order, perturbation_title
from .style import (
    DOUBLE,
    MARKERS,
    Drawn,
    chance_line,
    draw_intervals,
    drawing,
    key,
    legend_above,
    method_styles,
    name_rows,
)

STRENGTHS = {
    "jpeg": "JPEG quality",
    "webp": "WEBP quality",
    "blur": "blur: sigma of the Gaussian, pixels",
    "noise": "noise: standard deviation, grey levels",
}


@drawing
def strength_curves(
    results: pd.DataFrame, family: str, metrics: Sequence[str] = ("auc", "accuracy_val")
) -> Drawn:
    """Each metric (rows) of each detector (columns) over the strength of one kind of perturbation.

    Bold, with its interval: the mean over held-out generators. Faint: each generator, the held-in ones dashed.

    Args:
        results: `afp.results.metrics.evaluate` of scores under several perturbations; fakes against photographs.
        family: such as "jpeg"; its perturbations are placed after the clean images, mildest first.
    Raises:
        ValueError: no perturbation of that family in the results.
    """
    df = results[(results["kind"] != "real") & results["against"].isin(["real", ""])]
    is_mean = (df["group"] == "mean held-out") & (df["kind"] == "all")
    df = df[(is_mean | is_single(df)) & df["metric"].isin(metrics)]
    known = sorted(df["perturbation"].unique(), key=perturbation_order)
    specs = [spec for spec in known if perturbation_level(spec)[0] in (family, "none")]
    if len(specs) < 2:
        raise AfpError(f"family {family!r}: no such perturbation in {known}")
    df = df[df["perturbation"].isin(specs)]
    single = df[df["group"] != "mean held-out"].sort_values("seen", ascending=False, kind="stable")
    markers = {group: MARKERS[k % len(MARKERS)] for k, group in enumerate(single["group"].unique())}
    seen = set(df.loc[df["seen"] == 1, "group"])
    looks, at = method_styles(df["detector"]), np.arange(len(specs))
    size = (DOUBLE * min(1, 0.3 + 0.25 * len(looks)), 1.0 + 1.4 * len(metrics))
    fig, axes = plt.subplots(len(metrics), len(looks), figsize=size, squeeze=False, sharex=True, sharey="row")
    for row, metric in zip(axes, metrics, strict=True):
        for ax, (detector, look) in zip(row, looks.items(), strict=True):
            part = df[(df["metric"] == metric) & (df["detector"] == detector)]
            for group, marker in markers.items():
                rows = part[part["group"] == group].set_index("perturbation").reindex(specs)
                faint = {"color": look["color"], "alpha": 0.35, "linewidth": 0.9, "markersize": 3}
                ax.plot(at, rows["value"], "--" if group in seen else "-", marker=marker, **faint)
            mean = part[part["group"] == "mean held-out"].set_index("perturbation").reindex(specs)
            draw_intervals(ax, at, mean, linewidth=2.2, **look)
            if metric != "tpr_at_5_fpr":
                chance_line(ax)
            ax.set_xticks(at, [perturbation_title(spec).split()[-1] for spec in specs])
        row[0].set_ylabel(TITLES[metric].replace(" at ", "\nat "))
    for ax, detector in zip(axes[0], looks, strict=True):
        ax.set_title(detector)
    fig.supxlabel(STRENGTHS.get(family, family), size=plt.rcParams["axes.labelsize"])
    keys = [key("mean held-out", color="0.2", linewidth=2.2, marker="o")]
    for group, marker in markers.items():
        line, name = ("--", f"{group} (held-in)") if group in seen else ("-", group)
        keys.append(key(name, color="0.6", linewidth=0.9, marker=marker, markersize=3, linestyle=line))
    legend_above(fig, keys)
    return fig, df


@drawing
def loss_bars(found: pd.DataFrame, panels: Sequence[str], column: str, axis: str) -> Drawn:
    """Differences with their intervals: a row a perturbation, a colour a detector, a panel a kind of difference.

    Args:
        found: of `afp.studies.robustness.losses` or `gains`; with a column ``detector``.
        panels: values of ``column``, left to right.
        axis: what the difference is; its label.
    """
    specs = sorted(found["perturbation"].unique(), key=perturbation_order)
    looks = method_styles(found["detector"])
    size = (DOUBLE, 0.9 + (0.16 + 0.11 * len(looks)) * len(specs))
    fig, axes = plt.subplots(1, len(panels), figsize=size, sharex=True, sharey=True, squeeze=False)
    for ax, panel in zip(axes[0], panels, strict=True):
        name_rows(ax, [perturbation_title(spec) for spec in specs])
        chance_line(ax, 0, upright=True)
        for k, (detector, look) in enumerate(looks.items()):
            rows = found[(found["detector"] == detector) & (found[column] == panel)]
            rows = rows.set_index("perturbation").reindex(specs)
            at = np.arange(len(specs)) + 0.6 * ((k + 0.5) / len(looks) - 0.5)
            draw_intervals(ax, at, rows, upright=False, label=detector, **look)
        ax.set_title(TITLES.get(panel, panel), loc="left")
    fig.supxlabel(axis, size=plt.rcParams["axes.labelsize"])
    if len(looks) > 1:
        legend_above(fig, axes[0, 0].get_legend_handles_labels()[0])
    return fig, found


@drawing
def beside_papers(results: pd.DataFrame, paper: pd.DataFrame, specs: Sequence[str]) -> Drawn:
    """Average precision and accuracy at .5 under the papers' perturbations: theirs (open), ours (filled, interval).

    Args:
        results: `afp.results.metrics.evaluate`; the mean over held-out generators is drawn.
        paper: method, perturbation (as here), accuracy, average_precision in %: means over the paper's test sets.
        specs: perturbations from left to right; lines join those of one kind, the clean images with the first.
    """
    own = mean_of_all(results)
    fig, axes = plt.subplots(1, 2, figsize=(DOUBLE, 3.1), sharey=True)
    tables = []
    looks = method_styles(own["detector"]) | method_styles(paper["method"])
    for ax, metric, column in ((axes[0], "ap", "average_precision"), (axes[1], "accuracy", "accuracy")):
        for k, (name, look) in enumerate(looks.items()):
            ours = own[(own["detector"] == name) & (own["metric"] == metric)].set_index("perturbation")
            theirs = paper[paper["method"] == name].set_index("perturbation")[column] / 100
            values = ours["value"].reindex(specs) if len(ours) else theirs.reindex(specs)
            at = np.arange(len(specs)) + 0.08 * (k - (len(looks) - 1) / 2)
            whose, line, face = ("ours", "-", look["color"]) if len(ours) else ("paper", "--", "white")
            shown = look | {"markerfacecolor": face, "label": f"{name} ({whose})", "linestyle": line}
            plot_families(ax, specs, at, values.to_numpy(), **shown)
            if len(ours):
                ax.vlines(at, *ours.reindex(specs)[["low", "high"]].to_numpy().T, color=look["color"])
            cells = {"name": name, "whose": whose, "metric": metric, "perturbation": specs, "value": values}
            tables.append(pd.DataFrame(cells))
        chance_line(ax)
        ax.set_xticks(range(len(specs)), [perturbation_title(s).replace(" ", "\n") for s in specs])
        ax.set_title({"ap": "average precision", "accuracy": "accuracy at .5"}[metric], loc="left")
    legend_above(fig, axes[0].get_legend_handles_labels()[0], 3)
    return fig, pd.concat(tables)


def plot_families(
    ax: Axes, specs: Sequence[str], at: np.ndarray, values: np.ndarray, label: str = "", **look: object
) -> None:
    """A line through the perturbations of each family, and no line across two; clean images join the first one."""
    family = ["jpeg" if spec == "none" else perturbation_level(spec)[0] for spec in specs]
    for i, (_, places) in enumerate(groupby(range(len(specs)), family.__getitem__)):
        part = list(places)
        ax.plot(at[part], values[part], label="" if i else label, **look)  # type: ignore[arg-type]
