from __future__ import annotations

import base64
import io
import json
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from joblib.externals.loky import get_reusable_executor
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image

from afp import workbook
from afp.errors import AfpError

PARAMETERS = "n: int = 3  # how many\nname: str = 'x'  # whose # one\n\n# a comment\nrate: float = 0.5"


def write(folder: Path, *cells: str, parameters: str = PARAMETERS, name: str = "50_try_this.ipynb") -> Path:
    tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    notebook = new_notebook(cells=[new_markdown_cell("# A question"), tagged, *map(new_code_cell, cells)])
    nbformat.write(notebook, folder / name)
    return folder / name


def printed(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(o.get("text", "") for c in cells if c.cell_type == "code" for o in c.outputs)


def test_parameters_are_read_with_their_help(tmp_path):
    found = workbook.parameters(write(tmp_path))
    assert {name: p.help for name, p in found.items()} == {"n": "how many", "name": "whose # one", "rate": ""}
    assert [p.inferred_type_name for p in found.values()] == ["int", "str", "float"]


def test_a_notebook_without_one_parameters_cell_is_refused(tmp_path):
    path = write(tmp_path)
    notebook = nbformat.read(path, as_version=4)
    for cells, count in ((notebook.cells[:1], 0), ([*notebook.cells, notebook.cells[1]], 2)):
        nbformat.write(new_notebook(cells=[c.copy() for c in cells]), tmp_path / "m.ipynb")
        with pytest.raises(AfpError, match=rf"m\.ipynb: {count} cells tagged 'parameters', expected 1"):
            workbook.parameters(tmp_path / "m.ipynb")
    with pytest.raises(AfpError, match=r"parameter line .print"):
        workbook.parameters(write(tmp_path, parameters="n = 3\nprint('x')"))


def test_a_run_takes_parameters_with_their_types(tmp_path):
    path = write(tmp_path, "print([n, name, rate, extra])", parameters=PARAMETERS + "\nextra = ''")
    before = path.read_bytes()
    values = {"n": "7", "name": "8", "rate": "1e-3", "extra": "null"}
    done = workbook.execute(path, values, tmp_path / "out")
    assert done == tmp_path / "out" / path.name
    assert printed(done).strip() == "[7, '8', 0.001, None]"
    assert path.read_bytes() == before
    again = workbook.execute(path, {"extra": "true"}, tmp_path / "out")
    assert printed(again).strip() == "[3, 'x', 0.5, True]"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"m": "1"}, "no parameter 'm', expected n, name, rate"),
        ({"n": "many"}, "parameter n is 'many', expected int"),
    ],
)
def test_a_wrong_parameter_runs_nothing(values, message, tmp_path):
    path = write(tmp_path, f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(AfpError, match=message):
        workbook.execute(path, values, tmp_path / "out")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_a_path_is_one_of_the_shells_folder_or_refused_before_anything_runs(tmp_path, afp):
    path = write(tmp_path, "print(image)", parameters='image: str = ""  # of your own')
    Path("photo.jpg").touch()
    assert afp("run", path, "-p", "image", "photo.jpg", "--out", "out").code == 0
    assert printed(Path("out", path.name)).strip() == str(Path("photo.jpg").resolve())
    Path("clip").mkdir()
    assert workbook.from_shell("backbone", "./clip") == str(Path.cwd() / "clip")
    assert workbook.from_shell("backbone", "clip-vit-l14") == "clip-vit-l14"
    refused = afp("run", path, "-p", "image", "nowhere.jpg", "--out", "none")
    assert refused.code == 2 and "image is 'nowhere.jpg', but there is no" in refused.text
    assert not Path("none").exists()


def test_a_notebook_runs_with_this_python_in_the_notebooks_folder(tmp_path, monkeypatch):
    """Even where `python3` is the name of another environment's kernel."""
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    argv = ["/opt/other/bin/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "other", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    path = write(tmp_path, "import os, sys; print(sys.executable); print(os.getcwd())")
    python, cwd = printed(workbook.execute(path, out=tmp_path / "out")).split("\n")[:2]
    assert Path(python).samefile(sys.executable) and Path(cwd) == workbook.NOTEBOOKS


def test_in_place_keeps_the_source_and_takes_no_parameters(tmp_path):
    path = write(tmp_path, "print(n)", "import sys; print('progress', file=sys.stderr)")
    sources = [c.source for c in nbformat.read(path, as_version=4).cells]
    with pytest.raises(AfpError, match="in place"):
        workbook.execute(path, {"n": "1"})
    assert workbook.execute(path) == path and printed(path) == "3\n"
    notebook = nbformat.read(path, as_version=4)
    assert [c.source for c in notebook.cells] == sources
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert str(tmp_path) not in path.read_text() and sys.executable not in path.read_text()
    assert sorted(f.name for f in tmp_path.iterdir()) == [path.name]
    first = [c.get("outputs") for c in notebook.cells]
    workbook.execute(path)
    assert [c.get("outputs") for c in nbformat.read(path, as_version=4).cells] == first


def test_a_failing_cell_is_shown_and_kept(tmp_path, afp):
    path = write(tmp_path, "print('before')", "values = {}\nvalues['lost key']", "print('after')")
    code, shown = afp("run", path, "--out", tmp_path / "out")
    assert code == 2 and "50_try_this.ipynb: cell" in shown
    assert "KeyError" in shown and "values['lost key']" in shown
    assert not (tmp_path / "out" / path.name).exists()
    kept = tmp_path / "out" / f"failed-{path.name}"
    assert str(kept) in shown and printed(kept).strip() == "before"


def test_a_failed_run_in_place_leaves_the_notebook_and_adds_none(tmp_path, monkeypatch):
    path = write(tmp_path, "1 / 0")
    before = path.read_bytes()
    monkeypatch.setattr(workbook, "NOTEBOOKS", tmp_path)
    with pytest.raises(AfpError, match="ZeroDivisionError"):
        workbook.execute(path)
    assert path.read_bytes() == before and workbook.find([], everything=True) == [path]


def test_notebooks_are_found_by_number_name_and_path(tmp_path, monkeypatch):
    names = ["00_one.ipynb", "01_two.ipynb", "01_too.ipynb"]
    paths = {n: write(tmp_path, name=n) for n in names}
    write(tmp_path, name="failed-00_one.ipynb")
    monkeypatch.setattr(workbook, "NOTEBOOKS", tmp_path)
    assert workbook.find([], everything=True) == sorted(paths.values())
    for name in ("00", "0", "00_one", "00_one.ipynb", str(paths["00_one.ipynb"])):
        assert workbook.find([name]) == [paths["00_one.ipynb"]]
    for name in ("01", "02", "one", "nowhere/00_two.ipynb"):
        with pytest.raises(AfpError, match=f"notebook '{name}'.*01_two"):
            workbook.find([name])
    with pytest.raises(AfpError, match=r"(?s)which notebook.*00_one"):
        workbook.find([])


def test_large_pictures_are_made_small(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    path = write(tmp_path, f"from IPython.display import Image\nImage({str(tmp_path / 'noise.png')!r})")
    done = workbook.execute(path, out=tmp_path / "out")
    assert done.stat().st_size < (tmp_path / "noise.png").stat().st_size / 2
    (data,) = (o.data for o in nbformat.read(done, as_version=4).cells[-1].outputs)
    picture = next(text for kind, text in data.items() if kind.startswith("image/"))
    assert Image.open(io.BytesIO(base64.b64decode(picture))).size == (300, 300)


def test_a_grid_runs_each_setting_once(afp, tmp_path):
    """One of four settings fails; the second call runs that one alone; the tables are put together.

    What stands in a failed one's folder is of another setting.
    """
    count = "import os, pathlib\npathlib.Path(os.environ['COUNT'], f'{n}-{rate}-{os.getpid()}').touch()"
    table = (
        "import pandas as pd\nfolder = pathlib.Path(os.environ['AFP_FIGURES'])\nfolder.mkdir(exist_ok=True)"
    )
    table += "\npd.DataFrame({'n': [9], 'auc': [n * rate]}).to_csv(folder / '50_auc.csv', index=False)"
    fail = "again = pathlib.Path(os.environ['COUNT'], 'mended').exists()\n"
    fail += "if n == 2 and rate == 0.5 and not again:\n    raise ValueError('by chance')"
    path = write(tmp_path, count, fail, table)
    (tmp_path / "grid.yaml").write_text("n: [1, 2]\nrate: [0.5, 0.25]\n")
    command = ("run", path, "--grid", tmp_path / "grid.yaml", "-j", 2, "--out", tmp_path / "out")
    old = tmp_path / "out" / "3" / "figures" / "50_auc.csv"
    old.parent.mkdir(parents=True)
    old.write_text("n,auc\n9,7\n")
    get_reusable_executor().shutdown()  # processes of an earlier test have its environment
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COUNT", str(tmp_path))
        patch.delenv("AFP_FIGURES")
        first = afp(*command)
        assert first.code == 1 and "4 settings, 1 failed" in first.text and "by chance" in first.text
        assert len(pd.read_csv(tmp_path / "out" / "50_auc.csv")) == 3
        (tmp_path / "mended").touch()
        assert afp(*command).code == 0
    assert sorted(p.name.rsplit("-", 1)[0] for p in tmp_path.glob("?-0.*")) == [
        *("1-0.25", "1-0.5", "2-0.25", "2-0.5", "2-0.5"),
    ]
    rows = pd.read_csv(tmp_path / "out" / "50_auc.csv")
    assert len(rows) == 4 and (rows["auc"] == rows["n"] * rows["rate"]).all()
    assert pd.read_csv(tmp_path / "out" / "grid.csv")["error"].isna().all()
    refused = afp("run", path, "04", "--grid", tmp_path / "grid.yaml")
    assert refused.code == 2 and "--grid: expected one notebook" in refused.text


def test_a_setting_is_not_done_where_its_file_has_changed(tmp_path):
    path, images = write(tmp_path), tmp_path / "m.csv"
    images.write_text("one")
    before = workbook._record(path, {"manifest_path": str(images)})
    assert workbook._record(path, {"manifest_path": str(images)}) == before
    images.write_text("two")
    assert workbook._record(path, {"manifest_path": str(images)}) != before
