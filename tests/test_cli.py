from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import picture, save, smoothed, write_folders
from sklearn.metrics import roc_auc_score

from afp import detectors
from afp.cli import COMMANDS
from afp.data.manifest import read_manifest, write_manifest
from afp.data.splits import use_fold
from afp.results import metrics, runs
from afp.results.scores import read_scores


@pytest.fixture(scope="module")
def run_folder(small_frame, tmp_path_factory) -> Path:
    return runs.fit_run("spectrum", small_frame, tmp_path_factory.mktemp("run") / "spectrum", progress=False)


def test_the_console_script_and_the_module_are_the_same():
    module = subprocess.run([sys.executable, "-m", "afp", "--help"], capture_output=True, text=True)
    script = subprocess.run([Path(sys.executable).parent / "afp", "--help"], capture_output=True, text=True)
    assert module.returncode == script.returncode == 0
    for command in COMMANDS:
        assert command in module.stdout and command in script.stdout


def test_a_parameter_without_a_name_is_a_missing_value(afp):
    result = afp("run", "04", "-p")
    assert result.code == 2 and "Option '-p' requires an argument" in result.text


@pytest.mark.parametrize(
    ("arguments", "not_needed"),
    [(["run", "99"], "transformers"), (["score", "x.png", "--run", "nowhere"], "matplotlib")],
)
def test_a_command_loads_only_what_it_needs(arguments, not_needed):
    code = f"import sys\nfrom afp.cli import main\ntry:\n    main({arguments})\n"
    code += f"finally:\n    print({not_needed!r} in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.returncode == 2 and shown.stdout.strip() == "False", shown.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(afp, command):
    result = afp(command, "--help")
    assert result.code == 0 and f"{command} [OPTIONS]" in result.text and len(result.text) > 200


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("fit -d oracle -m MANIFEST", "'oracle'"),
        ("fit -m nowhere.csv", "nowhere.csv: no such manifest"),
        ("fit -m BAD", "row 2: label is 'maybe'"),
        ("fit -d metadata -m MANIFEST --fold 7", "fold: 7, expected 0 to 4"),
        ("fit -d metadata -m MANIFEST --fold one", "--fold: 'one'"),
        ("fit -d metadata -m MANIFEST --without x", "no generator 'x'"),
        ("fit -d metadata -m MANIFEST --set colour=1", "'colour'"),
        ("fit -d metadata -m MANIFEST --set with_bytes=7", "with_bytes is 7"),
        ("fit -d metadata -m MANIFEST --set with_bytes", "expected name=value"),
        ("fit -d vlm-prompt -m MANIFEST --set answers=no", "answers is 'no', expected"),
        ("fit -d clip-prompt -m MANIFEST --set lr=abc", "lr is 'abc', expected a number or nothing"),
        (
            "fit -d clip-prompt -m MANIFEST --set epochs=2.5",
            "epochs is 2.5, expected a whole number or nothing",
        ),
        ("fit -d metadata -m MANIFEST --target-fpr 2", "target FPR: 2"),
        ("fit -d metadata -m MANIFEST --target-fpr .1 --balanced", "either"),
        ("score IMAGE --run RUN --threshold 1.5", "--threshold: '1.5', expected a number from 0"),
        ("score IMAGE --run RUN --threshold sd2=x", "--threshold: 'sd2=x'"),
        ("score IMAGE --run RUN --target-fpr 0.05", "3 real images are too few"),
        ("calibrate RUN --reals IMAGE", "1 photographs (0 left out"),
        ("fit -d metadata -m MANIFEST --backbone x", "'backbone'"),
        ("fit -m MANIFEST --backbone no/such", "no/such"),
        ("score IMAGE --run nowhere", "nowhere: no run here"),
        ("score nothing.png --run RUN", "nothing.png: no such file or folder"),
        ("score IMAGE --run RUN --perturbation wobble:3", "wobble"),
        ("score IMAGE --run RUN --out BAD", "bad.csv: is there and is not what `afp` would write"),
        ("evaluate nowhere.csv", "nowhere.csv: no such scores table"),
        ("evaluate BAD", "columns missing: score"),
        ("audit nowhere.csv", "nowhere.csv: no such manifest"),
        ("manifest nowhere", "nowhere"),
        ("manifest", "--real DIR and --fake NAME=DIR"),
        ("test", "--img_path"),
        ("test --img_path IMAGE --real_dir .", "--img_path"),
        ("run 99", "notebook '99'"),
        ("run", "which notebook?"),
        ("run 00 -p colour red", "no parameter 'colour'"),
        ("run 00 -p image", "image"),
    ],
)
def test_an_error_is_a_line_that_names_the_thing(
    afp, arguments, named, small_manifest, run_folder, monkeypatch
):
    picture(0).save("image.png")
    pd.read_csv(small_manifest).assign(label="maybe").to_csv("bad.csv", index=False)
    places = {"MANIFEST": small_manifest, "RUN": run_folder, "IMAGE": "image.png", "BAD": "bad.csv"}
    result = afp(*[places.get(a, a) for a in arguments.split()])
    assert result.code == 2
    assert named in result.text and "Traceback" not in result.text
    error = result.text[result.text.index("error: ") :]
    assert "\r" not in error and error.strip().count("\n") <= 20


