"""The papers' figures, redrawn from `afp.results.published`; own runs stand in them with open markers.

Each function returns (figure, table of the plotted numbers).
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import offset_copy

from ..results.published import averages, headlines
from ..studies.robustness import perturbation_order, perturbation_title
from ..studies.training_size import half_width
from .perturbations import plot_families
from .style import (
    DOUBLE,
    MARKERS,
    SERIES,
    Drawn,
    chance_line,
    colour,
    drawing,
    key,
    legend_above,
    method_styles,
    name_rows,
    shades,
)

PERCENT = {"accuracy": "accuracy (%)", "average_precision": "average precision (%)"}
KINDS = {"GAN (training generator)": "GAN", "diffusion/transformer": "diffusion", "face manipulation": "face"}
CELL = 0.3  # inches: the width of a number in a heat map


@drawing
def heat_map(tables: Mapping[str, pd.DataFrame]) -> Drawn:
    """Sets x methods in whole percents, a panel for each table's accuracy and (if there) AP; the mean is last.

    Boxed cells were in the method's training. The mean leaves out commercial generators, as CLIPping's does.

    Args:
        tables: title -> table, as of `afp.results.published.beside`.
    """
    together = pd.concat([table.assign(paper=title) for title, table in tables.items()])
    kinds = together.drop_duplicates("test_set").set_index("test_set")["kind"].replace(KINDS)
    sets = sorted(kinds.index, key=lambda name: list(kinds.unique()).index(kinds[name]))
    panels = [(title, table, value) for title, table in tables.items() for value in _values(table)]
    widths = [table["method"].nunique() for _, table, _ in panels]
    size = (1.5 + CELL * sum(widths), 0.165 * len(sets) + 1.6)
    fig, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False, width_ratios=widths)
    for ax, (title, table, value) in zip(axes[0], panels, strict=True):
        names = _shown_names(table)
        wide = table.pivot(index="test_set", columns="method", values=value).reindex(
            sets, columns=list(names)
        )
        grid = np.vstack([wide, _means(table).set_index("method")[value].reindex(names)])
        low = 50 if "average_precision" in table else 0
        ax.imshow(grid, cmap="cividis", vmin=low, vmax=100, aspect="auto")
        for (i, j), number in np.ndenumerate(grid):
            ink = "white" if number < low + 0.55 * (100 - low) else "black"
            text = "" if np.isnan(number) else f"{number:.0f}" if i < len(sets) else f"{number:.1f}"
            look = {"ha": "center", "va": "center_baseline", "fontsize": 7 if i < len(sets) else 5.5}
            ax.text(j, i, text, color=ink, antialiased=False, **look)  # small, and sharp on a screen
        for row in table[table["seen_in_training"] == 1].itertuples():
            corner = (list(names).index(row.method) - 0.44, sets.index(row.test_set) - 0.42)
            ax.add_patch(
                Rectangle(corner, 0.88, 0.84, fill=False, edgecolor=SERIES[1], linewidth=1, zorder=3)
            )
        changes = kinds[sets].ne(kinds[sets].shift()).to_numpy().nonzero()[0][1:]
        for i in [*changes, len(sets)]:
            ax.axhline(i - 0.5, color="white", linewidth=4 if i == len(sets) else 1.2)
        published = table.loc[table["note"] == "", "method"].nunique()
        ax.axvline(published - 0.5, color="white", linewidth=4)
        ax.set_xticks(range(len(names)), names.values(), rotation=60, ha="left", rotation_mode="anchor")
        ax.xaxis.tick_top()
        ax.tick_params(length=0)
        ax.set_xlabel(PERCENT[value] if len(tables) == 1 else f"{title}: {PERCENT[value]}")
        ax.spines[:].set_visible(False)
    mean_name = "mean, not commercial" if "average_precision" in together else "mean"
    axes[0, 0].set_yticks(range(len(sets) + 1), [*sets, mean_name])
    _footnote(fig, together)
    parts = []
    columns = ["method", "test_set", "kind", "seen_in_training", "note"]
    for title, table in tables.items():
        summary = _means(table).melt("method", _values(table), "value", "percent").assign(test_set="mean")
        cells = table.melt(columns, _values(table), "value", "percent")
        parts.append(pd.concat([cells, summary]).assign(paper=title))
    found = pd.concat(parts)
    return fig, found if len(tables) > 1 else found.drop(columns="paper")


@drawing
def parameter_scatter(table: pd.DataFrame) -> Drawn:
    """Mean accuracy over AntifakePrompt's sets against the number of trained parameters (log; 0 drawn at 1).

    The dotted line is what calling everything fake would earn. Of methods with the same number of parameters all but
    the first stand some points to the right on the screen.
    """
    means = _means(table).merge(table[["method", "n_params", "note"]].drop_duplicates())
    constant = headlines(table)["all"].iloc[-1]
    fig, ax = plt.subplots(figsize=(DOUBLE, 2.8 + 0.1 * len(means)))
    chance_line(ax, constant)
    note = offset_copy(ax.get_yaxis_transform(), fig, y=-9, units="points")
    ax.text(1, constant, "everything called fake", transform=note, ha="right", fontsize=7, color="0.3")
    looks, ties = _styles(means), means.groupby("n_params").cumcount()
    for row, tie in zip(means.itertuples(), ties, strict=True):
        aside = offset_copy(ax.transData, fig, x=7 * tie, units="points")
        ax.plot(max(row.n_params, 1), row.accuracy, transform=aside, **looks[row.method] | {"linestyle": ""})
    ax.set(xscale="log", xlabel="trained parameters, as published", ylabel="mean accuracy over the sets (%)")
    ax.set(ylim=(0, 102), xlim=(means["n_params"].clip(lower=1).min() / 3, means["n_params"].max() * 4))
    legend_above(fig, ax.get_lines(), 3)
    _footnote(fig, table)
    return fig, means


@drawing
def mean_curves(
    table: pd.DataFrame, x: str, series: str = "method", *, xlabel: str = "", graded: bool = False
) -> Drawn:
    """Mean accuracy and (if there) AP over the non-commercial sets against column `x`, a line for each `series`.

    `x` is a number, on a log axis; or "perturbation", and no line joins two kinds of it. `graded`: the series are
    sizes, shaded in order.
    """
    means = _means(table, [series, x, "note"]).sort_values([series, x] if graded else x, kind="stable")
    values, looks = _values(table), _styles(table, series, graded)
    specs = sorted(table[x].unique(), key=perturbation_order) if x == "perturbation" else []
    ticks = specs or sorted(table[x].dropna().unique())
    fig, axes = plt.subplots(1, len(values), figsize=(DOUBLE, 3), squeeze=False)
    for ax, value in zip(axes[0], values, strict=True):
        for name, look in looks.items():
            part = means[means[series] == name].set_index(x).reindex(specs or None)
            if specs:
                plot_families(ax, specs, np.arange(len(specs)), part[value].to_numpy(), **look)
            else:
                ax.plot(part.index, part[value], **look)
        if specs:
            ax.set_xticks(range(len(specs)), [perturbation_title(spec) for spec in specs])
        else:
            _log_ticks(ax, ticks, rotation=45 if len(ticks) > 5 else 0)
        ax.set(xlabel=xlabel, ylabel=PERCENT[value])
        ax.grid(axis="y", color="0.92", linewidth=0.6)
    legend_above(fig, axes[0, 0].get_lines(), 5)
    _footnote(fig, table)
    return fig, means


@drawing
def dots(table: pd.DataFrame, row: str, series: str, *, xlabel: str = "", panel: str = "") -> Drawn:
    """A line for each `row`, a marker for each `series` on it; own runs open.

    A panel for accuracy and (if there) AP, or for each value of column `panel` with markers of its own. The markers
    of a row are drawn a little under one another.
    """
    values, rows = _values(table), list(table[row].unique())
    panels = (
        [(str(name), part, "accuracy") for name, part in table.groupby(panel, sort=False)] if panel else []
    )
    panels = panels or [("", table, value) for value in values]
    size = (max(DOUBLE, 1.4 + 1.75 * len(panels)), 0.18 * len(rows) + (1.6 if panel else 1.1))
    fig, axes = plt.subplots(1, len(panels), figsize=size, sharex=bool(panel), sharey=True, squeeze=False)
    names = _shown_names(table) if row == "method" else {name: str(name) for name in rows}
    for ax, (title, part, value) in zip(axes[0], panels, strict=True):
        at, looks = part[row].map(rows.index), method_styles(part[series])
        spread = part.groupby(at)[value].agg(["min", "max"])
        ax.hlines(spread.index, spread["min"], spread["max"], color="0.8", linewidth=1, zorder=0)
        for i, (name, look) in enumerate(looks.items()):
            aside = 0.14 * (i - (len(looks) - 1) / 2)
            for is_own in (False, True):
                here = (part[series] == name) & ((part["note"] != "") == is_own)
                face = {"markerfacecolor": "white"} if is_own else {"label": name}
                ax.plot(part.loc[here, value], at[here] + aside, **look | face, linestyle="")
        name_rows(ax, [names[name] for name in rows], stripes=False)
        ax.set_xlabel(xlabel or PERCENT[value])
        ax.grid(axis="x", color="0.92", linewidth=0.6)
        if panel:
            ax.legend(title=title, loc="lower left", bbox_to_anchor=(0, 1), alignment="left", handlelength=1)
    if not panel:
        legend_above(fig, axes[0, 0].get_lines())
    _footnote(fig, table)
    return fig, table[[*([panel] if panel else []), row, series, *values, "note"]]


@drawing
def accuracy_against_ap(table: pd.DataFrame) -> Drawn:
    """A panel a method, a point a set: AP (ranks well?) against accuracy (decides well?).

    Shaded: a threshold failure, AP at least 95 with accuracy under 80.
    """
    table = table.assign(failure=(table["average_precision"] >= 95) & (table["accuracy"] < 80))
    kinds, names = table["kind"].replace(KINDS), _shown_names(table)
    n_rows = -(-len(names) // 4)
    size = (DOUBLE, 1.75 * n_rows + 0.45)
    fig, axes = plt.subplots(n_rows, 4, figsize=size, sharex=True, sharey=True, squeeze=False)
    markers = dict(zip(sorted(kinds.unique()), MARKERS * 2, strict=False))
    for ax, (method, name) in zip(axes.flat, names.items(), strict=False):
        part = table[table["method"] == method]
        ax.add_patch(Rectangle((95, 0), 10, 80, color="0.9", linewidth=0, zorder=0))
        ax.axline((50, 50), slope=1, color="0.6", linewidth=0.8, linestyle=":")
        for kind, points in part.groupby(kinds, sort=False):
            look = {"color": colour("", str(kind)), "markersize": 3.6, "markeredgewidth": 0, "label": kind}
            ax.plot(points["average_precision"], points["accuracy"], markers[kind], **look)
        title = f"{name}: {part['failure'].sum()} of {len(part)}"
        ax.set_title(textwrap.fill(title, 27), fontsize=8)
    for i in range(len(names), axes.size):
        axes.flat[i].axis("off")
        axes.flat[i - 4].tick_params(labelbottom=True)
    axes[0, 0].set(xlim=(40, 102), ylim=(40, 102))
    fig.supylabel("accuracy at .5 (%)", fontsize=8.5)
    _footnote(fig, table, ("average precision (%)",))
    legend_above(fig, [line for ax in axes.flat for line in ax.get_lines()], 7)
    return fig, table[["method", "test_set", "kind", "average_precision", "accuracy", "failure", "note"]]


@drawing
def mean_and_worst(tables: Mapping[str, pd.DataFrame]) -> Drawn:
    """Mean (filled) and worst set (open, named) of every method, a panel for each paper's table."""
    means = {name: _means(table, ["method", "note"]) for name, table in tables.items()}
    names = [name for rows in means.values() for name in _shown_names(rows).values()]
    size = (DOUBLE + 0.1 * max(0, max(map(len, names)) - 22), 0.26 * max(map(len, means.values())) + 1.2)
    fig, axes = plt.subplots(1, len(means), figsize=size, squeeze=False)
    for ax, (title, rows) in zip(axes[0], means.items(), strict=True):
        own = rows["note"] != ""
        looks = method_styles(rows.loc[~own, "method"]) | method_styles(rows.loc[own, "method"])
        name_rows(ax, list(_shown_names(rows).values()), stripes=False)
        for i, row in enumerate(rows.itertuples()):
            ax.hlines(i, row.worst, row.accuracy, color="0.75", linewidth=1, zorder=0)
            ax.plot(row.accuracy, i, **looks[row.method])
            ax.plot(row.worst, i, markerfacecolor="white", **looks[row.method])
            ax.annotate(row.worst_set, (row.worst, i), (-2.5, 4), textcoords="offset points", fontsize=6)
        ax.set(ylim=(len(rows) - 0.5, -0.8), xlim=(-8, 104), xlabel=PERCENT["accuracy"], title=title)
    points = {"marker": "o", "linestyle": "", "color": "0.3"}
    legend_above(fig, [key("mean", **points), key("worst set", markerfacecolor="white", **points)])
    _footnote(fig, next(iter(tables.values())))
    return fig, pd.concat([rows.assign(paper=name) for name, rows in means.items()])


