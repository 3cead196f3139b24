"""Memory does not grow with the images: a folder of 20,000 takes what one of 1,000 does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from models import small_config, small_vlm
from PIL import Image
from transformers import BlipImageProcessorPil, InstructBlipForConditionalGeneration

from afp import detectors
from afp.detectors import logistic
from afp.files import checksum

FEW, MANY = 1_000, 20_000
MIB = 2**20
# A process of its own starts the command: a child's largest memory is never less than its parent's at the start.
MEASURE = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
print(1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.stderr[-3000:] if done.returncode else 0)
"""


def peak(data: Path, *command: str) -> int:
    """A command's largest memory, in a cache of its own (bytes)."""
    whole = [sys.executable, "-c", MEASURE, "env", f"AFP_DATA={data}", "OMP_NUM_THREADS=1"]
    done = subprocess.run([*whole, sys.executable, "-m", "afp", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def pictures(folder: Path, n: int) -> pd.DataFrame:
    """A manifest of n files, no two alike; every other one is fake, a twentieth for validation."""
    folder.mkdir()
    rng, rows = np.random.default_rng(0), []
    for i in range(n):
        file = folder / f"{i:05}.png"
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(file, compress_level=1)
        rows.append((file, i % 2, checksum(file)))
    frame = pd.DataFrame(rows, columns=["path", "label", "sha256"])
    generator = frame["label"].map({0: "real", 1: "noise"})
    split = np.where(frame.index // 2 % 20 == 0, "validation", "train")
    return frame.assign(generator=generator, kind=generator, split=split, source=frame.index // 2)


def test_it_does_not_grow_with_the_images(tmp_path):
    """`fit` of a pseudo-word, and its `score`."""
    root, peaks = tmp_path, {}
    config = small_config()
    # 65 tokens of 64 numbers: those of all images would take .3 GB in float32, their pixels .8 GB.
    config.vision_config.image_size, config.vision_config.patch_size = 56, 7
    config.vision_config.hidden_size = 64
    config.qformer_config.encoder_hidden_size = 64
    backbone = small_vlm(root / "vlm", config)
    BlipImageProcessorPil(size={"height": 56, "width": 56}).save_pretrained(backbone)
    frame = pictures(root / "images", MANY)
    for n in (FEW, MANY):
        manifest, run = root / f"{n}.csv", root / f"run-{n}"
        frame.head(n).to_csv(manifest, index=False)
        settings = [f"--set=backbone={backbone}", "--set=epochs=1", "--set=normalisation=none"]
        fit = ["fit", "-d", "vlm-prompt", "-m", str(manifest), "--out", str(run), *settings]
        scores = root / f"{n}-scores.csv"
        score = ["score", str(manifest), "--run", str(run), "--out", str(scores), "--no-cache"]
        for command in (fit, score):
            peaks[command[0], n] = peak(root / f"data-{command[0]}-{n}", *command)
        assert len(pd.read_csv(scores)) == n
    for name in ("fit", "score"):
        assert peaks[name, MANY] - peaks[name, FEW] < 75 * MIB
        assert peaks[name, MANY] < 2048 * MIB


def test_a_probe_reads_from_a_file_what_memory_need_not_hold(afp, small_manifest, tiny_tower, monkeypatch):
    """Above a size of the features; to the same block, regularisation, coefficients and decisions."""
    fit = ["fit", "-d", "linear-probe", "-m", small_manifest, "--backbone", tiny_tower]
    fit.append('--set=augment=["jpeg:75"]')
    assert afp(*fit, "--out", "memory").code == 0
    monkeypatch.setattr(logistic, "IN_MEMORY", 0)
    monkeypatch.setattr(logistic, "AT_ONCE", 10)
    assert afp(*fit, "--out", "file").code == 0
    memory, file = (detectors.load(name) for name in ("memory", "file"))
    assert (file.block_, file.c_) == (memory.block_, memory.c_)
    for name, value in vars(memory.model_).items():
        np.testing.assert_allclose(getattr(file.model_, name), value, atol=1e-3)
    tables = [pd.read_csv(f"{name}/validation.csv") for name in ("memory", "file")]
    decisions = [table["score"] >= d.threshold_ for table, d in zip(tables, (memory, file), strict=True)]
    assert list(decisions[0]) == list(decisions[1])


def test_a_frozen_model_is_loaded_once_whoever_asks(afp, small_manifest, tmp_path, monkeypatch):
    """Five folds, each fitted and loaded again to score: one model, to which each attaches its own word."""
    load, loaded = InstructBlipForConditionalGeneration.from_pretrained, []
    monkeypatch.setattr(
        InstructBlipForConditionalGeneration,
        "from_pretrained",
        lambda **options: loaded.append(options) or load(**options),
    )
    backbone = small_vlm(tmp_path / "vlm")
    fit = ["fit", "-d", "vlm-prompt", "-m", small_manifest, "--fold", "all", "--set", "epochs=1"]
    assert afp(*fit, "--set", f"backbone={backbone}", "--out", "run").code == 0
    assert len(loaded) == 1
    assert len({f.read_bytes() for f in Path("run").rglob("adapter-llm/*.safetensors")}) == 5
