"""The gallery shows every notebook and figure, asks nothing of the network, and lets nothing in."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from conftest import picture
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from afp.figures.gallery import build_gallery

INTRO = """# 01 A title & more

**The question.** Is it <b>so</b>? See [the next](02_second.ipynb#part-two), [a script](../afp/images.py),
[the web](https://example.org/), [a trap](javascript:alert(1)) and
![a picture](https://example.org/x.png)."""
HOSTILE = """<meta http-equiv="refresh" content="0;url=https://example.org/"><base href="https://example.org/">
<form action="https://example.org/"><input name="word"><button>Send</button></form><table style="width: 3px"><tr>
<td colspan=2 onclick="alert(1)">wide</td></tr></table><script>alert(1)</script><SCRIPT src=//example.org></script >
<iframe src="https://example.org/"></iframe><style>@import url(https://example.org/x.css)</style>
<object data=x></object><img src="data:image/png;base64,AA==" onerror="alert(1)"><svg>
<script>alert(1)</script></svg><link rel=stylesheet href=//example.org><p style="background: url(https://example.org/y)">painted</p>"""
FORBIDDEN = {"script", "iframe", "link", "form", "input", "button", "object", "base", "svg", "embed"}


class Page(HTMLParser):
    """The elements of a page, each with its attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("executed")
    (folder / "figures").mkdir()
    shown = new_code_cell("1 + 1", outputs=[new_output("execute_result", {"text/html": HOSTILE})])
    nbformat.write(new_notebook(cells=[new_markdown_cell(INTRO), shown]), folder / "01_first.ipynb")
    second = new_notebook(cells=[new_markdown_cell("# 02 Second\n\nText.\n\n## Part two")])
    nbformat.write(second, folder / "02_second.ipynb")
    nbformat.write(second, folder / "failed-03_third.ipynb")
    for name in ("01_one", "99_old"):
        picture(1, 900).save(folder / "figures" / f"{name}.png")
    (folder / "figures" / "01_one.csv").write_text("x,y\n1,2\n")
    return folder


@pytest.fixture(scope="module")
def out(executed, tmp_path_factory):
    return build_gallery(executed, tmp_path_factory.mktemp("out") / "gallery", executed / "figures").parent


@pytest.fixture(scope="module")
def pages(out):
    return {p.name: Page(p.read_text(encoding="utf-8")) for p in out.glob("*.html")}


def test_every_notebook_and_figure_is_shown_and_every_link_leads_somewhere(pages, out):
    assert {"index.html", "01_first.html", "02_second.html", "GLOSSARY.html"} == set(pages)
    order = ["01 A title & more", "Is it so?", "01_one", "02 Second", "Text.", "Other figures", "99_old"]
    assert re.search(".*".join(map(re.escape, order)), pages["index.html"].text, re.DOTALL)
    for page in pages.values():
        for link in page.all("a"):
            target, _, fragment = link.get("href", "#").partition("#")
            if target and not target.startswith("https:"):
                assert (out / target).is_file(), target
                ids = {a["id"].lower() for _, a in pages[target].elements if "id" in a} if fragment else set()
                assert not fragment or fragment in ids, link
    first = pages["01_first.html"]
    links = [a.get("href", "") for a in first.all("a")]
    assert "02_second.html#part-two" in links and "https://example.org/" in links
    assert not [href for href in links if "images.py" in href or "javascript" in href]
    assert all(text in first.text for text in ("a script", "1 + 1", "wide", "painted"))
    assert (out / "figures" / "01_one.csv").read_text() == "x,y\n1,2\n"


def test_no_page_loads_or_runs_anything(pages):
    for page in pages.values():
        assert not {tag for tag, _ in page.elements} & FORBIDDEN and len(page.all("style")) == 1
        metas = [meta.get("http-equiv") for meta in page.all("meta")]
        assert metas.count("Content-Security-Policy") == 1 and "refresh" not in metas
        assert all(image.get("src", "data:").startswith("data:") for image in page.all("img"))
        assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
        assert not [a for _, a in page.elements if "example.org" in a.get("style", "")]
    assert "alert" not in pages["01_first.html"].text.replace("javascript:alert(1)", "")


def test_the_command_says_what_is_missing_or_where_the_gallery_is(executed, afp, monkeypatch):
    monkeypatch.delenv("AFP_FIGURES")
    assert "afp run --all" in afp("gallery", "nowhere").text
    code, shown = afp("gallery", executed, "--out", "g")
    assert code == 0 and "g/index.html" in shown and Path("g/figures/99_old.png").is_file()
