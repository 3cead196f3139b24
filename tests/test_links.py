"""What texts point to is there: files, anchors, notebooks, and the README's table of notebooks."""

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
PLACES = ("*.md", "docs/*.md", "data/**/*.md", "notebooks/*.md")
TEXTS = [path for place in PLACES for path in sorted(ROOT.glob(place))]
TEXTS = [path for path in TEXTS if not {"cache", "weights", "packages", "full"} & set(path.parts)]
LINK = re.compile(r"\]\(([^)\s]+)\)")


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