def test_scores_without_labels_or_rows_cannot_be_evaluated(afp, run_folder):
    picture(0).save("image.png")
    assert afp("score", "image.png", "--run", run_folder).code == 0
    Path("empty.csv").write_text(Path("scores.csv").read_text().splitlines()[0] + "\n")
    for file, reason in (("scores.csv", "no image in it has a label"), ("empty.csv", "it has no row")):
        result = afp("evaluate", file)
        assert result.code == 2 and f"error: {file}: {reason}; score a manifest" in result.text


def test_folders_become_a_manifest(afp, tmp_path):
    write_folders(tmp_path, n=10)
    result = afp("manifest", ".", "--split", "--held-out", "half-twice", "--out", "m.csv")
    assert result.code == 0 and "30 images: m.csv" in result.text
    assert afp("manifest", ".", "--out", "u.csv").code == 0
    unsplit = afp("fit", "-d", "metadata", "-m", "u.csv")
    assert unsplit.code == 2 and "`afp manifest FOLDER --split`" in unsplit.text
    frame = read_manifest("m.csv")
    assert frame["generator"].value_counts().to_dict() == {"real": 10, "half": 10, "half-twice": 10}
    trained = frame[frame["split"].isin(["train", "validation"])]
    assert set(trained["generator"]) == {"real", "half"}
    assert (frame[frame["split"] != "none"].groupby("source")["split"].nunique() == 1).all()

    again = afp("manifest", "--real-dir", "real", "--fake_dir", "fake/half", "--out", "n.parquet")
    assert again.code == 0 and len(read_manifest("n.parquet")) == 20
    unknown = afp("manifest", ".", "--held-out", "dalle")
    assert unknown.code == 2 and "'dalle'" in unknown.text


