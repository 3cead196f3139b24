"""Frozen image towers behind one small interface: the demo's, CLIP from the hub, or any saved folder."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    CLIPModel,
    CLIPVisionModelWithProjection,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    VisionTextDualEncoderModel,
)
from transformers.utils import logging as hf_logging

from ..errors import AfpError, ModelError, require
from ..files import checksum, damaged
from ..paths import backbone_folder

ALIASES = {"clip-vit-l14": "openai/clip-vit-large-patch14", "clip-vit-b32": "openai/clip-vit-base-patch32"}
CLASSES: dict[str, Any] = {
    "clip": CLIPModel,
    "clip_vision_model": CLIPVisionModelWithProjection,
    "vision-text-dual-encoder": VisionTextDualEncoderModel,
}
QUANTISED = "vision_int8.onnx"  # the image tower in 8 bits, beside a folder's weights


def best_device() -> torch.device:
    """The accelerator if there is one, else the CPU; accelerate's `ACCELERATE_USE_CPU` asks for the CPU."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return torch.device("cpu")
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU that multiplies it natively; else float32, so that every CPU gives the same features."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32


class DualModel(PreTrainedModel):
    """What transformers' CLIP-like models have in common, for annotations; an image tower alone lacks the texts'."""

    vision_model: Any
    visual_projection: nn.Linear
    text_model: Any
    text_projection: nn.Linear
    logit_scale: nn.Parameter


