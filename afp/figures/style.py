"""How figures look, and how they are written: sizes, colours, intervals, files.

Every module of `afp.figures` draws with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..paths import figures_dir

SINGLE, DOUBLE = 3.35, 6.9  # inches: one and two columns of a journal
# Okabe & Ito's colours, safe for the colour-blind; after them three of Paul Tol's
COLOURS = {
    "real": "#0072B2",
    "real-resampled": "#56B4E9",
    "GAN": "#D55E00",
    "diffusion": "#E69F00",
    "super-resolution": "#009E73",
    "other-family": "#D55E00",
    "inpainting": "#CC79A7",
    "text-to-image": "#332288",
    "commercial": "#999933",
    "face": "#882255",
    "attack": "#000000",
}
OTHER = "#777777"
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# A method's colour and marker in the whole book: the workbook's name, then the papers'.
METHODS = {
    ("linear-probe", "linear probing", "linear probe", "probe"): ("#0072B2", "o"),
    ("clip-prompt", "prompt tuning"): ("#D55E00", "s"),
    ("clip-adapter", "adapter"): ("#009E73", "^"),
    ("clip-finetune", "fine-tuning"): ("#CC79A7", "D"),
    ("clip-lora",): ("#AA4499", "d"),
    ("clip-adaptprompt",): ("#44AA99", "H"),
    ("clip-zero-shot", "CogVLM zero-shot"): ("#777777", "v"),
    ("vlm-zero-shot", "InstructBLIP zero-shot", "zero-shot"): ("#999933", "<"),
    ("vlm-prompt", "AntifakePrompt", "tuned"): ("#882255", "p"),
    ("vlm-lora", "InstructBLIP + LoRA"): ("#332288", ">"),
    ("spectrum",): ("#E69F00", "P"),
    ("metadata",): ("#000000", "X"),
    ("UnivFD",): ("#56B4E9", "h"),
    ("Wang 2020",): ("#B8860B", "8"),
    ("DE-FAKE",): ("#661100", "H"),
    ("DIRE",): ("#6699CC", "X"),
}
LONGEST = 44  # letters of a name beside an axis
PALER = (0, 0.35, 0.6, 0.78)  # shares of white in the variants of a method
SHEET = Path(__file__).with_name("afp.mplstyle")
Drawn = tuple[Figure, pd.DataFrame]
P = ParamSpec("P")


@contextmanager
def style() -> Iterator[None]:
    """The look of every figure: `with style(): ...` or `@style()`."""
    with plt.style.context(SHEET):
        yield


def drawing(function: Callable[P, Drawn]) -> Callable[P, Drawn]:
    """Decorates a function that draws: in this `style`, the figure closed, the table numbered from 0."""

    @wraps(function)
    def drawn(*args: P.args, **options: P.kwargs) -> Drawn:
        with style():
            fig, table = function(*args, **options)
        plt.close(fig)
        return fig, table.reset_index(drop=True)

    return drawn


@style()
def save_figure(fig: Figure, name: str, table: pd.DataFrame, folder: str | Path | None = None) -> list[Path]:
    """Write `<name>.png` (200 dpi), `<name>.svg` and `<name>.csv` with the plotted numbers.

    The folder is `figures/` unless given, and made if missing. Returns the three paths. The same numbers give
    the same bytes again.
    """
    files = [Path(folder or figures_dir()) / f"{name}.{suffix}" for suffix in ("png", "svg", "csv")]
    files[0].parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(files[0], metadata={"Software": None})
    fig.savefig(files[1], metadata={"Date": None})
    table.to_csv(files[2], index=False, lineterminator="\n")
    return files


def method_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """How each method of a figure is drawn: `METHODS` by the beginning of its name.

    Variants of one method ("AntifakePrompt + LaMa", "linear-probe, PNG") share its marker, in paler shades.
    Names that are no method's are told apart by `shades`, whose colours mean no method.

    Returns:
        Name -> ``color`` and ``marker``, for matplotlib.
    """
    known = {start: (i, look) for i, (starts, look) in enumerate(METHODS.items()) for start in starts}
    names = list(dict.fromkeys(names))
    begins = {name: max((s for s in known if name.startswith(s)), key=len, default="") for name in names}
    others = [name for name in names if not begins[name]]
    styles: dict[str, dict[str, Any]] = {}
    for name, hue, marker in zip(others, shades(len(others)), MARKERS * len(others), strict=False):
        styles[name] = {"color": hue, "marker": marker}
    drawn: list[int] = []
    for name in [name for name in names if begins[name]]:
        method, (hue, marker) = known[begins[name]]
        styles[name] = {"color": lighter(hue, PALER[min(drawn.count(method), 3)]), "marker": marker}
        drawn.append(method)
    return {name: styles[name] for name in names}


def lighter(hue: str, share: float) -> str:
    """A colour towards white, by a share in [0, 1]."""
    red, green, blue = (channel + (1 - channel) * share for channel in to_rgb(hue))
    return to_hex((red, green, blue))


def colour(generator: str, kind: str, shade: float = 0.0) -> str:
    """The colour of a generator's kind, towards white by `shade` in [0, 1]."""
    return lighter(COLOURS.get(generator if kind == "real" else kind, OTHER), shade)


def shades(n: int) -> list[str]:
    """Colours of an ordered series, dark to light: sizes, budgets."""
    return [to_hex(hue) for hue in mpl.colormaps["viridis"](np.linspace(0, 0.85, n))]


def draw_intervals(
    ax: Axes, at: np.ndarray, rows: pd.DataFrame, upright: bool = True, line: str = "-", **look: Any
) -> None:
    """Columns `value`, `low`, `high` of rows as points with intervals.

    Args:
        at: (n,), places on the other axis.
        upright: intervals are vertical, and the points joined by `line`; otherwise lying, and not joined.
        look: colour, marker, label, for matplotlib.
    """
    bars = ax.vlines if upright else ax.hlines
    bars(at, rows["low"], rows["high"], color=look["color"], linewidth=1.1)
    x, y = (at, rows["value"]) if upright else (rows["value"], at)
    ax.plot(x, y, linestyle=line if upright else "", **look)


def chance_line(ax: Axes, value: float = 0.5, upright: bool = False) -> None:
    """A dotted line at the value of guessing."""
    (ax.axvline if upright else ax.axhline)(value, color="0.5", linewidth=0.8, linestyle=":")


def name_rows(ax: Axes, names: Sequence[str], stripes: bool = True) -> None:
    """One row a name, from top to bottom, every second one shaded."""
    ax.set_yticks(range(len(names)), [short(name) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    if stripes:
        for i in range(0, len(names), 2):
            ax.axhspan(i - 0.5, i + 0.5, color="0.95", zorder=0, linewidth=0)


def legend_above(fig: Figure, handles: Iterable[Any], most: int = 4) -> None:
    """A legend over the figure, in as many columns as fit; of handles with one label the first."""
    once = {h.get_label(): h for h in handles if not str(h.get_label()).startswith("_")}
    width = 0.4 + 0.063 * max(map(len, once), default=1)
    columns = max(1, min(most, len(once), int(fig.get_figwidth() / width)))
    fig.legend(handles=list(once.values()), loc="outside upper center", ncols=columns)


def key(label: str, **look: Any) -> Line2D:
    """A handle for a legend."""
    return Line2D([], [], label=label, **look)


def short(text: str, most: int = LONGEST) -> str:
    """Text of at most so many letters, the middle left out: a name of any length leaves room for the figure."""
    end = (most - 1) // 2
    return text if len(text) <= most else f"{text[: most - 1 - end]}…{text[-end:]}"
