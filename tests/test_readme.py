"""The README's numbers and examples are what the code gives."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from benchmarks import bench_outside

from afp import detectors
from afp.data.manifest import read_manifest
from afp.data.splits import use_fold
from afp.paths import ROOT
from afp.results import metrics
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


@pytest.mark.parametrize("name", ["spectrum", "metadata", "linear-probe", "clip-zero-shot", "vlm-zero-shot"])
def test_a_fresh_score_is_that_of_the_table(name, few_manifest, demo_frame):
    frame = read_manifest(few_manifest)
    committed = read_scores(ROOT / "data" / "results" / f"{name}.csv.gz")
    if "zero-shot" not in name:  # those of the table's first fold
        committed = committed[committed["fold"] == 0]
        frame = demo_frame[demo_frame["sha256"].isin(committed["sha256"])].groupby("generator").head(1)
    if name == "linear-probe":
        detector = detectors.load(ROOT / "data" / "results" / name)
    else:  # of a zero-shot one, fitting chooses a threshold, and nothing that a score depends on
        fitted = read_manifest(few_manifest) if "zero-shot" in name else use_fold(demo_frame, 0)
        train, validation = (fitted[fitted["split"] == split] for split in ("train", "validation"))
        detector = detectors.create(name).fit(train, validation, progress=False)
    both = frame.merge(committed[["sha256", "score"]], on="sha256")
    fresh, shown = detector.score(both), both["score"].to_numpy()
    assert len(both) > 10
    # Towers round differently where the processor has bfloat16.
    assert name == "metadata" or np.corrcoef(fresh, shown)[0, 1] > 0.95  # it gives all images the same
    assert np.abs(fresh - shown).mean() < 0.03


def test_the_python_example_prints_what_the_readme_says(demo_manifest, tmp_path, monkeypatch, capsys):
    code, printed = re.search(r"```python\n(.*?)```\s+```\n(.*?)```", README, re.S).groups()
    monkeypatch.setenv("AFP_RUNS", str(tmp_path))
    monkeypatch.chdir(ROOT)
    exec(code, {})
    shown, numbers = capsys.readouterr().out, r"\d+\.\d+"
    assert re.sub(numbers, "#", shown).split() == re.sub(numbers, "#", printed).split()
    for fresh, stated in zip(re.findall(numbers, shown), re.findall(numbers, printed), strict=True):
        assert abs(float(fresh) - float(stated)) < 0.05
