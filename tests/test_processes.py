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
from models import small_dual, small_vlm

from afp import detectors
from afp.errors import ModelError

# The batches leave the second process nothing of an epoch's last step; dropout differs between processes.
FITS = {
    "linear-probe": {"block": "1", "c": 0.1, "backbone": "clip"},
    "linear-probe paper": {"preset": "paper", "epochs": 2, "batch_size": 5, "backbone": "clip"},
    "clip-prompt": {"n_context": 4, "epochs": 2, "batch_size": 5, "lr": 0.1, "backbone": "clip"},
    "clip-adapter": {"epochs": 2, "batch_size": 5, "lr": 0.3, "backbone": "clip"},
    "clip-adaptprompt": {"n_context": 4, "epochs": 2, "batch_size": 5, "backbone": "clip"},
    "clip-lora": {"epochs": 2, "batch_size": 5, "lr": 0.03, "dropout": 0, "backbone": "clip"},
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
UNTRAINED = ("linear-probe", "spectrum")  # not by steps
# Runs the commands of each way, in a data folder of its own; a training first as often as told, each time killed
# (SIGKILL) before a step. Notes what each process puts into place.
RUN = """
import json, os, signal, sys
from pathlib import Path
from afp.cli import main
from afp.models import training

def noting(act):
    def note(source, target, **given):
        with open(root / f"put-by-{os.environ.get('RANK', 0)}", "a") as file:
            print(target, file=file)
        act(source, target, **given)
    return note

def run(arguments, dies_before):
    def step(self):
        if len(done) == dies_before:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(1)
        original(self)
    done, original = [], training.LambdaLR.step
    training.LambdaLR.step = step
    try:
        main(arguments)
    except SystemExit as stop:
        assert not stop.code, arguments
    finally:
        training.LambdaLR.step = original

root, training.SAVE_EVERY = Path(sys.argv[1]), 2
os.replace, os.rename = noting(os.replace), noting(os.rename)
for how, commands in json.loads(sys.argv[2]).items():
    os.environ["AFP_DATA"] = str(root / f"data-{how}")
    os.dup2(os.open(root / f"said-{how}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    for arguments, deaths in commands:
        for dies_before in deaths:
            if not (child := os.fork()):
                run(arguments, dies_before)
                os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, arguments
        run(arguments, -1)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory, small_manifest) -> dict[str, Path]:
    """How it was done -> a folder with a run of each fit, and scores of two of them."""
    root = tmp_path_factory.mktemp("processes")
    backbones = {"clip": small_dual(root / "clip"), "vlm": small_vlm(root / "vlm")}
    (root / "run.py").write_text(RUN)

    def commands(how: str) -> list[tuple[list[str], list[int]]]:
        found = []
        for name, config in FITS.items():
            settings = [f"--set={k}={backbones.get(v, v)}" for k, v in config.items()]
            fit = ["fit", "-d", name.split()[0], "-m", str(small_manifest), "--out", str(root / how / name)]
            found.append(([*fit, *settings], [3, 3] if how == "killed" and name not in UNTRAINED else []))
        for name in ("vlm-prompt", "clip-lora"):
            out = str(root / how / f"{name}.csv")
            found.append(
                (["score", str(small_manifest), "--run", str(root / "one" / name), "--out", out], [])
            )
        return found

    two = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    for options, ways in (([], ("one", "killed")), (two, ("two",))):
        given = [str(root), json.dumps({how: commands(how) for how in ways})]
        ran = subprocess.run(
            [sys.executable, *options, str(root / "run.py"), *given],
            env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
    return {how: root / how for how in ("one", "two", "killed")}


def history(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "history.csv").drop(columns="seconds")


@pytest.mark.parametrize("name", [name for name in FITS if name not in UNTRAINED])
def test_a_killed_fit_goes_on_to_the_same_weights(name, folders):
    whole, resumed = (folders[how] / name for how in ("one", "killed"))
    files = [f.relative_to(whole) for f in whole.rglob("*.safetensors")]
    assert files and all((whole / f).read_bytes() == (resumed / f).read_bytes() for f in files)
    assert history(whole).equals(history(resumed))
    assert not list((folders["killed"].parent / "data-killed").rglob("*.pth"))


@pytest.mark.parametrize("name", FITS)
def test_a_fit_of_two_processes_is_that_of_one(name, folders):
    one, two = (folders[how] / name for how in ("one", "two"))
    scores = [pd.read_csv(run / "validation.csv")["score"] for run in (one, two)]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-3)
    if name in UNTRAINED:
        return
    before, after = history(one), history(two)
    assert list(before["lr"]) == list(after["lr"])  # the schedule counts the steps of both together
    np.testing.assert_allclose(after["loss"], before["loss"], rtol=1e-3)
    np.testing.assert_allclose(after["validation"], before["validation"], rtol=1e-3)


@pytest.mark.parametrize("name", ["vlm-prompt", "clip-lora"])
def test_two_processes_score_each_image_once_into_one_table(name, folders):
    one, two = (pd.read_csv(folders[how] / f"{name}.csv") for how in ("one", "two"))
    assert list(two["path"]) == list(one["path"]) and two["path"].is_unique
    np.testing.assert_allclose(two["score"], one["score"], atol=1e-5)


def test_the_first_process_alone_writes_and_speaks(folders):
    one, two = folders["one"], folders["two"]
    names = [sorted(str(f.relative_to(root)) for f in root.rglob("*")) for root in (one, two)]
    assert names[0] == names[1]
    said = [(root.parent / f"said-{root.name}").read_text().splitlines() for root in (one, two)]
    assert said[0] and len(said[0]) == len(said[1])
    assert [file.name for file in two.parent.glob("put-by-*") if f"{two}/" in file.read_text()] == [
        "put-by-0"
    ]


def test_a_command_that_cannot_be_shared_is_refused(afp, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, shown = afp("audit", "m.csv")
    assert status == 2 and "afp audit: 2 processes, expected one" in shown


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_USE_FSDP", "true"),
        ("ACCELERATE_USE_DEEPSPEED", "true"),
        ("ACCELERATE_USE_MEGATRON_LM", "True"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true"),
        ("ACCELERATE_MIXED_PRECISION", "bf16"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR"),
        ("OMPI_COMM_WORLD_SIZE", "2"),
    ],
)
def test_a_setting_that_accelerate_alone_would_follow_is_refused(name, value, afp, monkeypatch):
    monkeypatch.setenv(name, value)
    for command in ("fit", "score"):
        status, shown = afp(command, "pictures")
        assert status == 2 and f"error: {name} is {value}, expected" in shown


def test_what_accelerate_launch_always_sets_is_no_reason_to_refuse(afp, monkeypatch):
    given = {"USE_CPU": "True", "MIXED_PRECISION": "no", "DYNAMO_BACKEND": "NO", "USE_FSDP": "false"}
    for name, value in given.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    assert afp("fit", "--explain", "-d", "clip-prompt").code == 0


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"quantisation": "4bit"}, "quantisation is '4bit', which cannot be trained on a CPU; expected 8bit"),
        (
            {"quantisation": "8bit"},
            "bitsandbytes is not installed; `pip install -e '.[quantisation]'` brings",
        ),
        ({"quantisation": "2bit"}, "quantisation is '2bit', expected one of 8bit, 4bit"),
        ({"dtype": "int8"}, "dtype is 'int8', expected auto or one of float32"),
    ],
)
def test_a_model_that_cannot_be_loaded_so_is_refused_by_name(
    settings, reason, afp, small_manifest, monkeypatch
):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as where it is not installed
    given = [f"--set={k}={v}" for k, v in settings.items()]
    status, shown = afp("fit", "-d", "vlm-prompt", "-m", small_manifest, *given)
    assert status == 2 and f"error: {reason}" in shown


@pytest.mark.parametrize(
    ("name", "precision", "reason"),
    [
        ("vlm-prompt", "bf16", "its dtype is 'auto', expected 'bfloat16' to start from"),
        ("clip-lora", "int8", "clip-lora: dtype is 'int8', expected one of ('auto', 'float32')"),
    ],
)
def test_a_training_starts_from_a_run_of_the_same_precision(
    name, precision, reason, folders, afp, small_manifest
):
    start = folders["one"] / name
    backbone = json.loads((start / "config.json").read_text())["config"]["backbone"]
    given = ["--backbone", backbone, "--precision", precision, "--init-from", start]
    status, shown = afp("fit", "-d", name, "-m", small_manifest, *given)
    assert status == 2 and reason in shown


def test_one_model_over_all_gpus_is_for_one_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ModelError, match=r"device_map is 'auto'.*expected one process"):
        _ = detectors.create("vlm-prompt", device_map="auto").n_trainable


@pytest.mark.parametrize(
    ("tracker", "reason"),
    [("notebook", "expected one of aim, comet_ml, mlflow, tensorboard"), ("aim", "`pip install aim`")],
)
def test_a_tracker_that_is_not_there_is_refused_by_name(tracker, reason, afp, small_manifest, monkeypatch):
    monkeypatch.setattr("afp.models.training.get_available_trackers", list)
    status, shown = afp("fit", "-d", "clip-prompt", "-m", small_manifest, "--log-with", tracker)
    assert status == 2 and reason in shown
