from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import picture, smoothed
from PIL import Image
from sklearn.metrics import roc_auc_score

from afp import detectors
from afp.data.images import list_images
from afp.data.manifest import from_files, read_manifest
from afp.data.splits import use_fold
from afp.detectors.base import Detector
from afp.errors import DataError, ModelError
from afp.paths import ROOT
from afp.results import metrics, runs
from afp.results.scores import SCORE_COLUMNS, read_scores, score_frame, score_to_csv
from afp.results.tables import held_out_table


@pytest.fixture(scope="module")
def run(small_frame, tmp_path_factory) -> Path:
    return runs.fit_run("spectrum", small_frame, tmp_path_factory.mktemp("run") / "spectrum", progress=False)


@pytest.fixture(scope="module")
def crossed(small_frame, tmp_path_factory) -> Path:
    return runs.cross_fit("spectrum", small_frame, tmp_path_factory.mktemp("run") / "all", progress=False)


def score(run: Path, frame: pd.DataFrame, out: Path, **options) -> bytes:
    score_to_csv(run, frame, out, progress=False, **options)
    return out.read_bytes()


# --- fitting


def test_a_run_folder_says_what_was_fitted_where(run, small_frame):
    config = json.loads((run / "config.json").read_text())
    assert config["detector"] == "spectrum" and config["generators"] == ["half"]
    assert config["n_trainable"] == 129
    environment = json.loads((run / "environment.json").read_text())
    assert environment["n_train"] == (small_frame["split"] == "train").sum()
    assert environment["packages"]["torch"].startswith("2.")


def test_the_same_fit_is_found_and_another_is_refused(run, small_frame, monkeypatch):
    monkeypatch.setattr(Detector, "fit", None)
    assert runs.fit_run("spectrum", small_frame, run) == run
    for options in ({"name": "metadata"}, {"name": "spectrum", "fold": 1}):
        with pytest.raises(DataError, match="holds another run"):
            runs.fit_run(**options, frame=small_frame, out=run)


