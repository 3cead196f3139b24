"""Frozen image towers behind one small interface: the demo's, CLIP from the hub, or any saved folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    CLIPModel,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
    VisionTextDualEncoderModel,
)
from transformers.utils import logging as hf_logging

from ..errors import AfpError, ModelError
from ..paths import backbone_folder

ALIASES = {"clip-vit-l14": "openai/clip-vit-large-patch14", "clip-vit-b32": "openai/clip-vit-base-patch32"}
CLASSES = {
    "clip": CLIPModel,
    "clip_vision_model": CLIPVisionModelWithProjection,
    "vision-text-dual-encoder": VisionTextDualEncoderModel,
}


def best_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    )


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU that multiplies it natively; else float32, so that every CPU gives the same features."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32


@dataclass(frozen=True)
class Backbone:
    """A frozen CLIP-like model in evaluation mode, with its preprocessing and (if it has one) its tokenizer."""

    name: str
    model: PreTrainedModel
    image_processor: object
    tokenizer: object | None
    device: torch.device
    dtype: torch.dtype

    @property
    def vision_config(self):
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
    def embedding_dim(self) -> int:
        """P: width of the projected image embedding."""
        return self.model.visual_projection.out_features

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


def load_backbone(name: str, device: str | None = None, dtype: str | torch.dtype = "auto") -> Backbone:
    """Load a frozen backbone, once a process.

    Args:
        name: ``demo-clip``; an alias (``clip-vit-l14``, ``clip-vit-b32``); any hub name or folder of a CLIP model,
            a CLIP vision tower with projection, or a vision-text dual encoder.
        device: torch device; default the accelerator, else the CPU.
        dtype: torch dtype or its name; ``auto`` is bfloat16 on a GPU that has it, else float32.
    Raises:
        ModelError: not found, not downloadable, or not CLIP-like.
    """
    device = torch.device(device) if device else best_device()
    if dtype == "auto":
        dtype = best_dtype(device)
    elif isinstance(dtype, str):
        dtype = getattr(torch, dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ModelError(f"dtype: {dtype!r}, expected auto, float32, bfloat16 or float16")
    return _load(name, device, dtype)


@cache
def _load(name: str, device: torch.device, dtype: torch.dtype) -> Backbone:
    source = ALIASES.get(name, name)
    if name == "demo-clip":
        source = str(backbone_folder(name))
        if not Path(source, "config.json").is_file():
            raise ModelError(f"backbone demo-clip: no weights in {source}; build them with `afp demo`")
    if Path(source).is_dir():
        hf_logging.disable_progress_bar()  # a bar is for downloads, not for reading a folder
    try:
        config = AutoConfig.from_pretrained(source)
        if config.model_type not in CLASSES:
            raise ModelError(f"backbone {name}: a {config.model_type} model, expected {' | '.join(CLASSES)}")
        # Parameters in float32 on disk would be doubled in memory if they were cast after loading.
        model = CLASSES[config.model_type].from_pretrained(source, dtype=dtype, use_safetensors=True)
        processor = AutoImageProcessor.from_pretrained(source, backend="pil")
    except (OSError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"backbone {name}: cannot load {source} ({reason}); expected a hub name that this machine can "
            "download or has cached, or a folder written by save_pretrained"
        ) from error
    tokenizer = None
    if config.model_type != "clip_vision_model":
        tokenizer = AutoTokenizer.from_pretrained(source)
    model.requires_grad_(False).eval().to(device)
    return Backbone(name, model, processor, tokenizer, device, dtype)
