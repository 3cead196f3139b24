"""The notebook runner: papermill, with its silent failures made loud."""

from __future__ import annotations

import base64
import io
import logging
import os
import re
import signal
import time
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Any

import nbformat
import pandas as pd
import papermill
import yaml
from joblib import Parallel, delayed
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from papermill.models import Parameter
from papermill.translators import PythonTranslator
from PIL import Image
from pydantic import TypeAdapter
from sklearn.model_selection import ParameterGrid
from tqdm.auto import tqdm

from .errors import AfpError
from .files import check_input, checksum, read_notebook, write_text
from .paths import NOTEBOOKS, ROOT, figures_dir

KERNEL = "python3"
PLACES = ("manifest_path", "demo_manifest", "image", "own_runs")  # parameters that name a file or a folder
WIDGET = "application/vnd.jupyter.widget-view+json"  # shows nothing without its state, which is not stored


def find(names: list[str], everything: bool = False) -> list[Path]:
    """Notebooks by path, by name or by number (``04``), in order.

    Raises:
        AfpError: none named, none found, or an ambiguous number.
    """
    known = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    listed = ", ".join(p.stem for p in known)
    if not names and not everything:
        raise AfpError(f"which notebook? Name one, or use --all. There are {listed}")
    found = known if everything else []
    for name in [] if everything else names:
        path = Path(name)
        stem = path.name.removesuffix(".ipynb")
        stem = f"{int(stem):02}" if stem.isdecimal() else stem
        matches = [p for p in known if p.stem == stem or p.stem.startswith(f"{stem}_")]
        if path.suffix == ".ipynb" and path.is_file():
            matches = [path.resolve()]
        if len(matches) != 1:
            raise AfpError(f"notebook {name!r}: expected a file or one of {listed}")
        found += matches
    return found


def parameters(path: Path) -> dict[str, Parameter]:
    """What a notebook declares, as papermill reads it: name -> name, type as written or "None", default, help.

    Raises:
        AfpError: no notebook; no cell, or more than one, is tagged ``parameters``; or a line declares nothing.
    """
    tagged = [c for c in read_notebook(path).cells if "parameters" in c.metadata.get("tags", [])]
    if len(tagged) != 1:  # papermill would quietly take the first
        raise AfpError(f"{path.name}: {len(tagged)} cells tagged 'parameters', expected 1")
    found = PythonTranslator.inspect(tagged[0])
    for line in filter(None, tagged[0].source.splitlines()):
        if not any(re.match(rf"#|{p.name}\s*[:=]", line) for p in found):  # papermill leaves it out
            raise AfpError(f"{path.name}: parameter line {line!r}, expected `name: type = value  # help`")
    return {parameter.name: parameter for parameter in found}


def from_shell(name: str, text: str) -> str:
    """A parameter's text; of a file or folder in the shell's folder the whole path, as notebooks run elsewhere."""
    here = Path.cwd() / Path(text).expanduser()
    known = here.exists() if name in PLACES else name in ("backbone", "vlm") and here.is_dir()
    return str(here) if text and known else text


def check_values(path: Path, values: dict[str, str]) -> dict[str, bool | int | float | str | None]:
    """Parameters' texts as the types that a notebook declares. Raises AfpError: an unknown one, or another type."""
    known = _known(path, values)
    return {name: _value(path, known[name], text) for name, text in values.items()}


def _known(path: Path, names: Iterable[str]) -> dict[str, Parameter]:
    """What a notebook declares. Raises AfpError where one of these names is not among it."""
    known = parameters(path)
    if unknown := set(names) - set(known):  # papermill only warns
        raise AfpError(f"{path.name}: no parameter {min(unknown)!r}, expected {', '.join(known)}")
    return known