def test_an_interrupted_fit_is_fitted_again(run, small_frame, tmp_path):
    out = tmp_path / "half"
    out.mkdir()
    (out / "config.json").write_text("{}")
    runs.fit_run("spectrum", small_frame, out, progress=False)
    assert (out / "config.json").read_bytes() == (run / "config.json").read_bytes()
    assert (out / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_every_thing_that_changes_a_fit_changes_the_default_folder(small_frame, monkeypatch, tmp_path):
    monkeypatch.setenv("AFP_RUNS", str(tmp_path))
    swapped = small_frame.assign(label=1 - small_frame["label"])
    variants = [
        ("metadata", small_frame, {}),
        ("metadata", small_frame, {"config": {"with_bytes": True}}),
        ("metadata", small_frame, {"fold": 1}),
        ("metadata", small_frame, {"fold": 2}),
        ("metadata", swapped, {}),
        ("metadata", small_frame.iloc[::-1], {}),  # the order is no difference
    ]
    folders = [runs.fit_run(name, frame, progress=False, **options) for name, frame, options in variants]
    assert folders[-1] == folders[0] and len(set(folders)) == 5
    assert all(f.parent == tmp_path and f.name.startswith("metadata-") for f in folders)


def test_other_weights_in_the_same_folder_are_another_fit(small_frame, tmp_path):
    detector = detectors.create("linear-probe", backbone=str(tmp_path))
    keys = []
    for content in (b"old", b"new"):
        (tmp_path / "model.safetensors").write_bytes(content)
        keys.append(runs._identity(detector, small_frame, small_frame))
    assert keys[0] != keys[1]


def test_a_generator_can_be_left_out_and_an_unknown_one_is_named(small_frame, tmp_path):
    seen = small_frame.assign(split=use_fold(small_frame.assign(split="train"), 0)["split"])
    folder = runs.fit_run("spectrum", seen, tmp_path / "r", without=["half"], progress=False)
    assert json.loads((folder / "config.json").read_text())["generators"] == ["half-twice"]
    with pytest.raises(DataError, match="no generator 'halff'"):
        runs.fit_run("spectrum", small_frame, without=["halff"])


def test_an_empty_or_one_class_split_is_refused(small_frame):
    with pytest.raises(ModelError, match=r"train: labels \[\] in 0 images"):
        runs.fit_run("spectrum", small_frame.assign(split="test"))
    with pytest.raises(ModelError, match=r"train: labels \[0\]"):
        runs.fit_run("spectrum", small_frame, without=["half"])


# --- scoring


def test_scores_of_a_manifest_carry_its_columns(run, small_frame, tmp_path):
    table = score_to_csv(run, small_frame, tmp_path / "s.csv", progress=False)
    assert list(table.columns) == SCORE_COLUMNS
    shared = ["path", "sha256", "label", "generator", "kind", "split", "source"]
    for column in shared:
        assert table[column].tolist() == small_frame[column].tolist(), column
    assert (table["seen"] == (small_frame["generator"] == "half")).all()
    detector = detectors.load(run)
    assert table["score"].tolist() == detector.score(small_frame).tolist()
    assert set(table["threshold"]) == {detector.threshold_}
    assert set(table["run"]) == {"spectrum"} and set(table["error"]) == {""}


def test_scores_survive_the_file_to_the_last_digit(run, small_frame, tmp_path):
    in_memory = score_frame(detectors.load(run), small_frame, run="spectrum", progress=False)
    from_file = score_to_csv(run, small_frame, tmp_path / "s.csv", progress=False)
    assert in_memory["score"].tolist() == from_file["score"].tolist()


def test_names_that_look_like_missing_values_survive(run, tmp_path):
    for name in ("NA", "null"):
        picture(0).save(tmp_path / f"{name}.png")
    frame = from_files(sorted(tmp_path.iterdir())).assign(
        label=[0, 1], generator=["nan", "None"], kind="NULL", split="test", source=["NA", "null"]
    )
    table = score_to_csv(run, frame, tmp_path / "s.csv", progress=False)
    for column in ("generator", "kind", "source"):
        assert table[column].tolist() == frame[column].tolist()


AWKWARD = [
    'a,"b"\n.png',
    "ä 図.png",
    "two\nlines\r\n.png",
    "'; --.png",
    '"".png',
    os.fsdecode(b"caf\xe9.png"),
]


@pytest.fixture(scope="module")
def awkward(tmp_path_factory) -> pd.DataFrame:
    """Good and broken files whose names hold commas, quotes, newlines, and what is not ASCII or not UTF-8."""
    folder = tmp_path_factory.mktemp("awkward")
    for i, name in enumerate(AWKWARD):
        picture(i).save(folder / name)
        (folder / f"broken {name}").write_bytes(b"no image")
    return from_files(list_images(folder)[0])


def test_a_table_cut_anywhere_is_completed_to_the_same_bytes(run, awkward, tmp_path, monkeypatch):
    monkeypatch.setattr("afp.results.scores.CHUNK", 2)
    out = tmp_path / "s.csv"
    whole = score(run, awkward, out)
    with out.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [r["path"] for r in rows] == awkward["path"].tolist()
    assert [bool(r["error"]) for r in rows] == ["broken" in p for p in awkward["path"]]
    assert all(bool(r["score"]) != bool(r["error"]) for r in rows)
    newlines = [i + 1 for i, byte in enumerate(whole) if byte in b"\r\n"]
    cuts = [len(whole), *newlines, *range(len(whole) - 1, 300, -41)]
    for cut in cuts:
        out.write_bytes(whole[:cut])
        assert score(run, awkward, out) == whole, whole[max(0, cut - 60) : cut]


def test_a_killed_command_goes_on_to_the_same_table(run, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(400):
        (picture(i, 24) if i % 9 else smoothed(picture(i, 24))).save(folder / f"{i:03}.png")
        if i % 50 == 3:
            (folder / f"{i:03}.png").write_bytes(b"broken")
    out = tmp_path / "s.csv"
    command = [sys.executable, "-m", "afp", "score", str(folder), "--run", str(run), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < 70):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    begun = out.read_bytes().count(b"\n")
    assert begun < 400

    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "392 scored" in done.stdout and "8 failed" in done.stdout
    assert "Traceback" not in done.stderr
    resumed = out.read_bytes()
    assert resumed == score(run, from_files(list_images(folder)[0]), tmp_path / "reference.csv")


def test_a_finished_table_is_not_computed_again(run, small_frame, tmp_path, monkeypatch):
    whole = score(run, small_frame, tmp_path / "s.csv")
    monkeypatch.setattr(Detector, "score", None)
    assert score(run, small_frame, tmp_path / "s.csv") == whole


def test_a_file_that_changed_is_scored_again(run, tmp_path):
    picture(0).save(tmp_path / "a.png")
    first = score_to_csv(run, from_files([tmp_path / "a.png"]), tmp_path / "s.csv", progress=False)
    picture(1).save(tmp_path / "a.png")
    second = score_to_csv(run, from_files([tmp_path / "a.png"]), tmp_path / "s.csv", progress=False)
    assert len(second) == 1 and second["score"][0] != first["score"][0]


def test_scores_of_other_images_in_the_table_are_kept(run, small_frame, tmp_path):
    first, second = small_frame.iloc[:3], small_frame.iloc[3:5]
    out = tmp_path / "s.csv"
    score(run, first, out)
    returned = score_to_csv(run, second, out, progress=False)
    assert returned["path"].tolist() == second["path"].tolist()
    assert sorted(read_scores(out)["path"]) == sorted([*first["path"], *second["path"]])


def test_perturbations_share_a_table(run, small_frame, tmp_path):
    plain = score(run, small_frame, tmp_path / "s.csv")
    score_to_csv(run, small_frame, tmp_path / "s.csv", perturbation="blur:1", progress=False)
    table = read_scores(tmp_path / "s.csv")
    assert table["perturbation"].value_counts().to_dict() == {"none": 36, "blur:1": 36}
    assert (tmp_path / "s.csv").read_bytes().startswith(plain)
    a, b = (part["score"].to_numpy() for _, part in table.groupby("perturbation", sort=False))
    assert not np.allclose(a, b)


def test_the_scores_of_another_run_are_not_mixed_in(run, small_frame, tmp_path):
    other = runs.fit_run("metadata", small_frame, tmp_path / "metadata", progress=False)
    before = score(other, small_frame, tmp_path / "s.csv")
    with pytest.raises(DataError, match=r"s\.csv: holds scores of run metadata, not of spectrum"):
        score(run, small_frame, tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_bytes() == before


@pytest.mark.parametrize("content", [b"my,notes\n1,2\n", b"\xff\xfe\x00", b"path,label\n"])
def test_a_file_that_is_no_scores_table_is_left_alone(run, small_frame, tmp_path, content):
    (tmp_path / "s.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"s\.csv: not a scores table"):
        score(run, small_frame, tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_bytes() == content


def test_an_unreadable_scores_table_is_named(tmp_path):
    with pytest.raises(DataError, match="no such scores table"):
        read_scores(tmp_path / "none.csv")
    (tmp_path / "s.csv").write_text("path,score\na,1\n")
    with pytest.raises(DataError, match="columns missing: sha256, label"):
        read_scores(tmp_path / "s.csv")


def broken_files(folder: Path) -> int:
    """Fill a folder with what a user's folder may hold; returns how many of them have an image's name."""
    folder.mkdir()
    picture(0).save(folder / "good.png")
    picture(1).save(folder / "good.JPG", "jpeg")
    png = (folder / "good.png").read_bytes()
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "truncated.png").write_bytes(png[: len(png) // 2])
    (folder / "text.jpg").write_text("not an image")
    with zipfile.ZipFile(folder / "zip.jpg", "w") as archive:
        archive.writestr("a", "b")
    (folder / "disguised.jpg").write_bytes(png)
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\x7f\xff\xff\xff" * 2 + b"\x08\x02\0\0\0"
    (folder / "huge.png").write_bytes(header + b"\0" * 100)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "zeros.png").write_bytes(b"\0" * 5000)
    (folder / "bits.png").write_bytes(png[:60] + bytes(255 - b for b in png[60:80]) + png[80:])
    Image.new("RGB", (3, 3)).save(folder / "tiny.png")
    Image.new("RGB", (3, 3)).save(folder / os.fsdecode(b"\xff\xfe.gif"))
    (folder / "locked.png").write_bytes(png)
    (folder / "folder.jpg").mkdir()
    picture(2).save(folder / "folder.jpg" / "inside.png")
    (folder / "notes.txt").write_text("skipped")
    return 17


def test_a_folder_of_broken_files_gives_a_row_each(run, tmp_path, monkeypatch):
    expected = broken_files(tmp_path / "mixed")
    real_open = os.open

    def refuse(name, *args, **kwargs):  # root may read everything
        if str(name).endswith("locked.png"):
            raise PermissionError(13, "Permission denied")
        return real_open(name, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    files, skipped = list_images(tmp_path / "mixed")
    table = score_to_csv(run, from_files(files), tmp_path / "s.csv", progress=False)
    assert (len(table), list(skipped.values())) == (expected, [".txt"])
    good = table[table["error"] == ""]
    assert sorted(Path(p).name for p in good["path"]) == ["good.JPG", "good.png", "inside.png"]
    assert good["score"].between(0, 1).all()
    bad = table[table["error"] != ""]
    assert bad["score"].isna().all()
    for row in bad.itertuples():
        assert row.error.startswith(row.path) and "Traceback" not in row.error


# --- cross-fitting


def test_every_photo_is_scored_once_by_a_detector_that_never_saw_it(crossed, small_frame):
    scores = read_scores(crossed / "scores.csv")
    expected = [
        row.path for k in range(5) for row in use_fold(small_frame, k).itertuples() if row.split == "test"
    ]
    assert scores["path"].tolist() == expected and sorted(expected) == sorted(small_frame["path"])
    files = small_frame.set_index("path")
    for k in range(5):
        part = scores[scores["fold"] == k]
        saved = detectors.load(crossed if k == 0 else crossed / f"fold-{k}")
        rows = files.loc[part["path"]]
        assert saved.score(rows).tolist() == part["score"].tolist()
        assert set(part["threshold"]) == {saved.threshold_}
        # that detector is what the other photographs alone give
        others = use_fold(small_frame[~small_frame["source"].isin(part["source"])], 0, 4)
        fold = use_fold(small_frame, k)
        train, validation = (fold[fold["split"] == s] for s in ("train", "validation"))
        assert not set(part["source"]) & (set(train["source"]) | set(validation["source"]))
        assert set(train["source"]) | set(validation["source"]) == set(others["source"])
        again = detectors.create("spectrum").fit(train, validation, progress=False)
        assert again.score(rows).tolist() == part["score"].tolist()
        assert (part["seen"] == (part["generator"] == "half")).all()


def test_a_cross_fit_is_not_repeated(crossed, small_frame, monkeypatch):
    before = {f: f.stat().st_mtime_ns for f in crossed.rglob("*")}
    monkeypatch.setattr(Detector, "fit", None)
    monkeypatch.setattr(Detector, "score", None)
    assert runs.cross_fit("spectrum", small_frame, crossed, progress=False) == crossed
    assert {f: f.stat().st_mtime_ns for f in crossed.rglob("*")} == before


def test_an_interrupted_cross_fit_goes_on(crossed, small_frame, tmp_path, monkeypatch):
    out = tmp_path / "all"
    original, count = Detector.fit, []

    def stop_at_third(self, *args, **kwargs):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Detector, "fit", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        runs.cross_fit("spectrum", small_frame, out, progress=False)
    assert not (out / "scores.csv").exists()
    runs.cross_fit("spectrum", small_frame, out, progress=False)
    assert len(count) == 3 + 3
    assert (out / "scores.csv").read_bytes() == (crossed / "scores.csv").read_bytes()


def test_the_table_is_a_function_of_the_scores(crossed):
    scores = read_scores(crossed / "scores.csv")
    results = metrics.evaluate(scores, n_boot=50)
    shown = held_out_table(results).set_index("generator")
    for generator in ("half", "half-twice"):
        part = scores[scores["generator"].isin(["real", generator])]
        auc = roc_auc_score(part["label"], part["score"])
        cells = shown.loc[generator]
        assert cells["in training"] == ("yes" if generator == "half" else "no")
        assert next(v for c, v in cells.items() if c.startswith("AUC")).startswith(f"{auc:.2f}")
        assert cells["accuracy at .5"].startswith(f"{((part['score'] >= 0.5) == part['label']).mean():.2f}")


@pytest.mark.skipif(
    not (ROOT / ".make" / "linear-probe.csv").is_file(), reason="the demo's features are not there: make demo"
)
def test_the_default_run_is_what_its_command_makes(demo_frame, tmp_path):
    shipped = detectors.load(runs.default_run())
    config = {"augment": shipped.augment}
    fitted = detectors.load(
        runs.fit_run("linear-probe", demo_frame, tmp_path / "probe", config=config, progress=False)
    )
    test = demo_frame[demo_frame["split"] == "test"]
    ours, theirs = shipped.score(test), fitted.score(test)
    # Not equal: features round differently where the processor has bfloat16.
    assert np.corrcoef(ours, theirs)[0, 1] > 0.95
    assert ((ours >= shipped.threshold_) == (theirs >= fitted.threshold_)).mean() > 0.93


def test_the_default_run_scores_as_it_did_when_it_was_fitted(demo_frame):
    folder = runs.default_run()
    kept = read_scores(folder / "validation.csv").groupby("generator").head(4)
    found = demo_frame.merge(kept[["path", "score"]], on="path")
    assert len(found) == 12 and folder.parts[-2:] == ("data", "linear-probe")
    # Towers round differently where the processor has bfloat16.
    assert np.abs(detectors.load(folder).score(found) - found["score"]).mean() < 0.03


def test_reading_a_manifest_back_gives_the_same_run(small_manifest, small_frame, run):
    assert runs.fit_run("spectrum", read_manifest(small_manifest), run) == run
