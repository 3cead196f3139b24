"""The executed notebooks and their figures as static pages that ask nothing of the network."""

from __future__ import annotations

import base64
import io
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import jinja2
import nbformat
from bs4 import BeautifulSoup
from nbconvert import HTMLExporter
from PIL import Image
from pygments.formatters import HtmlFormatter

from ..errors import AfpError
from ..paths import NOTEBOOKS, figures_dir

TITLE = "Was this image made by a generator?"
THUMBNAIL = 480  # pixels, the longer side


def build(executed: str | Path, out: str | Path, figures: str | Path | None = None) -> Path:
    """Write ``index.html``, a page for every executed notebook and Markdown text, and the figures.

    Args:
        executed: folder of executed notebooks (`afp run` writes them).
        out: folder of the pages; what an earlier build left there is replaced.
        figures: default `afp.paths.figures_dir`; a figure belongs to the notebook whose number it begins with.
    Returns:
        The index page.
    Raises:
        AfpError: no executed notebook in the folder, or ``out`` holds something else than a gallery.
    """
    out, figures = Path(out), Path(figures or figures_dir())
    notebooks = sorted(Path(executed).glob("[0-9][0-9]_*.ipynb"))
    notebooks = [path for path in notebooks if not path.name.endswith(".failed.ipynb")]
    if not notebooks:
        raise AfpError(f"{executed}: no executed notebooks; make them with `afp run --all`")
    if out.exists() and any(out.iterdir()):
        if not (out / "index.html").is_file():
            raise AfpError(f"{out}: is not empty and no gallery; give another folder")
        shutil.rmtree(out)
    (out / "figures").mkdir(parents=True)
    texts = sorted(NOTEBOOKS.glob("*.md"))
    sources = {path.name: f"{path.stem}.html" for path in [*notebooks, *texts]}
    environment = jinja2.Environment(loader=jinja2.PackageLoader("afp.figures"), autoescape=True)
    highlighting = HtmlFormatter(style="default").get_style_defs(".highlight")
    pages = [_page(path, sources) for path in [*notebooks, *texts]]
    for i, page in enumerate(pages):
        around = [pages[j] for j in (i - 1, i + 1) if 0 <= j < len(pages)]
        nav = [("all notebooks", "index.html"), *((p["title"], p["href"]) for p in around)]
        content = page | {"home": True, "nav": nav, "highlighting": highlighting}
        text = environment.get_template("page.html").render(content)
        (out / page["href"]).write_text(text, encoding="utf-8")
    drawn = [_figure(png, out / "figures") for png in sorted(figures.glob("*.png"))]
    for page in pages:
        page["figures"] = [
            f for f in drawn if page["href"][:2].isdigit() and f["name"][:3] == page["href"][:3]
        ]
    used = {figure["name"] for page in pages for figure in page["figures"]}
    content = {
        "title": TITLE,
        "highlighting": highlighting,
        "rest": [f for f in drawn if f["name"] not in used],
    }
    content |= {"notebooks": pages[: len(notebooks)], "texts": pages[len(notebooks) :]}
    index = out / "index.html"
    index.write_text(environment.get_template("index.html").render(content), encoding="utf-8")
    return index


def _page(path: Path, sources: dict[str, str]) -> dict[str, str]:
    if path.suffix == ".md":
        cell = nbformat.v4.new_markdown_cell(path.read_text(encoding="utf-8"))
        notebook = nbformat.v4.new_notebook(cells=[cell])
    else:
        notebook = nbformat.read(path, as_version=4)
    # nbconvert's "basic" is the cells alone: its full templates load scripts from elsewhere.
    body, _ = HTMLExporter(template_name="basic").from_notebook_node(notebook)
    soup = BeautifulSoup(body, "html.parser")
    _keep_at_home(soup, sources)
    for table in soup.find_all("table"):
        table.wrap(soup.new_tag("div", attrs={"class": "wide"}))
    for mark in soup.select(".anchor-link"):
        mark.decompose()
    heading, question = soup.find("h1"), soup.find("p")
    return {
        "title": heading.get_text() if heading else path.stem,
        "question": question.get_text().removeprefix("The question.").strip() if question else "",
        "href": sources[path.name],
        "body": str(soup),
    }


def _keep_at_home(soup: BeautifulSoup, sources: dict[str, str]) -> None:
    """Keep links between pages and to the web; links to other files become text, outside pictures and scripts go."""
    for link in soup.find_all("a", href=True):
        parts = urlsplit(link["href"])
        if parts.scheme or not parts.path:
            continue
        if parts.path in sources:
            link["href"] = sources[parts.path] + (f"#{parts.fragment}" if parts.fragment else "")
        else:
            link.unwrap()
    for image in soup.find_all("img"):
        if not image.get("src", "").startswith("data:"):
            image.replace_with(image.get("alt", ""))
    for element in soup.find_all(["script", "iframe", "link"]):
        element.decompose()


def _figure(png: Path, folder: Path) -> dict:
    """Copy a figure's files; its name, its thumbnail as a data URI and the suffixes that there are."""
    files = [png.with_suffix(suffix) for suffix in (".png", ".svg", ".csv")]
    files = [file for file in files if file.is_file()]
    for file in files:
        shutil.copyfile(file, folder / file.name)
    buffer = io.BytesIO()
    with Image.open(png, formats=["PNG"]) as image:
        small = image.convert("RGB")
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        small.save(buffer, "webp", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    suffixes = [file.suffix[1:] for file in files]
    return {"name": png.stem, "thumbnail": f"data:image/webp;base64,{data}", "suffixes": suffixes}
