"""The demo's generators: networks of Real-ESRGAN, Real-CUGAN and waifu2x, run on the CPU by ncnn."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from joblib import cpu_count
from PIL import Image

from ..errors import ModelError, require
from ..files import written_whole
from ..paths import weights_dir
from .packages import Package, pins


def load_net(stem: Path) -> Any:
    """An `ncnn.Net` on the CPU, in float32, from ``<stem>.param`` and ``.bin``. ModelError: damaged files."""
    net = require("ncnn", extra="demo").Net()
    # Beside a busy process one thread too many makes ncnn many times slower, so the usual limit holds here too.
    net.opt.num_threads = int(os.environ.get("OMP_NUM_THREADS") or cpu_count())
    net.opt.use_vulkan_compute = False
    # Half precision differs between processors, and some networks overflow in it.
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    if net.load_param(f"{stem}.param") or net.load_model(f"{stem}.bin"):
        raise ModelError(f"ncnn cannot load {stem}: its .param or .bin is damaged")
    return net


@dataclass(frozen=True)
class Network:
    """A network in a pinned package, and how its project runs it.

    Args:
        name: of its unpacked files.
        package: name of a package in ``data/demo.toml``.
        member: of the package, without ``.param`` and ``.bin``.
        scale: by which it enlarges.
        input, output: names of its first and last blob.
        border: pixels that it eats on each side of its input, which is padded by as many.
        squeezed: 0 to 1 is .15 to .85 to it.
        residual: its output is added to the input, which is enlarged by repeating pixels.
    """

    name: str
    package: str
    member: str
    scale: int
    input: str = "data"
    output: str = "output"
    border: int = 0
    squeezed: bool = False
    residual: bool = False

    @classmethod
    def pinned(cls, name: str) -> Network:
        """The network ``name`` of ``data/demo.toml``, for example ``x4plus``."""
        pin = next(n for n in pins()["networks"] if n["name"] == name)
        return cls(**{field.name: pin[field.name] for field in fields(cls) if field.name in pin})

    def unpack(self) -> Path:
        """Unpack its two files unless they are there, undamaged; their place without ``.param`` and ``.bin``."""
        stem = weights_dir() / "networks" / self.name
        for suffix in (".param", ".bin"):
            content = Package.pinned(self.package).read(self.member + suffix)
            file = Path(f"{stem}{suffix}")
            if not file.is_file() or file.read_bytes() != content:
                with written_whole(file) as partial:
                    partial.write_bytes(content)
        return stem

    def paint(self, tile: Image.Image) -> Image.Image:
        """The tile as the network paints it: scaled down by bicubic, up again by the network; RGB, same size."""
        mat, net = require("ncnn", extra="demo").Mat, _load(self)
        small = tile.resize((tile.width // self.scale, tile.height // self.scale), Image.Resampling.BICUBIC)
        plain = np.asarray(small, np.float32).transpose(2, 0, 1) / 255
        given = np.pad(plain, [(0, 0), (self.border, self.border), (self.border, self.border)], mode="edge")
        # Kept in a variable: ncnn.Mat borrows the array's memory until it is cloned.
        array = np.ascontiguousarray(given * 0.7 + 0.15 if self.squeezed else given)
        with net.create_extractor() as extractor:
            extractor.input(self.input, mat(array).clone())
            status, found = extractor.extract(self.output)
            out = np.array(found).copy()
        rest = max(0, out.shape[-1] - tile.width) // 2
        out = out[..., rest : rest + tile.height, rest : rest + tile.width]
        if status or out.shape != (3, tile.height, tile.width) or not np.isfinite(out).all():
            raise ModelError(
                f"{self.name} failed on a tile of {tile.width} x {tile.height} pixels: {out.shape}"
            )
        if self.squeezed:
            out = (out - 0.15) / 0.7
        if self.residual:
            out = out + plain.repeat(self.scale, 1).repeat(self.scale, 2)
        return Image.fromarray((out.transpose(1, 2, 0).clip(0, 1) * 255).round().astype(np.uint8), "RGB")


@cache
def _load(network: Network) -> Any:
    return load_net(network.unpack())