@drawing
def size_beside_paper(
    ours: pd.DataFrame, theirs: pd.DataFrame, images: str = "the demo's benchmark"
) -> Drawn:
    """Accuracy against training images: own repetitions (left, 95 % intervals), the paper's single runs (right).

    A colour and marker a method on both sides; names stand at the ends of the lines.

    Args:
        ours: a row a fit: method, size (a name), n_train, accuracy in [0, 1].
        theirs: method, n_train_images, accuracy in %.
        images: what ours are, for the title.
    """
    cells = ours.groupby(["method", "size"], sort=False)
    left = cells[["n_train", "accuracy"]].mean().assign(half=cells["accuracy"].agg(half_width)).reset_index()
    left = left.assign(accuracy=100 * left["accuracy"], half=100 * left["half"])
    right = theirs.rename(columns={"n_train_images": "n_train"})
    fig, axes = plt.subplots(1, 2, figsize=(DOUBLE * 1.3, 3.6), sharey=True)
    titles = (f"ours: {images}", "published: other backbone, data and test sets")
    for ax, table, title in zip(axes, (left, right), titles, strict=True):
        looks, ends = method_styles(table["method"]), []
        for i, (name, look) in enumerate(looks.items()):
            rows = table[table["method"] == name].sort_values("n_train")
            drawn = ax.errorbar(rows["n_train"], rows["accuracy"], rows.get("half"), elinewidth=0.8, **look)
            if "half" in rows:
                for artist in drawn.get_children():  # side by side on the screen
                    artist.set_transform(offset_copy(ax.transData, fig, x=3 * i, units="points"))
            ends.append((rows["accuracy"].iloc[-1], name, look["color"]))
        ax.set(xlabel="training images, both classes", title=title, xmargin=0.1)
        _log_ticks(ax, sorted({round(n) for n in table["n_train"]}))
        _name_ends(ax, ends)
    axes[0].set_ylabel("mean held-out accuracy (%)")
    return fig, pd.concat([right.assign(origin="published"), left.assign(origin="ours")])


