"""Numbers that tell structure from noise, maps that repeat, and a page that no file name can break."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from conftest import save

from afp.errors import DataError
from afp.figures import maps
from afp.studies import feature_space


@pytest.fixture(scope="module")
def made_up():
    """20 photographs with 4 real and 4 fake versions; features hold the photograph, and faintly the label."""
    rng = np.random.default_rng(0)
    source = np.repeat(np.arange(20), 8)
    label = np.tile([0, 0, 0, 0, 1, 1, 1, 1], 20)
    photo = rng.normal(0, 2, (20, 30))[source]
    features = photo + rng.normal(0, 1, (160, 30))
    features[:, 0] += 3 * label
    return features, label, source


def measured(features, labels, sources, k=5, n_permutations=30):
    x = feature_space.unit_features(features)
    return feature_space.measure(x, labels, sources, k=k, n_permutations=n_permutations)


def test_structure_is_found_and_noise_is_not(made_up):
    features, label, source = made_up
    found = measured(features, label, source)
    assert list(found.index) == list(feature_space.MEASURES)
    assert found.loc["separability", "p"] < 0.05 and found.loc["separability", "value"] > 0.7
    assert found["null"].between(-0.1, 0.6).all()
    chance = measured(np.random.default_rng(1).normal(size=features.shape), label, source, n_permutations=50)
    assert (chance["p"] > 0.02).all()
    assert chance.loc["separability", "null"] == pytest.approx(0.5, abs=0.05)
    photo = measured(features, source, source)
    assert list(photo.index) == ["purity", "silhouette"]
    assert photo.loc["purity", "value"] > 0.8 > 5 * photo.loc["purity", "null"]


def test_purity_counts_what_it_says():
    features = np.eye(2)[[0, 0, 0, 1, 1, 1]] + 0.01 * np.random.default_rng(0).normal(size=(6, 2))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    label, source = [0, 0, 1, 1, 1, 0], [0, 1, 2, 0, 1, 2]
    found = feature_space.measure(features, label, source, k=2, n_permutations=5)
    assert found.loc["purity", "value"] == pytest.approx(2 * (1 + 1 + 0) / 12)


def test_a_label_of_few_images_that_lie_together_is_pure():
    """Three images of each photograph, ten neighbours; and among other photographs none of its own is counted."""
    source = np.repeat(np.arange(5), 3)
    found = feature_space.measure(np.repeat(np.eye(5), 3, axis=0), source, source, k=10, n_permutations=5)
    assert found.loc["purity", "value"] == 1
    features = np.array([[1.0, 0], [0, 1]])[np.arange(8) % 2]  # each photograph has an image in both corners
    label, source = np.arange(8) % 2, np.repeat(np.arange(4), 2)
    found = feature_space.measure(features, label, source, k=7, n_permutations=5)
    assert found.loc["purity, other photographs", "value"] == 1


def test_dealing_keeps_each_photographs_labels():
    y, s = np.array([0, 1, 1, 0, 0, 1, 1, 1]), np.array([2, 0, 2, 0, 1, 1, 0, 2])
    rng = np.random.default_rng(0)
    dealt = [feature_space._deal(y, s, rng) for _ in range(30)]
    for group in range(3):
        assert all(sorted(d[s == group]) == sorted(y[s == group]) for d in dealt)
    assert len({tuple(d) for d in dealt}) > 5


def test_without_versions_of_a_photograph_whole_sources_are_dealt():
    """A folder of a user's own: each source is real or fake, and each has two images."""
    rng = np.random.default_rng(0)
    source = np.repeat(np.arange(40), 2)
    label = source % 2
    x = rng.normal(size=(80, 20))
    x[:, 0] += 4 * label
    found = measured(x, label, source)
    assert list(found.index) == list(feature_space.MEASURES)
    assert found.loc["separability", "value"] > 0.9 and found.loc["separability", "p"] < 0.05
    photos = rng.normal(0, 3, (40, 20))[source] + rng.normal(size=(80, 20))  # nothing but the photograph
    chance = measured(photos, label, source, k=1)  # the source's other image is near, and bears its label
    assert chance.loc["purity", "null"] > 0.9
    with pytest.raises(ValueError, match="80 labels of 80 images"):
        measured(x, np.arange(80), source)


