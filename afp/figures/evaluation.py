"""Figures of scores and metrics: held-out intervals, ROC curves, histograms, calibration.

Each function takes a table and returns (figure, table of the plotted numbers); figures know tables, never detectors.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from sklearn.metrics import roc_curve

from ..errors import AfpError
from ..results.metrics import (
    CONTROLS,
    N_BINS,
    check_one_detector,
    check_scores,
    compute,
    in_order_of_distance,
    is_single,
)
from .style import (
    DOUBLE,
    SERIES,
    SINGLE,
    Drawn,
    chance_line,
    colour,
    draw_intervals,
    drawing,
    key,
    legend_above,
    method_styles,
    name_rows,
)

DASHES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))


@drawing
def held_out_bars(results: pd.DataFrame) -> Drawn:
    """AUC with its 95 % interval of each generator, then mean and worst over the held-out ones.

    A colour and marker a detector; filled against real photographs, open against any other set of real images.

    Args:
        results: as of `afp.results.metrics.evaluate`, one perturbation.
    Raises:
        AfpError: several perturbations.
    """
    df, single = _aucs(results)
    generators = in_order_of_distance(single)
    groups = generators + [group for group in df["group"].unique() if group not in generators]
    series = df[["detector", "against"]].drop_duplicates().to_numpy().tolist()
    looks = method_styles(df["detector"])

    slot = max(0.22, 0.09 * len(series) + 0.08)
    fig, ax = plt.subplots(figsize=(DOUBLE, 0.75 + slot * len(groups)))
    for i, (detector, against) in enumerate(series):
        rows = df[(df["detector"] == detector) & (df["against"] == against)]
        at = rows["group"].map(groups.index).to_numpy() + (i - (len(series) - 1) / 2) * 0.7 / len(series)
        look = looks[detector]
        face = look["color"] if against in ("real", "") else "white"
        draw_intervals(ax, at, rows, upright=False, markerfacecolor=face, **look)
    name_rows(ax, _row_names(groups, single))
    chance_line(ax, upright=True)
    if len(groups) > len(generators):
        ax.axhline(len(generators) - 0.5, color="0.4", linewidth=0.6)
    keys, sets = [key(name, **look) for name, look in looks.items()], single["against"].unique()
    ax.set_xlabel(f"AUC against {sets[0]}" if len(sets) == 1 and sets[0] else "AUC")
    if len(sets) > 1:
        for name in sets:
            face = "0.3" if name in ("real", "") else "white"
            text = f"against {name}" if name else "fakes only"
            keys.append(key(text, color="0.3", marker="o", linestyle="", markerfacecolor=face))
    fig.legend(handles=keys, loc="outside right center")
    return fig, df.sort_values("group", key=lambda column: column.map(groups.index), kind="stable")


@drawing
def change_arrows(results: pd.DataFrame, before: str, after: str) -> Drawn:
    """What training changes: an arrow a generator, a panel each kind of generator and each set of real images.

    The arrow leads from one detector's AUC to the other's, each with its 95 % interval; other detectors stand
    beneath it, without theirs. The table is that of `held_out_bars`.

    Args:
        results: as there.
        before, after: detectors, such as "zero-shot" and "tuned".
    """
    df, single = _aucs(results)
    order = in_order_of_distance(single)
    df = df.sort_values("group", key=lambda c: c.map({g: i for i, g in enumerate(order)}), kind="stable")
    panels = {kind: list(part["group"].unique()) for kind, part in df.groupby("kind", sort=False)}
    sets, looks = list(df["against"].unique()), method_styles(df["detector"])
    heights = [len(groups) + 0.6 for groups in panels.values()]
    fig, axes = plt.subplots(
        len(panels),
        len(sets),
        figsize=(DOUBLE, 0.9 + 0.36 * sum(heights)),
        height_ratios=heights,
        sharex=True,
        sharey="row",
        squeeze=False,
    )
    aside = {before: -0.1, after: 0.1}
    for row, (kind, groups) in zip(axes, panels.items(), strict=True):
        for ax, against in zip(row, sets, strict=True):
            name_rows(ax, _row_names(groups, single))
            chance_line(ax, upright=True)
            part = df[(df["kind"] == kind) & (df["against"] == against)]
            part = part.assign(at=part["group"].map(groups.index))
            for name, look in looks.items():
                rows = part[part["detector"] == name]
                if name in aside:
                    draw_intervals(ax, rows["at"] + aside[name], rows, upright=False, **look)
                else:
                    ax.plot(rows["value"], rows["at"] + 0.32, linestyle="", **look | {"markersize": 3.5})
            wide = part.pivot(index="at", columns="detector", values="value")
            arrow = {"arrowstyle": "-|>", "color": looks[after]["color"], "shrinkA": 0, "shrinkB": 0}
            for at, start, end in wide[[before, after]].itertuples():
                ax.annotate("", (end, at), (start, at), arrowprops=arrow)
        row[0].set_title("over all held-out" if kind == "all" else kind, loc="left", fontsize=8.5)
    for ax, against in zip(axes[-1], sets, strict=True):
        ax.set_xlabel(f"AUC against {against}" if against else "AUC")
    legend_above(fig, [key(name, **look) for name, look in looks.items()])
    return fig, df


@drawing
def transfer_matrix(table: pd.DataFrame) -> Drawn:
    """AUC by the generator trained on (rows) and the one tested (columns).

    Args:
        table: as of `afp.studies.transfer.transfer`.
    """
    order = list(table["trained"].unique())
    values = table.pivot(index="trained", columns="tested", values="auc").loc[order, order]
    fig, ax = plt.subplots(figsize=(0.62 * len(order) + 2.2, 0.45 * len(order) + 1.2))
    look = {"cmap": "cividis", "vmin": 0.5, "vmax": 1, "linewidths": 1, "square": False}
    sns.heatmap(values, ax=ax, annot=True, fmt=".2f", cbar_kws={"label": "AUC"}, **look)
    ax.set_xlabel("tested on")
    ax.set_ylabel("trained on")
    ax.tick_params(axis="x", rotation=30)
    return fig, table


def _aucs(results: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """AUC of each generator, with mean and worst over the held-out ones, and without them."""
    df = results[results["metric"] == "auc"]
    if len(found := df["perturbation"].unique()) != 1:
        raise AfpError(f"results: perturbations {list(found)}, expected one")
    single = is_single(df)
    shown = df["group"].isin(["mean held-out", "min held-out"]) & (df["kind"] == "all")
    return df[single | shown], df[single]


def _row_names(groups: list[str], single: pd.DataFrame) -> list[str]:
    seen = set(single.loc[single["seen"] == 1, "group"])
    return [f"{group} (held-in)" if group in seen else group for group in groups]


@drawing
def roc_curves(scores: pd.DataFrame) -> Drawn:
    """ROC curve of each generator, a panel for each set of real images; one detector, one perturbation.

    Colours tell the kind; line styles and shades tell generators of a kind apart. Failed rows are left out. Of a
    cross-fitted table the folds' curves are averaged (at equal false positive rates), and so are their AUCs.
    Table: against, group, kind, fpr, tpr. AfpError without both classes.
    """
    df = _one_detector(scores)
    df["against"] = df["generator"].where(df["generator"].isin(CONTROLS), "real").where(df["label"] == 0, "")
    reals = sorted(set(df["against"]) - {""}, key=lambda name: (name != "real", name))
    groups = _fake_groups(df)
    if not reals or groups.empty:
        raise AfpError(
            f"scores table: {len(reals)} real and {len(groups)} fake groups; expected some of each"
        )
    size = (SINGLE if len(reals) == 1 else DOUBLE, 3.3)
    fig, axes = plt.subplots(1, len(reals), figsize=size, squeeze=False)
    tables = []
    for ax, against in zip(axes[0], reals, strict=True):
        ax.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
        for group, look in groups.iterrows():
            fakes = (df["group"] == group) & (df["label"] == 1)
            fpr, tpr, auc = _mean_roc(df[fakes | (df["against"] == against)])
            ax.plot(fpr, tpr, color=look["colour"], linestyle=look["line"], label=f"{group} {auc:.2f}")
            curve = {"against": against, "group": group, "kind": look["kind"], "fpr": fpr, "tpr": tpr}
            tables.append(pd.DataFrame(curve))
        ax.set(xlabel="false positive rate", ylabel="true positive rate", title=f"against {against}")
        ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        ax.legend(title="AUC", loc="lower right", fontsize=6, title_fontsize=6, handlelength=2.4)
    return fig, pd.concat(tables)


def _mean_roc(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, float]:
    """False and true positive rates, and the AUC: of one fold as they are, of several their mean."""
    parts = [part for _, part in rows.groupby("fold") if part["label"].nunique() == 2]
    curves = [roc_curve(part["label"], part["score"], drop_intermediate=False)[:2] for part in parts]
    auc = float(np.mean([compute(part["label"], part["score"])["auc"] for part in parts]))
    if len(curves) == 1:
        return *curves[0], auc
    fpr = np.linspace(0, 1, 201)
    mean = np.mean([np.interp(fpr, *curve) for curve in curves], axis=0)
    return np.insert(fpr, 0, 0.0), np.insert(mean, 0, 0.0), auc


@drawing
def score_histograms(scores: pd.DataFrame) -> Drawn:
    """Scores of the real images, then of each generator, with the validation threshold (dashed; one a fold).

    One detector, one perturbation; failed rows are left out. Table: group, kind, label, bin_low, bin_high,
    fraction (of the group's images), n (its images), called_fake (fraction at the thresholds).
    """
    df = _one_detector(scores)
    real = df[df["label"] == 0].groupby("generator")["kind"].first()
    real = real.sort_index(key=lambda index: index != "real")
    looks = [(name, 0, kind, colour(str(name), "real")) for name, kind in real.items()]
    fakes = _fake_groups(df, paler=0)
    looks += [(name, 1, look["kind"], look["colour"]) for name, look in fakes.iterrows()]
    size = (SINGLE, 0.5 + 0.42 * len(looks))
    fig, axes = plt.subplots(len(looks), 1, figsize=size, sharex=True, squeeze=False)
    edges, tables = np.linspace(0, 1, 31), []
    for ax, (group, label, kind, hue) in zip(axes[:, 0], looks, strict=True):
        rows = df[(df["group"] == group) & (df["label"] == label)]
        fraction = np.histogram(rows["score"], edges)[0] / len(rows)
        called = (rows["score"] >= rows["threshold"]).mean() if rows["threshold"].notna().all() else np.nan
        ax.bar(edges[:-1], fraction, np.diff(edges), align="edge", color=hue)
        for threshold in df["threshold"].dropna().unique():
            ax.axvline(threshold, color="0.2", linewidth=0.6, linestyle="--")
        share = "" if np.isnan(called) else f", {called:.0%} called fake"
        ax.set_title(f"{group} ({len(rows)}{share})", loc="left", fontsize=7.5, pad=1.5)
        ax.set(yticks=[], xlim=(0, 1))
        ax.spines["left"].set_visible(False)
        bars = {"group": group, "kind": kind, "label": label, "bin_low": edges[:-1], "bin_high": edges[1:]}
        tables.append(pd.DataFrame(bars | {"fraction": fraction, "n": len(rows), "called_fake": called}))
    axes[-1, 0].set_xlabel("score, P(fake); dashed: validation threshold")
    return fig, pd.concat(tables)


@drawing
def calibration(scores: pd.DataFrame) -> Drawn:
    """Reliability diagram: fraction fake against mean score in 15 bins, counts beneath, ECE as the title.

    One detector, one perturbation, all its images (ECE depends on their share of fakes); failed rows are left
    out. Table: bin_low, bin_high, mean_score, fraction_fake (NaN where empty), n_real, n_fake.
    """
    df = _one_detector(scores)
    edges = np.linspace(0, 1, N_BINS + 1)
    bins = np.minimum((df["score"] * N_BINS).astype(int), N_BINS - 1)
    table = pd.DataFrame({"bin_low": edges[:-1], "bin_high": edges[1:]})
    table["mean_score"] = df.groupby(bins)["score"].mean()
    table["fraction_fake"] = df.groupby(bins)["label"].mean()
    for label, column in enumerate(("n_real", "n_fake")):
        table[column] = bins[df["label"] == label].value_counts().reindex(table.index, fill_value=0)
    fig, (ax, below) = plt.subplots(2, 1, figsize=(SINGLE, 3.9), sharex=True, height_ratios=[3, 1])
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
    filled = table.dropna()
    look = next(iter(method_styles(df["detector"]).values()))
    ax.plot(filled["mean_score"], filled["fraction_fake"], **look)
    ece = compute(df["label"], df["score"])["ece"]
    ax.set(ylabel="fraction fake", ylim=(-0.03, 1.03), xlim=(0, 1), title=f"ECE {ece:.3f}, {len(df)} images")
    middles, width = (edges[:-1] + edges[1:]) / 2, 0.9 / N_BINS
    below.bar(middles, table["n_real"], width, color=colour("real", "real"), label="real")
    below.bar(middles, table["n_fake"], width, bottom=table["n_real"], color=SERIES[1], label="fake")
    below.set(xlabel="score, P(fake)", ylabel="images")
    below.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return fig, table


def _one_detector(scores: pd.DataFrame) -> pd.DataFrame:
    df = check_scores(scores)
    df = df[~df["failed"]]
    check_one_detector(df)
    return df


def _fake_groups(df: pd.DataFrame, paler: float = 0.18) -> pd.DataFrame:
    """Index group, `in_order_of_distance`; columns kind, colour, line. Within a kind: lighter, other dashes."""
    groups = df[df["label"] == 1].groupby("group").agg(kind=("kind", "first"), seen=("seen", "max"))
    groups = groups.loc[in_order_of_distance(groups.reset_index())]
    nth = groups.groupby("kind").cumcount()
    groups["line"] = [DASHES[i % len(DASHES)] for i in nth]
    shade = paler * nth.clip(upper=3)
    groups["colour"] = [colour(str(group), kind, shade[group]) for group, kind in groups["kind"].items()]
    return groups
