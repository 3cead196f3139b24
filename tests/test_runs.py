from __future__ import annotations

import csv
import json
import multiprocessing
import os
import shutil
import signal
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
from afp.data.manifest import from_files
from afp.data.splits import use_fold
from afp.detectors.base import Detector
from afp.errors import AfpError, DataError, ModelError
from afp.paths import ROOT
from afp.results import metrics, runs
from afp.results.scores import SCORE_COLUMNS, held_out_rows, read_scores, score_frame, score_to_csv
from afp.results.tables import held_out_table


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


def test_every_thing_that_changes_a_fit_changes_the_default_folder(small_frame, monkeypatch, tmp_path):
    monkeypatch.setenv("AFP_RUNS", str(tmp_path))
    bare = small_frame.assign(sha256="")
    halves = [small_frame[small_frame["path"].str.contains(p)] for p in ("[02468].png", "[13579].png")]
    variants = [
        ("metadata", small_frame, {}),
        ("metadata", small_frame, {"config": {"with_bytes": True}}),
        ("metadata", small_frame, {"fold": 1}),
        ("metadata", small_frame, {"target_fpr": None}),
        ("metadata", small_frame.assign(label=1 - small_frame["label"]), {}),
        ("metadata", small_frame.assign(generator=small_frame["generator"].replace("half", "other")), {}),
        ("metadata", small_frame.iloc[::-1], {}),  # batches are drawn by the rows' order
        ("metadata", bare, {}),
        *(("metadata", half.assign(sha256=""), {}) for half in halves),
    ]
    folders = [runs.fit_run(name, frame, progress=False, **options) for name, frame, options in variants]
    assert len(set(folders)) == len(variants)
    assert all(f.parent == tmp_path and f.name.startswith("metadata-") for f in folders)
    assert runs.fit_run("metadata", small_frame, progress=False) == folders[0]


def test_other_weights_and_other_code_are_another_fit_and_a_comment_is_none(
    small_frame, tmp_path, monkeypatch
):
    package = tmp_path / "afp"
    shutil.copytree(ROOT / "afp", package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(runs, "__file__", str(package / "results" / "runs.py"))
    backbone = tmp_path / "backbone"
    backbone.mkdir()
    (backbone / "config.json").write_text("{}")
    detector = detectors.create("linear-probe", backbone=str(backbone))

    def identity(file: Path, content: str) -> str:
        file.write_text(content)
        runs._code.cache_clear()
        monkeypatch.setattr(
            runs.inspect, "getfile", lambda cls: str(package / "detectors" / "linear_probe.py")
        )
        return runs._identity(detector, small_frame, small_frame, None)

    logistic = package / "detectors" / "logistic.py"  # imported by linear_probe
    code = logistic.read_text()
    first = identity(logistic, code)
    commented = code.replace("    def predict", "    # a comment\n\n    def predict")
    assert commented != code and identity(logistic, commented) == first
    documented = code.replace('"""Logistic regression on standardised', '"""Another text: standardised')
    assert documented != code and identity(logistic, documented) == first
    assert identity(logistic, code.replace("MAX_STEPS = 2000", "MAX_STEPS = 3000")) != first
    assert identity(logistic, code) == first
    assert identity(package / "results" / "tables.py", "") == first  # trains nothing
    assert identity(backbone / "model.safetensors", "weights") != first
    runs._code.cache_clear()


def test_a_run_says_by_what_rule_its_threshold_was_chosen(small_frame, tmp_path):
    few = json.loads((runs.fit_run("spectrum", small_frame, tmp_path / "a") / "config.json").read_text())
    assert "too few real images for a rate of 0.05" in few["operating_point"]["rule"]
    folder = runs.fit_run("spectrum", small_frame, tmp_path / "b", target_fpr=0.5, progress=False)
    content = json.loads((folder / "config.json").read_text())
    kept = read_scores(folder / "validation.csv").query("label == 0")
    assert (
        content["operating_point"]["rule"]
        == "the best balanced accuracy at a false-positive rate of at most 0.5"
    )
    assert content["operating_point"]["rate"] == (kept["score"] >= content["threshold"]).mean() <= 0.5
    with pytest.raises(AfpError, match="target FPR: 2"):
        runs.fit_run("spectrum", small_frame, tmp_path / "c", target_fpr=2, progress=False)


# --- what a run has met


def test_scoring_names_the_rows_that_the_run_has_met_by_hash_or_by_source(run, small_frame):
    detector = detectors.load(run)
    trained = small_frame["split"].eq("train") & small_frame["generator"].ne("half-twice")
    sources = {s: set(small_frame.loc[small_frame["split"] == s, "source"]) for s in ("train", "validation")}
    expected = [next((s for s in sources if source in sources[s]), "") for source in small_frame["source"]]
    assert score_frame(detector, small_frame, progress=False)["role"].tolist() == expected
    by_hash = small_frame.assign(source="")[trained]
    assert set(score_frame(detector, by_hash, progress=False)["role"]) == {"train"}
    renamed = small_frame.assign(source="other/" + small_frame["source"], sha256=small_frame["path"])
    assert set(score_frame(detector, renamed, progress=False)["role"]) == {""}
    manifest = small_frame.assign(split="test")  # what a manifest says is no matter
    assert score_frame(detector, manifest, progress=False)["role"].tolist() == expected


def test_a_run_without_its_list_of_images_leaves_the_split_to_decide(run, small_frame, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(run, old)
    for name in ("images.csv", "checksums.json"):
        (old / name).unlink()
    table = score_to_csv(old, small_frame, tmp_path / "s.csv", progress=False)
    assert set(table["role"]) == {""} and set(held_out_rows(table)["split"]) == {"test"}


# --- a run's files


def test_an_older_run_without_checksums_is_loaded_with_a_note(run, small_frame, tmp_path, caplog):
    old = tmp_path / "old"
    shutil.copytree(run, old)
    (old / "checksums.json").unlink()
    assert detectors.load(old).score(small_frame).tolist() == detectors.load(run).score(small_frame).tolist()
    assert "older run without checksums" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 7}, "threshold is 7, expected 0 to 1"),
        ({"threshold": float("nan")}, "threshold is nan, expected 0 to 1"),
        ({"threshold": "high"}, "threshold is 'high'"),
        ({"config": {"colour": "red"}}, "unknown config field 'colour'"),
        ({"config": {"normalisation": {"size": 2.5}}}, r"Normalisation.size=2.5|normalisation"),
        ({"operating_point": {"a": 1}}, "unexpected keyword argument 'a'"),
    ],
)
def test_a_wrong_value_in_a_runs_config_is_named(run, tmp_path, change, message):
    content = json.loads((run / "config.json").read_text())
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "checksums.json").unlink()
    (tmp_path / "run" / "config.json").write_text(json.dumps(content | change))
    with pytest.raises(ModelError, match=rf"config\.json.*{message}"):
        detectors.load(tmp_path / "run")