def _name_ends(ax: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """A name to the right of each (y, name, colour), at least a line of text apart."""
    low, high = ax.get_ylim()
    gap, highest = 0.055 * (high - low), np.inf
    for y, name, hue in sorted(ends, reverse=True):
        highest = min(y, highest - gap)
        ax.text(1.02, highest, name, transform=ax.get_yaxis_transform(), va="center", color=hue, fontsize=7.5)


def _means(table: pd.DataFrame, by: str | list[str] = "method") -> pd.DataFrame:
    """Averages as each paper takes them: CLIPping's, which alone has AP, without the commercial generators."""
    return averages(table, by, commercial="average_precision" not in table)


def _values(table: pd.DataFrame) -> list[str]:
    return [name for name in PERCENT if name in table]


def _shown_names(table: pd.DataFrame) -> dict[str, str]:
    """Method -> its name in a figure, in their order: own ones are said to be so, and if they give one answer."""
    notes = table.drop_duplicates("method").set_index("method")["note"]
    constant = {method: f" ({note.split(',')[0]})" for method, note in notes.items() if "always" in note}
    return {m: f"own: {m}{constant.get(m, '')}" if note else m for m, note in notes.items()}


def _styles(table: pd.DataFrame, series: str = "method", graded: bool = False) -> dict[Any, dict[str, Any]]:
    """Series -> how it is drawn: published ones filled, own ones open and dashed; graded ones in shades."""
    own = table["note"] != ""
    if graded:
        names = sorted(table.loc[~own, series].unique())
        looks = zip(names, shades(len(names)), MARKERS, strict=False)
        return {name: {"color": hue, "marker": m, "label": _thousands(name)} for name, hue, m in looks}
    styles = method_styles(table.loc[~own, series])
    styles = {name: look | {"label": name} for name, look in styles.items()}
    open_ = {"markerfacecolor": "white", "markersize": 6.5, "linewidth": 0.8, "linestyle": "--"}
    shown = _shown_names(table[own]) if series == "method" else {}
    return styles | {m: look | open_ | {"label": shown[m]} for m, look in method_styles(shown).items()}


def _log_ticks(ax: Axes, ticks: Sequence[float], rotation: float = 0) -> None:
    """A logarithmic axis with a tick at each of these numbers alone."""
    ax.set_xscale("log")
    ax.set_xticks(ticks, [_thousands(tick) for tick in ticks], rotation=rotation)
    ax.minorticks_off()


def _thousands(number: float) -> str:
    return f"{number / 1000:g}k" if number >= 1000 else f"{number:g}"


def _footnote(fig: Figure, table: pd.DataFrame, above: tuple[str, ...] = ()) -> None:
    """Under the figure: lines `above`, then what keeps each own run from comparison with the papers."""
    own = table[table["note"] != ""]
    own = own.groupby("note", sort=False)["method"].unique() if len(own) else {}
    lines = [f"own {', '.join(methods)}: {note}" for note, methods in own.items() if note != "own run"]
    lines = [textwrap.fill(line, int(fig.get_figwidth() / 0.066)) for line in lines]
    if above or lines:
        fig.supxlabel("\n".join([*above, *lines]), fontsize=7.5)
