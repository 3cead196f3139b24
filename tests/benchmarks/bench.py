"""Speed and memory as ratios from one run: ``make bench``, or ``python tests/benchmarks/bench.py ROW ...`` for some.

Prints the table of docs/benchmarks.md, a line a figure; needs the demo benchmark, and an hour on two cores.
Ways that are compared take turns, and the median of their times counts, so that a busy machine is fair to all.
Nothing is asserted: what a machine must reach is nobody's rule.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import DataLoader

from afp import detectors, workbook
from afp.data.loader import ImageDataset
from afp.data.manifest import from_files, read_manifest
from afp.data.preprocess import Normalisation
from afp.data.splits import use_fold
from afp.detectors import create
from afp.models import features
from afp.models.backbones import Backbone, QuantisedBackbone, load_backbone
from afp.paths import ROOT, cache_dir, data_dir, demo_manifest
from afp.results import runs
from afp.results.metrics import evaluate
from afp.results.scores import read_scores, score_to_csv

Row = tuple[str, str, str, str]  # figure, goal, measured, how
PYTHON = [sys.executable, "-m", "afp"]
DTYPES = ("float32", "bfloat16", "int8")


def seconds(ways: dict[str, Callable[[], object]], repeats: int = 5, warm: bool = True) -> dict[str, float]:
    """The median time of each way, in turns, after one that does not count (``warm``)."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + warm):
        for name, work in ways.items():
            started = time.perf_counter()
            work()
            if turn >= warm:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(found) for name, found in times.items()}


# A process of its own starts the command: a child's largest memory is never less than its parent's at the start.
MEASURE = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024]))
sys.exit(done.stderr if done.returncode else 0)
"""


def measured(command: list[str]) -> tuple[float, float, float]:
    """A command's wall time and processor time (s), and its largest memory (MiB)."""
    done = subprocess.run([sys.executable, "-c", MEASURE, *command], stdout=subprocess.PIPE, check=True)
    wall, cpu, peak = json.loads(done.stdout)
    return wall, cpu, peak


def pictures(folder: Path, n: int, size: tuple[int, int], suffix: str) -> list[Path]:
    """Files of pictures with coarse structure and fine grain, no two alike."""
    folder.mkdir(parents=True)
    rng, files = np.random.default_rng(0), [folder / f"{i:05}{suffix}" for i in range(n)]
    grain = rng.normal(0, 12, (size[1], size[0], 3))
    for file in files:
        coarse = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)).resize(size)
        Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)).save(file)
    return files


def encode(tower: Backbone, pixels: torch.Tensor) -> torch.Tensor:
    """What `afp.models.features` asks of a tower, from tensors."""
    return torch.cat(
        [tower.extract(part, ("embedding", "cls"))["cls"] for part in pixels.split(tower.batch_size)]
    )


def precision(work: Path) -> Iterator[Row]:
    """The demo's tower in three precisions."""
    towers = {dtype: load_backbone("demo-clip", "cpu", dtype) for dtype in DTYPES}
    pixels = torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    took = seconds({name: lambda tower=tower: encode(tower, pixels) for name, tower in towers.items()}, 9)
    speed = ", ".join(f"{name} {len(pixels) / s:.1f}" for name, s in took.items())
    how = f"images a second on {torch.get_num_threads()} threads: {speed}"
    for name in ("int8", "bfloat16"):
        yield f"`demo-clip` in {name} against float32", "", f"{took['float32'] / took[name]:.1f} times", how


