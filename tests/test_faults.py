"""What was tried to lose, to forge or to crash, through the command line; `make faults` makes a table of it.

A test's docstring is its row: what was tried, and in the second line what held.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from conftest import flip, picture, write_tower
from models import small_vlm
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file

from afp import cli, detectors
from afp.data.manifest import write_manifest
from afp.demo import benchmark
from afp.files import STAMP, damaged, read_json, write_json, written_folder
from afp.models.checkpoints import KEYS
from afp.models.feature_store import ENTRY
from afp.results import runs
from afp.results.scores import score_to_csv


@pytest.fixture(autouse=True)
def _figures_beside_notebooks(monkeypatch):
    monkeypatch.delenv("AFP_FIGURES")


@pytest.fixture(scope="module")
def table(run, small_frame, tmp_path_factory):
    out = tmp_path_factory.mktemp("table") / "s.csv"
    score_to_csv(run, small_frame, out, progress=False)
    return out


@pytest.fixture
def photos(tmp_path):
    for i in range(3):
        (tmp_path / "photos").mkdir(exist_ok=True)
        picture(i, 300).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def disk(tmp_path):
    """A disk of 256 kB."""
    (tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path / "disk"]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount")
    yield tmp_path / "disk"
    subprocess.run(["umount", "--lazy", tmp_path / "disk"], check=True)  # stores of features stay open


def notebook(folder: Path, *cells: str, name: str = "50_try.ipynb") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    parameters = new_code_cell("n: int = 1  # how many", metadata={"tags": ["parameters"]})
    parts = [new_markdown_cell("# 50 A question"), parameters, *map(new_code_cell, cells)]
    nbformat.write(new_notebook(cells=parts), folder / name)
    return folder / name


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def line(shown: str) -> str:
    """The one line of an error: no traceback, nothing after it."""
    assert "Traceback" not in shown
    return shown[shown.index("error: ") :]


# It destroys nothing


@pytest.mark.parametrize("name", ["index.html", "notes.txt"])
def test_a_gallery_over_a_folder_of_the_users(name, afp, tmp_path):
    """A gallery into a folder that holds the user's pages or notes
    refused by name, the folder is as it was"""
    notebook(tmp_path / "executed")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / name).write_text("my own")
    status, shown = afp("gallery", tmp_path / "executed", "--out", tmp_path / "site")
    assert status == 2 and "site: is not empty" in line(shown)
    assert content(tmp_path / "site") == {name: b"my own"}


@pytest.mark.cases(2)
def test_a_gallery_that_cannot_be_built(afp, tmp_path):
    """A new gallery of a broken notebook over an older one, and over one with a file of the user's in it
    the older one is as it was"""
    executed, out = tmp_path / "executed", tmp_path / "gallery"
    notebook(executed)
    assert afp("gallery", executed, "--out", out)[0] == 0
    assert afp("gallery", executed, "--out", out)[0] == 0  # its own is replaced
    before = content(out)
    (executed / "51_broken.ipynb").write_text("{}")
    assert afp("gallery", executed, "--out", out)[0] == 2 and content(out) == before
    (executed / "51_broken.ipynb").unlink()
    (out / "notes.txt").write_text("my own")
    status, shown = afp("gallery", executed, "--out", out)
    assert status == 2 and "holds notes.txt" in line(shown) and (out / "notes.txt").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["executed", "gallery"]


@pytest.mark.cases(2)
def test_attacked_images_over_the_originals(afp, small_manifest, photos):
    """An attacked set into the folder of the manifest's photographs, and into one of other photographs
    refused, not a byte is changed"""
    for folder in (small_manifest.parent, photos):
        before = content(folder)
        status, shown = afp("attack", "patch", "-m", small_manifest, "--out", folder)
        assert status == 2 and str(folder) in line(shown) and content(folder) == before


@pytest.mark.parametrize("option", ["--html", "--out", "--explain"])
@pytest.mark.cases(5)
def test_score_over_a_file_that_is_no_table_or_page(option, afp, run, photos):
    """A page, a table or a folder of maps over a photograph, over the user's own page, over the run's weights
    refused before anything is scored"""
    own = photos / "own.html"
    own.write_text("<html>my own</html>")
    before, weights = content(photos), content(run)
    for target in (photos / "0.png", own, run / "model.safetensors", run / "config.json", photos):
        status, shown = afp("score", photos / "1.png", photos / "0.png", "--run", run, option, target)
        assert status == 2 and str(target) in line(shown)
    assert content(photos) == before and content(run) == weights


@pytest.mark.cases(5)
def test_outputs_over_inputs(afp, run, small_manifest, photos, tmp_path, monkeypatch):
    """`evaluate s.csv --out s.csv`, `score m.csv --out m.csv`, `manifest --out` over notes, `test --log` over photos
    refused, each input is as it was"""
    monkeypatch.chdir(tmp_path)
    table, notes = tmp_path / "s.csv", tmp_path / "notes.csv"
    assert afp("score", small_manifest, "--run", run, "--out", table)[0] == 0
    notes.write_text("what,when\n")
    before = {file: file.read_bytes() for file in (table, notes, small_manifest, photos / "0.png")}
    for command in (
        ("evaluate", table, "--out", table),
        ("score", small_manifest, "--run", run, "--out", small_manifest),
        ("manifest", small_manifest.parent, "--out", notes),
        ("test", "--img_path", photos / "1.png", "--run", run, "--log", photos / "0.png"),
        ("fit", "-d", "spectrum", "-m", small_manifest, "--out", photos),
    ):
        assert afp(*command)[0] == 2, command
    assert {file: file.read_bytes() for file in before} == before


@pytest.mark.cases(3)
def test_a_checkpoint_over_the_released_one(afp, run, small_manifest, tmp_path):
    """`import-checkpoint --export` onto the released file; `--out` onto a run; `fit --out` onto the imported run
    refused, all are as they were"""
    backbone, released, imported = (
        small_vlm(tmp_path / "vlm"),
        tmp_path / "released.pth",
        tmp_path / "r",
    )
    torch.save({"model": {key: torch.zeros(1, 16) for key in KEYS.values()}}, released)
    command = ("import-checkpoint", released, "--backbone", backbone, "--out")
    assert afp(*command, imported)[0] == 0
    before = content(tmp_path), content(run)
    assert afp("import-checkpoint", released, "--export", imported)[0] == 2
    assert afp(*command, run)[0] == 2
    assert afp("fit", "-d", "spectrum", "-m", small_manifest, "--out", imported)[0] == 2
    assert (content(tmp_path), content(run)) == before


@pytest.mark.cases(2)
def test_an_executed_notebook_over_its_source(afp, tmp_path):
    """`afp run` of a notebook into its own folder, and into one with another notebook of its name
    refused before it runs"""
    path, other = notebook(tmp_path), notebook(tmp_path / "other", "'my own'")
    before = content(tmp_path)
    for folder in (path.parent, other.parent):
        status, shown = afp("run", path, "--out", folder)
        assert status == 2 and "was not made by `afp run`" in line(shown)
    assert content(tmp_path) == before


# It does not answer wrongly without a word


@pytest.fixture
def other(afp, small_manifest, tmp_path):
    """A run of the same name as another one, fitted on other images."""
    assert afp("fit", "-d", "spectrum", "-m", small_manifest, "--fold", 1, "--out", tmp_path / "r")[0] == 0
    return tmp_path / "r"


@pytest.mark.cases(2)
def test_a_table_of_another_run_of_the_same_name(afp, run, other, small_manifest, tmp_path):
    """Scores of `x/r` gone on with by `y/r`, then by `x/r` after it was fitted anew in its place
    refused by name, the table is as it was"""
    out, fitted = tmp_path / "s.csv", shutil.copytree(run, tmp_path / "x" / "r")
    assert afp("score", small_manifest, "--run", fitted, "--out", out)[0] == 0
    before = out.read_bytes()
    status, shown = afp("score", small_manifest, "--run", other, "--out", out)
    assert status == 2 and "holds scores of run r@" in line(shown) and out.read_bytes() == before
    shutil.rmtree(fitted)
    shutil.copytree(other, fitted)
    assert afp("score", small_manifest, "--run", fitted, "--out", out)[0] == 2 and out.read_bytes() == before


@pytest.mark.cases(3)
def test_rows_of_one_table(afp, run, tmp_path, monkeypatch):
    """An image that could not be read, scored again when it can; two projects with images of the same names
    it has a score then; every image has its row"""
    for name, seed in (("a", 0), ("b", 1)):
        (tmp_path / name).mkdir()
        picture(seed, 300).save(tmp_path / name / "x.png")
    good = (tmp_path / "a" / "x.png").read_bytes()
    (tmp_path / "a" / "x.png").write_bytes(b"")
    for folder, status in (("a", 1), ("a", 0), ("b", 0)):
        monkeypatch.chdir(tmp_path / folder)
        assert afp("score", "x.png", "--run", run, "--out", tmp_path / "s.csv")[0] == status
        (tmp_path / "a" / "x.png").write_bytes(good)
    rows = pd.read_csv(tmp_path / "s.csv")
    assert rows["path"].tolist() == ["x.png"] * 2 and rows["sha256"].nunique() == 2
    assert rows["score"].notna().all() and rows["error"].isna().all()


@pytest.mark.cases(4)
def test_flipped_bits_in_a_run(afp, run, photos, tmp_path):
    """Single bits flipped in a run's weights, its config, its list of images and its validation scores
    one line that names the file, nothing is scored"""
    for name in ("model.safetensors", "config.json", "images.csv", "validation.csv"):
        flipped = shutil.copytree(run, tmp_path / name)
        flip(flipped / name)
        status, shown = afp("score", photos, "--run", flipped, "--out", tmp_path / "s.csv")
        assert status == 2 and name in line(shown) and not (tmp_path / "s.csv").exists()


@pytest.mark.cases(2)
def test_flipped_bits_in_the_demo(afp, tmp_path, monkeypatch):
    """Single bits flipped in the demo's manifest and in a mask
    `afp doctor` names the file and the mend"""
    monkeypatch.setenv("AFP_DATA", str(tmp_path))
    with written_folder(tmp_path / "demo", benchmark.MADE_BY) as folder:
        write_json(folder / "build.json", benchmark._recipe())
        for name in ("manifest.csv", "mask.png"):
            (folder / name).write_bytes(bytes(1000))
    assert f"demo data: {tmp_path / 'demo'}, unchanged" in afp("doctor")[1]
    for name in ("manifest.csv", "mask.png"):
        flip(tmp_path / "demo" / name)
    status, shown = afp("doctor")
    assert status == 1 and "manifest.csv, mask.png damaged or missing; mend with `afp demo`" in shown


# It lets nobody in


@pytest.mark.cases(4)
def test_names_that_control_a_terminal(afp, run, tmp_path):
    """Escape sequences, line feeds and changes of direction in the names of 4 files, good ones and bad ones
    shown as text"""
    names = ["a\x1b[2Jb.png", "c\x1b]0;title\x07.png", "d\rerror.png", "e\u202egnp.exe.png"]
    for i, name in enumerate(names):
        picture(i, 300).save(tmp_path / name)
    (tmp_path / names[0]).write_bytes(b"no image")
    _, shown = afp("score", tmp_path, "--run", run, "--out", tmp_path / "s.csv")
    assert not [part for part in ("\x1b[2J", "\x07", "\u202e", "d\r") if part in shown]
    assert "\\x1b[2J" in shown and "\\u202e" in shown


@pytest.mark.parametrize("name", ["[/x]", "[red]", "\x1b[31m", "<script>alert(1)</script>"])
def test_generators_with_hostile_names(name, afp, run, small_frame, tmp_path):
    """Generators named as markup of a table, as an escape sequence and as a script, scored, shown and evaluated
    shown as text"""
    named = small_frame.assign(generator=small_frame["generator"].replace("half", name))
    manifest = write_manifest(named, tmp_path / "m.csv")
    assert (
        afp("score", manifest, "--run", run, "--out", tmp_path / "s.csv", "--html", tmp_path / "s.html")[0]
        == 0
    )
    status, shown = afp("evaluate", tmp_path / "s.csv")
    assert status == 0 and name.replace("\x1b", "\\x1b")[:8] in shown
    assert "<script>alert" not in (tmp_path / "s.html").read_text(encoding="utf-8")


@pytest.mark.cases(4)
def test_names_that_a_spreadsheet_computes(afp, run, tmp_path, monkeypatch):
    """Images named as formulas, scored
    no cell of the table begins like a formula"""
    monkeypatch.chdir(tmp_path)
    names = ["=1+1.png", "+1.png", "@SUM(1).png", "-1.png"]
    for i, name in enumerate(names):
        picture(i, 300).save(name)
    assert afp("score", "--run", run, "--out", "s.csv", "--", *names)[0] == 0
    cells = pd.read_csv("s.csv", dtype=str, keep_default_na=False).to_numpy().ravel()
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]


# It stops in the right place


@pytest.mark.parametrize("text", ["{}", "[]", "", '{"nbformat": 4}', '{"cells": 3, "nbformat": 4}', "\x00"])
def test_a_notebook_that_is_none(text, afp, tmp_path):
    """Files that are no notebooks, run
    one line that names the file"""
    (tmp_path / "50_bad.ipynb").write_text(text)
    status, shown = afp("run", tmp_path / "50_bad.ipynb", "--out", tmp_path / "out")
    assert status == 2 and "50_bad.ipynb: not a notebook" in line(shown)


@pytest.mark.cases(9)
def test_a_stamp_that_was_cut(afp, run, small_manifest, tmp_path):
    """The stamps of a run, a gallery and an attacked set cut by a full disk to nothing, a byte and a half
    no command fails on them as JSON"""
    fitted = shutil.copytree(run, tmp_path / "r")
    executed, out, attacked = tmp_path / "executed", tmp_path / "gallery", tmp_path / "attacked"
    notebook(executed)
    stamps = {
        fitted / "environment.json": ("fit", "-d", "spectrum", "-m", small_manifest, "--out", fitted),
        out / STAMP: ("gallery", executed, "--out", out),
        attacked / "attack.json": ("attack", "patch", "-m", small_manifest, "--out", attacked),
    }
    for stamp, command in stamps.items():
        assert afp(*command)[0] == 0
        whole = stamp.read_bytes()
        for size in (0, 1, len(whole) // 2):
            stamp.write_bytes(whole[:size])
            status, shown = afp(*command)
            assert status in (0, 2) and "Expecting value" not in shown and "Traceback" not in shown, command


@pytest.mark.cases(2)
def test_a_full_disk(afp, run, photos, disk, tmp_path):
    """A gallery and a page onto a disk of 256 kB, an older gallery on it
    one line each, the older gallery is as it was"""
    executed = tmp_path / "executed"
    notebook(executed)
    with written_folder(disk / "gallery", "afp gallery") as older:
        (older / "index.html").write_text("older")
    (executed / "figures").mkdir()
    Image.effect_noise((600, 600), 90).save(executed / "figures" / "50_noise.png")
    before = content(disk)
    big = [f"--html={disk / 'page.html'}", f"--out={tmp_path / 's.csv'}"]
    for i in range(40):
        picture(i + 10, 300).save(photos / f"more-{i}.png")
    for command in (
        ("gallery", executed, "--out", disk / "gallery"),
        ("score", photos, "--run", run, *big),
    ):
        status, shown = afp(*command)
        assert status == 2 and "No space left" in line(shown), command
    assert content(disk) == before


@pytest.mark.parametrize(
    "error", [TypeError("ours"), ValueError("ours"), torch.cuda.OutOfMemoryError("CUDA out of memory")]
)
def test_errors_of_the_program_itself(error, afp, monkeypatch):
    """Errors that are the program's own, and a CUDA error
    their traceback is kept"""

    def fail() -> None:
        raise error

    monkeypatch.setattr("afp.cli.doctor.check_machine", fail)
    with pytest.raises(type(error)):
        cli.main(["doctor"])


def test_debug_shows_where_an_error_of_the_users_arose(tmp_path):
    """A missing folder, with `--debug`
    the traceback is shown"""
    with pytest.raises(ValueError, match="no executed notebooks"):
        cli.main(["--debug", "gallery", str(tmp_path)])


def test_a_terminal_without_the_characters(run, tmp_path, monkeypatch):
    """An image with a Japanese name scored on a terminal with Windows' code page 1252
    its answer, the name written with escapes"""
    picture(0, 300).save(tmp_path / "\u65e5\u672c.png")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr("sys.stdout", terminal)
    with pytest.raises(SystemExit) as stop:
        cli.main(["score", str(tmp_path), "--run", str(run), "--out", str(tmp_path / "s.csv")])
    terminal.flush()
    assert not stop.value.code and b"\\u65e5\\u672c.png" in terminal.buffer.getvalue()


def test_an_interrupted_notebook(start, tmp_path):
    """Ctrl-C during a notebook
    one line that says what was kept; no kernel, no notebook, no traceback is left"""
    path = notebook(tmp_path, f"open({str(tmp_path / 'started')!r}, 'w')", "import time; time.sleep(300)")
    command = start("run", path, "--out", tmp_path / "out")
    until = time.time() + 90
    while not (tmp_path / "started").exists() and command.process.is_alive() and time.time() < until:
        time.sleep(0.1)
    os.killpg(command.process.pid, signal.SIGINT)  # as a terminal does
    status, shown = command.end()
    assert status in (130, -signal.SIGINT)
    assert "interrupted: the notebooks executed so far are kept" in shown and "Traceback" not in shown
    assert not list((tmp_path / "out").iterdir())


def test_a_notebook_whose_kernel_is_killed(afp, tmp_path):
    """A notebook's kernel killed (SIGKILL), as by the system where memory runs out
    one line that says so, in seconds; what was computed is kept"""
    path = notebook(tmp_path, "print('computed')", "import os\nos.kill(os.getpid(), 9)")
    status, shown = afp("run", path, "--out", tmp_path / "out")
    assert status == 2 and "its kernel was killed" in line(shown)
    assert "computed" in (tmp_path / "out" / "failed-50_try.ipynb").read_text()


@pytest.mark.cases(3)
def test_a_killed_build_and_two_at_once(afp, start, tmp_path):
    """A gallery killed (SIGKILL) before and after it moves an older one away, then two written at once
    the older one is there or brought back, whole; nothing is left beside it"""
    executed, out = tmp_path / "executed", tmp_path / "gallery"
    notebook(executed)
    command = ("gallery", executed, "--out", out)
    assert afp(*command)[0] == 0
    for moment in (1, 2):
        killed(start, moment, *command, doing="rename")
        assert out.exists() == (moment == 1)
        (executed / "51_broken.ipynb").write_text("{}")
        assert afp(*command)[0] == 2 and damaged(out) == []
        (executed / "51_broken.ipynb").unlink()
    both = [start(*command) for _ in range(2)]
    assert [one.end()[0] for one in both] == [0, 0]
    assert damaged(out) == [] and sorted(p.name for p in tmp_path.iterdir()) == ["executed", "gallery"]


def test_weights_that_nobody_else_may_read(run, tmp_path):
    """Weights written by safetensors, which lets their owner alone read them
    permissions are those of any new file"""
    (tmp_path / "any").touch()
    with written_folder(tmp_path / "weights", "afp demo") as folder:
        save_file({"w": torch.zeros(3)}, folder / "model.safetensors")
    for weights in (tmp_path / "weights" / "model.safetensors", *run.glob("*.safetensors")):
        assert weights.stat().st_mode == (tmp_path / "any").stat().st_mode


@pytest.mark.cases(6)
def test_flipped_bits_in_unpacked_weights(afp, photos, tmp_path, monkeypatch):
    """Single bits flipped in each file of unpacked weights, and a file deleted
    `afp doctor` and `afp score` name the file and the mend"""
    monkeypatch.setenv("AFP_DATA", str(tmp_path))
    with written_folder(tmp_path / "weights" / "demo-clip", "afp demo") as folder:
        for name in ("model.safetensors", "config.json"):
            (folder / name).write_bytes(bytes(1000))
    for name in ("model.safetensors", "config.json"):
        file = tmp_path / "weights" / "demo-clip" / name
        for change in (flip, Path.unlink):
            change(file)
            status, shown = afp("doctor")
            assert status == 1 and f"{name} damaged or missing; mend with `afp demo`" in shown
        file.write_bytes(bytes(999))
        status, shown = afp("score", photos, "--run", runs.default_run(), "--out", tmp_path / "s.csv")
        assert status == 2 and f"{name} damaged or missing; mend with `afp demo`" in line(shown)
        file.write_bytes(bytes(1000))


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("label", "row 2: label is ''"),
        ("split", "row 2: split is ''"),
        ("path", "row 2: path is ''"),
        ("sha256", "FAIL files: 36 of 36"),
    ],
)
def test_a_manifest_with_an_empty_column(column, said, afp, small_manifest, tmp_path):
    """A manifest whose labels, splits, paths or hashes are gone, audited
    one line or a finding that names the column"""
    rows = pd.read_csv(small_manifest, dtype=str).assign(**{column: ""})
    rows.to_csv(tmp_path / "m.csv", index=False)
    status, shown = afp("audit", tmp_path / "m.csv")
    assert status in (1, 2) and said in shown and "Traceback" not in shown


@pytest.mark.parametrize(
    ("command", "bars"),
    [
        ("manifest --real IMAGES --fake FAKES --out OUT.csv", "listing, reading"),
        ("audit MANIFEST", "files, comparing, spectra, intervals"),
        ("fit -d spectrum -m MANIFEST --out OUT", "spectra"),
        ("fit -d metadata -m MANIFEST --out OUT", "files"),
        ("fit --backbone TOWER -m MANIFEST --out OUT", "TOWER features, blocks"),
        ("fit --preset paper --set epochs=1 --backbone TOWER -m MANIFEST --out OUT", "training"),
        ("fit -d metadata --fold all -m MANIFEST --out OUT", "metadata folds, intervals"),
        ("calibrate RUN --reals IMAGES --target-fpr .2", "listing, hashing, spectra"),
        ("score IMAGES --run RUN --out OUT.csv --html OUT.html", "listing, hashing, report"),
        ("test --real_dir IMAGES --run RUN", "reading, spectra"),
        ("evaluate TABLE", "intervals"),
        ("attack patch -m MANIFEST --out OUT", "images, writing patch"),
        ("run NOTEBOOK --out OUT", "50_try"),
        ("gallery EXECUTED --out OUT", "pages"),
    ],
)
def test_work_that_may_take_long(command, bars, run, table, tower, small_manifest, capsys, tmp_path):
    """Commands that take long on many images
    each says on stderr how far it is"""
    folder = shutil.copytree(run, tmp_path / "r") if "calibrate" in command else run
    places = {"IMAGES": small_manifest.parent / "real", "MANIFEST": small_manifest, "TABLE": table}
    places["FAKES"] = small_manifest.parent / "fake" / "half"
    places |= {"RUN": folder, "TOWER": tower, "OUT": tmp_path / "out", "EXECUTED": tmp_path / "executed"}
    places["NOTEBOOK"] = notebook(tmp_path / "executed")
    for name, place in places.items():
        command, bars = command.replace(name, str(place)), bars.replace(name, str(place))
    with pytest.raises(SystemExit):
        cli.main(command.split())
    shown = capsys.readouterr()
    for bar in bars.split(", "):
        assert f"\r{bar}: " in shown.err and f"\r{bar}: " not in shown.out, shown.err


@pytest.mark.parametrize(
    ("column", "value", "named"),
    [
        ("sha256", None, "FAIL files: 36"),
        ("path", range(36), "FAIL files: 36"),
        ("generator", None, "row 2: generator"),
    ],
)
def test_a_parquet_manifest_of_other_types(column, value, named, afp, small_frame, tmp_path):
    """Parquet manifests with null hashes, numbers for paths and null generators, audited and fitted on
    a finding or one line that names the column"""
    frame = small_frame.assign(path=small_frame["file"]).drop(columns="file")
    frame.assign(**{column: value}).to_parquet(tmp_path / "m.parquet")
    status, shown = afp("audit", tmp_path / "m.parquet")
    assert status in (1, 2) and named in shown and "Traceback" not in shown
    fitted, _ = afp("fit", "-d", "spectrum", "-m", tmp_path / "m.parquet", "--out", tmp_path / "r")
    assert fitted == (0 if column == "sha256" else 2)


@pytest.mark.parametrize(
    "command",
    [
        "audit PIPE.csv",
        "audit PIPE.parquet",
        "score IMAGES PIPE.png --run RUN --out OUT.csv",
        "score PIPE.csv --run RUN --out OUT.csv",
        "evaluate PIPE.csv",
        "manifest PIPE.csv --out OUT.csv",
        "manifest PIPE.tar --out OUT.csv",
        "manifest PIPE.parquet --out OUT.csv",
        "manifest FOLDER --out OUT.csv",
        "manifest --real IMAGES --fake x=PIPE.txt --out OUT.csv",
        "run PIPE.ipynb --out OUT",
        "run 01 --params PIPE.yaml",
        "import-checkpoint PIPE.pth --out OUT",
        "gallery FOLDER --out OUT",
    ],
)
def test_a_pipe_instead_of_a_file(command, afp, run, small_manifest, tmp_path):
    """Pipes into which nobody writes, as images, tables, shards, notebooks, settings and checkpoints
    one line that names the pipe"""
    (tmp_path / "folder").mkdir()
    for suffix in re.findall(r"PIPE(\.\w+)", command) or (".ipynb", ".parquet", ".tar", ".png"):
        os.mkfifo(tmp_path / "folder" / f"50_pipe{suffix}")
    places = {"IMAGES": small_manifest.parent / "real", "PIPE": tmp_path / "folder" / "50_pipe", "RUN": run}
    for name, place in (places | {"FOLDER": tmp_path / "folder", "OUT": tmp_path / "out"}).items():
        command = command.replace(name, str(place))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(30)  # ends the tests where one hangs
    try:
        status, shown = afp(*command.split())
    finally:
        signal.alarm(0)
    assert status in (1, 2) and "50_pipe." in shown


def test_a_large_text_in_a_png(afp, run, tmp_path):
    """A PNG with 2 MB of compressed text in it, as ComfyUI writes its workflow
    scored"""
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "node " * 400_000, zip=True)
    picture(0, 300).save(tmp_path / "a.png", pnginfo=text)
    status, shown = afp("score", tmp_path / "a.png", "--run", run, "--out", tmp_path / "s.csv")
    assert status == 0 and "1 scored" in shown


@pytest.mark.cases(2)
def test_files_and_folders_that_are_left_out(afp, run, photos, tmp_path, unlistable):
    """Photographs beside files that are none, and a folder among theirs that may not be listed
    the photographs are scored, the others counted by extension and reason"""
    for name in ("a.pdf", "b.pdf", "notes"):
        (photos / name).write_text("no image")
    (photos / "locked").mkdir()
    status, shown = afp("score", photos, "--run", run, "--out", tmp_path / "s.csv")
    assert status == 0 and "3 scored" in shown and "4 skipped" in shown
    assert all(
        part in shown for part in ("2 .pdf", "1 no extension", "1 cannot be listed: Permission denied")
    )


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (["attack", "patch", "-m", "MANIFEST", "--out", "OUT", "--epsilon", "1e400"], "--epsilon: '1e400'"),
        (["attack", "blended", "-m", "MANIFEST", "--out", "OUT", "--seed", "-1"], "seed: -1, expected 0"),
        (["fit", "-d", "spectrum", "-m", "MANIFEST", "--target-fpr", "2"], "target FPR: 2.0"),
        (["fit", "-d", "spectrum", "-m", "MANIFEST", "--fold", "\u00b2"], "--fold: '\u00b2'"),
        (["fit", "-d", "vlm-prompt", "-m", "MANIFEST", "--set", "seed=-1"], "seed is -1, expected 0"),
        (["fit", "--preset", "paper", "-m", "MANIFEST", "--set", "lr=1e308"], "lr is 1e+308, expected"),
        (["fit", "-d", "spectrum", "-m", "MANIFEST", "--out", "/"], "/: is not empty"),
        (["fit", "-d", "spectrum", "-m", "MANIFEST", "--out", ""], "one of the arguments is empty"),
        (["score", ""], "one of the arguments is empty"),
        (["manifest", "--real", "IMAGES", "--fake", "\udcff=IMAGES", "--out", "OUT.csv"], "is not UTF-8"),
        (["manifest", "--real", "IMAGES", "--fake", "a\nb=IMAGES", "--out", "OUT.csv"], "control characters"),
    ],
)
def test_values_that_make_no_sense(command, named, afp, small_manifest, tmp_path):
    """Numbers out of range, outputs that are the root or nothing, generators whose names are no text
    refused in one line that names the value, before any work"""
    places = {"MANIFEST": small_manifest, "IMAGES": small_manifest.parent / "real", "OUT": tmp_path / "out"}
    for name, place in places.items():
        command = [part.replace(name, str(place)) for part in command]
    status, shown = afp(*command)
    assert status == 2 and named in line(shown) and not list(tmp_path.iterdir())


def test_a_rank_that_no_layer_has(afp, small_manifest, tmp_path):
    """LoRA of a rank of 99,999,999, which would take all memory
    one line that says the largest"""
    command = ("fit", "-d", "vlm-lora", "--backbone", small_vlm(tmp_path / "vlm"))
    status, shown = afp(*command, "-m", small_manifest, "--set", "rank=99999999", "--out", tmp_path / "r")
    assert status == 2 and "rank is 99999999, expected at most 16" in line(shown)


def test_a_folder_that_is_named_like_a_table(afp, run, photos, tmp_path):
    """A folder of photographs whose name ends in .csv
    they are scored"""
    photos.rename(tmp_path / "photos.csv")
    status, shown = afp("score", tmp_path / "photos.csv", "--run", run, "--out", tmp_path / "s.csv")
    assert status == 0 and "3 scored" in shown


@pytest.mark.parametrize("threshold", ["1.5", "-1", "nan", "inf", "half=2", "x"])
def test_a_threshold_that_is_none(threshold, afp, run, photos, tmp_path):
    """Thresholds outside of 0 to 1 and others that are no numbers
    refused before anything is scored"""
    command = ("score", photos, "--run", run, "--out", tmp_path / "s.csv", f"--threshold={threshold}")
    status, shown = afp(*command)
    assert (
        status == 2 and "expected a number from 0 to 1" in line(shown) and not (tmp_path / "s.csv").exists()
    )


# A run, a cache and a table: killed, on a full disk, written by two at once


@pytest.fixture
def tower(tmp_path, monkeypatch):
    """A small backbone of random weights, and a folder of its own for the features that it makes."""
    monkeypatch.setenv("AFP_DATA", str(tmp_path / "data"))
    return write_tower(tmp_path / "tower")


def killed(start, n: int, *arguments: object, doing: str = "replace") -> None:
    """A command that ends as it does a thing, such as putting a file into place, for the n-th time."""
    assert start(*arguments, stop=(n, signal.SIGKILL, doing)).end()[0] == -signal.SIGKILL


def learned(folder: Path) -> dict[str, bytes]:
    """A run's files that the same fit makes again to the byte."""
    detectors.load(folder)
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "config.json", "images.csv")}


