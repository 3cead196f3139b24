"""A slider does what it shows, and what the static figure shows too."""

from __future__ import annotations

import asyncio
import io

import ipywidgets
import numpy as np
import pytest
from PIL import Image

from afp import detectors
from afp.errors import AfpError
from afp.figures import widgets


@pytest.fixture(scope="module")
def detector(small_frame):
    train, validation = (small_frame[small_frame["split"] == s] for s in ("train", "validation"))
    return detectors.create("spectrum").fit(train, validation, progress=False)


@pytest.fixture
def image(small_frame):
    return small_frame[small_frame["generator"] == "half"].iloc[[0]]


def test_moving_a_slider_changes_the_picture_and_the_score_as_the_detector_gives_it(detector, image):
    blur, quality, picture, answer = widgets.sliders(detector, image).children
    assert isinstance(blur, ipywidgets.FloatSlider)
    assert f"{detector.score(image)[0]:.3f}" in answer.value
    before = picture.value
    blur.value, quality.value = 2.0, 20
    assert (
        f"{detector.score(image, 'blur:2+jpeg:20')[0]:.3f}" in answer.value
        and "blur:2+jpeg:20" in answer.value
    )
    assert picture.value != before and Image.open(io.BytesIO(picture.value)).size == (256, 256)
    blur.value = 0
    assert "<code>jpeg:20</code>" in answer.value


def test_moves_that_follow_each_other_are_answered_once(detector, image):
    """As in a kernel, whose loop hands over one move after the other."""
    blur, _quality, _picture, answer = widgets.sliders(detector, image).children
    shown = []
    answer.observe(lambda change: shown.append(change["new"]), "value")

    async def drag():
        for value in (1, 2, 3):
            blur.value = value
            await asyncio.sleep(0)
        await asyncio.sleep(3 * widgets.PATIENCE)

    asyncio.run(drag())
    assert shown[0] == "computing ..." and len(shown) == 2 and "blur:3" in shown[1]


def test_the_static_figure_has_the_same_scores(detector, image):
    fig, table = widgets.ladder(detector, image, ("none", "jpeg:30"))
    assert table["score"].tolist() == [detector.score(image, spec)[0] for spec in ("none", "jpeg:30")]
    assert [ax.get_title()[:4] for ax in fig.axes] == ["none", "jpeg"]


def test_another_image_and_another_detector_are_a_choice_away(detector, small_frame):
    images = small_frame.groupby("generator").head(1)
    strict = detectors.create("spectrum").fit(small_frame, small_frame, progress=False)
    strict.threshold_ = 0.0  # everything is fake
    box = widgets.sliders({"spectrum": detector, "strict": strict}, images)
    which, judge, _blur, quality, picture, answer = box.children
    assert [label for label, _ in which.options] == [f"{r.generator}: {r.path}" for r in images.itertuples()]
    for i in range(len(images)):
        before, which.value = picture.value, i
        assert f"{detector.score(images.iloc[[i]])[0]:.3f}" in answer.value
        assert i == 0 or picture.value != before
    judge.value, quality.value = "strict", 20
    score = strict.score(images.iloc[[i]], "jpeg:20")[0]
    assert answer.value.startswith("<b>fake</b>") and f"{score:.3f}, threshold 0.000" in answer.value


def test_a_ladder_of_several_images_has_a_row_for_each(detector, small_frame):
    images = small_frame.groupby("generator").head(1)
    fig, table = widgets.ladder(detector, images, ("none", "blur:1"))
    assert len(fig.axes) == 2 * len(images) == len(table)
    assert table["score"].tolist()[2:4] == [detector.score(images, s)[1] for s in ("none", "blur:1")]
    assert fig.axes[2].get_title().startswith(f"{images['generator'].iloc[1]}\nnone\nP(fake)")
    fake = (table["score"] >= detector.threshold_).to_numpy().reshape(-1, 2)
    framed = np.reshape([bool(ax.patches) for ax in fig.axes], (-1, 2))
    assert (framed[:, 1] == (fake[:, 0] != fake[:, 1])).all() and not framed[:, 0].any() and framed.any()


def test_nothing_to_choose_from_is_said(detector, small_frame):
    for known, images in ((detector, small_frame.iloc[:0]), ({}, small_frame)):
        with pytest.raises(AfpError, match="expected 1 or more of each"):
            widgets.sliders(known, images)
