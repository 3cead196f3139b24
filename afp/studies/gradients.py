"""What is attacked or explained, as differentiable modules: pixels in [0, 1] to logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from scipy.special import logit
from torch import nn
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from ..detectors import NAMES
from ..detectors.base import Detector
from ..detectors.clip import ClipDetector
from ..detectors.linear_probe import LinearProbe
from ..detectors.vlm import VlmDetector
from ..errors import ModelError
from ..models.backbones import Backbone
from ..models.differentiable import DifferentiableTower, to_pixels
from .attacks import BATCH

# `spectrum` and `metadata` read no patches.
DIFFERENTIABLE = tuple(name for name in NAMES if name.startswith(("linear-", "clip-", "vlm-")))


class DifferentiableDetector(nn.Module):
    """A fitted detector as one differentiable module: (b, 3, s, s) in [0, 1] -> logits (b, 2) of real and fake.

    Args:
        tower: of the image.
        head: the tower's output to logits (b, 2).
        threshold: the logit from which on the detector says "fake".
    """

    def __init__(
        self, tower: DifferentiableTower, head: Callable[[torch.Tensor], torch.Tensor], threshold: float
    ):
        super().__init__()
        self.tower, self.head, self.threshold = tower, head, threshold

    @classmethod
    def of(cls, detector: Detector) -> DifferentiableDetector:
        """Of a fitted detector. ModelError: its score has no gradient (`spectrum`, `metadata`)."""
        check_differentiable(detector.name)
        if isinstance(detector, LinearProbe):
            output = "embedding" if detector.block_ is None else detector.block_
            tower, head = DifferentiableTower(detector.backbone_, output), _probe_head(detector)
        elif isinstance(detector, ClipDetector):
            tower, head = DifferentiableTower(detector.backbone_), detector.logits
        elif isinstance(detector, VlmDetector):
            tower, head = DifferentiableTower(detector.vlm_.tower, detector.vlm_.output), detector.logits
        else:
            raise TypeError(f"{detector}: no way from its tower to its logits")
        return cls(tower, head, float(logit(np.clip(detector.threshold_, 1e-12, 1 - 1e-12))))

    @property
    def device(self) -> torch.device:
        return next(self.tower.buffers()).device

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(self.tower(pixels)).float()

    def logit(self, states: torch.Tensor) -> torch.Tensor:
        """The logit of "fake" (b,) from what the first block reads."""
        real, fake = self.head(self.tower.read(states)).unbind(1)
        return (fake - real).float()


def check_differentiable(name: str) -> None:
    """Raises ModelError if the score of detectors of this name has no gradient."""
    if name not in DIFFERENTIABLE:
        raise ModelError(f"{name}: its score has no gradient, expected one of {', '.join(DIFFERENTIABLE)}")


def _probe_head(probe: LinearProbe) -> Callable[[torch.Tensor], torch.Tensor]:
    weight = torch.from_numpy(probe.model_.coef / probe.model_.scale)
    bias = float(probe.model_.intercept[0] - weight.numpy() @ probe.model_.mean)
    weight = weight.float()

    def head(features: torch.Tensor) -> torch.Tensor:
        z = features @ weight.to(features.device) + bias
        return torch.stack([torch.zeros_like(z), z], dim=1)

    return head


class PrototypeClassifier(nn.Module):
    """A classifier of content: which photograph is this? (b, 3, s, s) -> logits (b, classes).

    The logits are the cosine similarities to each class's mean embedding, times 100, as CLIP compares with texts.
    """

    prototypes: torch.Tensor

    def __init__(
        self,
        backbone: Backbone,
        images: Sequence[Image.Image],
        classes: Sequence[str],
        progress: bool = False,
    ):
        super().__init__()
        self.tower, self.classes = DifferentiableTower(backbone), sorted(set(classes))
        device = next(self.tower.buffers()).device
        starts = tqdm(range(0, len(images), BATCH), "prototypes", leave=False, disable=not progress)
        with torch.inference_mode():
            found = torch.cat(
                [normalize(self.tower(to_pixels(images[i : i + BATCH], device))) for i in starts]
            )
        of = np.array([self.classes.index(c) for c in classes])
        means = torch.stack([found[torch.from_numpy(of == c)].mean(0) for c in range(len(self.classes))])
        self.register_buffer("prototypes", normalize(means).clone())

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return 100 * normalize(self.tower(pixels)) @ self.prototypes.T
