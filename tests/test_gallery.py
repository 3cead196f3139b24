"""The gallery shows every notebook and figure, and asks nothing of the network."""

from __future__ import annotations

import nbformat
import pytest
from bs4 import BeautifulSoup
from conftest import picture
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from typer.testing import CliRunner

from afp.cli import app
from afp.errors import AfpError
from afp.figures.gallery import build

INTRO = """# 01 A title & more

**The question.** Is it <b>so</b>? See [the next](02_second.ipynb#part-two), [a script](../afp/images.py),
[the web](https://example.org/) and ![a picture](https://example.org/x.png)."""
TABLE = (
    "<table><tr><td>" + "wide" * 100 + "</td></tr></table><script src='https://example.org/x.js'></script>"
)


@pytest.fixture
def executed(tmp_path):
    folder = tmp_path / "executed"
    folder.mkdir()
    shown = new_code_cell("1 + 1", outputs=[new_output("execute_result", {"text/html": TABLE})])
    nbformat.write(new_notebook(cells=[new_markdown_cell(INTRO), shown]), folder / "01_first.ipynb")
    second = new_notebook(cells=[new_markdown_cell("# 02 Second\n\nText.\n\n## Part two")])
    nbformat.write(second, folder / "02_second.ipynb")
    nbformat.write(second, folder / "03_third.failed.ipynb")
    return folder


@pytest.fixture
def figures(tmp_path):
    folder = tmp_path / "figures"
    folder.mkdir()
    for name in ("01_one", "99_old"):
        picture(1, 900).save(folder / f"{name}.png")
    (folder / "01_one.csv").write_text("x,y\n1,2\n")
    return folder


def _soups(index):
    return {
        p.name: BeautifulSoup(p.read_text(encoding="utf-8"), "html.parser")
        for p in index.parent.glob("*.html")
    }


def test_every_notebook_and_figure_is_shown_and_every_link_leads_somewhere(executed, figures, tmp_path):
    index = build(executed, tmp_path / "out", figures)
    pages = _soups(index)
    assert {"index.html", "01_first.html", "02_second.html"} <= set(pages)
    assert "03_third.failed.html" not in pages
    cards = pages["index.html"].select(".card")
    assert [card.h2.get_text() for card in cards] == ["01 A title & more", "02 Second", "Other figures"]
    assert "Is it so?" in cards[0].p.get_text()
    assert [card.get_text().count("_") for card in cards] == [1, 0, 1]
    for soup in pages.values():
        for link in soup.find_all("a", href=True):
            target, _, fragment = link["href"].partition("#")
            if not target.startswith("https:"):
                assert (index.parent / target).is_file(), target
                assert not fragment or pages[target].find(id=lambda i, f=fragment: i and i.lower() == f)
    assert "a script" in pages["01_first.html"].get_text()
    assert (index.parent / "figures" / "01_one.csv").read_text() == "x,y\n1,2\n"


def test_no_page_loads_anything(executed, figures, tmp_path):
    for soup in _soups(build(executed, tmp_path / "out", figures)).values():
        assert not soup.find_all(["script", "iframe", "link"])
        assert all(image["src"].startswith("data:") for image in soup.find_all("img"))
        assert "default-src 'none'" in soup.find("meta", attrs={"http-equiv": True})["content"]


def test_a_second_build_replaces_the_first_and_nothing_else(executed, figures, tmp_path):
    out = tmp_path / "out"
    build(executed, out, figures)
    (executed / "02_second.ipynb").unlink()
    build(executed, out, figures)
    assert not (out / "02_second.html").exists()
    with pytest.raises(AfpError, match="no gallery"):
        build(executed, figures, figures)
    assert (figures / "99_old.png").is_file()


def test_the_command_says_what_is_missing_or_where_the_gallery_is(executed, tmp_path, monkeypatch):
    with pytest.raises(AfpError, match="afp run --all"):
        build(tmp_path / "nowhere", tmp_path / "out")
    monkeypatch.setenv("AFP_FIGURES", str(tmp_path / "none"))
    done = CliRunner().invoke(app, ["gallery", str(executed), "--out", str(tmp_path / "g")])
    assert done.exit_code == 0 and str(tmp_path / "g" / "index.html") in done.output