def test_a_generator_can_be_left_out_and_an_unknown_one_is_named(small_frame, tmp_path):
    seen = small_frame.assign(split=use_fold(small_frame.assign(split="train"), 0)["split"])
    folder = runs.fit_run("spectrum", seen, tmp_path / "r", without=["half"], progress=False)
    assert json.loads((folder / "config.json").read_text())["generators"] == ["half-twice"]
    with pytest.raises(DataError, match="no generator 'halff'"):
        runs.fit_run("spectrum", small_frame, without=["halff"])


# --- scoring


def test_scores_of_a_manifest_carry_its_columns(run, small_frame, tmp_path):
    table = score_to_csv(run, small_frame, tmp_path / "s.csv", progress=False)
    assert list(table.columns) == SCORE_COLUMNS
    in_memory = score_frame(detectors.load(run), small_frame, progress=False)
    assert in_memory["score"].tolist() == table["score"].tolist()  # to the last digit
    shared = ["path", "sha256", "label", "generator", "kind", "split", "source"]
    for column in shared:
        assert table[column].tolist() == small_frame[column].tolist(), column
    assert (table["seen"] == (small_frame["generator"] == "half")).all()
    detector = detectors.load(run)
    assert table["score"].tolist() == detector.score(small_frame).tolist()
    assert set(table["threshold"]) == {detector.threshold_}
    assert table["run"].str.fullmatch("spectrum@[0-9a-f]{8}").all() and set(table["error"]) == {""}
    called = table["score"] >= table["threshold"]
    assert table["verdict"].tolist() == called.map({True: "fake", False: "nothing found"}).tolist()


