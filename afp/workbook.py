"""The notebook runner: papermill, with its silent failures made loud."""

from __future__ import annotations

import base64
import io
import re
import sys
import time
from pathlib import Path

import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from papermill.exceptions import PapermillExecutionError
from PIL import Image

from .errors import AfpError
from .paths import NOTEBOOKS

KERNEL = "python3"
WIDGET = "application/vnd.jupyter.widget-view+json"  # shows nothing without its state, which is not stored
_PARAMETER = re.compile(r"^(\w+)\s*(?::\s*([^=#]+?))?\s*=\s*(.+?)(?:\s+#\s*(.*))?$")


def find(names: list[str], everything: bool = False) -> list[Path]:
    """Notebooks by path, by name or by number (``04``), in order.

    Raises:
        AfpError: none named, none found, or an ambiguous number.
    """
    known = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if everything:
        return known
    if not names:
        listed = "\n  ".join(p.stem for p in known)
        raise AfpError(f"which notebook? Name one, or use --all. There are:\n  {listed}")
    found = []
    for name in names:
        path = Path(name)
        matches = [path] if path.suffix == ".ipynb" and path.is_file() else []
        stem = path.name.removesuffix(".ipynb")
        matches = matches or [p for p in known if p.stem == stem or p.stem.startswith(f"{stem}_")]
        if len(matches) != 1:
            raise AfpError(f"notebook {name!r}: expected a file or one of {', '.join(p.stem for p in known)}")
        found.append(matches[0].resolve())
    return found


def parameters(path: Path) -> dict[str, str]:
    """Name -> help of every parameter that a notebook declares. Raises AfpError as `declared` does."""
    return {name: text for name, (_, text) in declared(path).items()}


def declared(path: Path) -> dict[str, tuple[str, str]]:
    """Name -> (type as written or "", help) of every parameter that a notebook declares.

    Raises:
        AfpError: no cell, or more than one, is tagged ``parameters``; or a line declares nothing.
    """
    notebook = nbformat.read(path, as_version=4)
    tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    if len(tagged) != 1:  # papermill would quietly take the first
        raise AfpError(f"{path.name}: {len(tagged)} cells tagged 'parameters', expected 1")
    found = {}
    for line in tagged[0].source.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _PARAMETER.match(line)
        if not match:
            raise AfpError(f"{path.name}: parameter line {line!r}, expected `name: type = value  # help`")
        found[match[1]] = (match[2] or "", match[4] or "")
    return found


def execute(path: Path, values: dict[str, str] | None = None, out: Path | None = None) -> Path:
    """Run one notebook from ``notebooks/`` with this Python and write it with its outputs.

    Args:
        path: the notebook.
        values: parameters as text, read as the types that the notebook declares.
        out: folder for the executed notebook; None writes into the notebook itself (without the injected
            parameters, so only for its defaults).
    Returns:
        The executed notebook's path.
    Raises:
        AfpError: unknown parameter or a value of another type, foreign kernel, a failing cell (with traceback).
    """
    values = values or {}
    known = declared(path)
    if unknown := set(values) - set(known):  # papermill only warns
        raise AfpError(f"{path.name}: no parameter {sorted(unknown)[0]!r}, expected {', '.join(known)}")
    if out is None and values:
        raise AfpError(f"{path.name}: parameters cannot be written in place; give a folder for the result")
    typed = {name: _value(path, name, known[name][0], text) for name, text in values.items()}
    _check_kernel()
    target = path if out is None else out / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    working = target.with_name(f".{target.name}")
    started = time.perf_counter()
    print(f"{path.name} ...", flush=True)
    try:
        papermill.execute_notebook(
            str(path),
            str(working),
            parameters=typed,
            kernel_name=KERNEL,
            language="python",
            cwd=str(NOTEBOOKS),
            progress_bar=False,
            log_output=False,
        )
    except PapermillExecutionError as error:
        failed = target.with_name(f"failed-{target.name}")  # no number in front: not one of the workbook's
        working.replace(failed)
        raise AfpError(f"{path.name}: cell {error.cell_index} failed\n{error}\nsee {failed}") from None
    notebook = nbformat.read(working, as_version=4)
    working.unlink()
    _clean(notebook)
    nbformat.write(notebook, target)
    print(f"{path.name} done in {time.perf_counter() - started:.0f} s: {target}", flush=True)
    return target


def _value(path: Path, name: str, kind: str, text: str) -> bool | int | float | str | None:
    """A parameter's text as the type that the notebook declares; without one, as what it looks like."""
    kinds = {"bool": ("true", "false"), "int": int, "float": float, "str": str}
    try:
        if kind == "bool":
            return bool(1 - kinds["bool"].index(text.lower()))
        if kind in kinds:
            return kinds[kind](text)
    except ValueError:
        raise AfpError(f"{path.name}: parameter {name} is {text!r}, expected {kind}") from None
    if text.lower() in ("true", "false", "null", "none"):
        return {"true": True, "false": False}.get(text.lower())
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text


def _check_kernel() -> None:
    """The kernel ``python3`` must be this Python: another would find other packages, or none."""
    try:
        spec = KernelSpecManager().get_kernel_spec(KERNEL)
    except NoSuchKernel:
        raise AfpError("no Jupyter kernel 'python3'; install the environment with `make setup`") from None
    python = spec.argv[0]
    if Path(python).is_absolute() and Path(python).parent.resolve() != Path(sys.executable).parent.resolve():
        raise AfpError(f"kernel 'python3' is {python}, not {sys.executable}; activate this environment")


def _clean(notebook: nbformat.NotebookNode) -> None:
    """What a reader needs not: papermill's paths and times, widget state, progress bars."""
    notebook.metadata.pop("papermill", None)
    notebook.metadata.pop("widgets", None)
    notebook.metadata["kernelspec"] = {"name": KERNEL, "display_name": "Python 3", "language": "python"}
    for cell in notebook.cells:
        for field in ("papermill", "execution"):
            cell.metadata.pop(field, None)
        if cell.metadata.get("tags") == []:
            cell.metadata.pop("tags")
        if cell.cell_type == "code":
            cell.outputs = [
                o for o in cell.outputs if o.get("name") != "stderr" and WIDGET not in o.get("data", {})
            ]
            for output in cell.outputs:
                _shrink(output.get("data", {}))


def _shrink(data: dict) -> None:
    """Large pictures with 64 colours (plots) or as JPEG (photographs), whichever is smaller: megabytes otherwise."""
    png = data.get("image/png", "")
    if len(png) > 15_000:
        picture = Image.open(io.BytesIO(base64.b64decode(png)), formats=["PNG"]).convert("RGB")
        few, jpeg = io.BytesIO(), io.BytesIO()
        picture.quantize(64, dither=Image.Dither.NONE).save(few, "png", optimize=True)
        picture.save(jpeg, "jpeg", quality=75)
        del data["image/png"]
        kind, best = min(("image/png", few), ("image/jpeg", jpeg), key=lambda choice: choice[1].tell())
        data[kind] = base64.b64encode(best.getvalue()).decode()
