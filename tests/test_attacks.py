"""Attacks stay within their bound in the stored file, and a larger budget never helps the defender."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import picture
from PIL import Image

from afp.data import manifest, splits
from afp.data.audit import find_leaks
from afp.data.images import describe_file, open_image, sha256
from afp.errors import AfpError
from afp.models import differentiable
from afp.models.backbones import load_backbone
from afp.studies import attack_sets, attacks, gradients
from afp.studies.attacks import Settings


@pytest.fixture(scope="module")
def images():
    return [picture(i, 64) for i in range(6)]


@pytest.mark.parametrize("kind", attacks.KINDS)
def test_a_stored_attack_keeps_its_bound_and_its_manifest_is_sound(kind, small_frame, tiny_tower, tmp_path):
    settings = Settings(kind, epsilon=6 / 255, steps=3, size=20)
    found = attack_sets.make_attack_set(small_frame, tmp_path, settings, backbone=tiny_tower, progress=False)
    record = attack_sets.read_record(tmp_path)
    real, fake = (found[found["label"] == label].sort_values("source") for label in (0, 1))
    assert len(real) == len(fake) == small_frame["source"].nunique() == record["n"]
    assert (real["source"].to_numpy() == fake["source"].to_numpy()).all()
    largest = 0
    for before, after in zip(real["file"], fake["file"], strict=True):
        change = np.abs(*np.array([np.asarray(open_image(after), int) - np.asarray(open_image(before), int)]))
        if kind == "patch":
            assert not change[: 256 - 20].any() and not change[:, : 256 - 20].any()
        else:
            assert change.max() <= 6
        assert change.any()
        largest = max(largest, int(change.max()))
    assert record["largest_change"] == largest
    assert set(fake["kind"]) == {"attack"} and set(fake["split"]) == {"test", "none"}
    assert all(finding.ok for finding in find_leaks(found))
    stored = pd.DataFrame([describe_file(f) for f in found["file"]]).drop(columns="bytes_per_pixel")
    assert len(stored.astype(str).drop_duplicates()) == 1
    joined = pd.concat([small_frame, fake], ignore_index=True)
    assert all(finding.ok for finding in find_leaks(joined))
    assert kind not in set(splits.held_in_generators(splits.use_fold(joined, 1)))
    rate = record["success_rate"]
    assert 0 <= rate <= 1 if kind in ("pgd", "fgsm", "poison") else rate is None
    again = attack_sets.make_attack_set(small_frame, tmp_path, settings, backbone=tiny_tower, progress=False)
    assert again.equals(found)
    with pytest.raises(AfpError, match="another attacked set"):
        attack_sets.make_attack_set(
            small_frame, tmp_path, Settings(kind, 7 / 255, 3, 21), backbone=tiny_tower
        )


def test_the_stored_originals_are_the_photographs(small_frame, tmp_path):
    found = attack_sets.make_attack_set(small_frame, tmp_path, Settings("patch"), progress=False)
    first = found[found["label"] == 0].iloc[0]
    source = small_frame[(small_frame["label"] == 0) & (small_frame["source"] == first["source"])].iloc[0]
    expected = attack_sets.LOSSLESS(open_image(source["file"]))
    np.testing.assert_array_equal(np.asarray(open_image(first["file"])), np.asarray(expected))


def test_pgd_fools_a_classifier_and_collision_moves_towards_its_goal(images, tiny_tower):
    victim = gradients.PrototypeClassifier(load_backbone(tiny_tower, dtype="float32"), images, list("abcdef"))
    pixels, labels = differentiable.to_pixels(images), torch.arange(6)
    with torch.inference_mode():
        assert (victim(pixels).argmax(1) == labels).all()
    attacked = attacks.pgd_attack(victim, pixels, labels, 32 / 255, 10)
    assert (attacked - pixels).abs().max() <= 32 / 255 + 1e-6
    with torch.inference_mode():
        before, after = (torch.nn.functional.cross_entropy(victim(x), labels) for x in (pixels, attacked))
        assert after > before
    goals = pixels.roll(1, 0)
    moved = attacks.collide_features(victim.tower, pixels, goals, 16 / 255, 30)
    with torch.inference_mode():
        at, near, goal = (torch.nn.functional.normalize(victim.tower(x)) for x in (pixels, moved, goals))
    assert ((near * goal).sum(1) > (at * goal).sum(1)).all()


def test_rounding_to_8_bits_keeps_the_bound():
    base = Image.fromarray(np.array([[[0, 100, 255]]], np.uint8))
    pixels = differentiable.to_pixels([base])
    beyond = pixels + torch.tensor([0.9, -0.9, 0.9]).view(1, 3, 1, 1)
    stored = attacks.to_images(beyond, [base], 8.9 / 255)[0]
    assert np.asarray(stored).tolist() == [[[8, 92, 255]]]


def test_more_budget_never_helps_the_defender_and_no_limit_wins(probe, small_frame, images):
    labels = np.array([0, 1, 0, 1, 0, 1])
    found = attacks.attack_detector(
        gradients.DifferentiableDetector.of(probe), images, labels, [0, 2 / 255, 8 / 255, 1], steps=8
    )
    assert found.shape == (4, 6)
    steps = np.diff(found, axis=0)
    assert (steps[:, labels == 1] <= 0).all() and (steps[:, labels == 0] >= 0).all()
    assert found[-1, labels == 1].max() < found[-1, labels == 0].min()
    with pytest.raises(AfpError, match="rising"):
        attacks.attack_detector(gradients.DifferentiableDetector.of(probe), images, labels, [0.1, 0], steps=1)


def test_triggers_are_where_they_should_be(images, small_frame, tmp_path):
    marked = np.asarray(attacks.add_trigger(images[0], Settings("patch", size=16)))
    np.testing.assert_array_equal(marked[:48], np.asarray(images[0])[:48])
    assert set(np.unique(marked[48:, 48:])) == {0, 255}
    over_all = Settings("blended", epsilon=1)
    pattern = np.asarray(attacks.add_trigger(images[0], over_all))
    np.testing.assert_array_equal(pattern, np.asarray(attacks.add_trigger(images[1], over_all)))
    rows = attack_sets.triggered(small_frame.head(3), tmp_path, Settings("patch", size=8))
    attack_sets.triggered(
        small_frame.tail(3), tmp_path, Settings("patch", size=8)
    )  # leaves the others as they are
    assert [sha256(file) for file in rows["file"]] == rows["sha256"].tolist()
    assert rows["sha256"].tolist() != small_frame.head(3)["sha256"].tolist()
    assert (rows["label"] == small_frame.head(3)["label"]).all()
    with pytest.raises(AfpError, match="trigger"):
        attack_sets.triggered(small_frame, tmp_path, Settings("pgd"))


def test_bad_settings_are_refused_by_name(small_manifest, small_frame, afp, tmp_path):
    for bad, name in (
        ({"kind": "cw"}, "attack"),
        ({"kind": "pgd", "epsilon": 2}, "epsilon"),
        ({"kind": "pgd", "epsilon": 0.001}, "vanishes"),
        ({"kind": "pgd", "steps": 0}, "steps"),
        ({"kind": "patch", "size": 0}, "size"),
    ):
        with pytest.raises(AfpError, match=name):
            Settings(**bad)
    with pytest.raises(AfpError, match="at most"):
        attacks.add_trigger(picture(0), Settings("patch", size=65))
    with pytest.raises(AfpError, match="2 sources"):
        one = small_frame[small_frame["source"] == small_frame["source"].iloc[0]]
        attack_sets.make_attack_set(one, tmp_path / "one", Settings("pgd"))
    code, shown = afp("attack", "pgd", "-m", small_manifest, "--out", "x", "--epsilon", "eight")
    assert code == 2 and "eight" in shown and not (tmp_path / "x").exists()


def test_the_command_writes_a_set(small_manifest, afp):
    code, shown = afp("attack", "blended", "-m", small_manifest, "--out", "b")
    assert code == 0 and "largest change: 8" in shown
    assert len(manifest.read_manifest("b/manifest.csv")) == 24
