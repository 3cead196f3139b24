"""What measures the library runs, on small models; what it measures is asserted nowhere."""

from __future__ import annotations

import subprocess
import sys

from afp.paths import ROOT


def test_the_gpu_benchmark_runs_on_small_models():
    command = [sys.executable, str(ROOT / "tests" / "benchmarks" / "bench_gpu.py"), "--tiny"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = dict(line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:])
    for name in ("clip-finetune", "vlm-prompt"):
        assert rows[f"`{name}`: saved and loaded, largest difference of a score"] == "0"
        assert "images a second" in rows[f"`{name}`: training"]
    assert float(rows["the lowest cosine between both"]) > 0.999
    assert "427,616,513" in rows["CLIP ViT-L/14: numbers"]
    assert "7,913,726,720" in rows["InstructBLIP-Vicuna-7B: numbers"]
