"""Losses under perturbations: a moved threshold is told from a lost ranking, and each score is held out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest

from afp import detectors
from afp.data import splits
from afp.data.splits import use_fold
from afp.errors import DataError, ModelError
from afp.figures import perturbations
from afp.results import metrics, runs
from afp.results.scores import read_scores
from afp.studies import robustness

KEY = ["path", "perturbation"]


def made_up(shift: dict[str, float], noise: dict[str, float], nets: Sequence[str] = ("net",)) -> pd.DataFrame:
    """Scores that a perturbation moves (shift) or scrambles (noise); 30 photographs and held-out networks."""
    rng = np.random.default_rng(0)
    rows = pd.MultiIndex.from_product(
        [shift, map(str, range(30)), ["real", *nets]], names=["perturbation", "source", "generator"]
    ).to_frame(index=False)
    rows = rows.assign(
        label=rows["generator"].ne("real").astype(int), path=rows["generator"] + "/" + rows["source"]
    )
    moved, scrambled = rows["perturbation"].map(shift), rows["perturbation"].map(noise)
    score = 0.3 + 0.4 * rows["label"] + moved + rng.normal(0, 0.05, len(rows)) + rng.normal(0, scrambled)
    kinds = rows["label"].map({0: "real", 1: "super-resolution"})
    rows = rows.assign(score=score.clip(0, 1), kind=kinds, threshold_anew=0.5 + moved)
    return rows.assign(seen=0, detector="probe", error="", threshold=0.5)


def test_a_shift_costs_accuracy_and_not_ranking_and_a_new_threshold_mends_it():
    scores = made_up({"none": 0, "jpeg:50": -0.25, "blur:2": 0}, {"none": 0, "jpeg:50": 0, "blur:2": 0.4})
    found = robustness.losses(scores, n_boot=200).set_index(["perturbation", "loss"])["value"]
    assert found["jpeg:50", "accuracy, clean threshold"] > 0.35
    assert abs(found["jpeg:50", "AUC"]) < 0.02
    assert found["jpeg:50", "accuracy, new threshold"] < 0.05
    assert found["blur:2", "AUC"] > 0.1
    assert found["blur:2", "accuracy, new threshold"] > 0.1


def test_what_a_remedy_gains_is_the_difference_of_its_metrics():
    before, after = (made_up({"none": 0, "jpeg:50": 0}, {"none": 0, "jpeg:50": n}) for n in (0.4, 0.1))
    found = robustness.gains(before, after, n_boot=20).set_index(["perturbation", "metric"])["value"]
    aucs = []
    for scores in (before, after):
        rows = scores[scores["perturbation"] == "jpeg:50"]
        aucs.append(metrics.compute(rows["label"], rows["score"])["auc"])
    assert found["jpeg:50", "auc"] == pytest.approx(aucs[1] - aucs[0]) and aucs[1] - aucs[0] > 0.05


def test_the_table_holds_the_metrics_of_the_scores():
    scores = made_up(
        {"blur:2": 0, "none": 0, "jpeg:50": -0.25}, dict.fromkeys(("none", "jpeg:50", "blur:2"), 0.2)
    )
    results = metrics.evaluate(scores, n_boot=50)
    table = robustness.robustness_table(results)
    assert list(table.columns) == ["detector", "metric", "clean", "JPEG 50", "blur 2"]
    rows = scores[scores["perturbation"] == "jpeg:50"]
    auc = metrics.compute(rows["label"], rows["score"])["auc"]
    assert table.loc[0, "JPEG 50"].startswith(f"{auc:.2f}\xa0[")


def test_generators_of_another_kind_have_their_own_rows_and_change_no_other():
    specs = dict.fromkeys(("none", "jpeg:50"), 0.2)
    scores = made_up(specs, specs, nets=("net", "other"))
    scores.loc[scores["generator"] == "other", "kind"] = "other-family"
    alone = scores[scores["generator"] != "other"]
    both, one = (robustness.robustness_table(metrics.evaluate(s, n_boot=50)) for s in (scores, alone))
    assert set(both["kind"]) == {"super-resolution", "other-family"} and "kind" not in one
    siblings = both[both["kind"] == "super-resolution"].drop(columns="kind")
    assert siblings.to_numpy().tolist() == one.to_numpy().tolist()


def test_figures_plot_the_numbers_that_they_are_given():
    specs = ("none", "jpeg:50", "jpeg:75", "blur:2", "rescale:0.5+jpeg:75")
    scores = made_up(dict.fromkeys(specs, 0), dict.fromkeys(specs, 0.2))
    results = metrics.evaluate(scores, n_boot=20)
    fig, table = perturbations.strength_curves(results, "jpeg", ["auc", "accuracy_val"])
    assert [ax.get_ylabel() for ax in fig.axes] == ["AUC", "accuracy\nat val. threshold"]
    auc = table[table["metric"] == "auc"].set_index(["group", "perturbation"])["value"]
    for group, line in zip(("net", "mean held-out"), fig.axes[0].lines, strict=False):
        np.testing.assert_array_equal(line.get_ydata(), auc[group][["none", "jpeg:75", "jpeg:50"]])
    assert fig.axes[0].lines[0].get_linewidth() < fig.axes[0].lines[1].get_linewidth()
    with pytest.raises(ValueError, match="family 'webp'"):
        perturbations.strength_curves(results, "webp")
    found = robustness.losses(scores, n_boot=20)
    fig, _ = perturbations.loss_bars(found, ["AUC"], "loss", "lost")
    shown = [text.get_text() for text in fig.axes[0].get_yticklabels()]
    assert shown == ["JPEG 75", "JPEG 50", "blur 2", "rescale 0.5 + JPEG 75"]


@pytest.fixture(scope="module")
def cross_fitted(small_frame, tmp_path_factory):
    return runs.cross_fit("spectrum", small_frame, tmp_path_factory.mktemp("run"), progress=False)


def test_each_image_is_scored_by_the_fold_that_never_saw_its_photograph(cross_fitted, small_frame):
    scores = robustness.score_folds(cross_fitted, small_frame, "jpeg:30, blur:2.0", progress=False)
    assert not scores.duplicated(KEY).any()
    assert set(scores["perturbation"]) == {"none", "jpeg:30", "blur:2"}
    clean = scores[scores["perturbation"] == "none"].set_index("path")["score"]
    before = read_scores(cross_fitted / "scores.csv").set_index("path")["score"]
    pd.testing.assert_series_equal(clean.sort_index(), before.sort_index(), check_exact=True)
    changed = scores[scores["perturbation"] == "blur:2"].set_index("path")["score"]
    assert (changed - clean).abs().max() > 1e-3
    part = use_fold(small_frame, 3)
    sources = set(part.loc[part["split"] == "test", "source"])
    assert set(scores.loc[scores["fold"] == 3, "source"]) == sources
    again = robustness.score_folds(cross_fitted, small_frame, ["jpeg:30", "blur:2"], progress=False)
    pd.testing.assert_frame_equal(again, scores)


def test_more_generators_than_colours_can_be_drawn():
    nets = [f"net {i}" for i in range(21)]
    results = metrics.evaluate(
        made_up({"none": 0, "jpeg:50": 0}, {"none": 0.1, "jpeg:50": 0.2}, nets), n_boot=2
    )
    fig, table = perturbations.strength_curves(results, "jpeg", ["auc"])
    assert table["group"].nunique() == 21 + 1
    assert len(fig.axes[0].lines) == 21 + 2


def test_bad_settings_are_refused_before_any_work(small_frame, tmp_path):
    for bad in ("jpeg:0", "blur:-1", "sharpen:2"):
        with pytest.raises(ValueError, match=bad.split(":")[0]):
            robustness.score_folds(tmp_path, small_frame, [bad])
    with pytest.raises(DataError, match="tiles per photograph: 0"):
        splits.few_tiles(small_frame, 0)
    with pytest.raises(DataError, match="kinds"):
        splits.few_tiles(small_frame, 1, ["no such kind"])
    for bad in ("jpeg:75", ["jpeg:101"], ["none"]):
        with pytest.raises(ValueError, match=r"augment|jpeg:101"):
            detectors.create("linear-probe", augment=bad)
    with pytest.raises(ModelError, match="no run here"):
        robustness.score_folds(tmp_path, small_frame, "jpeg:50", progress=False)


def test_few_tiles_keeps_every_photograph(demo_frame):
    few = splits.few_tiles(demo_frame, 2, ["super-resolution"])
    counts = few.groupby(["generator", "source"]).size()
    assert (counts.drop("x4plus") == 2).all() and (counts["x4plus"] == 1).all()
    assert few["source"].nunique() == demo_frame.loc[demo_frame["label"] == 0, "source"].nunique()


def test_an_augmented_probe_sees_each_image_twice_and_keeps_its_config(demo_frame, tmp_path):
    train = demo_frame[(demo_frame["split"] == "train") & demo_frame["path"].str.endswith("_0.png")]
    few = train[train["source"].isin(train["source"].unique()[:4])]
    probe = detectors.create("linear-probe", block="8", augment=["jpeg:30", "blur:3"])
    x, y = probe._augmented(few, progress=False)
    assert sum(map(len, x)) == len(y) == 2 * len(few)
    assert (y[len(few) :].sum(), y[: len(few)].sum()) == (few["label"].sum(),) * 2
    probe.fit(few, few, progress=False).save(tmp_path)
    assert detectors.load(tmp_path).augment == ("jpeg:30", "blur:3")
    np.testing.assert_allclose(detectors.load(tmp_path).score(few), probe.score(few))