@dataclass(frozen=True)
class Backbone:
    """A frozen CLIP-like model in evaluation mode, with its preprocessing and (if it has one) its tokenizer."""

    name: str
    model: DualModel
    image_processor: BaseImageProcessor
    tokenizer: PreTrainedTokenizerBase | None
    device: torch.device
    dtype: torch.dtype

    @property
    def vision_config(self) -> PreTrainedConfig:
        """The image tower's part of the model's config."""
        config = self.model.config
        return getattr(config, "vision_config", config)

    @property
    def width(self) -> int:
        """D: width of the tower's hidden states."""
        return self.vision_config.hidden_size

    @property
    def n_blocks(self) -> int:
        """Number of transformer blocks; hidden states are numbered 0 (embeddings) to n_blocks."""
        return self.vision_config.num_hidden_layers

    @property
    def image_size(self) -> int:
        """Side of the tower's input in pixels."""
        return self.vision_config.image_size

    @property
    def embedding_dim(self) -> int:
        """P: width of the projected image embedding."""
        return self.model.visual_projection.out_features

    @property
    def batch_size(self) -> int:
        """Images of a pass that are as fast as more: 4 on a CPU, where a single image waits for the others."""
        return 4 if self.device.type == "cpu" else 16

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the image tower's weights, its dtype and its preprocessing: what a feature depends on."""
        digest = hashlib.sha256()
        for part in (self.model.vision_model, self.model.visual_projection):
            for key, value in sorted(part.state_dict().items()):
                digest.update(key.encode())
                digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy())
        digest.update(str(self.dtype).encode())
        digest.update(self.image_processor.to_json_string().encode())
        return digest.hexdigest()[:16]

    def preprocess(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """RGB images to the tower's input, (b, 3, h, w) float32 on the CPU."""
        return self.image_processor(images=list(images), return_tensors="pt")["pixel_values"]

    @torch.inference_mode()
    def extract(self, pixels: torch.Tensor, outputs: Sequence[str]) -> dict[str, torch.Tensor]:
        """Run the image tower once.

        Args:
            pixels: (b, 3, h, w), from `preprocess`.
            outputs: any of ``embedding`` (b, P), projected and not normalised; ``cls`` (b, n_blocks + 1, D), the
                class token after the embeddings and after each block; ``tokens:K`` (b, tokens, D), all tokens of
                hidden state K.
        Returns:
            One float32 CPU tensor an output.
        Raises:
            ValueError: unknown output, or a K outside of 0 .. n_blocks.
        """
        states = self.model.vision_model(
            pixel_values=pixels.to(self.device, self.dtype), output_hidden_states=True, return_dict=True
        )
        found = {}
        for output in outputs:
            if output == "embedding":
                value = self.model.visual_projection(states.pooler_output)
            elif output == "cls":
                value = torch.stack([h[:, 0] for h in states.hidden_states], dim=1)
            else:
                value = states.hidden_states[self.check_output(output)]
            found[output] = value.float().cpu()
        return found

    def check_output(self, output: str) -> int:
        """The K of ``tokens:K``. Raises ValueError for anything that `extract` does not know."""
        kind, _, number = output.partition(":")
        if kind != "tokens" or not number.isdigit() or int(number) > self.n_blocks:
            known = f"embedding, cls or tokens:K with K from 0 to {self.n_blocks}"
            raise AfpError(f"feature output {output!r}: expected {known}")
        return int(number)


@dataclass(frozen=True)
class QuantisedBackbone(Backbone):
    """A `Backbone` whose features come from an 8-bit copy of its image tower, run on the CPU by onnxruntime.

    ``model`` is the float32 one, for whoever needs a gradient. In the copy each layer's input is scaled to 8 bits by
    its extremes, so images run one by one: a feature does not depend on its batch. The rounding makes large what is
    small: pixels that differ by 1e-7 of their value give other scores, so another processor does too. Speed and
    agreement are in docs/benchmarks.md.

    Args:
        file: an ONNX graph: ``pixel_values`` (1, 3, h, w) to the outputs of `Backbone.extract`, by their names.
    """

    file: Path

    @property
    def batch_size(self) -> int:
        """One: images do not run together."""
        return 1

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the 8-bit tower and the preprocessing."""
        parts = (checksum(self.file), self.image_processor.to_json_string())
        return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]

    @torch.inference_mode()
    def extract(self, pixels: torch.Tensor, outputs: Sequence[str]) -> dict[str, torch.Tensor]:
        """As `Backbone.extract`."""
        for output in outputs:
            if output not in ("embedding", "cls"):
                self.check_output(output)
        session = _session(self.file, torch.get_num_threads())
        images = pixels.float().cpu().numpy()
        found = [session.run(list(outputs), {"pixel_values": image[None]}) for image in images]
        return {
            output: torch.from_numpy(np.concatenate([f[i] for f in found]))
            for i, output in enumerate(outputs)
        }


@cache
def _session(file: Path, n_threads: int) -> Any:
    """The 8-bit tower, loaded once a process."""
    onnxruntime = require("onnxruntime", extra="demo")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    # Threads that wait leave the cores to torch.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    processor = torch.cpu.get_capabilities()
    if not (processor.get("avx512_vnni") or processor.get("avx_vnni")):
        # Sums of 8-bit products saturate there. Elsewhere it changes no bit, but may cost two thirds of the speed.
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's have no common base of their own
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{file}: onnxruntime cannot load it ({reason}); expected an ONNX graph") from error


def load_backbone(
    name: str, device: str | None = None, dtype: str | torch.dtype = "auto", drop_blocks: int = 0
) -> Backbone:
    """Load a frozen backbone, once a process.

    Args:
        name: ``demo-clip``; an alias (``clip-vit-l14``, ``clip-vit-b32``); any hub name or folder of a CLIP model,
            a CLIP vision tower with projection, or a vision-text dual encoder. ``NAME@REVISION`` takes a branch, tag
            or commit of the hub's.
        device: torch device; default the accelerator, else the CPU.
        dtype: torch dtype or its name; ``auto`` is bfloat16 on a GPU that has it, else float32. ``int8`` is for
            folders that hold such a tower, on the CPU (see `QuantisedBackbone`).
        drop_blocks: last blocks of the image tower that are cut off; its final norm, its projection and all weights
            stay those of the whole one.
    Raises:
        ModelError: not found, not downloadable, not CLIP-like, some weights are missing, or it has too few blocks.
        AfpError: onnxruntime is not installed, which ``int8`` needs.
    """
    where = torch.device(device) if device else best_device()
    if dtype == "auto":
        dtype = best_dtype(where)
    elif isinstance(dtype, str):
        dtype = getattr(torch, dtype, dtype)
    if not isinstance(dtype, torch.dtype):
        raise ModelError(f"dtype: {dtype!r}, expected auto, float32, bfloat16, float16 or int8")
    source = _source(name)  # $AFP_DATA may name another folder than before
    if dtype == torch.int8:
        return _load_quantised(name, *source, drop_blocks)
    if drop_blocks:
        return _cut(name, *source, where, dtype, drop_blocks)
    return _load(name, *source, where, dtype)


@cache
def _cut(name: str, source: str, revision: str, device: torch.device, dtype: torch.dtype, n: int) -> Backbone:
    whole = _load(name, source, revision, device, dtype)
    if not 0 < n < whole.n_blocks:
        raise ModelError(f"backbone {name}: cannot drop {n} of {whole.n_blocks} blocks")
    shared = {id(p): p for p in whole.model.parameters()}
    cut = replace(whole, name=f"{name} without {n} blocks", model=copy.deepcopy(whole.model, shared))
    cut.model.vision_model.encoder.layers = cut.model.vision_model.encoder.layers[: whole.n_blocks - n]
    cut.vision_config.num_hidden_layers -= n
    return cut


@cache
def _load_quantised(name: str, source: str, revision: str, drop_blocks: int) -> QuantisedBackbone:
    whole, file = _load(name, source, revision, torch.device("cpu"), torch.float32), Path(source, QUANTISED)
    if not file.is_file():
        hint = "; make it with `afp demo`" if name == "demo-clip" else ""
        raise ModelError(f"backbone {name}: no {file}, which dtype int8 needs; expected float32{hint}")
    if drop_blocks:
        raise ModelError(f"backbone {name}: no block of its int8 tower can be dropped; expected float32")
    require("onnxruntime", extra="demo")  # said now, not after images have been read
    processor, tokenizer = whole.image_processor, whole.tokenizer
    return QuantisedBackbone(name, whole.model, processor, tokenizer, whole.device, torch.int8, file)


@cache
def _load(name: str, source: str, revision: str, device: torch.device, dtype: torch.dtype) -> Backbone:
    if name == "demo-clip" and not Path(source, "config.json").is_file():
        raise ModelError(f"backbone demo-clip: no weights in {source}; build them with `afp demo`")
    if name == "demo-clip" and (changed := damaged(source)):
        raise ModelError(f"{source}: {', '.join(changed)} damaged or missing; mend with `afp demo`")
    if Path(source).is_dir():
        hf_logging.disable_progress_bar()  # a bar is for downloads, not for reading a folder
    where: dict[str, Any] = {
        "pretrained_model_name_or_path": source,
        "revision": revision,
        "trust_remote_code": False,
    }
    try:
        config = AutoConfig.from_pretrained(**where)
        if config.model_type not in CLASSES:
            raise ModelError(f"backbone {name}: a {config.model_type} model, expected {' | '.join(CLASSES)}")
        model = read_weights(CLASSES[config.model_type], name, dtype=dtype, **where)
        processor = AutoImageProcessor.from_pretrained(backend="pil", **where)
        tokenizer = None
        if config.model_type != "clip_vision_model":
            tokenizer = AutoTokenizer.from_pretrained(**where)
    except ModelError:
        raise
    except Exception as error:  # a damaged folder raises nearly anything; all of this is on the CPU
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"backbone {name}: cannot load {source} ({reason}); expected a hub name that this machine can "
            "download or has cached, or a folder written by save_pretrained"
        ) from error
    nn.Module.to(model, device)
    backbone = Backbone(name, model, processor, tokenizer, device, dtype)
    if backbone.n_blocks < 1:
        raise ModelError(f"backbone {name}: {backbone.n_blocks} blocks, expected 1 or more")
    return backbone


def _source(name: str) -> tuple[str, str]:
    """A backbone's folder or its name on the hub, and the revision there."""
    if name == "demo-clip" or Path(name).is_dir():
        return str(backbone_folder(name)), "main"
    source, _, revision = name.partition("@")
    return ALIASES.get(source, source), revision or "main"


def read_weights(cls: Any, name: str, **options: Any) -> DualModel:
    """A frozen model by transformers' ``from_pretrained(**options)``, from safetensors alone.

    Raises:
        ModelError: weights are missing, which transformers would draw at random.
    """
    model, report = cls.from_pretrained(use_safetensors=True, output_loading_info=True, **options)
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"backbone {name}: {len(missing)} weights are missing, such as {missing[0]}")
    return model.requires_grad_(False).eval()