def test_the_reals_of_a_held_out_set_are_held_out_too(afp, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for k, group in enumerate(("progan", "biggan")):
        for i in range(10):
            save(f"sets/{group}/0_real/{group}{i}.png", 100 * k + i)
            save(f"sets/{group}/1_fake/{group}f{i}.png", 100 * k + 50 + i, fake=True)
    assert afp("manifest", "sets", "--split", "--held-out", "biggan").code == 0
    frame = read_manifest("manifest.csv")
    trained = frame[frame["split"].isin(["train", "validation"])]
    assert set(trained["set"]) == {"progan"} and set(trained["label"]) == {0, 1}
    assert (
        frame[frame["set"] == "biggan"].groupby("label")["split"].value_counts().unstack()["test"] > 0
    ).all()


def test_a_folder_with_an_equals_sign_in_its_path_is_a_folder(afp):
    for i in range(3):
        save(f"lr=0.1/real/{i}.png", i)
        save(f"lr=0.1/fake/{i}.png", 100 + i, fake=True)
        save(f"lr=0.1/sd/{i}.png", 200 + i, fake=True)
        save(f"c=1/{i}.png", 300 + i, fake=True)
    named = ["--fake", "org/sd=lr=0.1/sd", "--fake", Path("lr=0.1/fake").absolute(), "--fake", "c=1"]
    shown = afp("manifest", "--real", Path("lr=0.1/real").absolute(), *named)
    for name in ("real", "org/sd", "fake", "c=1"):
        assert f"    {name}: 3 images" in shown.text
    assert "nowhere/a=b: not a folder" in afp("manifest", "--real", "c=1", "--fake", "nowhere/a=b").text


@pytest.mark.parametrize("variable", ["AFP_RUNS", "AFP_DATA"])
def test_a_variable_that_names_a_file_is_named(variable, afp, small_manifest, monkeypatch):
    Path("file").touch()
    monkeypatch.setenv(variable, "file")
    status, shown = afp("fit", "-d", "spectrum", "-m", small_manifest)
    assert (
        status == 2 and f"error: {variable} is {Path('file').absolute()}, a file; expected a folder" in shown
    )


def test_two_folders_of_one_name_are_not_one_generator(afp, tmp_path):
    for name in ("real", "a/fake", "b/fake"):
        (tmp_path / name).mkdir(parents=True)
        picture(0).save(tmp_path / name / "x.png")
    result = afp("manifest", "--real-dir", "real", "--fake-dir", "a/fake", "--fake-dir", "b/fake")
    assert result.code == 2 and "fake" in result.text and not Path("manifest.csv").exists()


def test_audit_fails_loudly(afp, small_manifest, tmp_path):
    clean = afp("audit", small_manifest)
    assert clean.code == 0 and "FAIL" not in clean.text and "told apart by" in clean.text
    frame = read_manifest(small_manifest).assign(split=["train"] * 18 + ["test"] * 18)
    leaky = tmp_path / "leaky.csv"
    frame.assign(path=frame["file"]).drop(columns="file").to_csv(leaky, index=False)
    result = afp("audit", leaky)
    assert result.code == 1 and "FAIL source leaks" in result.text


def test_fit_score_evaluate(afp, small_manifest, small_frame):
    fitted = afp("fit", "-d", "spectrum", "-m", small_manifest, "--out", "run")
    assert fitted.code == 0 and "spectrum: 129 trained numbers" in fitted.text and "run: run" in fitted.text
    assert "too few real images for a rate of 0.05" in fitted.text

    scored = afp("score", small_manifest, "--run", "run", "--out", "s.csv", "--perturbation", "jpeg:75")
    assert scored.code == 0 and "36 scored" in scored.text and "0 failed, 0 skipped: s.csv" in scored.text
    table = read_scores("s.csv")
    assert set(table["perturbation"]) == {"jpeg:75"}

    shown = afp("evaluate", "s.csv", "--out", "m.json")
    assert shown.code == 0 and "half-twice" in shown.text
    met = table["role"] != ""
    assert f"{met.sum()} of 36 rows are left out ({table['role'].eq('train').sum()} train," in shown.text
    assert f"{met.sum()} of them, or their photographs, had a part in the fit" in scored.text
    kept = table[~met]
    found = pd.DataFrame(json.loads(Path("m.json").read_text()))
    pd.testing.assert_frame_equal(found, metrics.evaluate(kept), check_dtype=False)
    assert afp("evaluate", "s.csv", "--out", "m.csv").code == 0
    found = pd.read_csv("m.csv", keep_default_na=False, na_values={"value": "", "low": "", "high": ""})
    pd.testing.assert_frame_equal(found, metrics.evaluate(kept), check_dtype=False)
    markdown = afp("evaluate", "s.csv", "--markdown")
    assert markdown.text.startswith("| generator |")
    wrong = afp("evaluate", "s.csv", "--out", "m.xlsx")
    assert wrong.code == 2 and "m.xlsx" in wrong.text
    table[met].to_csv("trained.csv", index=False)
    refused = afp("evaluate", "trained.csv")
    assert refused.code == 2 and "no row to evaluate" in refused.text
    Path("s.csv.unfinished").touch()
    assert "s.csv: unfinished" in afp("evaluate", "s.csv").text


def test_a_runs_own_fold_is_evaluated_and_none_of_its_training_rows(afp, small_manifest):
    assert afp("fit", "-d", "spectrum", "-m", small_manifest, "--fold", "2", "--out", "run").code == 0
    assert afp("score", small_manifest, "--run", "run").code == 0
    shown = afp("evaluate", "scores.csv", "--out", "m.json")
    expected = use_fold(read_manifest(small_manifest), 2).query("split == 'test'")
    assert shown.code == 0 and f"{36 - len(expected)} of 36 rows are left out" in shown.text
    found = pd.DataFrame(json.loads(Path("m.json").read_text())).query("kind == 'real'")
    assert found["n_real"].eq((expected["label"] == 0).sum()).all()


def test_calibration_moves_a_run_to_own_photographs(afp, small_manifest, run_folder):
    shutil.copytree(run_folder, "run")
    Path("mine").mkdir()
    for i in range(24):
        picture(200 + i).save(f"mine/{i}.png")
    Path("mine/notes.txt").touch()
    few = afp("calibrate", "run", "--reals", "mine", "--target-fpr", ".01")
    assert few.code == 2 and "24 photographs" in few.text and "at least 100" in few.text
    done = afp("calibrate", "run", "--reals", "mine", "--target-fpr", ".1")
    assert done.code == 0 and "of 24 real images of calibration" in done.text and "1 skipped" in done.text
    content = json.loads(Path("run/config.json").read_text())
    old = json.loads((run_folder / "config.json").read_text())["threshold"]
    assert (
        content["threshold"] != old and content["operating_point"]["rule"] == "a false-positive rate of 0.1"
    )

    scored = afp("score", "mine", "--run", "run", "--out", "s.csv")
    table = read_scores("s.csv")
    assert (
        scored.code == 0
        and "2 called fake" in scored.text
        and set(table["threshold"]) == {content["threshold"]}
    )
    assert set(table["role"]) == {"calibration"}
    assert "of 24 real images fake (calibration)" in afp("score", "mine/0.png", "--run", "run").text
    afp("score", "mine", "--run", "run", "--out", "s.csv", "--threshold", "0")
    assert set(read_scores("s.csv")["verdict"]) == {"fake"}
    afp("score", "mine", "--run", "run", "--out", "s.csv", "--target-fpr", "0.25")
    assert read_scores("s.csv")["verdict"].eq("fake").sum() == 6
    both = afp("score", "mine", "--run", "run", "--threshold", ".5", "--target-fpr", ".25")
    assert both.code == 2 and "either --threshold or --target-fpr" in both.text
    typo = afp("score", small_manifest, "--run", "run", "--threshold", "hlaf=.5")
    assert typo.code == 2 and "no image by 'hlaf', expected one of half, half-twice, real" in typo.text


def test_rows_known_by_their_sources_name_alone_are_counted(afp):
    """Two data sets whose photographs bear the same names."""
    for first, folder in enumerate(("one", "two")):
        for i, name in enumerate("abcdefghijkl"):
            save(f"{folder}/real/{name}.png", 100 * first + i)
            save(f"{folder}/fake/x/{name}.png", 100 * first + 50 + i, fake=True)
        assert afp("manifest", folder, "--split", "--out", f"{folder}.csv").code == 0
    assert afp("fit", "-d", "metadata", "-m", "one.csv", "--out", "run").code == 0
    shown = afp("score", "two.csv", "--run", "run", "--out", "s.csv")
    met = int(read_scores("s.csv")["role"].ne("").sum())
    assert met and f"{met} of these are known by the name of their source alone" in shown.text


def test_photographs_that_a_run_was_fitted_on_do_not_calibrate_it(afp, small_manifest, run_folder):
    shutil.copytree(run_folder, "run")
    reals = small_manifest.parent / "real"
    few = afp("calibrate", "run", "--reals", reals, "--target-fpr", ".1")
    assert few.code == 2 and "left out: unreadable, or the run was fitted on them" in few.text
    Path("mine").mkdir()
    for i in range(24):
        picture(200 + i).save(f"mine/{i}.png")
    done = afp("calibrate", "run", "--reals", "mine", "--reals", reals, "--target-fpr", ".1")
    met = read_scores("run/validation.csv").query("label == 0")
    assert done.code == 0 and "photographs are left out" in done.text and len(met)
    assert not set(read_scores("run/calibration.csv")["sha256"]) & set(met["sha256"])


def test_the_fakes_of_a_manifest_do_not_calibrate_a_run(afp, run_folder):
    for i in range(24):
        save(f"mine/real/{i}.png", 300 + i)
        save(f"mine/fake/x/{i}.png", 400 + i, fake=True)
    assert afp("manifest", "mine", "--source-rule", "stem", "--out", "m.csv").code == 0
    thresholds = []
    for name, reals in (("folder", "mine/real"), ("manifest", "m.csv")):
        shutil.copytree(run_folder, name)
        shown = afp("calibrate", name, "--reals", reals, "--target-fpr", ".1")
        assert shown.code == 0 and "before: threshold" in shown.text
        thresholds.append(json.loads(Path(name, "config.json").read_text())["threshold"])
    assert "24 fakes of the manifest are left out" in shown.text
    assert thresholds[0] == thresholds[1] and len(read_scores("manifest/calibration.csv")) == 24


def test_other_detectors_tables_of_one_name_stay_apart(afp):
    """Two projects' `scores.csv`, labels as words of Python, and a row without one."""
    for folder, high in (("a", 1), ("b", 0)):
        Path(folder).mkdir()
        rows = [(f"{folder}{i}.png", bool(i % 2), abs(high - i % 2) * 0.5 + i / 1000) for i in range(40)]
        table = pd.DataFrame([*rows, ("lost.png", None, 0.5)], columns=["path", "label", "score"])
        table.to_csv(f"{folder}/scores.csv", index=False)
    shown = afp("evaluate", "a/scores.csv", "b/scores.csv", "--out", "m.csv")
    assert shown.code == 0 and "2 of 82 rows are left out (no label)" in shown.text
    found = pd.read_csv("m.csv").query("metric == 'auc' and group == 'fake' and against == 'real'")
    aucs = found.set_index("detector")["value"].to_dict()
    assert aucs == {"a/scores.csv: scores": 0.0, "b/scores.csv: scores": 1.0}


def test_a_run_finds_its_backbone_from_any_folder(afp, small_manifest, tiny_tower, monkeypatch, tmp_path):
    shutil.copytree(tiny_tower, "tower")
    assert detectors.create("linear-probe", backbone="tower").backbone == str(tmp_path / "tower")
    fit = ("fit", "--backbone", "tower", "-m", small_manifest, "--set", "block=1", "--out", "run")
    assert afp(*fit).code == 0
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert afp("score", small_manifest, "--run", tmp_path / "run", "--out", "s.csv").code == 0


def test_an_unreadable_file_takes_no_map_from_another_of_its_name(afp, small_manifest, tiny_tower):
    fit = ("fit", "--backbone", tiny_tower, "-m", small_manifest, "--set", "block=1", "--out", "probe")
    assert afp(*fit).code == 0
    for folder in ("one", "two"):
        save(f"{folder}/a.png", 7)
        row = {
            "path": "a.png",
            "label": 0,
            "generator": "real",
            "kind": "real",
            "split": "test",
            "sha256": "",
        }
        pd.DataFrame([row | {"source": folder}]).to_csv(f"{folder}/m.csv", index=False)
    Path("two/a.png").write_bytes(b"no image")
    options = ("--explain", "maps", "--html", "page.html", "--out", "s.csv")
    shown = afp("score", "one/m.csv", "two/m.csv", "--run", "probe", *options)
    assert shown.code == 1 and "overlays: 1 in maps" in shown.text and "report: page.html" in shown.text


def test_an_image_under_the_threshold_is_not_called_real(afp, run_folder):
    picture(0).save("a.png")
    shown = afp("score", "a.png", "--run", run_folder, "--threshold", "1").text
    assert "nothing found  P(fake)" in shown
    assert '"Nothing found" means something for these alone' in shown and "fakes of validation" in shown
    assert "by half" in shown and '"nothing found" does not mean that an image is real' in shown


def test_scores_of_any_detector_are_evaluated(afp):
    rows = [(f"{label}/{i}.png", label, (i + 3 * label) / 20) for label in (0, 1) for i in range(12)]
    table = pd.DataFrame(rows, columns=["path", "label", "score"])
    table.to_csv("other.csv", index=False)
    shown = afp("evaluate", "other.csv", "--out", "m.json")
    found = pd.DataFrame(json.loads(Path("m.json").read_text()))
    auc = found.query("metric == 'auc' and group == 'fake'")
    assert shown.code == 0 and auc["detector"].tolist() == ["other"]
    assert auc["value"].item() == pytest.approx(roc_auc_score(table["label"], table["score"]))
    assert found.query("metric == 'accuracy_val'")["value"].isna().all()
    table.assign(generator=["coco"] * 6 + ["flickr"] * 6 + ["sd2"] * 12, kind="diffusion").to_csv(
        "b.csv", index=False
    )
    both = afp("evaluate", "other.csv", "b.csv")
    assert both.code == 0 and "real images are pooled (coco + flickr)" in both.text
    table.assign(score=table["score"] * 5).to_csv("logits.csv", index=False)
    assert "logits.csv: row 7: score is '1.25', expected P(fake)" in afp("evaluate", "logits.csv").text
    table.assign(label="real").to_csv("words.csv", index=False)
    assert "words.csv: row 2: label is 'real', expected 0" in afp("evaluate", "words.csv").text
    table.to_csv("semicolons.csv", index=False, sep=";")
    assert "separated by commas; found path;label;score" in afp("evaluate", "semicolons.csv").text
    table.assign(score=table["score"].where(table.index != 3)).to_csv("gap.csv", index=False)
    assert "1 of 24 rows failed and are left out" in afp("evaluate", "gap.csv").text


def test_swapped_labels_are_met_with_questions(afp, small_manifest, run_folder):
    swapped = read_manifest(small_manifest)
    swapped = swapped.assign(label=1 - swapped["label"], split="test")
    write_manifest(swapped, "swapped.csv")
    assert afp("score", "swapped.csv", "--run", run_folder).code == 0
    shown = afp("evaluate", "scores.csv")
    assert "'real' is labelled as the other class" in shown.text and "are the labels swapped" in shown.text


def test_fit_over_all_folds_leaves_scores_and_metrics(afp, small_manifest):
    result = afp("fit", "-d", "spectrum", "-m", small_manifest, "--out", "all", "--fold", "all")
    assert result.code == 0 and "scores: all/scores.csv" in result.text and "half-twice" in result.text
    found = pd.DataFrame(json.loads(Path("all/metrics.json").read_text()))
    expected = metrics.evaluate(read_scores("all/scores.csv"))
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    again = afp("fit", "-d", "spectrum", "-m", small_manifest, "--out", "all", "--fold", "all")
    assert result.text.partition("\r")[0] == again.text.partition("\r")[0]  # but for the bars


def test_score_ends_with_1_if_a_file_failed(afp, run_folder):
    Path("images").mkdir()
    picture(0).save("images/good.png")
    Path("images/bad.png").write_text("no image")
    Path("images/notes.txt").write_text("a note")
    result = afp("score", "images", "--run", run_folder)
    assert result.code == 1
    assert "1 scored" in result.text and "1 failed, 1 skipped" in result.text
    assert "images/bad.png" in result.text and "Traceback" not in result.text
    verdict = next(line for line in result.text.splitlines() if line.endswith("good.png"))
    assert verdict.startswith(("FAKE", "nothing found")) and "P(fake)" in verdict


def test_the_papers_command_line(afp, run_folder):
    for i in range(4):
        for name, image in (("r", picture(i)), ("f", smoothed(picture(i)))):
            Path(name).mkdir(exist_ok=True)
            image.save(f"{name}/{i}.png")
    one = afp("test", "--img_path", "f/0.png", "--run", run_folder)
    assert one.code == 0 and "f/0.png: fake, P(fake) " in one.text

    both = afp("test", "--real_dir", "r", "--fake_dir", "f", "--log", "log/log.txt", "--run", run_folder)
    assert both.code == 0
    for line in ("overall accuracy: ", "real accuracy: ", "fake accuracy: ", "called real, "):
        assert line in both.text
    assert both.text.startswith(Path("log/log.txt").read_text())
    overall, real, fake = (
        float(line.split(": ")[1].split("%")[0]) for line in both.text.splitlines() if "accuracy" in line
    )
    assert overall == pytest.approx((real + fake) / 2)
    afp("test", "--real_dir", "r", "--log", "log/log.txt", "--run", run_folder)
    assert Path("log/log.txt").read_text().count("overall accuracy") == 2

    Path("r/bad.png").write_text("no image")
    assert "error: " in (failing := afp("test", "--real_dir", "r", "--run", run_folder)).text
    assert failing.code == 1 and "of 4" in failing.text


def test_a_fresh_clone_scores_an_image_without_the_demo(afp, demo_manifest, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "packages").symlink_to(
        demo_manifest.parent.parent / "packages"
    )  # what would be downloaded
    monkeypatch.setenv("AFP_DATA", str(tmp_path / "data"))
    picture(0).save("a.png")
    scored = afp("score", "a.png")
    assert scored.code == 0 and "1 scored" in scored.text and (tmp_path / "data" / "weights").is_dir()
    assert afp("test", "--img_path", "a.png").code == 0
    fitted = afp("fit")
    assert fitted.code == 2 and "`afp demo`" in fitted.text


def test_the_demo_command_is_idempotent(afp, demo_manifest):
    result = afp("demo")
    assert result.code == 0 and str(demo_manifest) in result.text and "x4plus-anime" in result.text