def agreement(work: Path) -> Iterator[Row]:
    """What other precisions change in a cross-fitted probe, and what a pixel's last digit changes in int8."""
    frame = read_manifest(demo_manifest())
    folders = {d: runs.cross_fit("linear-probe", frame, config={"dtype": d}, progress=False) for d in DTYPES}
    tables = {d: read_scores(folder / "scores.csv") for d, folder in folders.items()}
    extract, rng, noisy = QuantisedBackbone.extract, torch.Generator().manual_seed(0), []

    def extract_noisy(self: QuantisedBackbone, pixels: torch.Tensor, outputs: tuple[str, ...]) -> dict:
        return extract(self, pixels * (1 + 1e-7 * torch.randn(pixels.shape, generator=rng)), outputs)

    with patch.object(QuantisedBackbone, "extract", extract_noisy):
        for k in range(5):
            part, fitted = use_fold(frame, k), detectors.load(folders["int8"] / (f"fold-{k}" if k else ""))
            noisy += list(fitted.score(part[part["split"] == "test"].assign(sha256="")))  # never cached
    after_noise = "int8, after noise of 1e-7 of each pixel's value,"
    tables[after_noise] = tables["int8"].assign(score=noisy)
    for name, against in (("bfloat16", "float32"), ("int8", "float32"), (after_noise, "int8")):
        one, other = tables[name], tables[against]
        same = ((one["score"] >= one["threshold"]) == (other["score"] >= other["threshold"])).mean()
        aucs = [mean_held_out(table) for table in (other, one)]
        apart = (one["score"] - other["score"]).abs().max()
        how = f"mean held-out AUC {aucs[0]:.3f} and {aucs[1]:.3f}; scores differ by {apart:.2f} at most"
        figure = f"decisions of `linear-probe` in {name} that are those in {against}"
        yield figure, ">= 97 %", f"{same:.1%}", how


def mean_held_out(table: pd.DataFrame) -> float:
    """AUC against photographs, the mean over all held-out generators."""
    found = evaluate(table, n_boot=0).query("metric == 'auc' and group == 'mean held-out' and kind == 'all'")
    return found.set_index("against").at["real", "value"]


def score(work: Path) -> Iterator[Row]:
    """A folder through `afp score`, once the model is loaded."""
    files, tower = pictures(work / "score", 32, (256, 256), ".png"), load_backbone("demo-clip")
    pixels = tower.preprocess([Image.open(file) for file in files])

    def folder() -> None:
        shutil.rmtree(cache_dir(), ignore_errors=True)
        (work / "scores.csv").unlink(missing_ok=True)
        score_to_csv(runs.default_run(), from_files(files), work / "scores.csv", progress=False)

    took = seconds({"bare": lambda: encode(tower, pixels), "folder": folder})
    how = f"{len(files)} PNG of 256 x 256, features not cached: {took['folder']:.2f} s, encoder {took['bare']:.2f} s"
    yield (
        "`afp score` of a folder against the encoder alone",
        ">= .9",
        f"{took['bare'] / took['folder']:.2f}",
        how,
    )


def heads(work: Path) -> Iterator[Row]:
    """An epoch of a head on cached features, and with every image read and encoded anew."""
    frame, tower = read_manifest(demo_manifest()), load_backbone("demo-clip")
    frame = frame[frame["split"] == "train"].groupby("label").head(36)

    def again() -> None:
        shutil.rmtree(cache_dir(), ignore_errors=True)
        features.extract(frame, tower, "embedding", progress=False)

    encoding = seconds({"": again}, 2)[""]
    for name in ("clip-prompt", "clip-adapter"):
        fits = {str(n): create(name, epochs=n) for n in (1, 11)}
        ways = {n: lambda d=d: d.fit(frame, frame, progress=False) for n, d in fits.items()}
        took = seconds(ways, 3)
        epoch = (took["11"] - took["1"]) / 10
        figure = f"an epoch of `{name}` on cached features against encoding anew"
        how = f"{len(frame)} images: {1000 * epoch:.0f} ms, encoding {encoding:.1f} s more"
        yield figure, ">= 50 times", f"{(encoding + epoch) / epoch:.0f} times", how