def execute(path: Path, values: dict[str, str] | None = None, out: Path | None = None) -> Path:
    """Run one notebook from ``notebooks/`` with this Python and this checkout, and write it with its outputs.

    Args:
        path: the notebook.
        values: parameters as text, read as the types that the notebook declares.
        out: folder for the executed notebook, and for its figures in ``figures/``; None writes into the notebook
            itself (without the injected parameters, so only for its defaults) and into the checkout's ``figures/``.
    Returns:
        The executed notebook's path.
    Raises:
        AfpError: unknown parameter, a value of another type, a file that is not there, or a failing cell (with its
            traceback).
    """
    values = values or {}
    typed = check_values(path, values)
    if out is None and values:
        raise AfpError(f"{path.name}: parameters cannot be written in place; give a folder for the result")
    for name in filter(values.get, PLACES):
        if not (missing := NOTEBOOKS / values[name]).exists():
            raise AfpError(f"{path.name}: {name} is {values[name]!r}, but there is no {missing}")
    target = path if out is None else out / path.name
    if out is not None and target.exists() and "afp" not in read_notebook(target).metadata:
        raise AfpError(f"{target}: is there and was not made by `afp run`; give another folder with --out")
    target.parent.mkdir(parents=True, exist_ok=True)
    figures = figures_dir(ROOT if out is None else out)
    working = target.with_name(f".{target.name}")
    started = time.perf_counter()
    print(f"{path.name} ...", flush=True)
    try:
        _run(path, working, typed, figures)
        notebook = nbformat.read(working, as_version=4)
    except (PapermillExecutionError, DeadKernelError) as error:
        failed = target.with_name(f"failed-{target.name}")  # no number in front: not one of the workbook's
        working.replace(failed)
        if isinstance(error, DeadKernelError):
            what = f"{path.name}: its kernel was killed, as happens where memory runs out"
        else:
            what = f"{path.name}: cell {error.cell_index} failed: {error.ename}: {error.evalue}\n{error}"
        raise AfpError(f"{what}\nsee {failed}") from None
    finally:
        working.unlink(missing_ok=True)
    _clean(notebook)
    if out is not None:
        notebook.metadata["afp"] = _record(path, values)
    write_text(target, nbformat.writes(notebook) + "\n")
    seconds = time.perf_counter() - started
    print(f"{path.name} done in {seconds:.0f} s: {target}, figures: {figures}", flush=True)
    return target


def read_yaml(file: str | Path) -> Any:
    """What a YAML file holds. Raises AfpError where it is none."""
    check_input(file)
    try:
        return yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise AfpError(f"{file}: not readable as YAML ({error})") from error


def read_parameters(file: str | Path) -> dict[str, dict[str, str]]:
    """Notebook -> parameter -> value as text, from YAML.

    Raises:
        AfpError: not such a file; a notebook or a parameter that there is not.
    """
    content = read_yaml(file)
    if not isinstance(content, dict) or not all(isinstance(v, dict) for v in content.values()):
        raise AfpError(f"{file}: expected `notebook:` with `parameter: value` lines under it")
    for name, values in content.items():
        notebook = NOTEBOOKS / f"{name}.ipynb"
        if not notebook.is_file():
            there = ", ".join(path.stem for path in find([], everything=True))
            raise AfpError(f"{file}: no notebook {name!r}, expected one of {there}")
        try:
            _known(notebook, values)
        except AfpError as error:
            raise AfpError(f"{file}: {error}") from None
    # A name without a value is not given.
    return {name: {k: str(v) for k, v in of.items() if v is not None} for name, of in content.items()}


def read_grid(file: Path) -> list[dict[str, str]]:
    """Every combination of a grid's values, as text, from YAML with ``parameter: [value, ...]`` lines.

    Raises:
        AfpError: not such a file.
    """
    content = read_yaml(file)
    if not isinstance(content, dict) or not all(isinstance(v, list) and v for v in content.values()):
        raise AfpError(f"{file}: expected `parameter: [value, ...]` lines")
    return list(ParameterGrid({name: [str(v) for v in values] for name, values in content.items()}))


def execute_grid(path: Path, settings: list[dict[str, str]], out: Path, jobs: int = 1) -> pd.DataFrame:
    """Run a notebook once for each of several settings, each in a folder of its own.

    What is done already, of this notebook with these parameters and the same files, is not run again; where one
    fails, the others go on. Tables that the runs leave beside their figures are put together, with the parameters as
    first columns.

    Args:
        path: the notebook.
        settings: parameters as text, as `read_grid` gives them.
        out: folder; receives a folder for each setting (``1``, ``2`` ...; of ten and more ``01``, ``02`` ...), the
            tables, and ``grid.csv``, which is returned.
        jobs: how many run at once.
    Returns:
        A row a setting: its parameters, ``notebook``, ``error`` (empty where it went well).
    """
    folders = [out / f"{i:0{len(str(len(settings)))}}" for i in range(1, len(settings) + 1)]
    tried = Parallel(n_jobs=jobs, return_as="generator")(
        delayed(_try)(path, values, folder) for values, folder in zip(settings, folders, strict=True)
    )
    errors = list(tqdm(tried, "settings", total=len(settings)))
    rows = pd.DataFrame(settings)
    rows["notebook"] = [str(folder.relative_to(out) / path.name) for folder in folders]
    rows["error"] = errors
    tables: dict[str, list[pd.DataFrame]] = {}
    for values, folder, error in zip(settings, folders, errors, strict=True):
        if error:
            continue
        for file in (folder / "figures").glob("*.csv"):
            table, beside = pd.read_csv(file), pd.DataFrame([values])
            joined = beside.merge(table, how="cross", suffixes=("", " in the table"))
            tables.setdefault(file.name, []).append(joined)
    for name, parts in tables.items():
        write_text(out / name, pd.concat(parts).to_csv(index=False))
    write_text(out / "grid.csv", rows.to_csv(index=False))
    return rows


