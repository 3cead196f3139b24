from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import picture, write_tower
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    CLIPImageProcessorPil,
)

from afp import detectors
from afp.errors import AfpError, ModelError
from afp.models.backbones import QUANTISED, load_backbone
from afp.paths import ROOT
from afp.results import runs


@pytest.fixture(scope="module")
def tower(tmp_path_factory) -> str:
    return write_tower(tmp_path_factory.mktemp("tower"))


def outputs(backbone, images=(0, 1)):
    pixels = backbone.preprocess([picture(i) for i in images])
    names = ("embedding", "cls", *(f"tokens:{k}" for k in range(backbone.n_blocks + 1)))
    return pixels, backbone.extract(pixels, names)


@pytest.mark.parametrize("name", ["demo-clip", "small"])
def test_outputs_are_those_of_the_model(name, tower, demo_manifest):
    backbone = load_backbone(tower if name == "small" else name, dtype="float32")
    pixels, found = outputs(backbone)
    n, d = backbone.n_blocks, backbone.width
    assert found["embedding"].shape == (2, backbone.embedding_dim)
    assert found["cls"].shape == (2, n + 1, d)
    for k in range(n + 1):
        assert found[f"tokens:{k}"].shape[::2] == (2, d)
        assert torch.equal(found[f"tokens:{k}"][:, 0], found["cls"][:, k])
    with torch.inference_mode():
        model = backbone.model
        if hasattr(model, "get_image_features"):
            expected = model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
        else:
            expected = model(pixel_values=pixels).image_embeds
        last = model.visual_projection(model.vision_model.post_layernorm(found["cls"][:, -1]))
    torch.testing.assert_close(found["embedding"], expected)
    torch.testing.assert_close(found["embedding"], last)


def test_the_demo_tower_is_clip_vit_b_16(demo_manifest):
    backbone = load_backbone("demo-clip")
    assert (backbone.width, backbone.n_blocks, backbone.embedding_dim) == (768, 12, 512)
    assert backbone.preprocess([picture(0)]).shape == (1, 3, 224, 224)
    assert not backbone.model.training and not any(p.requires_grad for p in backbone.model.parameters())


def test_a_backbone_is_loaded_once_a_process(tower):
    assert load_backbone(tower) is load_backbone(tower)
    assert load_backbone(tower, dtype="float32") is load_backbone(tower, dtype=torch.float32)


def test_the_fingerprint_tells_weights_dtype_and_preprocessing_apart(tower, tmp_path):
    other = write_tower(tmp_path / "other", seed=1)
    resized = write_tower(tmp_path / "resized")
    CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}).save_pretrained(
        resized
    )
    same = write_tower(tmp_path / "same")
    fingerprints = [load_backbone(f, dtype="float32").fingerprint for f in (tower, other, resized)]
    fingerprints.append(load_backbone(tower, dtype="bfloat16").fingerprint)
    assert len(set(fingerprints)) == 4
    assert load_backbone(same, dtype="float32").fingerprint == fingerprints[0]


@pytest.mark.parametrize("output", ["pooled", "tokens", "tokens:", "tokens:4", "tokens:-1", "tokens:x", ""])
def test_an_unknown_output_is_refused_by_name(tower, output):
    backbone = load_backbone(tower)
    with pytest.raises(ValueError, match=f"feature output '{output}'.*K from 0 to 3"):
        backbone.extract(backbone.preprocess([picture(0)]), (output,))


