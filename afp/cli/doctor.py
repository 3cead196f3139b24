"""``afp doctor``: is everything here that the workbook needs?"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from ..data.audit import Finding
from ..demo import benchmark, tower
from ..files import damaged
from ..models.backbones import best_device, best_dtype
from ..paths import ROOT, data_dir, demo_manifest, figures_dir, nearest, runs_dir
from ..results.runs import versions

GIB = 1024**3
PACKAGES = ("torch", "transformers", "peft", "accelerate", "scikit-learn", "papermill", "jupyterlab", "ncnn")
MEND = "mend with `afp demo`"


def check_machine() -> Iterator[Finding]:
    """One finding a check, the quick ones first; ``detail`` ends with the mend where one is needed."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", sys.version_info >= (3, 11), f"{version} (3.11 or newer)")
    tested = dict(re.findall(r"^(\S+)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
    # Without a local build tag such as +cpu.
    found = {name: version.partition("+")[0] for name, version in versions(PACKAGES).items()}
    wrong = [f"{n} {version} (tested: {tested[n]})" for n, version in found.items() if version != tested[n]]
    good = f"the tested versions of {', '.join(PACKAGES)}"
    yield Finding("packages", not wrong, f"{', '.join(wrong)}; mend with `make setup`" if wrong else good)
    memory = psutil.virtual_memory().available
    yield Finding("memory", memory > 3 * GIB, f"{memory / GIB:.1f} GiB free (the demo needs 3 GiB)")
    disk = shutil.disk_usage(nearest(data_dir())).free
    yield Finding("disk", disk > 2 * GIB, f"{disk / GIB:.0f} GiB free in {data_dir()} (needs 2 GiB)")
    device = best_device()
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    dtype = str(best_dtype(device)).removeprefix("torch.")
    yield Finding("device", True, f"{device} ({name}), features in {dtype}")
    yield _unchanged("weights", tower.tower_folder(), True)
    yield _unchanged("demo data", demo_manifest().parent, benchmark.is_current())
    for folder in (runs_dir(), figures_dir()):
        writable = os.access(nearest(folder), os.W_OK)
        yield Finding("folder", writable, f"{folder} {'can' if writable else 'cannot'} be written")


def _unchanged(check: str, folder: Path, current: bool) -> Finding:
    """Whether a folder that ``afp demo`` made still holds what was written."""
    wrong = damaged(folder)
    if wrong is None or not current:
        return Finding(check, False, f"{folder} is not built, or by an older version; {MEND}")
    shown = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
    detail = f"{folder}: {shown} damaged or missing; {MEND}" if wrong else f"{folder}, unchanged"
    return Finding(check, not wrong, detail)
