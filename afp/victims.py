"""Differentiable copies of what is attacked or explained: pixels in [0, 1] to logits, on a frozen image tower."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import interpolate, normalize

from .backbones import Backbone, BackboneError, load_backbone
from .detectors.linear_probe import LinearProbe


class Tower(nn.Module):
    """A backbone's preprocessing and image tower as one module: (b, 3, s, s) in [0, 1] -> (b, P) or (b, D).

    Resizing is torch's antialiased bicubic, first in width, then in height, each rounded to 8 bits, as Pillow does
    it; the gradient passes the rounding.

    Args:
        block: the class token after this block; None for the projected embedding.
    Raises:
        BackboneError: the preprocessing is more than a resize of a square and a normalisation.
    """

    def __init__(self, backbone: Backbone, block: int | None = None):
        super().__init__()
        processor, self.size = backbone.image_processor, backbone.vision_config.image_size
        edges = {processor.size.get("shortest_edge"), processor.size.get("height")} - {None}
        if edges != {self.size}:
            raise BackboneError(f"backbone {backbone.name}: resizes to {edges}, expected {self.size}")
        self.vision, self.projection = backbone.model.vision_model, backbone.model.visual_projection
        self.block = block
        for name, values in (("mean", processor.image_mean), ("std", processor.image_std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1).to(backbone.device))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.read(self.embed(pixels))

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels to what the first block reads: (b, 1 + patches, D), the class token first."""
        if pixels.shape[-1] != self.size:
            for shape in ((pixels.shape[-2], self.size), (self.size, self.size)):
                pixels = interpolate(pixels, shape, mode="bicubic", antialias=True).clamp(0, 1)
                pixels = pixels + ((pixels * 255).round() / 255 - pixels).detach()
        pixels = ((pixels - self.mean) / self.std).to(self.projection.weight.dtype)
        return self.vision.pre_layrnorm(self.vision.embeddings(pixels))

    def read(self, states: torch.Tensor) -> torch.Tensor:
        """What the first block reads to the tower's output."""
        for layer in self.vision.encoder.layers[: self.block]:  # what comes after is not worth its gradient
            states = layer(states, attention_mask=None)
            states = states[0] if isinstance(states, tuple) else states
        if self.block is None:
            return self.projection(self.vision.post_layernorm(states[:, 0])).float()
        return states[:, 0].float()


class ProbeVictim(nn.Module):
    """A fitted linear probe: (b, 3, s, s) -> logits (b, 2) of real and fake."""

    def __init__(self, probe: LinearProbe, dtype: str = "auto"):
        super().__init__()
        self.tower = Tower(load_backbone(probe.backbone, dtype=dtype), probe.block_)
        weight = torch.from_numpy(probe.model_.coef / probe.model_.scale)
        bias = float(probe.model_.intercept[0] - weight.numpy() @ probe.model_.mean)
        device = self.tower.mean.device
        self.register_buffer("weight", weight.float().to(device))
        self.bias = bias

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        z = self.logit(self.tower.embed(pixels))
        return torch.stack([torch.zeros_like(z), z], dim=1)

    def logit(self, states: torch.Tensor) -> torch.Tensor:
        """The logit of "fake" (b,) from what the first block reads."""
        return self.tower.read(states) @ self.weight + self.bias


class PrototypeVictim(nn.Module):
    """A classifier of content: which photograph is this? (b, 3, s, s) -> logits (b, classes).

    The logits are the cosine similarities to each class's mean embedding, times 100, as CLIP compares with texts.
    """

    def __init__(self, backbone: Backbone, images: Sequence[Image.Image], classes: Sequence[str], batch: int = 8):
        super().__init__()
        self.tower, self.classes = Tower(backbone), sorted(set(classes))
        parts = [images[i : i + batch] for i in range(0, len(images), batch)]
        with torch.inference_mode():
            found = torch.cat([normalize(self.tower(to_pixels(part, self.tower.mean.device))) for part in parts])
        of = np.array([self.classes.index(c) for c in classes])
        means = torch.stack([found[torch.from_numpy(of == c)].mean(0) for c in range(len(self.classes))])
        self.register_buffer("prototypes", normalize(means).clone())

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return 100 * normalize(self.tower(pixels)) @ self.prototypes.T


def to_pixels(images: Sequence[Image.Image], device: torch.device | str = "cpu") -> torch.Tensor:
    """RGB images of one size to (b, 3, s, s) float32 in [0, 1]; 8-bit values are exact multiples of 1/255."""
    arrays = np.stack([np.asarray(image, np.float32) for image in images]) / 255
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous().to(device)
