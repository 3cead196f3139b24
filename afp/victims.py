"""Differentiable copies of what is attacked or explained: pixels in [0, 1] to logits, on a frozen image tower."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from scipy.special import logit
from torch import nn
from torch.nn.functional import interpolate, normalize

from .backbones import Backbone, BackboneError, load_backbone
from .detectors import NAMES, Detector, DetectorError
from .detectors.clip import ClipDetector
from .detectors.linear_probe import LinearProbe
from .vlm_tower import VisionTower

# `spectrum` and `metadata` read no patches.
DIFFERENTIABLE = tuple(name for name in NAMES if name.startswith(("linear-", "clip-", "vlm-")))


class Tower(nn.Module):
    """A backbone's preprocessing and image tower as one module: (b, 3, s, s) in [0, 1] -> its output.

    Resizing is torch's antialiased bicubic, first in width, then in height, each rounded to 8 bits, as Pillow does
    it; the gradient passes the rounding.

    Args:
        output: ``embedding``, projected, (b, P); a block's number, the class token after it, (b, D); ``cls``, the
            class token after the embeddings and after each block, (b, n_blocks + 1, D); ``tokens``, all tokens
            after the last block, normalised, (b, 1 + patches, D).
    Raises:
        BackboneError: the preprocessing is more than a resize of a square and a normalisation.
    """

    def __init__(self, backbone: Backbone | VisionTower, output: str | int = "embedding"):
        super().__init__()
        self.vision = getattr(backbone.model, "vision_model", backbone.model)
        processor, self.size = backbone.image_processor, self.vision.config.image_size
        edges = {processor.size.get("shortest_edge"), processor.size.get("height")} - {None}
        if edges != {self.size}:
            raise BackboneError(f"backbone {backbone.name}: resizes to {edges}, expected {self.size}")
        self.projection = backbone.model.visual_projection if output == "embedding" else None
        self.output, weight = output, next(self.vision.parameters())
        self.dtype, self.is_clip = weight.dtype, hasattr(self.vision, "pre_layrnorm")
        self.mask = (None,) if self.is_clip else ()  # CLIP's blocks ask for one, InstructBLIP's have none
        for name, values in (("mean", processor.image_mean), ("std", processor.image_std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1).to(weight.device))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.read(self.embed(pixels))

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels to what the first block reads: (b, 1 + patches, D), the class token first."""
        if pixels.shape[-1] != self.size:
            for shape in ((pixels.shape[-2], self.size), (self.size, self.size)):
                pixels = interpolate(pixels, shape, mode="bicubic", antialias=True).clamp(0, 1)
                pixels = pixels + ((pixels * 255).round() / 255 - pixels).detach()
        states = self.vision.embeddings(((pixels - self.mean) / self.std).to(self.dtype))
        return self.vision.pre_layrnorm(states) if self.is_clip else states

    def read(self, states: torch.Tensor) -> torch.Tensor:
        """What the first block reads to the tower's output."""
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


class Victim(nn.Module):
    """A fitted detector as one differentiable module: (b, 3, s, s) in [0, 1] -> logits (b, 2) of real and fake.

    Args:
        tower: of the image.
        head: the tower's output to logits (b, 2).
        threshold: the logit from which on the detector says "fake".
    """

    def __init__(self, tower: Tower, head: Callable[[torch.Tensor], torch.Tensor], threshold: float):
        super().__init__()
        self.tower, self.head, self.threshold = tower, head, threshold

    @classmethod
    def of(cls, detector: Detector) -> Victim:
        """Of a fitted detector. DetectorError: its score has no gradient (`spectrum`, `metadata`)."""
        check_differentiable(detector.name)
        if isinstance(detector, LinearProbe):
            output = "embedding" if detector.block_ is None else detector.block_
            tower, head = Tower(load_backbone(detector.backbone), output), _probe_head(detector)
        elif isinstance(detector, ClipDetector):
            tower, head = Tower(detector.backbone_), detector.logits
        else:
            tower, head = Tower(detector.vlm_.tower, detector.vlm_.output), detector.logits
        return cls(tower, head, float(logit(np.clip(detector.threshold_, 1e-12, 1 - 1e-12))))

    @property
    def device(self) -> torch.device:
        return self.tower.mean.device

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(self.tower(pixels)).float()

    def logit(self, states: torch.Tensor) -> torch.Tensor:
        """The logit of "fake" (b,) from what the first block reads."""
        real, fake = self.head(self.tower.read(states)).unbind(1)
        return (fake - real).float()


def check_differentiable(name: str) -> None:
    """Raises DetectorError if the score of detectors of this name has no gradient."""
    if name not in DIFFERENTIABLE:
        raise DetectorError(f"{name}: its score has no gradient, expected one of {', '.join(DIFFERENTIABLE)}")


def _probe_head(probe: LinearProbe) -> Callable[[torch.Tensor], torch.Tensor]:
    weight = torch.from_numpy(probe.model_.coef / probe.model_.scale)
    bias = float(probe.model_.intercept[0] - weight.numpy() @ probe.model_.mean)
    weight = weight.float()

    def head(features: torch.Tensor) -> torch.Tensor:
        z = features @ weight.to(features.device) + bias
        return torch.stack([torch.zeros_like(z), z], dim=1)

    return head


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