@pytest.mark.cases(4)
def test_a_killed_fit_and_two_at_once(afp, start, run, small_manifest, tmp_path):
    """`afp fit` killed (SIGKILL) while it writes the run, the same again, then two of one run at once
    there is no run, then a whole one, the same to the byte; nothing is left beside it"""
    command = ("fit", "-d", "spectrum", "-m", small_manifest, "--out", tmp_path / "r")
    killed(start, 3, *command)
    assert not (tmp_path / "r").exists() and list(tmp_path.glob(".r.*"))
    assert afp(*command)[0] == 0 and learned(tmp_path / "r") == learned(run)
    shutil.rmtree(tmp_path / "r")
    both = [start(*command) for _ in range(2)]
    assert [one.end()[0] for one in both] == [0, 0]
    assert learned(tmp_path / "r") == learned(run) and os.listdir(tmp_path) == ["r"]


@pytest.mark.cases(4)
def test_a_feature_cache_of_the_killed_and_of_two(afp, start, tower, small_manifest, tmp_path):
    """Features whose extraction was killed (SIGKILL), that two fits extract at once, of which a bit is flipped
    every fit is the same to the byte"""
    command = ("fit", "-d", "linear-probe", "--backbone", tower, "-m", small_manifest, "--set", "block=1")
    # The ninth image's row is written, its entry not.
    killed(start, 18, *command, "--out", tmp_path / "0", doing="pwrite")
    (index,) = (tmp_path / "data").rglob("*.index")
    assert index.stat().st_size == 8 * ENTRY.itemsize
    both = [start(*command, "--out", tmp_path / name) for name in "ab"]
    assert [one.end()[0] for one in both] == [0, 0]
    flip(index.with_suffix(".rows"), at=9, bit=64)
    assert afp(*command, "--out", tmp_path / "c")[0] == 0
    shutil.rmtree(tmp_path / "data")
    assert afp(*command, "--out", tmp_path / "d")[0] == 0
    assert learned(tmp_path / "a") == learned(tmp_path / "b") == learned(tmp_path / "c")
    assert learned(tmp_path / "a") == learned(tmp_path / "d")


