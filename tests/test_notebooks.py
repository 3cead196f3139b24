"""The workbook's notebooks: they run from a built demo, and what is stored of them is of a whole run."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from models import small_dual, small_vlm
from traitlets.config import Config

from afp import workbook
from afp.data.manifest import read_manifest, write_manifest
from afp.paths import ROOT

FOLDER = ROOT / "notebooks"
CHAPTERS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
SOLUTIONS = sorted((FOLDER / "solutions").glob("*.ipynb"))
IDS = {"ids": lambda path: path.relative_to(FOLDER).with_suffix("").as_posix()}

# Fewer images and repetitions than a reader's run: here it matters that every cell works.
FEWER = {
    "02_train_soft_prompt": {"n_seeds": "1", "n_boot": "50", "ablate": "false"},
    "03_adapt_clip": {"n_seeds": "2"},
    "04_evaluate_held_out": {"n_boot": "50", "n_transfer": "2"},
    "05_map_feature_space": {"n_permutations": "5"},
    "06_test_robustness": {
        "detectors": "linear-probe,spectrum",
        "perturbations": "jpeg:50",
        "augment": "jpeg:50,blur:2",
        "tiles_per_photo": "1",
        "n_boot": "100",
    },
    "07_vary_training_size": {"n_seeds": "2", "epochs": "4"},
    "08_attack_detector": {
        "steps": "2",
        "budgets": "0,0.5,255",
        "patch_sizes": "32",
        "shares": "0,0.1,0.2",
        "n_boot": "100",
    },
    "10_see_where_it_looks": {"n_steps": "2", "n_boot": "100"},
}
FEWER_IN_SOLUTIONS = {
    "02_train_soft_prompt": {"n_seeds": "1"},
    "03_adapt_clip": {"n_seeds": "1"},
    "06_test_robustness": {"perturbations": "noise:8,rescale:0.5", "n_boot": "100"},
    "07_vary_training_size": {"n_seeds": "2"},
    "09_draw_paper_figures": {"step": "0.01"},
    "10_see_where_it_looks": {"n_steps": "2"},
}
# Any backbone will do there, and a small one lasts seconds; 02 asks the demo's.
SMALL = {'backbone: str = "demo-clip"': "backbone", 'vlm: str = "demo-vlm"': "vlm"}


@pytest.fixture(scope="session")
def small_towers(tmp_path_factory) -> dict[str, str]:
    """An InstructBLIP, and a CLIP with twelve blocks, as the demo's has, that are narrow."""
    folder = tmp_path_factory.mktemp("towers")
    return {"backbone": small_dual(folder / "clip", n_blocks=12), "vlm": small_vlm(folder / "vlm")}


def cells(path: Path, kind: str | None = None) -> list:
    return [c for c in nbformat.read(path, as_version=4).cells if kind in (None, c.cell_type)]


@pytest.fixture
def run_here(tmp_path, monkeypatch):
    """Runs a notebook in this process: a kernel for each would import everything anew."""
    for name in ("AFP_FIGURES", "AFP_RUNS", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.chdir(FOLDER)
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))

    def run(path: Path, given: dict[str, str]) -> None:
        parameters, *rest = cells(path, "code")
        shell.run_cell(parameters.source).raise_error()
        shell.user_ns |= workbook.check_values(path, given)
        for cell in rest:
            shell.run_cell(cell.source).raise_error()

    yield run
    InteractiveShell.clear_instance()
    plt.close("all")


def images(path: Path, manifest: Path) -> dict[str, str]:
    """The parameter of the images, where a notebook has one."""
    return dict.fromkeys({"manifest_path", "demo_manifest"} & set(workbook.parameters(path)), str(manifest))


@pytest.mark.parametrize("path", CHAPTERS, **IDS)
def test_a_chapter_runs(path, run_here, few_manifest, small_towers):
    declared = cells(path, "code")[0].source
    small = {name: small_towers[name] for line, name in SMALL.items() if line in declared}
    run_here(path, images(path, few_manifest) | small | FEWER.get(path.stem, {}))


def test_a_chapter_runs_in_a_kernel_and_stays_small(few_manifest, tmp_path):
    done = workbook.execute(CHAPTERS[1], images(CHAPTERS[1], few_manifest), out=tmp_path)
    assert done.stat().st_size <= 300 * 1024, f"{done.stat().st_size // 1024} KB"


def test_the_soft_prompt_is_trained_on_a_manifest_made_from_folders(
    run_here, few_manifest, small_towers, tmp_path
):
    """As in the full-size run: another InstructBLIP, no resampled control, and no kind but "unknown"."""
    frame = read_manifest(few_manifest)
    own = frame[frame["generator"].isin(["real", "x4plus-anime", "x4plus"])].assign(kind="unknown")
    given = {"kind": "all", "ablate": "true", "backbone": small_towers["vlm"]}
    path = FOLDER / "02_train_soft_prompt.ipynb"
    run_here(path, FEWER[path.stem] | images(path, write_manifest(own, tmp_path / "m.csv")) | given)


@pytest.mark.parametrize("path", SOLUTIONS, **IDS)
def test_a_solution_runs(path, run_here, few_manifest):
    run_here(path, images(path, few_manifest) | FEWER_IN_SOLUTIONS.get(path.stem, {}))


@pytest.mark.parametrize("path", CHAPTERS + SOLUTIONS, **IDS)
def test_its_stored_outputs_are_of_one_run_without_an_error(path):
    notebook = nbformat.read(path, as_version=4)
    assert path.stat().st_size <= 300 * 1024
    counts = [c.execution_count for c in notebook.cells if c.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)) or counts == [None] * len(counts)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.get("name") != "stderr" and output.output_type != "error"


def test_each_chapter_has_a_solution():
    assert [path.name for path in CHAPTERS] == [path.name for path in SOLUTIONS]
