"""The papers' figures, redrawn from `afp.results.published`; own runs stand in them as open black markers.

Each function returns (figure, table of the plotted numbers).
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..results.published import averages, headlines
from .style import DOUBLE, MARKERS, SERIES, SINGLE, Drawn, colour, style

NAMES = {"accuracy": "accuracy (%)", "average_precision": "average precision (%)"}
KINDS = {"GAN (training generator)": "GAN", "diffusion/transformer": "diffusion", "face manipulation": "face"}
PALETTE = (*SERIES[:6], "#882255")  # black is for own runs
OWN_MARKERS = ("*", "p", "h", "<", ">", "H", "8")


@style()
def heat_map(table: pd.DataFrame) -> Drawn:
    """Sets x methods with every number, a panel for accuracy and (if there) AP; the last row is the mean.

    `table` as of `afp.results.published.beside`. Boxed cells were in the method's training. The mean leaves out
    commercial generators, as CLIPping's does.
    """
    values, methods = _values(table), list(table["method"].unique())
    sets = list(table["test_set"].unique())
    kinds = (
        table.drop_duplicates("test_set")
        .set_index("test_set")["kind"]
        .map(lambda kind: KINDS.get(kind, kind))
    )
    mean = _means(table).set_index("method")
    n_published = table.loc[table["note"] == "", "method"].nunique()
    panel = (DOUBLE - 1.3) / len(values)
    fig, axes = plt.subplots(
        1, len(values), figsize=(DOUBLE, 0.165 * len(sets) + 1.3), sharey=True, squeeze=False
    )
    for ax, value in zip(axes[0], values, strict=True):
        wide = table.pivot(index="test_set", columns="method", values=value).reindex(sets, columns=methods)
        grid = np.vstack([wide, mean[value].reindex(methods)])
        rows = np.append(np.arange(len(sets)), len(sets) + 0.4)
        low = 50 if len(values) > 1 else 0
        shades = mpl.colormaps["cividis"]((grid - low) / (100 - low))
        for (i, j), number in np.ndenumerate(grid):
            if np.isnan(number):
                continue
            ax.add_patch(Rectangle((j - 0.5, rows[i] - 0.5), 1, 1, facecolor=shades[i, j], edgecolor="none"))
            ink = "white" if number < low + 0.55 * (100 - low) else "black"
            text = f"{number:.2f}" if len(values) == 1 else f"{number:.1f}".replace("100.0", "100")
            if panel / len(methods) > 0.24:
                ax.text(j, rows[i], text, ha="center", va="center_baseline", fontsize=5.5, color=ink)
        for row in table[table["seen_in_training"] == 1].itertuples():
            corner = (methods.index(row.method) - 0.44, sets.index(row.test_set) - 0.42)
            ax.add_patch(
                Rectangle(corner, 0.88, 0.84, fill=False, edgecolor="#D55E00", linewidth=1, zorder=3)
            )
        for i in np.flatnonzero(kinds.reindex(sets).ne(kinds.reindex(sets).shift()))[1:]:
            ax.axhline(i - 0.5, color="white", linewidth=1.2)
        ax.set_xticks(range(len(methods)), _labels(table), rotation=40, ha="left", rotation_mode="anchor")
        if n_published < len(methods):
            ax.axvline(n_published - 0.5, color="white", linewidth=4)
        ax.xaxis.tick_top()
        ax.tick_params(length=0)
        ax.set(xlim=(-0.5, len(methods) - 0.5), ylim=(rows[-1] + 0.5, -0.5), xlabel=NAMES[value])
        ax.spines[:].set_visible(False)
    axes[0, 0].set_yticks(rows, [*sets, _mean_name(table)])
    _footnote(fig, table)
    summary = mean.reset_index().melt("method", values, "value", "percent").assign(test_set="mean")
    cells = table.melt(["method", "test_set", "kind", "seen_in_training", "note"], values, "value", "percent")
    plt.close(fig)
    return fig, pd.concat([cells, summary], ignore_index=True)


@style()
def parameters(table: pd.DataFrame) -> Drawn:
    """Mean accuracy over AntifakePrompt's sets against the number of trained parameters (log; 0 drawn at 1).

    The dotted line is what calling everything fake would earn. Of methods with the same number of parameters all but
    the first are drawn a little to the right.
    """
    means = _means(table).merge(table[["method", "n_params", "note"]].drop_duplicates())
    aside = 10 ** (0.22 * means.groupby("n_params").cumcount().clip(upper=1))
    constant = headlines(table[table["note"] == ""])["all"].iloc[-1]
    fig, ax = plt.subplots(figsize=(SINGLE, 2.6 + 0.1 * len(means)))
    ax.axhline(constant, color="0.4", linewidth=0.8, linestyle=":")
    ax.annotate(
        "everything called fake",
        (1, constant),
        (0, -7),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        fontsize=6,
        color="0.3",
    )
    for row, look, shift in zip(means.itertuples(), _series_styles(means).values(), aside, strict=True):
        ax.plot(max(row.n_params, 1) * shift, row.accuracy, **(look | {"linestyle": ""}))
    ax.set(
        xscale="log",
        ylim=(0, 102),
        xlabel="trained parameters, as published",
        ylabel="mean accuracy over the sets (%)",
    )
    _legend(fig, ax, 2)
    _footnote(fig, table)
    plt.close(fig)
    return fig, means


@style()
def mean_curves(
    table: pd.DataFrame,
    x: str,
    series: str = "method",
    *,
    xlabel: str = "",
    order: Mapping | None = None,
    graded: bool = False,
) -> Drawn:
    """Mean accuracy and AP over the non-commercial sets against column `x`, a line for each `series`.

    `order`: x value -> tick label, drawn evenly spaced; otherwise x is a number on a log axis. `graded`: the
    series are training sizes, shaded in order.
    """
    means = _means(table, [series, x, "note"]).sort_values([series, x] if graded else x, kind="stable")
    looks = _series_styles(table, series, graded=graded)
    fig, axes = plt.subplots(1, 2, figsize=(DOUBLE, 2.7))
    for ax, value in zip(axes, NAMES, strict=True):
        for name, look in looks.items():
            part = means[means[series] == name]
            at = part[x].map(list(order).index) if order else part[x]
            part, at = part.iloc[np.argsort(at)], np.sort(at)
            ax.plot(at, part[value], **look)
        if order:
            ax.set_xticks(range(len(order)), list(order.values()))
        else:
            ax.set_xscale("log")
        if not order and (table["note"] == "").all():
            ticks = np.sort(table[x].unique())
            ax.set_xticks(ticks, [_thousands(tick) for tick in ticks])
            ax.minorticks_off()
        ax.set(xlabel=xlabel, ylabel=NAMES[value])
        ax.grid(axis="y", color="0.92", linewidth=0.6)
    _legend(fig, axes[0], 5)
    _footnote(fig, table)
    plt.close(fig)
    return fig, means.reset_index(drop=True)


@style()
def dots(table: pd.DataFrame, row: str, series: str, *, xlabel: str = "") -> Drawn:
    """A line for each `row`, a marker for each `series` on it; a panel for accuracy and (if there) AP.

    The markers of a row are drawn a little under one another; own runs open.
    """
    values, rows = _values(table), list(table[row].unique())
    names = list(table[series].unique())
    fig, axes = plt.subplots(
        1, len(values), figsize=(DOUBLE, 0.18 * len(rows) + 0.95), sharey=True, squeeze=False
    )
    for ax, value in zip(axes[0], values, strict=True):
        at = table[row].map(rows.index)
        spread = table.groupby(at)[value].agg(["min", "max"])
        ax.hlines(spread.index, spread["min"], spread["max"], color="0.8", linewidth=1, zorder=0)
        for i, name in enumerate(names):
            look = {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)], "linestyle": ""}
            aside = 0.14 * (i - (len(names) - 1) / 2)
            for own in (False, True):
                part = (table[series] == name) & ((table["note"] != "") == own)
                look |= {"label": "" if own else name, "markerfacecolor": "white" if own else look["color"]}
                ax.plot(table.loc[part, value], at[part] + aside, **look)
        ax.set(ylim=(len(rows) - 0.5, -0.5), xlabel=xlabel or NAMES[value])
        ax.grid(axis="x", color="0.92", linewidth=0.6)
        ax.tick_params(axis="y", length=0)
    own = set(table.loc[table["note"] != "", row]) if row == "method" else set()
    axes[0, 0].set_yticks(range(len(rows)), [f"own: {name}" if name in own else name for name in rows])
    _legend(fig, axes[0, 0], 4)
    _footnote(fig, table)
    plt.close(fig)
    return fig, table[[row, series, *values, "note"]].reset_index(drop=True)


@style()
def accuracy_against_ap(table: pd.DataFrame, ap: float = 95, accuracy: float = 80) -> Drawn:
    """A panel a method, a point a set: AP (ranks well?) against accuracy (decides well?).

    Shaded: AP at least `ap` with accuracy under `accuracy`, a threshold failure.
    """
    methods = list(table["method"].unique())
    n_rows = -(-len(methods) // 4)
    size = (DOUBLE, 1.75 * n_rows + 0.45)
    fig, axes = plt.subplots(n_rows, 4, figsize=size, sharex=True, sharey=True, squeeze=False)
    table = table.assign(failure=(table["average_precision"] >= ap) & (table["accuracy"] < accuracy))
    for ax, method, label in zip(axes.flat, methods, _labels(table), strict=False):
        part = table[table["method"] == method]
        ax.add_patch(Rectangle((ap, 0), 105 - ap, accuracy, color="0.9", linewidth=0, zorder=0))
        ax.axline((50, 50), slope=1, color="0.6", linewidth=0.8, linestyle=":")
        for kind, points in part.groupby(part["kind"].map(lambda kind: KINDS.get(kind, kind)), sort=False):
            marker = MARKERS[sorted({KINDS.get(k, k) for k in table["kind"]}).index(kind) % len(MARKERS)]
            ax.plot(
                points["average_precision"],
                points["accuracy"],
                marker,
                color=colour("", kind),
                label=kind,
                markersize=3.6,
                markeredgewidth=0,
            )
        ax.set_title(f"{label}: {part['failure'].sum()} of {len(part)}", fontsize=7)
    for i in range(len(methods), axes.size):
        axes.flat[i].axis("off")
        axes.flat[i - 4].tick_params(labelbottom=True)
    axes[0, 0].set(xlim=(40, 102), ylim=(40, 102))
    fig.supylabel("accuracy at .5 (%)", fontsize=7.5)
    _footnote(fig, table, ("average precision (%)",))
    handles = {
        text: line for ax in axes.flat for line, text in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    fig.legend(handles.values(), handles, loc="outside upper center", ncols=7)
    plt.close(fig)
    return fig, table[["method", "test_set", "kind", "average_precision", "accuracy", "failure", "note"]]


@style()
def mean_and_worst(tables: Mapping[str, pd.DataFrame]) -> Drawn:
    """Mean (filled) and worst set (open, named) of every method, a panel for each paper's table."""
    means = {name: _means(table, ["method", "note"]) for name, table in tables.items()}
    height = 0.24 * max(map(len, means.values())) + 0.8
    fig, axes = plt.subplots(1, len(means), figsize=(DOUBLE, height), squeeze=False)
    for ax, (name, rows) in zip(axes[0], means.items(), strict=True):
        at = np.arange(len(rows))
        ax.hlines(at, rows["worst"], rows["accuracy"], color="0.75", linewidth=1)
        ax.plot(rows["accuracy"], at, "o", color=SERIES[0], label="mean")
        ax.plot(rows["worst"], at, "o", color=SERIES[1], markerfacecolor="white", label="worst set")
        for i, (value, text) in enumerate(zip(rows["worst"], rows["worst_set"], strict=True)):
            ax.annotate(text, (value, i), (-2.5, 3.5), textcoords="offset points", fontsize=5.5)
        ax.set_yticks(at, _labels(rows))
        ax.set(ylim=(len(rows) - 0.5, -0.7), xlim=(-8, 104), xlabel=NAMES["accuracy"], title=name)
        ax.tick_params(axis="y", length=0)
    _legend(fig, axes[0, 0], 2)
    _footnote(fig, next(iter(tables.values())))
    plt.close(fig)
    return fig, pd.concat([rows.assign(paper=name) for name, rows in means.items()], ignore_index=True)


