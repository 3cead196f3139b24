"""The picture of notebook 02: what of an InstructBLIP reads what, and which part of it is trained."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

from .style import DOUBLE, Drawn, drawing, key, legend_above

FILLS = {"frozen": "#BBDDF3", "trained": "#F4B183", "data": "#F2F2F2"}
ARROW = {"arrowstyle": "-|>", "color": "0.2"}


@drawing
def instructblip(question: str, n_queries: int) -> Drawn:
    """An InstructBLIP with a pseudo-word in its question: parts and the cells that pass between them.

    Args:
        question: words apart by blanks, ``[*]`` among them, which is the trained cell.
        n_queries: query vectors of the Q-Former.
    Returns:
        The figure; a table of what is drawn: part, state (frozen, trained or data).
    """
    fig, ax = plt.subplots(figsize=(DOUBLE, 2.5))
    drawn = [
        *(("image", "data", 0), ("image tower\n(ViT)", "frozen", 1.5), ("Q-Former", "frozen", 4.2)),
        *(("language\nmodel", "frozen", 7), ("yes / no", "data", 8.6)),
    ]
    for name, state, x in drawn:
        ax.add_patch(FancyBboxPatch((x - 0.45, 2.6), 0.9, 0.8, boxstyle="round,pad=0.1", fc=FILLS[state]))
        ax.text(x, 3, name, ha="center", va="center")
    words = [(word, "trained" if word == "[*]" else "data") for word in question.split()]
    _cells(ax, 2.3, 2.8, 4 * [("", "data")], title="image tokens")
    _cells(ax, 5.2, 2.8, 3 * [("", "data")], title="what the\nqueries saw")
    _cells(ax, 3.78, 4.2, 3 * [("", "frozen")], title=f"{n_queries} query vectors")
    _cells(ax, 5.6 - 0.45 * len(words), 0.6, words, width=0.9)
    for start, end in ((0.6, 0.95), (2.05, 2.3), (3.42, 3.65), (4.8, 5.15), (6.1, 6.45), (7.6, 8.05)):
        ax.annotate("", (end, 3), (start, 3), arrowprops=ARROW)
    for x, start, end in ((4.2, 4.15, 3.55), (4.2, 1.05, 2.45), (7, 1.05, 2.45)):
        ax.annotate("", (x, end), (x, start), arrowprops=ARROW)
    ax.set(xlim=(-0.6, 9.3), ylim=(0.3, 5))
    ax.axis("off")
    square = {"marker": "s", "linestyle": "", "markersize": 8, "markeredgecolor": "0.3"}
    legend_above(fig, [key(state, color=hue, **square) for state, hue in FILLS.items()])
    parts = [(name.replace("\n", " "), state) for name, state, _ in drawn]
    return fig, pd.DataFrame([*parts, ("query vectors", "frozen"), *words], columns=["part", "state"])


def _cells(
    ax: Axes, x: float, y: float, cells: list[tuple[str, str]], width: float = 0.28, title: str = ""
) -> None:
    """A row of vectors, a cell (text, state) each, under a title."""
    for i, (text, state) in enumerate(cells):
        ax.add_patch(Rectangle((x + i * width, y), width, 0.42, fc=FILLS[state], ec="0.3", linewidth=0.7))
        ax.text(x + (i + 0.5) * width, y + 0.2, text, ha="center", va="center")
    ax.text(x + len(cells) * width / 2, y + 0.52, title, ha="center", va="bottom", fontsize=7)
