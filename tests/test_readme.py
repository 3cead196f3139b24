"""The README's numbers and examples are what the code gives."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from benchmarks import bench_outside

from afp import detectors
from afp.data.manifest import read_manifest
from afp.demo import benchmark
from afp.paths import ROOT
from afp.results import metrics, runs
from afp.results.scores import read_scores
from afp.results.tables import comparison_table, to_markdown
from afp.studies.robustness import robustness_table

README = (ROOT / "README.md").read_text(encoding="utf-8")
BEYOND = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
RESULTS = sorted((ROOT / "data" / "results").glob("*.csv.gz"))


@pytest.fixture(scope="module")
def results() -> pd.DataFrame:
    return metrics.evaluate(pd.concat([read_scores(f) for f in RESULTS], ignore_index=True))


def test_every_number_of_the_results_table_is_recomputed_from_the_scores(results):
    shown = re.search(r"<!-- results -->\n(.*?)\n<!-- /results -->", README, re.S)[1]
    assert shown.strip() == to_markdown(comparison_table(results)).strip()


def test_the_sentence_about_other_families_has_the_numbers_of_the_scores(results):
    auc = results[results["metric"] == "auc"].set_index(["detector", "group", "against"])["value"]
    sentence = re.search(r"`linear-probe` has.*?so a good part", README, re.S)[0]
    expected = [
        auc["linear-probe", "realcugan-x4", "real"],
        auc["linear-probe", "waifu2x-photo", "real"],
        auc["vlm-zero-shot", "waifu2x-photo", "real"],
        auc["vlm-zero-shot", "waifu2x-photo", "real-resampled"],
    ]
    assert re.findall(r"\d\.\d\d", sentence) == [f"{value:.2f}" for value in expected]


def test_every_number_of_the_robustness_table_is_recomputed_from_the_scores():
    shown = re.search(r"<!-- robustness -->\n(.*?)\n<!-- /robustness -->", BEYOND, re.S)[1]
    scores = read_scores(ROOT / "data" / "robustness.csv.gz")
    assert shown.strip() == to_markdown(robustness_table(metrics.evaluate(scores))).strip()


def test_every_number_of_the_outside_table_is_recomputed_from_the_scores():
    shown = re.search(r"<!-- outside -->\n(.*?)\n<!-- /outside -->", BEYOND, re.S)[1]
    scores = read_scores(ROOT / "data" / "outside.csv.gz")
    assert shown.strip() == to_markdown(bench_outside.table(scores)).strip()


def test_the_committed_scores_are_of_the_demo_and_held_out_by_photograph(demo_manifest):
    frame = read_manifest(demo_manifest)
    for file in RESULTS:
        scores = read_scores(file)
        assert sorted(scores["path"]) == sorted(frame["path"]), file.name
        assert (scores.groupby("source")["fold"].nunique() == 1).all(), file.name
        assert scores["score"].notna().all(), file.name


@pytest.mark.parametrize("name", ["spectrum", "metadata"])
def test_a_fresh_fit_gives_the_results_of_the_table(name, results, demo_manifest, tmp_path):
    folder = runs.cross_fit(name, read_manifest(demo_manifest), tmp_path / name, progress=False)
    fresh = metrics.evaluate(read_scores(folder / "scores.csv"), n_boot=1)
    committed = results[results["detector"] == name]
    key = ["group", "kind", "against", "metric"]
    both = fresh.merge(committed, on=key, suffixes=("", "_committed"))
    auc = both[(both["metric"] == "auc") & ~both["kind"].isin(benchmark.WILD)]
    # Networks round differently between processors, hence not to the last digit.
    assert len(auc) > 10
    assert (auc["value"] - auc["value_committed"]).abs().max() < 0.03


@pytest.mark.parametrize("name", ["linear-probe", "clip-zero-shot", "vlm-zero-shot"])
def test_a_fresh_score_is_that_of_the_table(name, few_manifest, demo_frame):
    frame = read_manifest(few_manifest)
    committed = read_scores(ROOT / "data" / "results" / f"{name}.csv.gz")
    if name == "linear-probe":
        detector = detectors.load(ROOT / "data" / "results" / name)  # the table's first fold
        committed = committed[committed["fold"] == 0]
        frame = demo_frame[demo_frame["sha256"].isin(committed["sha256"])].groupby("generator").head(1)
    else:  # fitting chooses a threshold, and nothing that a score depends on
        train, validation = (frame[frame["split"] == split] for split in ("train", "validation"))
        detector = detectors.create(name).fit(train, validation, progress=False)
    both = frame.merge(committed[["sha256", "score"]], on="sha256")
    fresh, shown = detector.score(both), both["score"].to_numpy()
    assert len(both) > 10
    # Towers round differently where the processor has bfloat16.
    assert np.corrcoef(fresh, shown)[0, 1] > 0.95
    assert np.abs(fresh - shown).mean() < 0.03


def test_the_python_example_prints_what_the_readme_says(demo_manifest, tmp_path, monkeypatch):
    code, printed = re.search(r"```python\n(.*?)```\s+```\n(.*?)```", README, re.S).groups()
    monkeypatch.setenv("AFP_RUNS", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    numbers = r"\d+\.\d+"
    assert re.sub(numbers, "#", done.stdout).split() == re.sub(numbers, "#", printed).split()
    for fresh, shown in zip(re.findall(numbers, done.stdout), re.findall(numbers, printed), strict=True):
        assert abs(float(fresh) - float(shown)) < 0.05


def test_the_commands_of_the_readme_exist():
    listed = set(re.findall(r"^\| `afp (\w+)", README, re.M))
    helped = subprocess.run([sys.executable, "-m", "afp", "--help"], capture_output=True, text=True)
    missing = [command for command in listed if command not in helped.stdout]
    assert listed and not missing, missing
