"""Figures of notebook 05: maps of feature spaces, the numbers behind them, and an interactive page."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from ..data.images import open_image
from ..errors import require
from ..files import HTML_HEAD, PAGE, check_output, write_text
from .grid import data_uri
from .style import DOUBLE, SERIES, Drawn, colour, drawing, key, method_styles, short

THUMBNAIL = 72  # pixels a side
# Plotly's own hover shows text alone: this puts the picture beside it. Names go in by textContent, never as markup.
_HOVER = """
const plot = document.getElementById('{plot_id}');
const card = document.createElement('figure'), picture = document.createElement('img');
const caption = document.createElement('figcaption');
card.style = 'position:fixed;display:none;margin:0;padding:4px;background:white;border:1px solid #999;' +
  'font:12px sans-serif;pointer-events:none;z-index:10;max-width:20em;overflow-wrap:anywhere';
picture.width = picture.height = 2 * SIDE;
card.append(picture, caption);
document.body.append(card);
plot.on('plotly_hover', event => {
  const [source, text] = event.points[0].customdata;
  picture.src = source;
  caption.textContent = text;
  card.style.display = 'block';
  card.style.left = Math.min(event.event.clientX + 12, window.innerWidth - card.offsetWidth - 8) + 'px';
  card.style.top = Math.min(event.event.clientY + 12, window.innerHeight - card.offsetHeight - 8) + 'px';
});
plot.on('plotly_unhover', () => { card.style.display = 'none'; });
"""


@drawing
def maps(points: Mapping[str, np.ndarray], frame: pd.DataFrame, colour_by: Sequence[str]) -> Drawn:
    """A column a map, a row a colouring; the same points throughout.

    Args:
        points: title -> (n, 2).
        frame: n rows of a manifest.
        colour_by: columns of the frame, such as "label", "generator", "source".
    """
    height = 0.3 + len(colour_by) * 0.8 * DOUBLE / max(3, len(points))
    fig, axes = plt.subplots(len(colour_by), len(points), figsize=(DOUBLE, height), squeeze=False)
    for i, (row, by) in enumerate(zip(axes, colour_by, strict=True)):
        looks, legend = _colours(frame, by)
        for ax, (title, xy) in zip(row, points.items(), strict=True):
            order = np.random.default_rng(0).permutation(len(xy))  # else the last class hides the others
            ax.scatter(*xy[order].T, s=4, c=np.array(looks)[order], linewidths=0, alpha=0.8)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(True)
            if i == 0:
                ax.set_title(title if len(title) * len(points) <= 85 else title.replace(", ", ",\n"))
        row[0].set_ylabel(f"by {by}" if legend else f"by {by}\n({frame[by].nunique()})")
        if legend:
            place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
            row[-1].legend(handles=legend, fontsize=7, handlelength=1, **place)
    kept = [c for c in ("path", "label", "generator", "source") if c in frame]
    tables = [frame[kept].assign(map=title, x=xy[:, 0], y=xy[:, 1]) for title, xy in points.items()]
    return fig, pd.concat(tables)


def _colours(frame: pd.DataFrame, by: str) -> tuple[list, list[Line2D]]:
    """A colour for each row, and a legend (none for more than ten values)."""
    if by == "label":
        known = {0: SERIES[0], 1: SERIES[1]}
    elif by == "generator":
        seen = frame.drop_duplicates("generator").sort_values(["label", "kind"], kind="stable")
        fakes = seen.loc[seen["label"] == 1, "generator"].tolist()
        known = {r.generator: colour(r.generator, r.kind) for r in seen.itertuples() if not r.label}
        fresh = [c for c in (*SERIES[1:5], SERIES[6], "#999933") if c not in known.values()]
        known |= dict(zip(fakes, fresh if len(fakes) <= len(fresh) else _rainbow(len(fakes)), strict=False))
    else:
        values = sorted(frame[by].unique())
        known = dict(zip(values, _rainbow(len(values)), strict=True))
    names = {0: "real", 1: "fake"} if by == "label" else {value: str(value) for value in known}
    dot = {"marker": "o", "linestyle": "", "markersize": 3.5}
    legend = [key(short(names[value], 24), color=hue, **dot) for value, hue in known.items()]
    return [known[v] for v in frame[by]], legend if len(known) <= 10 else []


def _rainbow(n: int) -> list:
    return [plt.get_cmap("turbo")((i + 0.5) / n) for i in range(n)]


@drawing
def numbers(found: pd.DataFrame) -> Drawn:
    """Each measure (a panel) of each space and labelling, beside what dealt labels give (grey, to 97.5 %).

    Args:
        found: rows of `afp.studies.feature_space.measure` with columns space, by, measure added.
    """
    measures, bys, spaces = (list(found[c].unique()) for c in ("measure", "by", "space"))
    size = (DOUBLE, 0.8 + 0.16 * len(bys) * len(spaces))
    fig, axes = plt.subplots(1, len(measures), figsize=size, sharey=True, squeeze=False)
    rows, looks = [(by, space) for by in bys for space in spaces], method_styles(spaces)
    for ax, measure in zip(axes[0], measures, strict=True):
        part = found[found["measure"] == measure].set_index(["by", "space"])
        for y, row in enumerate(rows):
            if row in part.index:
                value, null, high = part.loc[row, ["value", "null", "null_high"]]
                ax.plot([null, high], [y, y], color="0.7", linewidth=4, solid_capstyle="butt")
                ax.plot(value, y, **looks[row[1]])
        for i in range(1, len(bys)):
            ax.axhline(i * len(spaces) - 0.5, color="0.5", linewidth=0.6)
        ax.set_title(measure.replace(", ", ",\n"), loc="left")
        ax.tick_params(axis="y", length=0)
        ax.margins(x=0.1)
    axes[0, 0].set_yticks(range(len(rows)), [f"{by}: {space}" for by, space in rows])
    axes[0, 0].set_ylim(len(rows) - 0.5, -0.5)
    return fig, found


def write_page(xy: np.ndarray, frame: pd.DataFrame, out: str | Path, title: str = "Feature map") -> Path:
    """An interactive map as one HTML file that opens offline: the picture and its name show under the pointer.

    Args:
        xy: (n, 2), of `afp.studies.feature_space.project`.
        frame: n rows with file, path, generator, label, kind, source.
        out: the page; an earlier one is replaced.
        title: of the page.
    Raises:
        AfpError: ``out`` is another file's name; plotly is not installed.
    """
    out = check_output(out, PAGE, frame["file"])
    fig = require("plotly.graph_objects", extra="maps").Figure()
    looks = pd.Series(_colours(frame, "generator")[0], index=frame.index)
    for generator, part in frame.groupby("generator", sort=False):
        at = xy[frame.index.get_indexer(part.index)]
        pictures = [data_uri(open_image(file), THUMBNAIL) for file in part["file"]]
        captions = [f"{r.path} ({r.generator}, {r.source})" for r in part.itertuples()]
        fig.add_scatter(
            x=at[:, 0].tolist(),
            y=at[:, 1].tolist(),
            mode="markers",
            name=html.escape(generator),
            marker={"color": looks[part.index[0]], "size": 7},
            customdata=list(zip(pictures, captions, strict=True)),
            hoverinfo="none",
        )
    hidden = {"xaxis_visible": False, "yaxis_visible": False}
    fig.update_layout(title=html.escape(title), template="simple_white", **hidden)
    script = _HOVER.replace("SIDE", str(THUMBNAIL))
    body = fig.to_html(include_plotlyjs=True, post_script=script, full_html=False)
    return write_text(out, f'{HTML_HEAD}<meta charset="utf-8"></head><body>{body}</body></html>\n')