def test_a_manifests_own_columns_are_no_scores(small_frame, tmp_path):
    own = small_frame.assign(verdict="mine", score=0.5, threshold=0.9, seen=1, run="r", role="train")
    folder = runs.fit_run("spectrum", own, tmp_path / "own", progress=False)
    table = read_scores(folder / "validation.csv")
    assert set(table["verdict"]) == {""} and set(table["role"]) <= {"train", "validation"}
    assert set(table["threshold"]) == {detectors.load(folder).threshold_} and set(table["run"]) == {"own"}


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
    "=1+1.png",
    "'=x.png",
    "@sum.png",
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
    assert read_scores(out)["path"].tolist() == awkward["path"].tolist()
    assert [bool(r["error"]) for r in rows] == ["broken" in p for p in awkward["path"]]
    assert all(bool(r["score"]) != bool(r["error"]) for r in rows)
    newlines = [i + 1 for i, byte in enumerate(whole) if byte in b"\r\n"]
    cuts = [len(whole), *newlines, *range(len(whole) - 1, 300, -397)]
    for cut in cuts:
        out.write_bytes(whole[:cut])
        assert score(run, awkward, out) == whole, whole[max(0, cut - 60) : cut]


def test_a_killed_command_goes_on_to_the_same_table(run, start, afp, tmp_path):
    folder, out = tmp_path / "images", tmp_path / "s.csv"
    folder.mkdir()
    for i in range(200):
        (picture(i, 24) if i % 9 else smoothed(picture(i, 24))).save(folder / f"{i:03}.png")
        if i % 50 == 3:
            (folder / f"{i:03}.png").write_bytes(b"broken")
    command = ("score", folder, "--run", run, "--out", out)
    killed = start(*command)
    while killed.process.is_alive() and (not out.exists() or out.read_bytes().count(b"\n") < 70):
        time.sleep(0.005)
    killed.process.kill()
    assert killed.end()[0] == -signal.SIGKILL, "it ended before it could be killed"
    assert out.read_bytes().count(b"\n") < 200 and Path(f"{out}.unfinished").exists()

    status, shown = afp(*command)
    assert status == 1 and "196 scored" in shown and "4 failed" in shown and "Traceback" not in shown
    assert out.read_bytes() == score(run, from_files(list_images(folder)[0]), tmp_path / "reference.csv")


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


def test_only_the_score_is_taken_over_after_a_manifest_was_corrected(run, small_frame, tmp_path, monkeypatch):
    score(run, small_frame, tmp_path / "s.csv")
    corrected = small_frame.assign(label=1 - small_frame["label"], generator="other", split="test", set="a")
    monkeypatch.setattr(Detector, "score", None)
    table = score_to_csv(run, corrected, tmp_path / "s.csv", thresholds={"": 0.25}, progress=False)
    for column in ("label", "generator", "split", "set"):
        assert table[column].tolist() == corrected[column].tolist(), column
    assert set(table["threshold"]) == {0.25}


def test_an_error_is_tried_again_in_the_place_of_its_row(run, tmp_path):
    for i in range(3):
        picture(i).save(tmp_path / f"{i}.png")
    files, out = [tmp_path / f"{i}.png" for i in range(3)], tmp_path / "s.csv"
    good = files[1].read_bytes()
    files[1].write_bytes(b"gone")
    assert score_to_csv(run, from_files(files), out, progress=False)["error"].ne("").tolist() == [
        False,
        True,
        False,
    ]
    files[1].write_bytes(good)
    again = score(run, from_files(files), out)
    assert again == score(run, from_files(files), tmp_path / "fresh.csv")


def test_a_run_is_known_by_what_it_learned_and_not_by_its_folder(run, small_frame, tmp_path):
    first, other = tmp_path / "x" / "run", tmp_path / "y" / "run"
    shutil.copytree(run, first)
    runs.fit_run("spectrum", small_frame, other, fold=1, progress=False)
    before = score(first, small_frame, tmp_path / "s.csv")
    with pytest.raises(DataError, match="holds scores of run run@"):
        score(other, small_frame, tmp_path / "s.csv")
    first.rename(tmp_path / "moved")
    moved = read_scores(tmp_path / "s.csv")
    assert (
        score(tmp_path / "moved", small_frame, tmp_path / "s.csv") != before
    )  # its name, and the same scores
    assert read_scores(tmp_path / "s.csv")["score"].tolist() == moved["score"].tolist()