@pytest.mark.cases(3)
def test_a_disk_that_is_full(afp, run, tower, small_manifest, disk, tmp_path, monkeypatch):
    """A run, a table and cached features onto a disk without room, and again when there is room
    one line each; then the same as elsewhere to the byte"""
    monkeypatch.setenv("AFP_DATA", str(disk / "data"))
    fit = ("fit", "-m", small_manifest, "--out")
    probe = ("-d", "linear-probe", "--backbone", tower, "--set", "block=1")
    commands = [
        (*fit, disk / "r", "-d", "spectrum"),
        ("score", small_manifest, "--run", run, "--out", disk / "s.csv"),
        (*fit, tmp_path / "probe", *probe),
    ]
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    for command in commands:
        status, shown = afp(*command)
        assert status == 2 and "No space left" in line(shown), command
    assert not (disk / "r").exists() and not (tmp_path / "probe").exists()
    (disk / "filler").unlink()
    for command in commands:
        assert afp(*command)[0] == 0, command
    assert learned(disk / "r") == learned(run)
    monkeypatch.setenv("AFP_DATA", str(tmp_path / "data"))
    assert afp("score", small_manifest, "--run", run, "--out", tmp_path / "s.csv")[0] == 0
    assert (disk / "s.csv").read_bytes() == (tmp_path / "s.csv").read_bytes()
    assert afp(*fit, tmp_path / "again", *probe)[0] == 0
    assert learned(tmp_path / "probe") == learned(tmp_path / "again")