def test_a_few_photographs_with_several_labels_do_not_fix_the_others(made_up):
    features, label, _source = made_up
    alone = np.arange(160)
    alone[:2] = alone[4:6] = 0, 1  # file names that happen to be the same
    assert abs(measured(features, label, alone).loc["separability", "null"] - 0.5) < 0.1


def test_an_unmatched_map_shows_no_photograph_in_both_classes(made_up):
    _, label, source = made_up
    frame = pd.DataFrame({"label": label, "source": source})
    shown = frame[feature_space.unmatched(frame)]
    assert (shown.groupby("source")["label"].nunique() == 1).all()
    assert shown["label"].mean() == 0.5 and shown["source"].nunique() == 20


def test_chosen_rows_are_whole_sources_that_nobody_trained_on():
    rows = [
        {"source": f"s{s}", "split": split, "label": label, "kind": kind, "path": f"{s}{kind}"}
        for s in range(20)
        for split in (["train"] if s < 4 else ["test"])
        for label, kind in ((0, "real"), (1, "unknown"), (1, "face"))
    ]
    frame = pd.DataFrame(rows)
    shown = feature_space.select_images(frame)
    assert len(shown) == 48 and not shown["source"].isin(["s0", "s1", "s2", "s3"]).any()
    few = feature_space.select_images(frame, ["face"], most=11)
    assert (
        set(few["kind"]) == {"real", "face"} and (few.groupby("source").size() == 2).all() and len(few) == 10
    )
    shuffled = feature_space.select_images(frame.sample(frac=1, random_state=0), ["face"], most=11)
    assert set(shuffled["source"]) == set(few["source"])
    with pytest.raises(DataError, match=r"kinds: \['sr'\] leaves labels \[0\].*'face', 'unknown'"):
        feature_space.select_images(frame, ["sr"])
    with pytest.raises(DataError, match="most: 0"):
        feature_space.select_images(frame, most=0)


def test_maps_repeat_and_refuse_bad_settings(made_up):
    features = feature_space.unit_features(made_up[0])
    for method in ("pca", "tsne"):
        first, again = (feature_space.project(features, method, 10) for _ in range(2))
        assert first.shape == (160, 2)
        np.testing.assert_array_equal(first, again)
    for method, neighbours, message in (("mds", 5, "method"), ("tsne", 1, "neigh"), ("umap", 100, "neigh")):
        with pytest.raises(ValueError, match=message):
            feature_space.project(features, method, neighbours)
    with pytest.raises(ValueError, match="k: 160"):
        measured(*made_up, k=160)
    with pytest.raises(ValueError, match="1 labels"):
        measured(made_up[0], np.zeros(160), made_up[2])


def test_the_page_opens_offline_and_no_name_becomes_markup(tmp_path):
    evil = "</script><img src=x onerror=alert(1)>.png"
    frame = pd.DataFrame({"generator": ["real", "<b>net</b>", "net"], "label": [0, 1, 1]})
    frame = frame.assign(kind="k", source="<i>s</i>", path=[f"{i} {evil}" for i in range(3)])
    frame["file"] = [str(save(tmp_path / f"{i}.png", i)) for i in range(3)]
    xy = np.arange(6.0).reshape(3, 2)
    page = maps.write_page(xy, frame, tmp_path / "new" / "map.html", "<u>t</u>")
    text = page.read_text(encoding="utf-8")
    for markup in (evil, "<b>net", "<i>s", "<u>t"):
        assert markup not in text
    assert not re.search(r"<script[^>]+src=|<link[^>]+href=", text)
    assert text.count("data:image") >= 3
    _fig, table = maps.maps({"a": xy}, frame, ["label", "generator", "source"])
    np.testing.assert_array_equal(table[["x", "y"]], xy)


def test_twenty_generators_have_a_colour_each():
    nets = [f"net {i}" for i in range(20)]
    rows = pd.DataFrame({"generator": ["real", *nets], "kind": "unknown", "label": [0] + [1] * 20})
    colours, legend = maps._colours(rows, "generator")
    assert len(set(colours)) == 21 and not legend