def test_two_processes_do_not_write_one_table(run, small_frame, tmp_path, monkeypatch):
    """The second says so while the first one writes, and adds its rows afterwards."""
    out, first, second, told = tmp_path / "s.csv", small_frame[:30], small_frame[20:], []
    fresh = Detector.score

    def meanwhile(detector, *given):
        monkeypatch.setattr(Detector, "score", fresh)
        with pytest.raises(DataError, match=r"s\.csv: another process is writing it"):
            score(run, second, out)
        with pytest.raises(DataError, match=r"s\.csv: unfinished; the same `afp score` goes on"):
            read_scores(out)
        told.append("both")
        return detector.score(*given)

    monkeypatch.setattr(Detector, "score", meanwhile)
    score(run, first, out)
    assert told == ["both"] and read_scores(out)["path"].tolist() == first["path"].tolist()
    score(run, second, out)
    assert read_scores(out)["path"].tolist() == small_frame["path"].tolist()
    assert not Path(f"{out}.unfinished").exists()


def _take_turns(folder: Path) -> None:
    inside = folder.with_name("inside")
    for _ in range(30):
        with runs._only_fit(folder):
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails where it is there
            time.sleep(0.001)
            inside.unlink()
        time.sleep(0.001)


def test_one_process_at_a_time_fits_a_run(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_take_turns, args=(tmp_path / "r",)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4 and not list(tmp_path.iterdir())


def test_perturbations_share_a_table(run, small_frame, tmp_path):
    plain = score(run, small_frame, tmp_path / "s.csv")
    score_to_csv(run, small_frame, tmp_path / "s.csv", perturbation="blur:1", progress=False)
    table = read_scores(tmp_path / "s.csv")
    assert table["perturbation"].value_counts().to_dict() == {"none": 36, "blur:1": 36}
    assert (tmp_path / "s.csv").read_bytes().startswith(plain)
    a, b = (part["score"].to_numpy() for _, part in table.groupby("perturbation", sort=False))
    assert not np.allclose(a, b)


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
    with pytest.raises(DataError, match="columns missing: label; expected at least path, label, score"):
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
    assert sorted(Path(p).name for p in good["path"]) == [
        "disguised.jpg",
        "good.JPG",
        "good.png",
        "inside.png",
    ]
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
        folds = [part for _, part in scores[scores["generator"].isin(["real", generator])].groupby("fold")]
        auc = np.mean([roc_auc_score(part["label"], part["score"]) for part in folds])
        right = np.mean([((part["score"] >= 0.5) == part["label"]).mean() for part in folds])
        cells = shown.loc[generator]
        assert cells["in training"] == ("yes" if generator == "half" else "no")
        assert next(v for c, v in cells.items() if c.startswith("AUC")).startswith(f"{auc:.2f}")
        assert cells["accuracy at .5"].startswith(f"{right:.2f}")


def test_the_default_run_scores_as_it_did_when_it_was_fitted(demo_frame):
    folder = runs.default_run()
    kept = read_scores(folder / "validation.csv").groupby("generator").head(4)
    found = demo_frame.merge(kept[["path", "score"]], on="path")
    assert len(found) == 12 and folder.parts[-2:] == ("data", "linear-probe")
    # Towers round differently where the processor has bfloat16.
    assert np.abs(detectors.load(folder).score(found) - found["score"]).mean() < 0.03


def test_a_run_that_lost_a_file_is_fitted_anew(afp, small_manifest, caplog):
    """As its error says; but not where its backbone is not there: then it stays as it is."""
    fit = ("fit", "-d", "spectrum", "-m", small_manifest, "--out", "run")
    assert afp(*fit).code == 0
    learned = Path("run/model.safetensors").read_bytes()
    Path("run/model.safetensors").unlink()
    assert "is missing; fit the run again" in afp("score", small_manifest, "--run", "run").text
    assert (
        afp(*fit).code == 0 and "model.safetensors is missing; fit the run again: fitted anew" in caplog.text
    )
    assert Path("run/model.safetensors").read_bytes() == learned
    assert afp("score", small_manifest, "--run", "run").code == 0


def test_a_run_whose_backbone_is_gone_is_not_taken_for_another(afp, small_manifest, tiny_tower):
    shutil.copytree(tiny_tower, "tower")
    fit = (
        "fit",
        "-d",
        "linear-probe",
        "-m",
        small_manifest,
        "--backbone",
        "tower",
        "--set",
        "block=1",
        "--out",
        "run",
    )
    assert afp(*fit).code == 0
    shutil.rmtree("tower")
    status, shown = afp(*fit)
    assert status == 2 and "tower: is not on this machine; the run in run stays as it is" in shown
