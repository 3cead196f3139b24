"""What is said about a score is true of the run and of the file."""

from __future__ import annotations

import re

import pytest
from bs4 import BeautifulSoup
from conftest import picture
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from afp.cli import app
from afp.data.manifest import from_files
from afp.data.preprocess import Normalisation
from afp.figures import report
from afp.results import runs, verdict
from afp.results.scores import read_scores, score_to_csv
from afp.results.verdict import cautions, jpeg_quality

NASTY = "<img src=x onerror=alert(1)>'\"&.png"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    picture(100, 300).save(folder / "sound.png")
    picture(101, 300).save(folder / NASTY)
    (folder / "broken.jpg").write_bytes(b"not an image")
    return folder


def test_the_standing_of_a_score_is_a_count_of_validation_images(run):
    kept, standing = read_scores(run / "validation.csv"), verdict.Standing.of(run)
    real, fake = (kept.loc[kept["label"] == k, "score"] for k in (0, 1))
    for score in (0.0, float(real.iloc[0]), float(fake.iloc[0]), 1.0):
        counts = list(map(int, re.findall(r"\d+", standing.among(score))))
        assert counts == [(real >= score).sum(), len(real), (fake <= score).sum(), len(fake)]
    text = " ".join(standing.about())
    assert "half" in text and f"{standing.threshold:.3g}" in text
    assert f"{(real >= standing.threshold).sum()} of {len(real)} real images fake" in text


def test_a_run_without_validation_scores_says_so(run, tmp_path):
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    standing = verdict.Standing.of(tmp_path)
    assert "no validation scores" in standing.among(0.5) and "no validation scores" in standing.about()[1]


def _page() -> Image.Image:
    page = Image.new("RGB", (900, 700), "white")
    for line in range(20):
        ImageDraw.Draw(page).text((20, 30 * line), "a page of text " * 5, fill="black")
    return page


@pytest.mark.parametrize(
    ("word", "name", "make"),
    [
        ("", "sound.jpg", lambda f: picture(1, 300).save(f, quality=90)),
        ("tiny", "a.png", lambda f: picture(1, 100).save(f)),
        ("large", "a.jpg", lambda f: picture(1, 1100).save(f, quality=90)),
        ("elongated", "a.png", lambda f: picture(1, 600).crop((0, 0, 600, 260)).save(f)),
        ("heavily compressed", "a.jpg", lambda f: picture(1, 300).save(f, quality=40)),
        ("screenshot or drawing", "a.png", lambda f: _page().save(f)),
        ("screenshot?", "a.png", lambda f: picture(1, 1334).crop((0, 0, 750, 1334)).save(f)),
    ],
)
def test_a_caution_stands_where_its_reason_is_and_nowhere_else(word, name, make, tmp_path):
    make(tmp_path / name)
    found = cautions(tmp_path / name)
    assert [text[: len(word)] for text in found] == ([word] if word else [])


def test_a_tiny_image_is_tiny_for_the_detector_that_judges_it(tmp_path):
    picture(1, 100).save(tmp_path / "a.png")
    assert cautions(tmp_path / "a.png", Normalisation(size=64)) == []


@pytest.mark.parametrize("quality", [1, 20, 50, 75, 93, 100])
def test_the_jpeg_quality_is_read_from_the_tables(quality, tmp_path):
    picture(1).save(tmp_path / "a.jpg", quality=quality)
    with Image.open(tmp_path / "a.jpg") as image:
        assert jpeg_quality(image.quantization[0]) == quality


def test_the_page_stands_alone_and_escapes_names(run, images, tmp_path):
    frame = from_files(sorted(images.iterdir()))
    table = score_to_csv(run, frame, tmp_path / "s.csv", progress=False)
    text = report.write_html(table, frame, run, tmp_path / "deep" / "report.html").read_text(encoding="utf-8")
    page = BeautifulSoup(text, "html.parser")
    assert not re.search(r"//\w", re.sub(r"data:[^\"]*", "", text))
    pictures = [i["src"][:23] for i in page.find_all("img")]
    assert (
        pictures == ["data:image/webp;base64,"] * 2 and "Beside each picture" not in text
    )  # no maps: no patches
    assert not page.find(onerror=True)
    rows = [[cell.get_text() for cell in row.find_all("td")] for row in page.select("tbody tr")]
    assert (
        any(NASTY in row[1] for row in rows)
        and rows[-1][2] == "error"
        and "content is none of" in rows[-1][3]
    )
    good = table[table["error"] == ""].sort_values("score", ascending=False)
    assert [row[3][:5] for row in rows[:2]] == [f"{score:.3f}" for score in good["score"]]


def test_the_page_says_which_images_had_a_part_in_the_fit(run, small_frame, tmp_path):
    table = score_to_csv(run, small_frame, tmp_path / "s.csv", progress=False)
    text = report.write_html(table, small_frame, run, tmp_path / "r.html").read_text(encoding="utf-8")
    met = int((table["role"] != "").sum())
    assert 0 < met < len(table) and f"<li>{met} images {report.MET.replace(chr(39), '&#39;')}" in text
    assert text.count("themselves or by their photograph</p>") == met


def test_the_page_shows_where_a_tower_looks_in_the_highest_scores(tiny_tower, small_frame, images, tmp_path):
    config = {"backbone": tiny_tower, "block": "2", "c": [1.0]}
    run = runs.fit_run("linear-probe", small_frame, tmp_path / "r", config=config, progress=False)
    arguments = ["score", str(images), "--run", str(run), "--out", str(tmp_path / "s.csv"), "--html"]
    for n_maps in (2, 1, 0):
        CliRunner().invoke(app, [*arguments, str(tmp_path / "r.html"), "--maps", str(n_maps)])
        text = (tmp_path / "r.html").read_text(encoding="utf-8")
        page = BeautifulSoup(text, "html.parser")
        assert not page.find(onerror=True) and not re.search(r"//\w", re.sub(r"data:[^\"]*", "", text))
        shown = [[i["alt"] for i in row.find_all("img")] for row in page.select("tbody tr")]
        assert shown == [*[["", "relevance map"]] * n_maps, *[[""]] * (2 - n_maps), []]
        assert ("Beside each picture" in text) == (n_maps > 0) and ("of the 1 highest" in text) == (
            n_maps == 1
        )


def test_score_explains_its_answer_and_writes_the_page(run, images, tmp_path):
    arguments = ["score", str(images), "--run", str(run), "--out", str(tmp_path / "s.csv")]
    done = CliRunner().invoke(app, [*arguments, "--html", str(tmp_path / "r.html")])
    assert done.exit_code == 1  # one file is broken
    for text in ("P(fake)", "in validation", "were held out", "Calibration", "2 scored", "1 failed"):
        assert text in done.output
    assert (tmp_path / "r.html").is_file()