def _means(table: pd.DataFrame, by: str | list[str] = "method") -> pd.DataFrame:
    """Averages as each paper takes them: CLIPping's, which alone has AP, without the commercial generators."""
    return averages(table, by, commercial="average_precision" not in table)


def _values(table: pd.DataFrame) -> list[str]:
    return [name for name in NAMES if name in table]


def _labels(table: pd.DataFrame) -> list[str]:
    """Methods in their order, own ones said to be so."""
    notes = table.drop_duplicates("method").set_index("method")["note"]
    return [f"own: {method}" if note else method for method, note in notes.items()]


def _mean_name(table: pd.DataFrame) -> str:
    return "mean, not commercial" if "average_precision" in table else "mean"


def _series_styles(table: pd.DataFrame, series: str = "method", graded: bool = False) -> dict:
    """Series -> how it is drawn: a colour and marker each; own runs black and open; graded ones in shades."""
    published = list(table.loc[table["note"] == "", series].unique())
    if graded:
        shades = mpl.colormaps["viridis"](np.linspace(0, 0.85, len(published)))
        return {
            name: {"color": shade, "marker": MARKERS[i], "label": _thousands(name)}
            for i, (name, shade) in enumerate(zip(sorted(published), shades, strict=True))
        }
    looks = {
        name: {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)], "label": name}
        for i, name in enumerate(published)
    }
    own = [name for name in table[series].unique() if name not in looks]
    style_of_own = {"markerfacecolor": "white", "markersize": 6.5, "linewidth": 0.8, "linestyle": "--"}
    for i, name in enumerate(own):
        hue = "black" if i < len(OWN_MARKERS) else "0.5"
        look = {"color": hue, "marker": OWN_MARKERS[i % len(OWN_MARKERS)], "label": f"own: {name}"}
        looks[name] = look | style_of_own
    return looks


def _thousands(number: float) -> str:
    return f"{number / 1000:g}k" if number >= 1000 else f"{number:g}"


def _legend(fig: Figure, ax: Axes, ncols: int) -> None:
    handles, texts = ax.get_legend_handles_labels()
    fitting = int(fig.get_figwidth() / (0.35 + 0.055 * max(map(len, texts))))
    fig.legend(handles, texts, loc="outside upper center", ncols=max(1, min(ncols, fitting, len(texts))))


def _footnote(fig: Figure, table: pd.DataFrame, above: tuple[str, ...] = ()) -> None:
    """Under the figure: lines `above`, then what keeps each own run from comparison with the papers."""
    own = table[table["note"] != ""].groupby("note", sort=False)["method"].unique()
    lines = [f"own {', '.join(methods)}: {note}" for note, methods in own.items() if note != "own run"]
    lines = [textwrap.fill(line, int(fig.get_figwidth() / 0.062)) for line in lines]
    if above or lines:
        fig.supxlabel("\n".join([*above, *lines]), fontsize=7)
