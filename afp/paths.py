"""Where the workbook keeps its files. Every other module asks here."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .errors import AfpError

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
DEMO_VLM = ROOT / "data" / "demo-vlm"


def _folder(variable: str, default: Path) -> Path:
    """The folder that a variable of the environment names, or the default. Raises AfpError if it is a file."""
    folder = Path(os.environ.get(variable) or default).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise AfpError(f"{variable} is {folder}, a file; expected a folder")
    return folder


def data_dir() -> Path:
    """Folder of everything built or downloaded: ``$AFP_DATA``, else ``data/`` of the checkout."""
    return _folder("AFP_DATA", ROOT / "data")


def cache_dir() -> Path:
    """Folder of cached features; safe to delete, rebuilt when needed."""
    return data_dir() / "cache"


def nearest(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(p for p in (folder, *folder.parents) if p.exists())


def cache_disk() -> tuple[Path, int]:
    """The folder of the cache, or the nearest above it that is there, and the bytes free on its disk."""
    folder = nearest(cache_dir())
    return folder, shutil.disk_usage(folder).free


def weights_dir() -> Path:
    """Folder of the embedded backbones that ``afp demo`` unpacks."""
    return data_dir() / "weights"


def backbone_folder(name: str) -> Path:
    """The folder of a backbone that is not the hub's: an embedded one by its name, else ``name`` as a path."""
    if name == "demo-clip":
        return weights_dir() / name
    return DEMO_VLM if name in ("demo-vlm", "demo-vlm-untrained") else Path(name)


def whole_backbone(name: str) -> str:
    """A backbone's name as a run keeps it, found from any folder: of a folder of one's own the whole path."""
    own = backbone_folder(name) == Path(name) and Path(name).is_dir()
    return os.path.abspath(name) if own else name


def demo_manifest() -> Path:
    """The demo benchmark's manifest (there after ``afp demo``)."""
    return data_dir() / "demo" / "manifest.csv"


def runs_dir() -> Path:
    """Folder of runs: ``$AFP_RUNS``, else ``runs/`` of the checkout."""
    return _folder("AFP_RUNS", ROOT / "runs")


def figures_dir(executed: str | Path | None = None) -> Path:
    """Folder of the figures that notebooks draw: ``$AFP_FIGURES``, else ``figures/`` beside executed notebooks.

    Args:
        executed: folder of the executed notebooks, default ``executed/`` of the checkout. The checkout's own
            ``figures/`` is drawn anew by ``afp run --in-place`` alone.
    """
    return _folder("AFP_FIGURES", Path(executed or ROOT / "executed") / "figures")


def outputs(manifest: str = "") -> str:
    """Where a notebook's figures and runs go, for its first lines.

    Args:
        manifest: of the user's own images, of which the notebook's sentences do not speak.
    Raises:
        AfpError: the notebook lies in one checkout and has imported another one's `afp`.
    """
    here = [p for p in (Path.cwd(), *Path.cwd().parents) if (p / "afp" / "paths.py").is_file()]
    if here and not here[0].samefile(ROOT):
        raise AfpError(
            f"this notebook lies in {here[0]}, but has imported {ROOT / 'afp'}; use that folder's .venv"
        )
    shown = (f.relative_to(ROOT) if f.is_relative_to(ROOT) else f for f in (figures_dir(), runs_dir()))
    lines = "figures: {}\nruns: {}".format(*shown)
    if manifest:
        lines += (
            f"\nimages: {manifest}; the sentences below speak of the demo's numbers, the outputs of yours"
        )
    return lines
