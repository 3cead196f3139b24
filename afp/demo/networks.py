"""The demo's generators: Real-ESRGAN's own networks, run on the CPU by ncnn."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from ..paths import weights_dir
from .wheels import Wheel, pins


def load_net(stem: Path):
    """An `ncnn.Net` on the CPU, in float32, from ``<stem>.param`` and ``.bin``; RuntimeError for damaged files."""
    import ncnn

    net = ncnn.Net()
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # Beside a busy process one thread too many makes ncnn many times slower, so the usual limit holds here too.
    net.opt.num_threads = int(os.environ.get("OMP_NUM_THREADS") or threads)
    net.opt.use_vulkan_compute = False
    # Half precision differs between processors, and some networks overflow in it.
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    if net.load_param(f"{stem}.param") or net.load_model(f"{stem}.bin"):
        raise RuntimeError(f"ncnn cannot load {stem}; delete the folder and run `afp demo` again")
    return net


@cache
def _load(name: str):
    pin = next(n for n in pins()["networks"] if n["name"] == name)
    wheel = Wheel.pinned(pin["wheel"])
    folder = weights_dir() / "networks"
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in (".param", ".bin"):
        target = folder / f"{name}{suffix}"
        if not target.is_file():
            partial = target.with_suffix(".partial")
            partial.write_bytes(wheel.read(pin["member"] + suffix))
            partial.replace(target)
    return load_net(folder / name), pin["scale"]


def upscale(image: Image.Image, name: str) -> Image.Image:
    """Enlarge an RGB image by one of the networks in ``data/demo.toml``.

    Args:
        image: RGB, (w, h).
        name: for example ``x4plus``; its scale s is fixed by the network.
    Returns:
        RGB image of size (s * w, s * h).
    """
    import ncnn

    net, scale = _load(name)
    # Kept in a variable: ncnn.Mat borrows the array's memory until it is cloned.
    array = np.ascontiguousarray(np.asarray(image, np.float32).transpose(2, 0, 1) / 255)
    with net.create_extractor() as extractor:
        extractor.input("data", ncnn.Mat(array).clone())
        status, mat = extractor.extract("output")
        out = np.array(mat).copy()
    if status or out.shape != (3, image.height * scale, image.width * scale) or not np.isfinite(out).all():
        raise RuntimeError(
            f"network {name} failed on a {image.width} x {image.height} image (shape {out.shape})"
        )
    return Image.fromarray((out.transpose(1, 2, 0).clip(0, 1) * 255).round().astype(np.uint8), "RGB")


def regenerate(tile: Image.Image, name: str) -> Image.Image:
    """The tile as the network paints it: scaled down by bicubic, up again by the network; same size."""
    _, scale = _load(name)
    small = tile.resize((tile.width // scale, tile.height // scale), Image.Resampling.BICUBIC)
    return upscale(small, name)
