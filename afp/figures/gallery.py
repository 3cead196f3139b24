"""The executed notebooks and their figures as static pages that ask nothing of the network."""

from __future__ import annotations

import html
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import bleach
import jinja2
import nbformat
from bleach.css_sanitizer import CSSSanitizer
from nbconvert import HTMLExporter
from PIL import Image
from pygments.formatters import HtmlFormatter
from tqdm.auto import tqdm

from ..errors import AfpError
from ..files import read_notebook, written_folder
from ..paths import NOTEBOOKS, figures_dir
from .grid import data_uri

TITLE = "Was this image made by a generator?"
# All that a notebook's page may hold; whatever else an output brings is shown as text or left out.
MORE_TAGS = (
    "br dd del details div dl dt figcaption figure h1 h2 h3 h4 h5 h6 hr img p pre s span sub summary sup "
    "table tbody td tfoot th thead tr"
)
TAGS = bleach.ALLOWED_TAGS | set(MORE_TAGS.split())


def build_gallery(executed: str | Path, out: str | Path, figures: str | Path | None = None) -> Path:
    """Write ``index.html``, a page for every executed notebook and Markdown text, and the figures.

    Args:
        executed: folder of executed notebooks (`afp run` writes them).
        out: folder of the pages; an earlier gallery there is replaced once the new one is complete.
        figures: default what `afp.paths.figures_dir` gives for ``executed``; a figure belongs to the notebook whose
            number it begins with.
    Returns:
        The index page.
    Raises:
        AfpError: no executed notebook in the folder, or ``out`` holds something else than a gallery.
    """
    figures = Path(figures or figures_dir(executed))
    notebooks = sorted(Path(executed).glob("[0-9][0-9]_*.ipynb"))
    if not notebooks:
        raise AfpError(f"{executed}: no executed notebooks; make them with `afp run --all`")
    with written_folder(out, "afp gallery", [*notebooks, figures]) as folder:
        _write_pages(notebooks, sorted(figures.glob("*.png")), folder)
    return Path(out) / "index.html"


def _write_pages(notebooks: list[Path], pictures: list[Path], folder: Path) -> None:
    sources = [*notebooks, *sorted(NOTEBOOKS.glob("*.md"))]
    hrefs = {path.name: f"{path.stem}.html" for path in sources}
    pages = [_page(path, hrefs) for path in tqdm(sources, desc="pages", leave=False)]
    drawn = [_figure(png, folder / "figures") for png in tqdm(pictures, desc="figures", leave=False)]
    environment = jinja2.Environment(loader=jinja2.PackageLoader("afp.figures"), autoescape=True)
    shared = {"title": TITLE, "highlighting": HtmlFormatter(style="default").get_style_defs(".highlight")}
    for i, page in enumerate(pages):
        around = [pages[j] for j in (i - 1, i + 1) if 0 <= j < len(pages)]
        nav = [("all notebooks", "index.html"), *((p["title"], p["href"]) for p in around)]
        text = environment.get_template("page.html").render(shared | page | {"home": True, "nav": nav})
        (folder / page["href"]).write_text(text, encoding="utf-8")
        page["figures"] = [f for f in drawn if page["notebook"] and f["name"][:3] == page["href"][:3]]
    used = [figure for page in pages for figure in page["figures"]]
    content = {"pages": pages, "rest": [figure for figure in drawn if figure not in used]}
    index = environment.get_template("index.html").render(shared | content)
    (folder / "index.html").write_text(index, encoding="utf-8")


def _page(path: Path, hrefs: dict[str, str]) -> dict[str, Any]:
    if path.suffix == ".md":
        cell = nbformat.v4.new_markdown_cell(path.read_text(encoding="utf-8"))
        notebook = nbformat.v4.new_notebook(cells=[cell])
    else:
        notebook = read_notebook(path)
    # nbconvert's "basic" is the cells alone: its full templates load scripts from elsewhere.
    body, _ = HTMLExporter(template_name="basic").from_notebook_node(notebook)
    body = _harmless(re.sub('<a class="anchor-link".*?</a>', "", body), hrefs)
    heading, question = (re.search(rf"<{tag}\b.*?</{tag}>", body, re.DOTALL) for tag in ("h1", "p"))
    return {
        "title": _text(heading[0]) if heading else path.stem,
        "question": _text(question[0]).removeprefix("The question.").strip() if question else "",
        "href": hrefs[path.name],
        "notebook": path.suffix == ".ipynb",
        "body": body,
    }


def _harmless(body: str, hrefs: dict[str, str]) -> str:
    """Only allowed elements; pictures only from within; links only between pages and to the web."""
    body = re.sub(r"(?is)<(script|style)\b.*?</\1\s*>", "", body)  # else shown as text
    schemes = {"http", "https", "mailto", "data"}
    rules = {"tags": TAGS, "attributes": _allowed, "protocols": schemes, "css_sanitizer": CSSSanitizer()}
    body = bleach.clean(body, **rules, strip=True)
    return bleach.linkifier.Linker([partial(_link, hrefs=hrefs)], parse_email=False).linkify(body)


def _allowed(tag: str, name: str, value: str) -> bool:
    if tag == "img":
        return name == "alt" or (name == "src" and value.startswith("data:image/"))
    if tag == "a":
        return name == "href" and not value.startswith("data:")
    return name in ("class", "style", "id", "colspan", "rowspan")


def _link(attributes: dict, new: bool, hrefs: dict[str, str]) -> dict | None:
    """The link as it leads from page to page; None makes text of it."""
    target = urlsplit(attributes.get((None, "href"), ""))
    if new:  # an address in the text
        return None
    if target.scheme or not target.path:
        return attributes
    if target.path not in hrefs:
        return None
    href = hrefs[target.path] + (f"#{target.fragment}" if target.fragment else "")
    return attributes | {(None, "href"): href}


def _text(body: str) -> str:
    """What is read of some HTML."""
    return html.unescape(bleach.clean(body, tags=set(), strip=True)).strip()


def _figure(png: Path, folder: Path) -> dict[str, Any]:
    """Copy a figure's files; its name, its thumbnail as a data URI and the suffixes that there are."""
    folder.mkdir(exist_ok=True)
    files = [png.with_suffix(suffix) for suffix in (".png", ".svg", ".csv")]
    files = [file for file in files if file.is_file()]
    for file in files:
        shutil.copyfile(file, folder / file.name)
    with Image.open(png, formats=["PNG"]) as image:
        thumbnail = data_uri(image, 480)
    return {"name": png.stem, "thumbnail": thumbnail, "suffixes": [file.suffix[1:] for file in files]}
