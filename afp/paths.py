"""Where the workbook keeps its files. Every other module asks here."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
DEMO_VLM = ROOT / "data" / "demo-vlm"


def data_dir() -> Path:
    """Folder of everything built or downloaded: ``$AFP_DATA``, else ``data/`` of the checkout."""
    return Path(os.environ.get("AFP_DATA") or ROOT / "data").expanduser().resolve()


def cache_dir() -> Path:
    """Folder of cached features; safe to delete, rebuilt when needed."""
    return data_dir() / "cache"


def weights_dir() -> Path:
    """Folder of the embedded backbones that ``afp demo`` unpacks."""
    return data_dir() / "weights"


def backbone_folder(name: str) -> Path:
    """The folder of a backbone that is not the hub's: an embedded one by its name, else ``name`` as a path."""
    if name == "demo-clip":
        return weights_dir() / name
    return DEMO_VLM if name in ("demo-vlm", "demo-vlm-untrained") else Path(name)


def demo_manifest() -> Path:
    """The demo benchmark's manifest (there after ``afp demo``)."""
    return data_dir() / "demo" / "manifest.csv"


def runs_dir() -> Path:
    """Folder of runs: ``$AFP_RUNS``, else ``runs/`` of the checkout."""
    return Path(os.environ.get("AFP_RUNS") or ROOT / "runs").expanduser().resolve()


def figures_dir() -> Path:
    """Folder of the figures that notebooks draw: ``$AFP_FIGURES``, else ``figures/`` of the checkout."""
    return Path(os.environ.get("AFP_FIGURES") or ROOT / "figures").expanduser().resolve()