def test_what_is_no_clip_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"no/such-model.*expected a hub name"):
        load_backbone("no/such-model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="empty"):
        load_backbone(str(tmp_path / "empty"))
    bert = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(bert).save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelError, match=r"a bert model, expected clip"):
        load_backbone(str(tmp_path / "bert"))
    folder = Path(write_tower(tmp_path / "pickled"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no file named model\.safetensors"):
        load_backbone(str(folder))


@pytest.mark.parametrize("dtype", ["float33", "Tensor", 32])
def test_a_wrong_dtype_is_refused_by_name(tower, dtype):
    with pytest.raises(ModelError, match=r"dtype: .*, expected auto, float32"):
        load_backbone(tower, dtype=dtype)


def test_an_int8_tower_that_cannot_be_run_is_an_error(tmp_path, monkeypatch):
    folder = Path(write_tower(tmp_path))
    with pytest.raises(
        ModelError, match=f"no {folder / QUANTISED}, which dtype int8 needs; expected float32"
    ):
        load_backbone(str(folder), dtype="int8")
    (folder / QUANTISED).write_bytes(b"no graph")
    with monkeypatch.context() as patch, pytest.raises(AfpError, match=r"onnxruntime is not .*\[demo\]"):
        patch.setitem(sys.modules, "onnxruntime", None)
        load_backbone(str(folder), dtype="int8")
    backbone = load_backbone(str(folder), dtype="int8")
    with pytest.raises(ModelError, match=f"{folder / QUANTISED}: onnxruntime cannot load it"):
        backbone.extract(backbone.preprocess([picture(0)]), ("cls",))
    with pytest.raises(ModelError, match="no block of its int8 tower can be dropped"):
        load_backbone(str(folder), dtype="int8", drop_blocks=1)


def test_missing_weights_are_an_error(tmp_path):
    folder = Path(write_tower(tmp_path))
    weights = load_file(folder / "model.safetensors")
    del weights["vision_model.encoder.layers.1.mlp.fc1.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are missing, such as .*layers\.1\.mlp\.fc1\.weight"):
        load_backbone(str(folder))


def test_code_that_comes_with_a_backbone_is_never_run(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run it"))
    folder = Path(write_tower(tmp_path / "stranger"))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: ...\n")
    for name, own in (
        ("config.json", {"auto_map": {"AutoConfig": "own.Own"}, "model_type": "unheard-of"}),
        ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "own.Own"}}),
    ):
        whole = (folder / name).read_text()
        (folder / name).write_text(json.dumps(json.loads(whole) | own))
        try:
            load_backbone(str(folder))
        except ModelError as error:
            assert "stranger" in str(error)
        (folder / name).write_text(whole)
    assert not (tmp_path / "ran").exists()


def test_a_revision_of_the_hub_can_be_named(tmp_path, small_frame, monkeypatch):
    """From a hub's cache that was filled by hand: a branch `v1` beside `main`."""
    commits = {"main": "a" * 40, "v1": "b" * 40}
    for seed, (branch, commit) in enumerate(commits.items()):
        folder = tmp_path / "models--some--tower"
        write_tower(folder / "snapshots" / commit, seed=seed)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / branch).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    main, v1 = load_backbone("some/tower"), load_backbone("some/tower@v1")
    probes = [detectors.create("linear-probe", backbone=f"some/tower{at}") for at in ("", "@v1")]
    assert [runs.hub_commit(probe) for probe in probes] == list(commits.values())
    assert runs.hub_commit(detectors.create("linear-probe")) == ""
    assert main.fingerprint != v1.fingerprint
    with pytest.raises(ModelError, match="some/tower@v2"):
        load_backbone("some/tower@v2")
    monkeypatch.setenv("AFP_DATA", str(tmp_path / "data"))
    config = {"backbone": "some/tower@v1", "block": 1}
    run = runs.fit_run("linear-probe", small_frame, tmp_path / "run", config=config, progress=False)
    assert json.loads((run / "environment.json").read_text())["hub_commit"] == commits["v1"]


EXTRACT = """
import sys, numpy as np
sys.path[:0] = ["tests", "data/build"]
from conftest import picture, write_tower
from afp.models.backbones import load_backbone
tower = load_backbone("demo-clip", dtype="float32")
pixels = tower.preprocess([picture(0, 256)])
np.save(sys.argv[1], tower.extract(pixels, ("cls",))["cls"].numpy())
"""


def test_another_processor_gives_the_same_scores(demo_manifest, tmp_path):
    """ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA let this processor stand in for an older one."""
    older = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "OMP_NUM_THREADS": "1"}
    env = os.environ | older
    subprocess.run([sys.executable, "-c", EXTRACT, str(tmp_path / "cls.npy")], env=env, check=True)
    theirs = np.load(tmp_path / "cls.npy")
    tower = load_backbone("demo-clip", dtype="float32")
    pixels = tower.preprocess([picture(0, 256)])
    ours = tower.extract(pixels, ("cls",))["cls"].numpy()
    probe = detectors.load(ROOT / "data" / "linear-probe")
    scores = [probe.model_.predict(x[:, probe.block_]) for x in (ours, theirs)]
    assert np.abs(scores[0] - scores[1]).max() < 0.01
    assert np.abs(ours - theirs).max() < 1e-3 * np.abs(ours).max()
