"""Figures of scores and metrics: held-out intervals, ROC curves, histograms, calibration.

Each function takes a table and returns (figure, table of the plotted numbers); figures know tables, never detectors.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from sklearn.metrics import roc_curve

from ..errors import AfpError
from ..results.metrics import LOWER_IS_BETTER, N_BINS, check_scores, compute
from .style import DOUBLE, MARKERS, SERIES, SINGLE, Drawn, colour, style


@style()
def held_out_bars(results: pd.DataFrame, metric: str = "auc") -> Drawn:
    """Point and 95 % interval of each generator, then mean and worst over the held-out ones.

    `results` as of `afp.results.metrics.evaluate`, one perturbation. A colour and marker a detector; filled against
    real photographs, open against any other set of real images. ValueError: several perturbations, or no such
    metric.
    """
    df = results[results["metric"] == metric].reset_index(drop=True)
    if df.empty or df["perturbation"].nunique() != 1:
        found = list(df["perturbation"].unique())
        raise AfpError(f"results: {len(df)} rows of metric {metric!r}, perturbations {found}; expected one")
    worst = "max" if metric in LOWER_IS_BETTER else "min"
    of_all = ["mean held-out", f"{worst} held-out"]
    aggregate = df["group"].str.match("(mean|min|max) held-")
    single = df[~aggregate].sort_values(["seen", "kind"], ascending=[False, True], kind="stable")
    df = df[~aggregate | (df["group"].isin(of_all) & (df["kind"] == "all"))]
    groups = [*single["group"].unique(), *(g for g in of_all if g in set(df["group"]))]
    series = df[["detector", "against"]].drop_duplicates()
    detectors = list(series["detector"].unique())

    slot = max(0.22, 0.09 * len(series) + 0.08)
    fig, ax = plt.subplots(figsize=(DOUBLE, 0.75 + slot * len(groups)))
    offsets = (np.arange(len(series)) - (len(series) - 1) / 2) * 0.7 / len(series)
    for offset, (detector, against) in zip(offsets, series.to_numpy(), strict=True):
        rows = df[(df["detector"] == detector) & (df["against"] == against)].set_index("group")
        y = np.array([groups.index(group) for group in rows.index]) + offset
        i = detectors.index(detector)
        hue, marker = SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]
        ax.hlines(y, rows["low"], rows["high"], color=hue, linewidth=1.1)
        ax.plot(
            rows["value"],
            y,
            marker,
            color=hue,
            markersize=4.2,
            markeredgewidth=1.0,
            markerfacecolor=hue if against in ("real", "") else "white",
        )
    for i in range(0, len(groups), 2):
        ax.axhspan(i - 0.5, i + 0.5, color="0.95", zorder=0, linewidth=0)
    if metric == "auc":
        ax.axvline(0.5, color="0.4", linewidth=0.8, linestyle=":")
    if len(groups) > single["group"].nunique():
        ax.axhline(single["group"].nunique() - 0.5, color="0.4", linewidth=0.6)
    seen = set(single.loc[single["seen"] == 1, "group"])
    names = [group + (" (held-in)" if group in seen else "") for group in groups]
    ax.set_yticks(range(len(groups)), names)
    ax.set_ylim(len(groups) - 0.5, -0.5)
    ax.set_xlabel(metric.upper() if len(metric) < 4 else metric.replace("_", " "))
    ax.tick_params(axis="y", length=0)
    keys = [
        Line2D([], [], color=SERIES[i % len(SERIES)], marker=MARKERS[i % len(MARKERS)], label=name)
        for i, name in enumerate(detectors)
    ]
    for name in series["against"].unique():
        look = {"marker": "o", "linestyle": "", "mfc": "0.3" if name in ("real", "") else "white"}
        keys.append(Line2D([], [], color="0.3", label=f"against {name}" if name else "fakes only", **look))
    fig.legend(handles=keys, loc="outside right center")
    plt.close(fig)
    table = df.sort_values("group", key=lambda column: column.map(groups.index), kind="stable")
    return fig, table.reset_index(drop=True)


@style()
def roc_curves(scores: pd.DataFrame) -> Drawn:
    """ROC curve of each generator, a panel for each set of real images; one detector, one perturbation.

    Colours tell the kind; line styles and shades tell generators of a kind apart. Failed rows are left out.
    Table: against, group, kind, fpr, tpr. ValueError without both classes.
    """
    df = _one_detector(scores)
    reals = sorted(df.loc[df["label"] == 0, "generator"].unique(), key=lambda name: (name != "real", name))
    groups = _fake_groups(df)
    if not reals or groups.empty:
        raise AfpError(
            f"scores table: {len(reals)} real and {len(groups)} fake groups; expected some of each"
        )
    fig, axes = plt.subplots(
        1, len(reals), figsize=(SINGLE if len(reals) == 1 else DOUBLE, 3.3), squeeze=False
    )
    tables = []
    for ax, against in zip(axes[0], reals, strict=True):
        ax.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
        for group, look in groups.iterrows():
            rows = df[
                (df["group"] == group) & (df["label"] == 1)
                | (df["generator"] == against) & (df["label"] == 0)
            ]
            fpr, tpr, _ = roc_curve(rows["label"], rows["score"], drop_intermediate=False)
            auc = compute(rows["label"], rows["score"])["auc"]
            ax.plot(fpr, tpr, color=look["colour"], linestyle=look["line"], label=f"{group} {auc:.2f}")
            curve = {"against": against, "group": group, "kind": look["kind"], "fpr": fpr, "tpr": tpr}
            tables.append(pd.DataFrame(curve))
        ax.set(
            xlabel="false positive rate",
            ylabel="true positive rate",
            title=f"against {against}",
            xlim=(-0.01, 1.01),
            ylim=(-0.01, 1.01),
            aspect="equal",
        )
        ax.legend(
            title="AUC", loc="lower right", fontsize=6, title_fontsize=6, handlelength=2.4, labelspacing=0.3
        )
    plt.close(fig)
    return fig, pd.concat(tables, ignore_index=True)


@style()
def score_histograms(scores: pd.DataFrame) -> Drawn:
    """Scores of the real images, then of each generator, with the validation threshold (dashed; one a fold).

    One detector, one perturbation; failed rows are left out. Table: group, kind, label, bin_low, bin_high,
    fraction (of the group's images), n (its images), called_fake (fraction at the thresholds).
    """
    df = _one_detector(scores)
    real = (
        df[df["label"] == 0]
        .groupby("generator")["kind"]
        .first()
        .sort_index(key=lambda index: index != "real")
    )
    looks = [(name, 0, kind, colour(name, "real")) for name, kind in real.items()]
    looks += [
        (name, 1, look["kind"], look["colour"]) for name, look in _fake_groups(df, shades=False).iterrows()
    ]
    fig, axes = plt.subplots(
        len(looks), 1, figsize=(SINGLE, 0.5 + 0.42 * len(looks)), sharex=True, squeeze=False
    )
    edges, tables = np.linspace(0, 1, 31), []
    for ax, (group, label, kind, hue) in zip(axes[:, 0], looks, strict=True):
        rows = df[(df["group"] == group) & (df["label"] == label)]
        fraction = np.histogram(rows["score"], edges)[0] / len(rows)
        called = (rows["score"] >= rows["threshold"]).mean() if rows["threshold"].notna().all() else np.nan
        ax.bar(edges[:-1], fraction, np.diff(edges), align="edge", color=hue)
        for threshold in df["threshold"].dropna().unique():
            ax.axvline(threshold, color="0.2", linewidth=0.6, linestyle="--")
        share = "" if np.isnan(called) else f", {called:.0%} called fake"
        ax.set_title(f"{group} ({len(rows)}{share})", loc="left", fontsize=6.5, pad=1.5)
        ax.set(yticks=[], xlim=(0, 1))
        ax.spines["left"].set_visible(False)
        tables.append(
            pd.DataFrame(
                {
                    "group": group,
                    "kind": kind,
                    "label": label,
                    "bin_low": edges[:-1],
                    "bin_high": edges[1:],
                    "fraction": fraction,
                    "n": len(rows),
                    "called_fake": called,
                }
            )
        )
    axes[-1, 0].set_xlabel("score, P(fake); dashed: validation threshold")
    plt.close(fig)
    return fig, pd.concat(tables, ignore_index=True)


@style()
def calibration(scores: pd.DataFrame) -> Drawn:
    """Reliability diagram: fraction fake against mean score in 15 bins, counts beneath, ECE as the title.

    One detector, one perturbation, all its images (ECE depends on their share of fakes); failed rows are left
    out. Table: bin_low, bin_high, mean_score, fraction_fake (NaN where empty), n_real, n_fake.
    """
    df = _one_detector(scores)
    edges = np.linspace(0, 1, N_BINS + 1)
    bins = np.minimum((df["score"] * N_BINS).astype(int), N_BINS - 1)
    grouped = df.groupby(bins)
    table = pd.DataFrame(
        {
            "bin_low": edges[:-1],
            "bin_high": edges[1:],
            "mean_score": grouped["score"].mean().reindex(range(N_BINS)),
            "fraction_fake": grouped["label"].mean().reindex(range(N_BINS)),
            "n_real": df[df["label"] == 0].groupby(bins).size().reindex(range(N_BINS), fill_value=0),
            "n_fake": df[df["label"] == 1].groupby(bins).size().reindex(range(N_BINS), fill_value=0),
        }
    )
    fig, (ax, below) = plt.subplots(2, 1, figsize=(SINGLE, 3.9), sharex=True, height_ratios=[3, 1])
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
    filled = table.dropna()
    ax.plot(filled["mean_score"], filled["fraction_fake"], "o-", color=SERIES[0], markersize=3.5)
    ece = compute(df["label"], df["score"])["ece"]
    ax.set(ylabel="fraction fake", ylim=(-0.03, 1.03), xlim=(0, 1), title=f"ECE {ece:.3f}, {len(df)} images")
    width = 0.9 / N_BINS
    below.bar(edges[:-1] + width / 1.8, table["n_real"], width, color=colour("real", "real"), label="real")
    below.bar(
        edges[:-1] + width / 1.8,
        table["n_fake"],
        width,
        bottom=table["n_real"],
        color="#D55E00",
        label="fake",
    )
    below.set(xlabel="score, P(fake)", ylabel="images")
    below.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    plt.close(fig)
    return fig, table


def _one_detector(scores: pd.DataFrame) -> pd.DataFrame:
    df = check_scores(scores)
    df = df[~df["failed"]]
    if len(found := df[["detector", "perturbation"]].drop_duplicates()) != 1:
        raise AfpError(
            f"scores table: expected one detector and perturbation; got {found.to_numpy().tolist()}"
        )
    return df


def _fake_groups(df: pd.DataFrame, shades: bool = True) -> pd.DataFrame:
    """Index group, held-in first; columns kind, colour, line. Within a kind: lighter and other dashes."""
    groups = df[df["label"] == 1].groupby("group").agg(kind=("kind", "first"), seen=("seen", "max"))
    groups = groups.sort_values(["seen", "kind"], ascending=[False, True], kind="stable")
    nth = groups.groupby("kind").cumcount()
    lines = ["-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1))]
    groups["line"] = [lines[i % len(lines)] for i in nth]
    shade = 0.18 * nth.clip(upper=3) * shades
    groups["colour"] = [colour(group, kind, shade[group]) for group, kind in groups["kind"].items()]
    return groups
