"""How figures look, and how they are written: sizes, colours, files.

Every module of `afp.figures` draws with it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

SINGLE, DOUBLE = 3.35, 6.9  # inches: one and two columns of a journal
# Okabe & Ito's colours, safe for the colour-blind; after them three of Paul Tol's
COLOURS = {
    "real": "#0072B2",
    "real-resampled": "#56B4E9",
    "GAN": "#D55E00",
    "diffusion": "#E69F00",
    "super-resolution": "#009E73",
    "inpainting": "#CC79A7",
    "text-to-image": "#332288",
    "commercial": "#999933",
    "face": "#882255",
    "attack": "#000000",
}
OTHER = "#777777"
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LOOK = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.markersize": 4.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "axes.axisbelow": True,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "savefig.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "afp",
    "axes.prop_cycle": mpl.cycler(color=SERIES),
}


def style() -> AbstractContextManager:
    """The look of every figure: `with style(): ...` or `@style()`."""
    return mpl.rc_context(_LOOK)


@style()
def save_figure(fig: Figure, name: str, table: pd.DataFrame, folder: str | Path | None = None) -> list[Path]:
    """Write `<name>.png` (200 dpi), `<name>.svg` and `<name>.csv` with the plotted numbers.

    The folder is `figures/` unless given, and made if missing. Returns the three paths. The same numbers give
    the same bytes again.
    """
    if folder is None:
        from ..paths import figures_dir

        folder = figures_dir()
    files = [Path(folder) / f"{name}.{suffix}" for suffix in ("png", "svg", "csv")]
    files[0].parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(files[0], metadata={"Software": None})
    fig.savefig(files[1], metadata={"Date": None})
    table.to_csv(files[2], index=False, lineterminator="\n")
    return files


def series_style(k: int) -> tuple[str, str]:
    """Colour and marker of the k-th series of a figure, from 0; 49 differ."""
    return SERIES[k % len(SERIES)], MARKERS[(k + k // len(SERIES)) % len(MARKERS)]


def colour(generator: str, kind: str, shade: float = 0.0) -> str:
    """The colour of a generator's kind, towards white by `shade` in [0, 1]."""
    base = to_rgb(COLOURS.get(generator if kind == "real" else kind, OTHER))
    return to_hex([channel + (1 - channel) * shade for channel in base])


Drawn = tuple[Figure, pd.DataFrame]
