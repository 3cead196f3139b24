"""Two processes, as `torchrun` starts them, do what one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_clip_detectors import small_dual
from test_vlm import save, small_config

from afp.cli import main

# The batches leave the second process nothing of an epoch's last step; dropout differs between processes.
FITS = {
    "linear-probe": {"block": "1", "c": 0.1, "backbone": "clip"},
    "linear-probe paper": {"preset": "paper", "epochs": 2, "batch_size": 5, "backbone": "clip"},
    "clip-prompt": {"n_context": 4, "epochs": 2, "batch_size": 5, "backbone": "clip"},
    "clip-adapter": {"epochs": 2, "batch_size": 5, "backbone": "clip"},
    "clip-adaptprompt": {"n_context": 4, "epochs": 2, "batch_size": 5, "backbone": "clip"},
    "clip-lora": {"epochs": 2, "batch_size": 5, "dropout": 0, "backbone": "clip"},
    "clip-finetune": {"epochs": 2, "batch_size": 5, "lr": 1e-3, "backbone": "clip"},
    "vlm-prompt": {"epochs": 2, "batch_size": 5, "backbone": "vlm"},
    "vlm-prompt paper": {
        "preset": "antifakeprompt",
        "epochs": 2,
        "batch_size": 5,
        "lr": 0.01,
        "backbone": "vlm",
    },
    "vlm-lora": {"epochs": 2, "batch_size": 5, "dropout": 0, "backbone": "vlm"},
    "spectrum": {},
}
ALL = """
import json, sys
from afp.cli import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as stop:
        assert not stop.code, arguments
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory, small_manifest) -> dict[int, Path]:
    """Number of processes -> a folder with a run of each fit, and scores of one of them."""
    root = tmp_path_factory.mktemp("processes")
    backbones = {"clip": small_dual(root / "clip"), "vlm": save(root / "vlm", small_config())}
    done = {}
    for n in (1, 2):
        commands = []
        for name, config in FITS.items():
            settings = [f"--set={k}={backbones.get(v, v)}" for k, v in config.items()]
            out = root / str(n) / name
            commands.append(
                ["fit", "-d", name.split()[0], "-m", str(small_manifest), "--out", str(out), *settings]
            )
        for name in ("vlm-prompt", "clip-lora"):
            table = root / str(n) / f"{name}.csv"
            commands.append(
                ["score", str(small_manifest), "--run", str(root / "1" / name), "--out", str(table)]
            )
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"] if n > 1 else []
        (root / "all.py").write_text(ALL)
        environment = os.environ | {"AFP_DATA": str(root / f"data-{n}"), "ACCELERATE_USE_CPU": "true"}
        command = [sys.executable, *launcher, str(root / "all.py"), json.dumps(commands)]
        ran = subprocess.run(
            command, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
        (root / str(n) / "stdout").write_text(ran.stdout)
        done[n] = root / str(n)
    return done


@pytest.mark.parametrize("name", FITS)
def test_a_fit_of_two_processes_is_that_of_one(name, folders):
    one, two = (folders[n] / name for n in (1, 2))
    scores = [pd.read_csv(run / "validation.csv")["score"] for run in (one, two)]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-3)
    if not (one / "history.csv").exists():
        return
    before, after = (pd.read_csv(run / "history.csv") for run in (one, two))
    assert list(before["lr"]) == list(after["lr"])  # the schedule counts the steps of both together
    np.testing.assert_allclose(after["loss"], before["loss"], rtol=1e-3)
    np.testing.assert_allclose(after["validation"], before["validation"], rtol=1e-3)


@pytest.mark.parametrize("name", ["vlm-prompt", "clip-lora"])
def test_two_processes_score_each_image_once_into_one_table(name, folders):
    one, two = (pd.read_csv(folders[n] / f"{name}.csv") for n in (1, 2))
    assert list(two["path"]) == list(one["path"]) and two["path"].is_unique
    np.testing.assert_allclose(two["score"], one["score"], atol=1e-5)


def test_the_first_process_alone_writes_and_speaks(folders):
    one, two = (folders[n] for n in (1, 2))
    names = [sorted(str(f.relative_to(root)) for f in root.rglob("*")) for root in (one, two)]
    assert names[0] == names[1]
    said = [[line for line in (root / "stdout").read_text().splitlines()] for root in (one, two)]
    assert len(said[0]) == len(said[1])


def test_a_command_that_cannot_be_shared_is_refused(afp, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, shown = afp("audit", "m.csv")
    assert status == 2 and "afp audit: 2 processes, expected one" in shown