def vlm(work: Path) -> Iterator[Row]:
    """The two ways to read an answer off a VLM."""
    ways = {name: create("vlm-zero-shot", answer_scoring=name) for name in ("logits", "rank")}
    frame = read_manifest(demo_manifest())[:16]
    tower, output = ways["logits"].vlm_.tower, ways["logits"].vlm_.output
    tokens = torch.from_numpy(features.extract(frame, tower, output, progress=False))
    with torch.inference_mode():
        took = seconds({name: lambda one=one: one.logits(tokens) for name, one in ways.items()}, 15)
    one, both = 1000 * took["logits"], 1000 * took["rank"]
    how = f"`demo-vlm`, {len(tokens)} images, tokens at hand: {one:.0f} and {both:.0f} ms"
    yield (
        "VLM: one forward against ranking two answers",
        ">= 1.8 times",
        f"{both / one:.1f} times",
        how,
    )


def decoding(work: Path) -> Iterator[Row]:
    """Files to pixels, by worker processes."""
    frame = from_files(pictures(work / "decoding", 400, (640, 480), ".jpg"))
    data = ImageDataset(frame, Normalisation(), transform=load_backbone("demo-clip").preprocess)
    loaders = {n: DataLoader(data, 16, num_workers=n, collate_fn=list) for n in (0, 2)}
    took = seconds({str(n): lambda loader=loader: list(loader) for n, loader in loaders.items()}, 5)
    alone, workers = len(frame) / took["0"], len(frame) / took["2"]
    how = f"{len(frame)} JPEG of 640 x 480: {alone:.0f} and {workers:.0f} images a second"
    yield "decoding with 2 workers against 0", ">= 1.6 times", f"{workers / alone:.1f} times", how


def start(work: Path) -> Iterator[Row]:
    """How long a command takes to say anything."""
    commands = {
        "import afp": ["-c", "import afp"],
        "afp --help": ["-m", "afp", "--help"],
        "python": ["-c", ""],
    }
    times = {k: [measured([sys.executable, *c])[0] for _ in range(7)] for k, c in commands.items()}
    took = {name: statistics.median(found) for name, found in times.items()}
    for name in ("import afp", "afp --help"):
        yield f"`{name}`", "< .4 s", f"{took[name]:.2f} s", f"an empty Python takes {took['python']:.2f} s"


def memory(work: Path) -> Iterator[Row]:
    """The same command on a small and on a large folder, behind a tower that takes no time."""
    sys.path.insert(0, str(ROOT / "tests"))
    from conftest import write_folders, write_tower

    write_folders(work / "fit")
    manifest, run, found = work / "m.csv", work / "run", {}
    fit = [
        "--set",
        "block=1",
        "--backbone",
        write_tower(work / "tower"),
        "--out",
        str(run),
        "-m",
        str(manifest),
    ]
    measured([*PYTHON, "manifest", str(work / "fit"), "--split", "--out", str(manifest)])
    measured([*PYTHON, "fit", *fit])
    for n in (1_000, 20_000):
        pictures(work / f"memory-{n}", n, (32, 32), ".png")
        command = [
            *PYTHON,
            "score",
            str(work / f"memory-{n}"),
            "--run",
            str(run),
            "--out",
            str(work / f"{n}.csv"),
        ]
        found[n] = measured(command)[2]
    how = f"32 x 32 pixels: {found[1_000]:.0f} and {found[20_000]:.0f} MiB"
    yield (
        "memory of `afp score`, 20,000 images against 1,000",
        "flat",
        f"{found[20_000] / found[1_000]:.2f} times",
        how,
    )


AUDIT = """
import sys
from afp.data.audit import find_leaks
from afp.data.manifest import read_manifest, write_manifest
from afp.data.splits import use_fold
frame = read_manifest(sys.argv[1])
print(*(f.detail for f in find_leaks(frame)), sep="\\n")
if len(sys.argv) > 2:
    write_manifest(use_fold(frame, 1), sys.argv[2])
"""