@pytest.mark.cases(3)
def test_an_interrupted_fit_and_score(afp, start, run, small_manifest, tmp_path):
    """Ctrl-C during `afp fit`, at 2 moments, and `afp score`, and the same command again
    one line that says what was kept, exit 130; then the same run and table as without it"""
    fit = ("fit", "-d", "spectrum", "-m", small_manifest, "--out")
    score = ("score", small_manifest, "--run", run, "--out")
    for command, name, moments, kept, left in (
        (fit, "r", (1, 3), "the features and training steps", set()),
        (score, "s.csv", (1,), "the rows written", {"s.csv.unfinished"}),
    ):
        for moment in moments:
            stop = (moment, signal.SIGINT, "replace")
            status, shown = start(*command, tmp_path / name, stop=stop).end()
            assert status == 130 and f"interrupted: {kept}" in shown and "are kept" in shown
            assert "Traceback" not in shown
            assert {p.name for p in tmp_path.glob(f"{name}*")} == left
        for again in (name, f"alone-{name}"):
            assert afp(*command, tmp_path / again)[0] == 0
    assert learned(tmp_path / "r") == learned(tmp_path / "alone-r")
    assert (tmp_path / "s.csv").read_bytes() == (tmp_path / "alone-s.csv").read_bytes()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", "[" * 100_000),
        ("config.json", {"num_hidden_layers": -1}),
        ("config.json", {"hidden_size": 10**9}),
        ("preprocessor_config.json", "[]"),
        ("preprocessor_config.json", "[" * 100_000),
        ("model.safetensors", ""),
    ],
)
def test_a_backbone_with_damaged_files(name, text, afp, tower, small_manifest, tmp_path):
    """A folder's backbone whose settings are nested without end, impossible or of another kind, or without weights
    one line that names the backbone"""
    file = Path(tower) / name
    file.write_text(text if isinstance(text, str) else json.dumps(read_json(file) | text))
    status, shown = afp("fit", "--backbone", tower, "-m", small_manifest, "--out", tmp_path / "r")
    assert status == 2 and f"backbone {tower}: " in line(shown)


@pytest.mark.parametrize("weight", [float("nan"), 1e30])
def test_a_backbone_that_gives_no_numbers(weight, afp, tower, small_manifest, tmp_path):
    """A weight of a folder's backbone that is no number, or so large that it gives none
    one line that names the backbone and the image"""
    weights = load_file(Path(tower) / "model.safetensors")
    next(w for name, w in weights.items() if name.endswith("layers.0.mlp.fc1.weight"))[0, 0] = weight
    save_file(weights, Path(tower) / "model.safetensors", metadata={"format": "pt"})
    command = ("fit", "-d", "linear-probe", "--backbone", tower, "-m", small_manifest, "--set", "block=1")
    status, shown = afp(*command, "--out", tmp_path / "r")
    assert status == 2 and "are not finite; its weights are damaged" in line(shown)
    assert not list((tmp_path / "data").rglob("*.rows")) and not (tmp_path / "r").exists()
