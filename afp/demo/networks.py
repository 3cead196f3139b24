"""The demo's generators: Real-ESRGAN's own networks, run on the CPU by ncnn."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ModelError, require
from ..files import written_whole
from ..paths import weights_dir
from .wheels import Wheel, pins


def load_net(stem: Path) -> Any:
    """An `ncnn.Net` on the CPU, in float32, from ``<stem>.param`` and ``.bin``. ModelError: damaged files."""
    net = require("ncnn", extra="demo").Net()
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # Beside a busy process one thread too many makes ncnn many times slower, so the usual limit holds here too.
    net.opt.num_threads = int(os.environ.get("OMP_NUM_THREADS") or threads or 1)
    net.opt.use_vulkan_compute = False
    # Half precision differs between processors, and some networks overflow in it.
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    if net.load_param(f"{stem}.param") or net.load_model(f"{stem}.bin"):
        raise ModelError(f"ncnn cannot load {stem}: its .param or .bin is damaged")
    return net


@cache
def _load(name: str) -> tuple[Any, int]:
    """A network and its scale; its files are unpacked, and again where they are not as in the wheel."""
    pin = next(n for n in pins()["networks"] if n["name"] == name)
    stem = weights_dir() / "networks" / name
    for suffix in (".param", ".bin"):
        content, file = Wheel.pinned(pin["wheel"]).read(pin["member"] + suffix), Path(f"{stem}{suffix}")
        if not file.is_file() or file.read_bytes() != content:
            with written_whole(file) as partial:
                partial.write_bytes(content)
    return load_net(stem), pin["scale"]


def regenerate(tile: Image.Image, name: str) -> Image.Image:
    """The tile as a network paints it: scaled down by bicubic, up again by the network.

    Args:
        tile: RGB, (w, h).
        name: of a network in ``data/demo.toml``, for example ``x4plus``; its scale is fixed.
    Returns:
        RGB, (w, h).
    """
    mat, (net, scale) = require("ncnn", extra="demo").Mat, _load(name)
    small = tile.resize((tile.width // scale, tile.height // scale), Image.Resampling.BICUBIC)
    # Kept in a variable: ncnn.Mat borrows the array's memory until it is cloned.
    array = np.ascontiguousarray(np.asarray(small, np.float32).transpose(2, 0, 1) / 255)
    with net.create_extractor() as extractor:
        extractor.input("data", mat(array).clone())
        status, found = extractor.extract("output")
        out = np.array(found).copy()
    if status or out.shape != (3, tile.height, tile.width) or not np.isfinite(out).all():
        raise ModelError(f"{name} failed on a tile of {tile.width} x {tile.height} pixels: {out.shape}")
    return Image.fromarray((out.transpose(1, 2, 0).clip(0, 1) * 255).round().astype(np.uint8), "RGB")
