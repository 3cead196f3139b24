"""The workbook's notebooks: they run from a built demo and keep the house rules."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
from test_clip_detectors import small_dual
from test_vlm import save, small_config

from afp import workbook
from afp.data.manifest import read_manifest, write_manifest
from afp.paths import ROOT

FOLDER = ROOT / "notebooks"
CHAPTERS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
SOLUTIONS = sorted((FOLDER / "solutions").glob("*.ipynb"))
IDS = {"ids": lambda path: path.relative_to(FOLDER).with_suffix("").as_posix()}

# Fewer images and repetitions than a reader's run: here it matters that every cell works.
FEWER = {
    "02_train_soft_prompt": {"n_seeds": "1", "n_boot": "50"},
    "03_adapt_clip": {"n_seeds": "2"},
    "04_evaluate_held_out": {"n_boot": "50"},
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
    "02_train_soft_prompt": {"n_seeds": 1},
    "03_adapt_clip": {"n_seeds": 1},
    "06_test_robustness": {"perturbations": "noise:8,rescale:0.5", "n_boot": 100},
    "07_vary_training_size": {"n_seeds": 2},
    "09_draw_paper_figures": {"step": 0.01},
    "10_see_where_it_looks": {"n_steps": 2},
}


@pytest.fixture(scope="session")
def small_tower(tmp_path_factory) -> str:
    """A CLIP with twelve blocks, as the demo's has, that are narrow."""
    return small_dual(tmp_path_factory.mktemp("tower"), n_blocks=12)


def cells(path: Path, kind: str | None = None) -> list:
    return [c for c in nbformat.read(path, as_version=4).cells if kind in (None, c.cell_type)]


@pytest.mark.parametrize("path", CHAPTERS, **IDS)
def test_a_chapter_runs(path, few_manifest, small_tower, tmp_path):
    images = {"manifest_path", "demo_manifest"} & set(workbook.parameters(path))
    given = dict.fromkeys(images, str(few_manifest))
    if 'backbone: str = "demo-clip"' in cells(path, "code")[0].source:
        given["backbone"] = small_tower  # any CLIP will do there, and a small one lasts seconds
    done = workbook.execute(path, given | FEWER.get(path.stem, {}), out=tmp_path)
    assert done.stat().st_size <= 300 * 1024, f"{done.stat().st_size // 1024} KB"


def test_the_soft_prompt_is_trained_on_a_manifest_made_from_folders(few_manifest, tmp_path):
    """As in the full-size run: another InstructBLIP, no resampled control, and no kind but "unknown"."""
    frame = read_manifest(few_manifest)
    own = frame[frame["generator"].isin(["real", "x4plus-anime", "x4plus"])].assign(kind="unknown")
    given = {"manifest_path": str(write_manifest(own, tmp_path / "m.csv")), "kind": "all", "ablate": "false"}
    given["backbone"] = save(tmp_path / "vlm", small_config())
    path = FOLDER / "02_train_soft_prompt.ipynb"
    workbook.execute(path, FEWER[path.stem] | given, out=tmp_path)


@pytest.mark.parametrize("path", SOLUTIONS, **IDS)
def test_a_solution_runs(path, few_manifest, monkeypatch):
    """In this process: a kernel for each would import everything anew."""
    monkeypatch.chdir(FOLDER)
    parameters, *rest = cells(path, "code")
    names: dict = {}
    exec(parameters.source, names)
    images = {"demo_manifest"} & set(names)
    given = dict.fromkeys(images, str(few_manifest)) | FEWER_IN_SOLUTIONS.get(path.stem, {})
    assert set(given) <= set(names)
    names |= given
    for cell in rest:
        exec(compile(cell.source, path.name, "exec"), names)
    plt.close("all")


@pytest.mark.parametrize("path", CHAPTERS, **IDS)
def test_a_chapter_says_what_it_asks_takes_and_leaves(path):
    first, second, third, *_, last = cells(path)
    assert first.cell_type == "markdown" and first.source.startswith(f"# {path.name[:2]} ")
    for part in ("question", "**Reads**", "**Writes**", "**Takes**", "GPU"):
        assert part in first.source, part
    assert second.metadata.get("tags") == ["parameters"] and "import" in third.source
    helps = workbook.parameters(path)
    assert helps and all(p.help for p in helps.values())
    text = "\n".join(c.source for c in cells(path, "markdown"))
    assert "## What we learned" in text and "## Exercises" in text
    assert last.cell_type == "code" and "assert" in last.source
    assert FOLDER / "solutions" / path.name in SOLUTIONS


@pytest.mark.parametrize("path", CHAPTERS + SOLUTIONS, **IDS)
def test_outputs_are_the_runners(path):
    notebook = nbformat.read(path, as_version=4)
    assert path.stat().st_size <= 300 * 1024
    assert not {"widgets", "papermill"} & set(notebook.metadata)
    counts = [c.execution_count for c in notebook.cells if c.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)) or counts == [None] * len(counts)
    for cell in notebook.cells:
        assert not {"papermill", "execution"} & set(cell.metadata)
        assert "injected-parameters" not in cell.metadata.get("tags", [])
        for output in cell.get("outputs", []):
            assert output.get("name") != "stderr" and output.output_type != "error"