def _try(path: Path, values: dict[str, str], folder: Path) -> str:
    """Execute unless it is done, twice where a kernel does not start; what went wrong."""
    done = folder / path.name
    if done.is_file() and read_notebook(done).metadata.get("afp") == _record(path, values):
        return ""
    for old in (done, *(folder / "figures").glob("*")):  # of another setting that stood here
        old.unlink(missing_ok=True)
    for _ in range(2):
        try:
            execute(path, values, folder)
        except AfpError as error:
            return str(error).splitlines()[0]
        except RuntimeError as error:  # a kernel died as it started, such as by a port that another one took
            died = f"{path.name}: {error}"
        else:
            return ""
    return died


def _record(path: Path, values: dict[str, str]) -> dict[str, Any]:
    """What an executed notebook was made of."""
    files = {name: NOTEBOOKS / text for name, text in values.items() if (NOTEBOOKS / text).is_file()}
    sums = {name: checksum(file) for name, file in files.items()}
    return {"executed": path.name, "sha256": checksum(path), "parameters": values, "files": sums}


def _run(path: Path, working: Path, values: dict[str, Any], figures: Path) -> None:
    """Have papermill execute a notebook in a kernel of this Python and this checkout.

    It works in a thread: in the main one it would take the signals, and an interruption would end as a traceback.
    """
    python_path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    this_python = KernelSpecManager(kernel_dirs=[])  # any folder's "python3" may be another environment's
    # An asynchronous one: with the other, nobody notices that a kernel has died, and the run never ends.
    kernel = AsyncKernelManager(kernel_name=KERNEL, kernel_spec_manager=this_python)
    run_sync(kernel.start_kernel)(
        cwd=str(NOTEBOOKS),
        env=os.environ | {"PYTHONPATH": python_path, "AFP_FIGURES": str(figures)},
        extra_arguments=["--HistoryManager.hist_file=:memory:", "--log-level=ERROR"],
    )
    done: Future[None] = Future()

    def work() -> None:
        bar = {"desc": path.stem, "leave": False}
        options = {"kernel_name": KERNEL, "language": "python", "progress_bar": bar, "log_output": False}
        try:
            papermill.execute_notebook(str(path), str(working), parameters=values, km=kernel, **options)
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        done.result()
    except KeyboardInterrupt:
        logging.getLogger("papermill").setLevel(logging.CRITICAL)  # the kernel's death is no news
        run_sync(kernel.signal_kernel)(signal.SIGKILL)
        thread.join(20)  # it notices, and writes what it has
        raise
    finally:
        run_sync(kernel.shutdown_kernel)(now=True)


def _value(path: Path, parameter: Parameter, text: str) -> bool | int | float | str | None:
    """A parameter's text as the type that the notebook declares; without one, as YAML reads it."""
    expected = parameter.inferred_type_name
    kind = {"bool": bool, "int": int, "float": float, "str": str}.get(expected)
    try:
        return TypeAdapter(kind).validate_python(text) if kind else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        raise AfpError(f"{path.name}: parameter {parameter.name} is {text!r}, expected {expected}") from None


def _clean(notebook: nbformat.NotebookNode) -> None:
    """What a reader needs not: papermill's paths and times, widget state, progress bars."""
    for metadata in (notebook.metadata, *(cell.metadata for cell in notebook.cells)):
        for field in ("papermill", "execution", "widgets"):
            metadata.pop(field, None)
        if metadata.get("tags") == []:
            metadata.pop("tags")
    notebook.metadata["kernelspec"] = {"name": KERNEL, "display_name": "Python 3", "language": "python"}
    for cell in notebook.cells:
        outputs = [o for o in cell.get("outputs", []) if o.get("name") != "stderr"]
        outputs = [o for o in outputs if WIDGET not in o.get("data", {})]
        for output in outputs:
            _shrink(output.get("data", {}))
        if cell.cell_type == "code":
            cell.outputs = outputs


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
