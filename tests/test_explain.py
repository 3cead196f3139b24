"""Maps of evidence: they sum to the logit, and what they claim is measured against chance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import picture
from conftest import save as save_picture
from models import small_clip, small_config, small_dual, small_vlm
from PIL import Image
from scipy.special import logit

from afp import detectors
from afp.data.preprocess import prepare_all
from afp.errors import ModelError
from afp.figures import overlays
from afp.models import backbones, differentiable
from afp.models.backbones import load_backbone
from afp.models.instructblip import load_vlm
from afp.results import runs
from afp.studies import relevance
from afp.studies.gradients import DifferentiableDetector


@pytest.fixture(scope="module", autouse=True)
def _float32():
    """Sums of many small parts are compared: bfloat16 would be too coarse."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "best_dtype", lambda device: torch.float32)
        yield


@pytest.fixture(scope="module")
def images():
    return [picture(i, 64) for i in range(4)]


# A detector on small towers of random weights: its backbone, and what makes its fit short.
SMALL = {
    "linear-probe": ("clip", {"block": "1", "c": [1.0]}),
    "linear-probe, embedding": ("dual", {"block": "embedding", "c": [1.0]}),
    "clip-zero-shot": ("dual", {}),
    "clip-prompt": ("clip", {"n_context": 2, "epochs": 1}),
    "clip-adapter": ("clip", {"epochs": 2}),
    "clip-finetune": ("dual", {"epochs": 1, "lr": 1e-2}),
    "vlm-zero-shot": ("t5", {}),
    "vlm-zero-shot, rank": ("llama", {"answer_scoring": "rank"}),
    "vlm-zero-shot, class tokens": ("llama", {}),
    "vlm-prompt": ("llama", {"epochs": 2, "lr": 0.5}),
    "vlm-lora": ("llama", {"epochs": 2, "lr": 0.1}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("towers")
    made = {"clip": small_clip(root / "clip"), "dual": small_dual(root / "dual")}
    return made | {llm: small_vlm(root / llm, small_config(llm)) for llm in ("llama", "t5")}


@pytest.mark.parametrize("case", SMALL)
def test_what_is_explained_is_the_detector_s_own_score(case, folders, small_frame):
    name, (backbone, config) = case.split(",")[0], SMALL[case]
    detector = detectors.create(name, backbone=folders[backbone], **config)
    if case.endswith("class tokens"):  # as `demo-vlm` has them
        vlm = load_vlm(folders["llama"], dtype="float32")
        detector.vlm_ = replace(vlm, tower=load_backbone(folders["clip"]), output="cls")
    parts = [small_frame[small_frame["split"] == s] for s in ("train", "validation")]
    detector.fit(*parts, progress=False)
    victim, images = DifferentiableDetector.of(detector), prepare_all(small_frame, detector.normalisation)
    with torch.no_grad():
        pixels = differentiable.to_pixels(images)
        found = victim.logit(victim.tower.embed(pixels)).numpy()
        np.testing.assert_allclose(victim(pixels).softmax(1)[:, 1], 1 / (1 + np.exp(-found)), rtol=1e-4)
    expected = logit(detector.score(small_frame))
    assert np.abs(found - expected).max() < 0.1 * expected.std()  # the score's features were kept in float16
    assert ((found >= victim.threshold) == (expected >= logit(detector.threshold_))).mean() > 0.9
    maps = relevance.relevance(victim, images[:2], n_steps=2)
    assert maps.shape in ((2, 2, 2), (2, 4, 4)) and np.abs(maps).max() > 0


@pytest.mark.parametrize("name", ["spectrum", "metadata"])
def test_detectors_that_read_no_patches_are_refused_by_name(name):
    with pytest.raises(ModelError, match=f"{name}: its score has no gradient, expected one of clip-"):
        DifferentiableDetector.of(detectors.create(name))


def test_relevances_sum_to_what_the_patches_add(probe, images):
    victim = DifferentiableDetector.of(probe)
    maps = relevance.relevance(victim, images, n_steps=64)
    assert maps.shape == (4, 4, 4)
    with torch.no_grad():
        states = victim.tower.embed(differentiable.to_pixels(images))
        added = victim.logit(states) - victim.logit(relevance._baseline(states))
    np.testing.assert_allclose(maps.sum((1, 2)), added, rtol=0.02, atol=0.01)


def test_deletion_measures_the_move_towards_the_other_decision(probe, images):
    victim = DifferentiableDetector.of(probe)
    maps = relevance.relevance(victim, images, n_steps=16)
    found = relevance.deletion(victim, images, maps, 0.25)
    upside_down = relevance.deletion(victim, images, -maps, 0.25)
    assert (found["relevant"] > upside_down["relevant"]).all()
    good, bad = (relevance.faithfulness(rows, list("abcd")).value for rows in (found, upside_down))
    assert good > bad
    with pytest.raises(ValueError, match=r"share: 1\.5"):
        relevance.deletion(victim, images, maps, 1.5)


def test_the_interval_is_over_sources():
    deleted = pd.DataFrame({"relevant": [1.0, 1.0, 3.0, 3.0], "random": 0.0})
    found = relevance.faithfulness(deleted, ["a", "a", "b", "b"])
    assert (found.value, found.low, found.high) == (2.0, 1.0, 3.0)


def test_pointing_is_the_chance_to_be_inside():
    mask = Image.fromarray(np.kron([[255, 0], [0, 0]], np.ones((32, 32))).astype(np.uint8))
    of_image = np.zeros((4, 4))
    of_image[:2, :2] = 1
    assert relevance.pointing(of_image, mask) == 1
    assert relevance.pointing(-of_image, mask) == 0
    assert np.isnan(relevance.pointing(of_image, Image.new("L", (64, 64), 255)))


def test_an_overlay_is_red_where_fake_and_blue_where_real(images):
    of_image = np.array([[1.0, 0.0], [0.0, -1.0]])
    shown = np.asarray(overlays.overlay(Image.new("RGB", (64, 64), "gray"), of_image), int)
    assert shown[0, 0, 0] > shown[0, 0, 2] and shown[-1, -1, 2] > shown[-1, -1, 0]
    assert overlays.overlay(images[0], np.zeros((2, 2))).size == images[0].size


def test_the_command_writes_an_overlay_for_each_readable_image(probe, afp, tmp_path):
    probe.save(tmp_path / "run")
    save_picture("images/a <b>.png", 1)
    Path("images/broken.png").write_bytes(b"nothing")
    code, shown = afp("score", "images", "--run", "run", "--explain", "maps")
    assert code == 1 and "overlays: 1" in shown
    assert [f.name for f in Path("maps").glob("*.png")] == ["0000-a__b_.png"]


def test_the_command_refuses_before_any_work_what_cannot_be_explained(small_frame, afp):
    runs.fit_run("metadata", small_frame, "run", progress=False)
    code, shown = afp("score", small_frame["file"].iloc[0], "--run", "run", "--explain", "maps")
    assert code == 2 and "metadata: its score has no gradient" in shown and not Path("scores.csv").exists()
