"""``afp doctor``: is everything here that the workbook needs?"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from importlib import metadata

import psutil

from ..data.audit import Finding
from ..paths import ROOT, data_dir, demo_manifest, figures_dir, runs_dir

GIB = 1024**3


def check_machine() -> Iterator[Finding]:
    """One finding a check, the quick ones first; ``detail`` ends with the mend where one is needed."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", sys.version_info >= (3, 11), f"{version} (3.11 or newer)")
    yield _packages()
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(_existing(data_dir()))
    yield Finding(
        "memory", memory.available > 3 * GIB, f"{memory.available / GIB:.1f} GiB free (the demo needs 3 GiB)"
    )
    yield Finding(
        "disk", disk.free > 2 * GIB, f"{disk.free / GIB:.0f} GiB free in {data_dir()} (needs 2 GiB)"
    )
    yield _device()
    yield _weights()
    yield _data()
    for folder in (runs_dir(), figures_dir()):
        parent = _existing(folder)
        yield Finding(
            "folder", _writable(parent), f"{folder} can be written" if _writable(parent) else str(folder)
        )


def _packages() -> Finding:
    """Installed versions against the tested set."""
    wanted = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        name, equals, version = line.partition("==")
        if equals and not line.startswith("#"):
            wanted[name.strip()] = version.strip()
    direct = (
        "torch",
        "transformers",
        "peft",
        "accelerate",
        "scikit-learn",
        "papermill",
        "jupyterlab",
        "ncnn",
    )
    wrong = []
    for name in direct:
        try:
            found = metadata.version(name).partition("+")[
                0
            ]  # a local build tag such as +cpu is no difference
        except metadata.PackageNotFoundError:
            found = "missing"
        if found != wanted.get(name, found):
            wrong.append(f"{name} {found} (tested: {wanted[name]})")
    tested = f"the tested versions of {', '.join(direct)}"
    mend = f"{', '.join(wrong)}; mend with `make setup`" if wrong else tested
    return Finding("packages", not wrong, mend)


def _device() -> Finding:
    import torch

    from ..models.backbones import best_device, best_dtype

    device = best_device()
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    dtype = str(best_dtype(device)).removeprefix("torch.")
    return Finding("device", True, f"{device} ({name}), features in {dtype}")


def _weights() -> Finding:
    from ..errors import ModelError
    from ..models.backbones import load_backbone

    try:
        backbone = load_backbone("demo-clip")
    except ModelError as error:
        return Finding("weights", False, str(error))
    return Finding("weights", True, f"demo-clip, {backbone.n_blocks} blocks of width {backbone.width}")


def _data() -> Finding:
    from ..demo.benchmark import is_built

    ok = is_built()
    detail = str(demo_manifest()) if ok else f"{demo_manifest()} is missing or damaged; mend with `afp demo`"
    return Finding("demo data", ok, detail)


def _existing(folder):
    while not folder.exists():
        folder = folder.parent
    return folder


def _writable(folder) -> bool:
    import os

    return os.access(folder, os.W_OK)
