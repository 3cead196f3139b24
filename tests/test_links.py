"""What texts point to is there: files, anchors, notebooks, glossary terms, and the README's table of notebooks."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from afp.paths import ROOT
from afp.workbook import NOTEBOOKS

BUILT = ("figures/",)  # drawn by the notebooks
CHAPTERS = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
SOLUTIONS = sorted(NOTEBOOKS.glob("solutions/*.ipynb"))
TEXTS = [ROOT / "README.md", *sorted((ROOT / "data").glob("**/*.md")), *sorted(NOTEBOOKS.glob("*.md"))]
TEXTS = [path for path in TEXTS if not {"cache", "weights", "packages", "full"} & set(path.parts)]
LINK = re.compile(r"\]\(([^)\s]+)\)")
GLOSSARY = NOTEBOOKS / "GLOSSARY.md"


def prose(path: Path) -> str:
    if path.suffix == ".md":
        return re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(c.source for c in cells if c.cell_type == "markdown")


def anchors(path: Path) -> set[str]:
    """As GitHub makes them: lower case, punctuation gone, blanks to dashes."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [*TEXTS, *CHAPTERS, *SOLUTIONS], ids=lambda p: p.name)
def test_every_internal_link_leads_somewhere(path):
    for link in LINK.findall(prose(path)):
        target, _, fragment = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (path.parent / target).resolve() if target else path
        relative = file.relative_to(ROOT).as_posix()
        assert file.exists() or relative.startswith(BUILT), f"{path.name}: {link}"
        if fragment:
            assert fragment in anchors(file), f"{path.name}: {link}"


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", NOTEBOOKS / "00_start_here.ipynb"], ids=lambda p: p.name
)
def test_the_tables_of_notebooks_match_the_folder(path):
    rows = re.findall(r"^\| (?:\[|`)?(\d\d_\w+)", prose(path), re.M)
    assert rows == [p.stem for p in CHAPTERS]


def test_glossary_terms_are_explained_once_and_can_be_linked_from_anywhere():
    """Each has the notebook that explains it. Lower case suits the anchors of both JupyterLab and GitHub."""
    text = GLOSSARY.read_text(encoding="utf-8")
    terms = re.findall(r"^### (.+)\n((?:(?!#).+\n)+)", text, re.M)
    names = [name for name, _ in terms]
    assert len(set(names)) == len(names) == text.count("\n### ") > 20
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in names)
    for name, explained in terms:
        assert LINK.findall(explained)[-1] in {p.name for p in CHAPTERS}, name


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_a_notebook_links_the_terms_that_it_uses_to_the_glossary(path):
    text = prose(path)
    words = re.sub(r"```.*?```|`[^`\n]*`|\]\([^)]*\)|^[#|].*$", "", text, flags=re.S | re.M)
    for term in re.findall(r"^### (.+)$", GLOSSARY.read_text(encoding="utf-8"), re.M):
        if re.search(rf"(?<![\w-]){term.replace('-', '[- ]')}s?(?![\w-])", words, re.I):
            assert f"(GLOSSARY.md#{term})" in text, term


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_a_notebook_begins_with_its_number_as_title(path):
    assert prose(path).startswith(f"# {path.stem[:2]} ")