def table(work: Path) -> Iterator[Row]:
    """A million rows: what does not open images."""
    n, rng = 1_000_000, np.random.default_rng(0)
    source, of = rng.integers(0, n // 4, n), rng.integers(0, 21, n)
    generator = np.array(["real", *(f"generator {i}" for i in range(20))])[of]
    frame = pd.DataFrame(
        {"path": [f"{i // 1000:04}/{i:07}.png" for i in range(n)], "label": (of > 0).astype(int)}
    )
    frame = frame.assign(
        generator=generator, kind=np.where(of > 0, "text-to-image", "real"), split="test", set=""
    )
    frame = frame.assign(source=[f"source {i}" for i in source], sha256=[f"{i:064x}" for i in range(n)])
    frame.to_parquet(work / "m.parquet")
    frame["score"] = (1 / (1 + np.exp(-rng.normal(of > 0, 1)))).round(6)
    frame.assign(threshold=0.5, seen=0, perturbation="none", run="r", detector="d", error="").to_csv(
        work / "scores.csv", index=False
    )
    code = [sys.executable, "-c", AUDIT, str(work / "m.parquet")]
    commands = {
        "evaluated": [*PYTHON, "evaluate", str(work / "scores.csv"), "--out", str(work / "metrics.csv")],
        "audited (leaks, labels, duplicates)": code,
        "audited, split anew and written": [*code, str(work / "split.parquet")],
    }
    for name, command in commands.items():
        wall, cpu, peak = measured(command)
        how = f"{cpu:.0f} s of processor time"
        yield f"1,000,000 rows {name}", "< 60 s, < 1,024 MiB", f"{wall:.0f} s, {peak:.0f} MiB", how


def notebooks(work: Path) -> Iterator[Row]:
    """What each notebook holds at most on 5,001 images, with small backbones of random weights."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "data" / "build")]
    from conftest import write_folders
    from models import small_dual, small_vlm

    folder, manifest = write_folders(work / "images", 1667), str(work / "m.csv")
    options = ["--split", "--source-rule", "stem", "--held-out", "half-twice", "--out", manifest]
    measured([*PYTHON, "manifest", str(folder), *options])
    vlm = small_vlm(work / "vlm")
    values = {"manifest_path": manifest, "backbone": small_dual(work / "clip", 12), "vlm": vlm, "block": "1"}
    values |= {"kind": "all", "kinds": "", "generators": "real,half,half-twice", "edited": "", "n_seeds": "2"}
    values |= {"detectors": "linear-probe,spectrum", "perturbations": "jpeg:50,blur:2", "augment": "jpeg:50"}
    values |= {"epochs": "2"}
    for path in workbook.find([], everything=True):
        known = set(workbook.parameters(path))
        own = values | ({"backbone": vlm, "ablate": "false"} if "ablate" in known else {})
        if "manifest_path" in known:
            given = [word for name in known & set(own) for word in ("-p", name, own[name])]
            wall, _, peak = measured([*PYTHON, "run", path.stem, "--out", str(work / "out"), *given])
            yield f"`{path.stem}`, 5,001 images", "bounded", f"{peak:.0f} MiB", f"{wall:.0f} s"


_ALL = (precision, agreement, score, heads, vlm, decoding, start, memory, table, notebooks)
ROWS = {row.__name__: row for row in _ALL}


def main(names: list[str]) -> None:
    """Print a Markdown table of these rows, each as soon as it is measured; of all without a name."""
    if unknown := sorted(set(names) - set(ROWS)):
        raise SystemExit(f"no row {unknown[0]!r}, expected some of {', '.join(ROWS)}")
    real = data_dir()
    print("| figure | goal | measured | how |\n|---|---|---|---|", flush=True)
    for name in names or ROWS:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["AFP_DATA"] = str(Path(folder, "data"))  # nobody's cache is read or emptied
            os.environ["AFP_RUNS"] = str(Path(folder, "runs"))
            Path(folder, "data").mkdir()
            for part in ("weights", "demo"):
                Path(folder, "data", part).symlink_to(real / part)
            for row in ROWS[name](Path(folder)):
                print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
