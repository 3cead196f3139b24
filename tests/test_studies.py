from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from afp.data.splits import held_in_generators, hold_in, use_fold
from afp.detectors import create
from afp.errors import DataError
from afp.studies import training_size
from afp.studies.transfer import transfer


@pytest.fixture
def frame():
    index = pd.MultiIndex.from_product([range(10), ["real", "real-resampled", "seen", "unseen"], range(3)])
    frame = index.set_names(["source", "generator", "tile"]).to_frame(index=False)
    frame["path"] = frame["generator"] + frame["source"].astype(str) + frame["tile"].astype(str)
    frame["label"] = frame["generator"].isin(["seen", "unseen"]).astype(int)
    frame["split"] = np.where(frame["generator"] == "unseen", "none", "train")
    return frame.assign(source=frame["source"].astype(str), kind="GAN", sha256=frame["path"])


def test_fewer_draws_photographs_or_tiles(frame):
    train = use_fold(frame, 0).query("split == 'train'")
    some = training_size.fewer(train, 2, None, seed=1)
    assert some["source"].nunique() == 2 and len(some) == 2 * 3 * 3
    shots = training_size.fewer(train, None, 1, seed=1)
    assert (shots.groupby(["source", "generator"]).size() == 1).all()
    assert set(shots["source"]) == set(train["source"])
    assert set(training_size.fewer(train, 2, None, seed=2)["path"]) != set(some["path"])
    assert sorted(training_size.fewer(train, None, None, seed=0)["path"]) == sorted(train["path"])


def test_fewer_sources_of_unrelated_images_hold_both_classes(frame):
    alone = frame[frame["generator"].isin(["real", "seen"])]
    alone = alone.assign(source=alone["path"])  # each image is its own source
    for seed in range(10):
        some = training_size.fewer(alone, 1, None, seed)
        assert set(some["label"]) == {0, 1} and some["source"].nunique() == 2


def test_a_kind_is_checked_before_any_fit(frame):
    assert training_size.check_kind(frame, "GAN") == "GAN" and training_size.check_kind(frame, "all") == "all"
    with pytest.raises(DataError, match="kind: 'diffusion', expected one of GAN, all"):
        training_size.check_kind(frame, "diffusion")
    with pytest.raises(DataError, match="all in training"):
        training_size.check_kind(frame[frame["generator"] != "unseen"], "all")


def test_half_width_is_student_s():
    values = pd.Series([0.7, 0.8, 0.85, 0.9])
    low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert training_size.half_width(values) == pytest.approx((high - low) / 2)
    assert np.isnan(training_size.half_width(values[:1]))


def test_held_out_takes_one_row_of_the_metrics(frame):
    rng = np.random.default_rng(0)
    scores = frame.assign(score=rng.uniform(size=len(frame)), threshold=0.5, error="", perturbation="none")
    scores = scores.assign(detector="x", seen=(scores["generator"] == "seen").astype(int))
    one = training_size.Attempt(None, scores, 0, 0.0, 0.0)
    fake, real = (scores.loc[scores["generator"] == g, "score"].to_numpy() for g in ("unseen", "real"))
    assert one.held_out("GAN") == pytest.approx((fake[:, None] > real).mean())
    with pytest.raises(ValueError, match="0 rows in the metrics"):
        one.held_out("no such kind")


def test_each_generator_is_learned_from_in_turn(small_frame):
    """Fresh cross-fits by hand give the same diagonal and the same off-diagonal cell."""
    names = ["half", "half-twice"]
    table = transfer("spectrum", small_frame, names, n_boot=0, progress=False).set_index(
        ["trained", "tested"]
    )
    assert list(table.index) == [
        ("half", "half"),
        ("half", "half-twice"),
        ("half-twice", "half"),
        ("half-twice",) * 2,
    ]
    for trained in names:
        found = []
        for k in range(5):
            part = use_fold(hold_in(small_frame, [trained]), k)
            assert held_in_generators(part) == [trained]
            used = part[(part["label"] == 0) | (part["generator"] == trained)]
            test = part[(part["split"] == "test") & part["generator"].isin(["real", "half"])]
            detector = create("spectrum").fit(
                used[used["split"] == "train"], used[used["split"] == "validation"]
            )
            found.append(roc_auc_score(test["label"], detector.score(test)))
        assert table.loc[(trained, "half"), "auc"] == pytest.approx(np.mean(found))
    with pytest.raises(DataError, match="no fake image by 'real', expected some of half, half-twice"):
        hold_in(small_frame, ["real"])
