"""The demo's tower is OpenAI's: in int8 it is the ONNX file that it comes from, in float32 it agrees with that."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession, SessionOptions
from safetensors.torch import load_file

from afp.data.images import open_image
from afp.demo.packages import Package
from afp.demo.tower import MEMBER, PACKAGE, build_tower, dequantise, tower_folder
from afp.errors import ModelError
from afp.models import backbones
from afp.models.backbones import QUANTISED, load_backbone
from afp.models.features import extract
from afp.results.scores import read_scores


@pytest.fixture(scope="module")
def onnx_bytes(demo_manifest) -> bytes:
    return Package.pinned(PACKAGE).read(MEMBER)


@pytest.fixture(scope="module")
def int8(demo_manifest):
    return load_backbone("demo-clip", dtype="int8")


@pytest.fixture(scope="module")
def pixels(int8, demo_frame) -> torch.Tensor:
    return int8.preprocess([open_image(file) for file in demo_frame["file"][:3]])


def test_int8_is_close_to_float32(int8, pixels):
    exact = load_backbone("demo-clip", "cpu", "float32")
    assert exact is load_backbone("demo-clip", "cpu") and exact.model is int8.model
    outputs = ("embedding", "cls", "tokens:0", "tokens:12")
    ours, theirs = int8.extract(pixels, outputs), exact.extract(pixels, outputs)
    assert all(ours[name].shape == theirs[name].shape for name in outputs)
    torch.testing.assert_close(ours["tokens:0"], theirs["tokens:0"])  # up to there nothing is rounded
    cosine = {name: torch.cosine_similarity(ours[name], theirs[name], dim=-1) for name in outputs}
    assert cosine["cls"][:, :8].min() > 0.97 and cosine["embedding"].min() > 0.9


def test_in_int8_an_image_s_features_depend_on_nothing_but_the_image(int8, pixels):
    whole = int8.extract(pixels, ("embedding", "cls", "tokens:7"))
    for i in range(len(pixels)):
        for outputs in (("cls", "tokens:7"), ("embedding",)):
            alone = int8.extract(pixels[i : i + 1], outputs)
            assert all(torch.equal(alone[name][0], whole[name][i]) for name in outputs)
    assert torch.equal(whole["tokens:7"][:, 0], whole["cls"][:, 7])


def test_in_int8_threads_and_the_way_of_multiplying_change_no_bit(int8, pixels, monkeypatch):
    """For processors without VNNI an option multiplies so that no sum saturates; where AMX is, it works too."""
    whole = int8.extract(pixels, ("cls",))["cls"]
    threads = torch.get_num_threads()
    torch.set_num_threads(threads % 2 + 1)
    try:
        assert torch.equal(int8.extract(pixels, ("cls",))["cls"], whole)
    finally:
        torch.set_num_threads(threads)
    backbones._session.cache_clear()
    monkeypatch.setattr("torch.cpu.get_capabilities", dict)
    assert torch.equal(int8.extract(pixels, ("cls",))["cls"], whole)
    backbones._session.cache_clear()


def test_int8_and_float32_share_no_cached_feature(int8, demo_frame):
    exact, rows = load_backbone("demo-clip", "cpu", "float32"), demo_frame[:2]
    ours, theirs = (extract(rows, tower, "cls", progress=False) for tower in (int8, exact))
    assert not np.array_equal(ours, theirs) and int8.fingerprint != exact.fingerprint
    assert all(np.array_equal(extract(rows, int8, "cls", progress=False), ours) for _ in range(2))


def test_a_run_says_its_precision_and_keeps_it(afp, small_manifest, tmp_path):
    scores = {}
    for precision, dtype in ((None, "auto"), ("int8", "int8"), ("fp32", "float32")):
        out = tmp_path / dtype
        options = ["--precision", precision] if precision else []
        status, shown = afp("fit", "-m", small_manifest, "--set", "block=6", "--out", out, *options)
        assert status == 0, shown
        assert json.loads((out / "config.json").read_text())["config"]["dtype"] == dtype
        status, shown = afp("score", small_manifest, "--run", out, "--out", tmp_path / f"{dtype}.csv")
        assert status == 0, shown
        scores[dtype] = read_scores(tmp_path / f"{dtype}.csv")["score"]
    assert scores["auto"].equals(scores["float32"]) or backbones.best_device().type != "cpu"
    assert not scores["int8"].equals(scores["float32"])
    assert np.corrcoef(scores["int8"], scores["float32"])[0, 1] > 0.9


def test_a_damaged_int8_tower_is_named_and_mended(demo_manifest, tmp_path, monkeypatch, capsys):
    built = tower_folder()
    monkeypatch.setenv("AFP_DATA", str(tmp_path))
    (tmp_path / "packages").symlink_to(built.parent.parent / "packages")
    tower_folder().mkdir(parents=True)
    for file in built.iterdir():
        (tower_folder() / file.name).symlink_to(file)
    damaged = tower_folder() / QUANTISED
    damaged.unlink()
    damaged.write_bytes((built / QUANTISED).read_bytes()[:-1] + b"?")
    with pytest.raises(ModelError, match=f"{QUANTISED} damaged or missing; mend with `afp demo`"):
        load_backbone("demo-clip", device="cpu")
    build_tower()
    assert f"damaged, made again: {damaged}" in capsys.readouterr().out
    assert damaged.read_bytes() == (built / QUANTISED).read_bytes()


def test_embeddings_agree_with_the_onnx_file_on_real_photographs(onnx_bytes, demo_frame):
    photos = demo_frame[demo_frame["generator"] == "real"].drop_duplicates("source")[::6]
    backbone = load_backbone("demo-clip", dtype="float32")
    pixels = backbone.preprocess([open_image(file) for file in photos["file"]])
    ours = backbone.extract(pixels, ("embedding",))["embedding"].numpy()
    options = SessionOptions()
    # Without it int8 products saturate on processors that have AVX2 and no VNNI.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])
    theirs = np.concatenate(
        [session.run(["image_embeds"], {"pixel_values": p[None].numpy()})[0] for p in pixels]
    )
    cosine = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert len(cosine) >= 10 and cosine.min() > 0.94
    # and each photograph is nearest to itself
    similarity = (ours / np.linalg.norm(ours, axis=1, keepdims=True)) @ theirs.T
    assert (similarity.argmax(0) == np.arange(len(photos))).all()


def test_all_parameters_come_from_the_file(onnx_bytes):
    state = dequantise(onnx_bytes)
    assert len(state) == 200
    assert all(t.dtype == torch.float32 and t.isfinite().all() and t.std() > 0 for t in state.values())
    stored = load_file(tower_folder() / "model.safetensors")
    image_side = {k.split("vision_model.")[-1]: v for k, v in stored.items() if "vision_model" in k}
    tower = {k.split("vision_model.")[-1]: v for k, v in state.items() if "vision_model" in k}
    assert len(tower) == 199 and all(torch.equal(image_side[k], v) for k, v in tower.items())
    assert torch.equal(stored["visual_projection.weight"], state["visual_projection.weight"])
