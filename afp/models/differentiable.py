"""A frozen image tower as one differentiable module: pixels in [0, 1] to its output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import interpolate

from ..errors import ModelError
from .backbones import Backbone
from .instructblip import VisionTower


class DifferentiableTower(nn.Module):
    """A backbone's preprocessing and image tower as one module: (b, 3, s, s) in [0, 1] -> its output.

    Resizing is torch's antialiased bicubic, first in width, then in height, each rounded to 8 bits, as Pillow does
    it; the gradient passes the rounding.

    Args:
        output: ``embedding``, projected, (b, P); a block's number, the class token after it, (b, D); ``cls``, the
            class token after the embeddings and after each block, (b, n_blocks + 1, D); ``tokens``, all tokens
            after the last block, normalised, (b, 1 + patches, D).
    Raises:
        ModelError: the preprocessing is more than a resize of a square and a normalisation.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, backbone: Backbone | VisionTower, output: str | int = "embedding"):
        super().__init__()
        model: Any = backbone.model
        self.vision: Any = getattr(model, "vision_model", model)
        processor: Any = backbone.image_processor
        self.size: int = self.vision.config.image_size
        edges = {processor.size.get("shortest_edge"), processor.size.get("height")} - {None}
        if edges != {self.size}:
            raise ModelError(f"backbone {backbone.name}: resizes to {edges}, expected {self.size}")
        self.projection: Any = model.visual_projection if output == "embedding" else None
        self.output, weight = output, next(self.vision.parameters())
        self.dtype, self.is_clip = weight.dtype, hasattr(self.vision, "pre_layrnorm")
        self.mixed: torch.dtype | None = getattr(backbone, "mixed", None)  # as the tower itself is run
        self.mask = (None,) if self.is_clip else ()  # CLIP's blocks ask for one, InstructBLIP's have none
        for name, values in (("mean", processor.image_mean), ("std", processor.image_std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1).to(weight.device))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.read(self.embed(pixels))

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels to what the first block reads: (b, 1 + patches, D), the class token first."""
        with torch.autocast(self.mean.device.type, self.mixed, enabled=self.mixed is not None):
            return self._embed(pixels)

    def read(self, states: torch.Tensor) -> torch.Tensor:
        """What the first block reads to the tower's output."""
        with torch.autocast(self.mean.device.type, self.mixed, enabled=self.mixed is not None):
            return self._read(states)

    def _embed(self, pixels: torch.Tensor) -> torch.Tensor:
        if pixels.shape[-1] != self.size:
            for shape in ((pixels.shape[-2], self.size), (self.size, self.size)):
                pixels = interpolate(pixels, shape, mode="bicubic", antialias=True).clamp(0, 1)
                pixels = pixels + ((pixels * 255).round() / 255 - pixels).detach()
        states = self.vision.embeddings(((pixels - self.mean) / self.std).to(self.dtype))
        return self.vision.pre_layrnorm(states) if self.is_clip else states

    def _read(self, states: torch.Tensor) -> torch.Tensor:
        last, seen = self.output if isinstance(self.output, int) else None, [states[:, 0]]
        for layer in self.vision.encoder.layers[:last]:  # what comes after is not worth its gradient
            states = layer(states, *self.mask)
            states = states[0] if isinstance(states, tuple) else states
            seen.append(states[:, 0])
        if self.output == "embedding":
            found = self.projection(self.vision.post_layernorm(seen[-1]))
        elif self.output == "tokens":
            found = self.vision.post_layernorm(states)
        else:
            found = torch.stack(seen, dim=1) if self.output == "cls" else seen[-1]
        return found.float()


def to_pixels(images: Sequence[Image.Image], device: torch.device | str = "cpu") -> torch.Tensor:
    """RGB images of one size to (b, 3, s, s) float32 in [0, 1]; 8-bit values are exact multiples of 1/255."""
    arrays = np.stack([np.asarray(image, np.float32) for image in images]) / 255
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous().to(device)
