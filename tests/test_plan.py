"""A dry run finds what is missing before hours are spent, and its arithmetic is right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, InstructBlipConfig, LlamaConfig

from afp.cli import dry_run
from afp.data import audit
from afp.data.manifest import write_manifest
from afp.errors import AfpError
from afp.models import backbones
from afp.paths import NOTEBOOKS, ROOT
from afp.workbook import find, parameters, read_parameters

FULL = ROOT / "params" / "full.yaml"


def test_the_full_size_parameters_are_parameters_of_notebooks():
    given = read_parameters(FULL)
    assert given["04_evaluate_held_out"]["backbone"] == "clip-vit-l14"
    assert given["02_train_soft_prompt"]["backbone"] == "instructblip-vicuna-7b"


@pytest.mark.parametrize("path", find([], everything=True), ids=lambda path: path.stem)
def test_each_notebook_that_takes_data_or_a_backbone_has_its_full_size(path):
    given, known = read_parameters(FULL), parameters(path)
    for name in ("manifest_path", "backbone", "vlm", "own_runs"):
        if name in known:
            assert given.get(path.stem, {}).get(name), f"{path.stem}: {name} is missing in params/full.yaml"
    for name in {"kind", "kinds"} & set(known):  # manifests made from folders hold the kind "unknown"
        assert given[path.stem].get(name) in ("all", ""), f"{path.stem}: {name} in params/full.yaml"
    assert path.stem in FULL.read_text(), "a notebook without parameters is named in a comment"
    assert next(f.check for f in dry_run.check_notebooks([path], given)).startswith(path.stem)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("99_none: {a: 1}", "no notebook '99_none'"),
        (
            "01_prepare_data: {sede: 1}",
            "p.yaml: 01_prepare_data.ipynb: no parameter 'sede', expected manifest_path",
        ),
        ("01_prepare_data: 3", "expected `notebook:`"),
        ("a: [", "not readable as YAML"),
    ],
)
def test_a_wrong_file_is_refused_by_name(text, message, tmp_path):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(AfpError, match=message):
        read_parameters(tmp_path / "p.yaml")


def _findings(values: dict[str, str], name: str = "06_test_robustness") -> dict[str, audit.Finding]:
    notebook = NOTEBOOKS / f"{name}.ipynb"
    return {f.check.split()[-1]: f for f in dry_run.check_notebooks([notebook], {notebook.stem: values})}


def test_what_is_there_is_found_and_what_it_costs_is_counted(tiny_tower, small_manifest, small_frame):
    """Backbones in folders are measured too, from their config."""
    values = {
        "manifest_path": str(small_manifest),
        "backbone": tiny_tower,
        "detectors": "linear-probe, spectrum",
    }
    found = _findings(values | {"perturbations": "jpeg:75,blur:1", "augment": "jpeg:50, jpeg:75"})
    assert found["data"].ok and found["weights"].ok and found["disk"].ok
    assert f"{4 * len(small_frame)} views of images" in found["time"].detail


def test_a_vision_language_model_is_counted_with_its_tokens_and_a_fit(
    small_manifest, small_frame, monkeypatch
):
    monkeypatch.setattr(backbones, "best_device", lambda: torch.device("cpu"))
    n, n_train = len(small_frame), (small_frame["split"] == "train").sum()
    data = {"manifest_path": str(small_manifest)}
    values = data | {"backbone": "instructblip-vicuna-7b", "preset": "antifakeprompt"}
    found = _findings(values, "02_train_soft_prompt")
    assert f"{n} views of images x 0.51 TFLOP" in found["time"].detail
    expected = f"10 epochs x {n_train} training images x 2 (forward, gradient) x 0.59 TFLOP"
    assert expected in found["training"].detail
    assert f"need {n * 2 * 257 * 1408 / 2**30:.2g} GiB" in found["disk"].detail
    assert "needs 29 x 1.25 + 1 GiB" in found["memory"].detail
    assert not _findings(values | {"preset": "paper"}, "02_train_soft_prompt")["training"].ok
    beside = _findings(data | {"vlm": values["backbone"]}, "05_map_feature_space")
    assert " epochs x " in beside["training"].detail and "hf download Salesforce/" in beside["weights"].detail
    assert "training" not in _findings(data | {"vlm": ""}, "05_map_feature_space")


def test_what_is_missing_is_named_with_its_mend(small_manifest, tmp_path, monkeypatch):
    nowhere = tmp_path / "nowhere.csv"
    found = _findings({"manifest_path": str(nowhere), "backbone": "nobody/nothing", "detectors": "best"})
    assert not found["data"].ok
    assert str(nowhere) in found["data"].detail and "afp manifest" in found["data"].detail
    assert not found["weights"].ok and "hf download nobody/nothing" in found["weights"].detail
    assert not found["names"].ok and "'best'" in found["names"].detail
    (tmp_path / "m.csv").write_text(small_manifest.read_text())  # its images are elsewhere
    found = _findings({"manifest_path": str(tmp_path / "m.csv"), "backbone": str(tmp_path)})
    assert not found["data"].ok and "36 of 36 images are missing" in found["data"].detail
    assert not found["weights"].ok and str(tmp_path) in found["weights"].detail
    found = _findings({"manifest_path": str(small_manifest), "kinds": "unknown, GAN"})
    assert "kinds: there is no 'GAN', expected some of unknown, or '' for all" in found["names"].detail
    found = _findings({"manifest_path": str(small_manifest), "kinds": "all"})
    assert "kinds: there is no 'all', expected some of unknown, or '' for all" in found["names"].detail
    found = _findings({"manifest_path": str(small_manifest), "backbone": "clip-vit-l14@no-such-branch"})
    assert "hf download openai/clip-vit-large-patch14" in found["weights"].detail and "time" in found
    asked = {"manifest_path": str(small_manifest), "kinds": ""}
    assert "names" not in _findings(asked)
    # What a notebook takes by default must fit one's own images too.
    for name, fits in {
        "03_adapt_clip": {"kind": "all"},
        "10_see_where_it_looks": {"generators": "real,half"},
    }.items():
        found = _findings({"manifest_path": str(small_manifest)}, name)
        assert not found["names"].ok and f"-p {next(iter(fits))} ..." in found["names"].detail
        assert "names" not in _findings({"manifest_path": str(small_manifest), "edited": ""} | fits, name)
    for wrong in ({"n_bot": "3"}, {"n_boot": "many"}):
        assert not _findings(wrong)["parameters"].ok


def test_a_model_or_features_without_room_are_found(small_manifest, monkeypatch):
    monkeypatch.setitem(dry_run.SIZES, "clip-vit-l14", dry_run.BackboneSize(1e15, 1e9, 200, 2**50))
    found = _findings({"manifest_path": str(small_manifest), "backbone": "clip-vit-l14"})
    assert not found["disk"].ok and not found["memory"].ok


LLAMA = {"vocab_size": 32001, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
L14 = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}


def _clip():
    vision = L14 | {"patch_size": 14, "projection_dim": 768}
    return CLIPConfig(vision_config=vision, text_config=TEXT, projection_dim=768)


def _instructblip():
    qformer = {"vocab_size": 30523, "encoder_hidden_size": 1408}
    parts = {"vision_config": {}, "qformer_config": qformer, "text_config": LlamaConfig(**LLAMA).to_dict()}
    return InstructBlipConfig(**parts, num_query_tokens=32, image_token_index=4)


@pytest.mark.parametrize(
    ("name", "config"), [("clip-vit-l14", _clip), ("instructblip-vicuna-7b", _instructblip)]
)
def test_the_sizes_of_models_are_those_of_their_configs(name, config, tmp_path):
    config().save_pretrained(tmp_path)
    found, stated = dry_run.BackboneSize.of(tmp_path), dry_run.SIZES[name]
    assert (found.n_tokens, found.cached) == (stated.n_tokens, stated.cached)
    for field in ("n_parameters", "n_tower", "n_language"):
        assert getattr(found, field) == pytest.approx(getattr(stated, field), rel=0.02), field


def test_the_command_runs_nothing_and_fails_where_something_is_missing(afp):
    code, shown = afp("run", "01", "--params", FULL, "--dry-run", "-p", "manifest_path=none.csv")
    assert code == 1 and "FAIL 01_prepare_data data" in shown and not Path("executed").exists()


def test_a_manifest_without_a_held_out_generator_is_refused_where_one_is_needed(small_frame, tmp_path):
    split = small_frame["split"].where(small_frame["split"] != "none", "train")
    manifest = write_manifest(small_frame.assign(split=split), tmp_path / "m.csv")
    given = {"manifest_path": str(manifest), "kind": "all"}
    finding = _findings(given, "03_adapt_clip")["data"]
    assert not finding.ok and "afp manifest --split --held-out NAME" in finding.detail
    real = _findings(given | {"kind": "real"}, "03_adapt_clip")["names"]
    assert not real.ok and "there is no 'real'" in real.detail
