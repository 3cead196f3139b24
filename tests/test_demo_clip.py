"""The dequantised tower is OpenAI's: it agrees with the int8 ONNX file that it was unpacked from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession, SessionOptions
from safetensors.torch import load_file

from afp.data.images import open_image
from afp.demo.tower import MEMBER, WHEEL, build_tower, dequantise, tower_folder
from afp.demo.wheels import Wheel
from afp.models.backbones import load_backbone


@pytest.fixture(scope="module")
def onnx_bytes(demo_manifest) -> bytes:
    return Wheel.pinned(WHEEL).read(MEMBER)


def test_embeddings_agree_with_the_onnx_file_on_real_photographs(onnx_bytes, demo_frame):
    photos = demo_frame[demo_frame["generator"] == "real"].drop_duplicates("source")[::3]
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


def test_weights_are_built_once(demo_manifest):
    files = {f: f.stat().st_mtime_ns for f in tower_folder().iterdir()}
    assert build_tower(progress=False) == tower_folder()
    assert {f: f.stat().st_mtime_ns for f in tower_folder().iterdir()} == files
