"""A perturbation does what it says, more of it does more, and nothing else decides the result."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from afp.data.preprocess import PERTURBATIONS, Normalisation, check_perturbation, perturb

PHOTOS = [
    Normalisation(128)(Image.fromarray(load_sample_image(name))) for name in ("china.jpg", "flower.jpg")
]
# Each from the mildest to the hardest.
SEVERITIES = {
    "jpeg": [100, 90, 75, 50, 30, 10],
    "webp": [100, 90, 75, 50, 30, 10],
    "blur": [0.5, 1, 2, 3, 4],
    "rescale": [0.9, 0.75, 0.5, 0.25, 0.1],
    "noise": [1, 2, 4, 8, 16, 32],
    "crop": [0.98, 0.9, 0.7, 0.4],
}


def array(image):
    return np.asarray(image, np.float64)


def psnr(image, other):
    return 10 * math.log10(255**2 / ((array(image) - array(other)) ** 2).mean())


@pytest.mark.parametrize("name", PERTURBATIONS)
@pytest.mark.parametrize("photo", PHOTOS, ids=["china", "flower"])
def test_changes_pixels_and_harms_more_when_stronger(name, photo):
    before = array(photo)
    values = []
    for value in SEVERITIES[name]:
        result = perturb(photo, f"{name}:{value}", seed=0)
        assert result.mode == "RGB" and result.size == photo.size
        values.append(psnr(result, photo))
    assert values == sorted(values, reverse=True) and len(set(values)) == len(values)
    assert values[0] < 60 and values[-1] < 32
    assert (array(photo) == before).all()


@pytest.mark.parametrize("spec", ["none", "blur:0", "noise:0", "rescale:1", "crop:1"])
def test_identities(spec):
    assert (array(perturb(PHOTOS[0], spec, seed=0)) == array(PHOTOS[0])).all()


@pytest.mark.parametrize("sigma", [0.5, 1, 2, 4])
def test_blur_is_a_true_gaussian_in_pixels(sigma):
    radius = round(4 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    expected = np.pad(array(PHOTOS[0]), ((radius, radius), (radius, radius), (0, 0)), mode="symmetric")
    for axis in (0, 1):
        expected = np.apply_along_axis(np.convolve, axis, expected, kernel, mode="valid")
    assert np.abs(array(perturb(PHOTOS[0], f"blur:{sigma}", seed=0)) - expected).max() <= 0.5 + 1e-6


def test_noise_has_the_sd_that_it_names():
    grey = Image.new("RGB", (200, 200), (128, 128, 128))
    for sd in (2, 8):
        noise = array(perturb(grey, f"noise:{sd}", seed="a")) - 128
        assert noise.std() == pytest.approx(math.sqrt(sd**2 + 1 / 12), rel=0.02)  # 1/12: rounding to levels
        assert abs(noise.mean()) < 0.1
        assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.03
    twice = array(perturb(grey, "noise:8+noise:8", seed=0))
    assert twice.std() == pytest.approx(8 * math.sqrt(2), rel=0.03)  # two draws, not one doubled


def test_quality_is_the_encoders_own(tmp_path):
    photo = PHOTOS[0]
    photo.save(tmp_path / "50.jpg", quality=50, subsampling="4:2:0")
    assert (array(perturb(photo, "jpeg:50", seed=0)) == array(Image.open(tmp_path / "50.jpg"))).all()
    photo.save(tmp_path / "50.webp", quality=50)
    assert (array(perturb(photo, "webp:50", seed=0)) == array(Image.open(tmp_path / "50.webp"))).all()


def test_crop_keeps_a_share_of_the_picture():
    """On a ramp, the place and the width of the kept part can be read from the ends."""
    ramp = Image.fromarray(np.tile(np.arange(0, 250, 2, dtype=np.uint8), (125, 1))).convert("RGB")
    starts = set()
    for seed in range(8):
        row = array(perturb(ramp, "crop:0.5", seed))[60, :, 0]
        assert row[-1] - row[0] == pytest.approx(250 / 2, abs=6)
        starts.add(row[0])
    assert len(starts) > 4 and max(starts) <= 130


@pytest.mark.parametrize("spec", ["noise:8", "crop:0.7", "crop:0.7+noise:8"])
def test_the_seed_alone_decides(spec):
    first = array(perturb(PHOTOS[0], spec, seed="image 1"))
    np.random.seed(1)
    random.seed(1)
    assert (array(perturb(PHOTOS[0], spec, seed="image 1")) == first).all()
    assert (array(perturb(PHOTOS[0], spec, seed="image 2")) != first).any()
    assert (array(perturb(PHOTOS[0], spec, seed=1)) == array(perturb(PHOTOS[0], spec, seed="1"))).all()


@pytest.mark.parametrize("spec", ["rescale:0.5+jpeg:75", "jpeg:75+rescale:0.5", "crop:0.8+noise:4+webp:50"])
def test_a_chain_is_its_parts_in_order(spec):
    expected = PHOTOS[0]
    for part in spec.split("+"):
        expected = perturb(expected, part, seed=3)
    assert (array(perturb(PHOTOS[0], spec, seed=3)) == array(expected)).all()
    assert (array(perturb(PHOTOS[0], "+".join(reversed(spec.split("+"))), seed=3)) != array(expected)).any()


def test_canonical_specs():
    assert check_perturbation("none") == check_perturbation(" None ") == "none"
    assert check_perturbation("blur:1.0") == check_perturbation("Blur:1") == "blur:1"
    assert check_perturbation(" rescale:.5 + jpeg:75 ") == "rescale:0.5+jpeg:75"


@pytest.mark.parametrize(
    ("spec", "part", "expected"),
    [
        ("jpeg:0", "jpeg:0", "value 0, expected a whole number from 1 to 100"),
        ("jpeg:75.5", "jpeg:75.5", "expected a whole number"),
        ("webp:101", "webp:101", "from 1 to 100"),
        ("jpeg:75+blur:-1", "blur:-1", "value -1, expected a number from 0 to 64"),
        ("noise:nan", "noise:nan", "from 0 to 255"),
        ("noise:inf", "noise:inf", "from 0 to 255"),
        ("rescale:0", "rescale:0", "from 0.01 to 1"),
        ("crop:1.5", "crop:1.5", "from 0.01 to 1"),
        ("blur", "blur", "value ''"),
        ("blur:", "blur:", "value ''"),
        ("blur:one", "blur:one", "value 'one'"),
        ("sharpen:2", "sharpen:2", "'sharpen' is none of jpeg, webp, blur"),
        ("none+jpeg:75", "none", "'none' alone"),
        ("jpeg:75+", "", "is none of"),
        ("", "", "is none of"),
    ],
)
def test_bad_settings_are_refused_by_name(spec, part, expected):
    for function in (check_perturbation, lambda spec: perturb(PHOTOS[0], spec, seed=0)):
        with pytest.raises(ValueError) as caught:
            function(spec)
        assert f"perturbation {spec!r}, part {part!r}" in str(caught.value) and expected in str(caught.value)


def test_other_bad_input():
    with pytest.raises(ValueError, match="perturbation 75: expected text"):
        check_perturbation(75)
    with pytest.raises(ValueError, match="mode 'L': expected 'RGB'"):
        perturb(PHOTOS[0].convert("L"), "blur:1", seed=0)
