"""A dry run finds what is missing before hours are spent, and its arithmetic is right."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig
from typer.testing import CliRunner

from afp import plan
from afp.cli import app
from afp.paths import ROOT
from afp.workbook import NOTEBOOKS, WorkbookError

FULL = ROOT / "params" / "full.yaml"


def test_the_full_size_parameters_are_parameters_of_notebooks():
    given = plan.read_parameters(FULL)
    assert given["04_evaluate_held_out"]["backbone"] == "clip-vit-l14"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("99_none: {a: 1}", "no notebook '99_none'"),
        ("01_prepare_data: {sede: 1}", "no parameter 'sede', expected manifest_path, seed"),
        ("01_prepare_data: 3", "expected `notebook:`"),
        ("a: [", "not readable as YAML"),
    ],
)
def test_a_wrong_file_is_refused_by_name(text, message, tmp_path):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(WorkbookError, match=message):
        plan.read_parameters(tmp_path / "p.yaml")


def _findings(values: dict[str, str]) -> dict[str, plan.Finding]:
    notebook = NOTEBOOKS / "06_test_robustness.ipynb"
    return {f.check.split()[-1]: f for f in plan.checks([notebook], {notebook.stem: values})}


def test_what_is_there_is_found_and_what_it_costs_is_counted(small_manifest, small_frame, tmp_path, monkeypatch):
    values = {"manifest_path": str(small_manifest), "backbone": "demo-clip", "detectors": "linear-probe, spectrum"}
    (tmp_path / "weights" / "demo-clip").mkdir(parents=True)
    monkeypatch.setenv("AFP_DATA", str(tmp_path))
    found = _findings(values | {"perturbations": "jpeg:75,blur:1", "augment": "jpeg:50"})
    assert found["data"].ok and found["weights"].ok and found["disk"].ok
    assert f"{len(small_frame)} images x 4 passes" in found["time"].detail


def test_what_is_missing_is_named_with_its_mend(small_manifest, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    nowhere = tmp_path / "nowhere.csv"
    found = _findings({"manifest_path": str(nowhere), "backbone": "nobody/nothing", "detectors": "best"})
    assert not found["data"].ok and str(nowhere) in found["data"].detail and "Full size" in found["data"].detail
    assert not found["weights"].ok and "hf download nobody/nothing" in found["weights"].detail
    assert not found["detectors"].ok and "'best'" in found["detectors"].detail
    (tmp_path / "m.csv").write_text(small_manifest.read_text())  # its images are elsewhere
    found = _findings({"manifest_path": str(tmp_path / "m.csv")})
    assert not found["data"].ok and "36 of 36 images are missing" in found["data"].detail


def test_a_model_or_features_without_room_are_found(small_manifest, monkeypatch):
    huge = plan.Tower(1e15, 1e9, 200, 2**50)
    monkeypatch.setitem(plan.TOWERS, "demo-clip", huge)
    found = _findings({"manifest_path": str(small_manifest), "backbone": "demo-clip"})
    assert not found["disk"].ok and not found["memory"].ok


@pytest.mark.parametrize(
    ("name", "vision", "text"),
    [
        ("clip-vit-l14", (1024, 4096, 24, 16, 14, 768), (768, 3072, 12, 12)),
        ("clip-vit-b32", (768, 3072, 12, 12, 32, 512), (512, 2048, 12, 8)),
    ],
)
def test_the_sizes_of_towers_are_those_of_the_models(name, vision, text):
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = CLIPConfig(
        vision_config=CLIPVisionConfig(**dict(zip((*keys, "patch_size", "projection_dim"), vision, strict=True))),
        text_config=CLIPTextConfig(**dict(zip(keys, text, strict=True))),
        projection_dim=vision[-1],
    )
    with torch.device("meta"):
        model = CLIPModel(config)
    tower, count = plan.TOWERS[name], lambda part: sum(p.numel() for p in part.parameters())
    assert tower.n_parameters == pytest.approx(count(model), rel=0.01)
    assert tower.n_tower == pytest.approx(count(model.vision_model), rel=0.01)
    assert tower.n_tokens == (224 // vision[4]) ** 2 + 1
    assert tower.cached == 2 * ((vision[2] + 1) * vision[0] + vision[-1])


def test_the_command_runs_nothing_and_fails_where_something_is_missing(tmp_path):
    command = ["run", "01", "--params", str(FULL), "--dry-run", "--out", str(tmp_path / "executed")]
    done = CliRunner().invoke(app, [*command, "-p", f"manifest_path={tmp_path / 'none.csv'}"])
    assert done.exit_code == 1 and "FAIL 01_prepare_data data" in done.output
    assert not (tmp_path / "executed").exists()
