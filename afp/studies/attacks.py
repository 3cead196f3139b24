"""Attacked images: what someone might do to a photograph, or to a training set, to fool a classifier.

As AntifakePrompt (section 4.1) defines them, an attacked photograph is fake (label 1). Every change is bounded:
in L-inf for `pgd_attack`, `collide_features` and blended triggers, in place for patches.

Images are attacked at the size at which detectors see them, before any re-encoding, and stored as PNG.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import normalize

from ..errors import AfpError, require
from ..models.differentiable import DifferentiableTower, to_pixels

KINDS = ("pgd", "fgsm", "poison", "patch", "blended")
BATCH = 8  # images at once


@dataclass(frozen=True)
class Settings:
    """What an attacker may do.

    Args:
        kind: ``pgd`` (Madry et al., 2018) or ``fgsm`` (Goodfellow et al., 2015) against a classifier of content;
            ``poison`` (feature collision, Shafahi et al., 2018); ``patch`` (Gu et al., BadNets, 2017) or
            ``blended`` (Chen et al., 2017), the two triggers of backdoors.
        epsilon: largest change of a colour value, 1/255 to 1; for ``blended`` the share of the trigger.
        steps: of ``pgd`` and ``poison``.
        size: side of the patch in pixels.
        seed: of the random start and of the blended pattern.
    Raises:
        AfpError: a value out of range.
    """

    kind: str
    epsilon: float = 8 / 255
    steps: int = 10
    size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise AfpError(f"attack: {self.kind!r}, expected one of {', '.join(KINDS)}")
        if not 1 / 255 <= self.epsilon <= 1:
            raise AfpError(f"epsilon: {self.epsilon:g}, expected 1/255 (less vanishes in 8 bits) to 1")
        for name, low, high in (("steps", 1, 1000), ("size", 1, 2048), ("seed", 0, 2**31 - 1)):
            if not low <= getattr(self, name) <= high:
                raise AfpError(f"{name}: {getattr(self, name)}, expected {low} to {high}")


def pgd_attack(
    model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, epsilon: float, steps: int, seed: int = 0
) -> torch.Tensor:
    """PGD in L-inf with a random start, by foolbox; one step, which has none, is FGSM.

    Args:
        model: (b, 3, s, s) in [0, 1] to logits (b, classes).
        pixels: (n, 3, s, s) in [0, 1].
        labels: (n,), the classes to get away from.
        epsilon: in [0, 1]; the step is 2.5 epsilon / steps, so that every point of the ball can be reached.
    Returns:
        (n, 3, s, s) in [0, 1], within epsilon of ``pixels``.
    """
    step = 2.5 * epsilon / steps if steps > 1 else epsilon
    foolbox = require("foolbox", extra="attacks")
    attack = foolbox.attacks.LinfPGD(abs_stepsize=step, steps=steps, random_start=steps > 1)
    wrapped = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device=pixels.device)
    torch.manual_seed(seed)
    batches = zip(pixels.split(BATCH), labels.split(BATCH), strict=True)
    return torch.cat([attack.run(wrapped, x, y, epsilon=epsilon).detach() for x, y in batches])


def collide_features(
    tower: DifferentiableTower,
    pixels: torch.Tensor,
    targets: torch.Tensor,
    epsilon: float,
    steps: int,
    seed: int = 0,
) -> torch.Tensor:
    """Move each image's embedding onto another image's, within epsilon: a clean-label poison.

    Args:
        pixels, targets: (n, 3, s, s), the images and those to collide with; at most `BATCH`.
    Returns:
        As `pgd_attack`.
    """
    with torch.no_grad():
        likeness = _Likeness(tower, normalize(tower(targets)))
    # Away from "unlike the goal" is towards the goal.
    unlike = torch.ones(len(pixels), dtype=torch.long, device=pixels.device)
    return pgd_attack(likeness, pixels, unlike, epsilon, max(2, steps), seed)


class _Likeness(nn.Module):
    """Logits (b, 2): how like the goal, and 0."""

    def __init__(self, tower: DifferentiableTower, goal: torch.Tensor):
        super().__init__()
        self.tower, self.goal = tower, goal

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        like = (normalize(self.tower(pixels)) * self.goal).sum(1)
        return torch.stack([like, torch.zeros_like(like)], dim=1)


def to_images(attacked: torch.Tensor, originals: Sequence[Image.Image], epsilon: float) -> list[Image.Image]:
    """Attacked pixels as 8-bit images that keep the bound: no value farther than epsilon from the original's.

    Rounding alone could step over the bound by half a grey level, so the rounded values are clipped to it.
    """
    rounded = (attacked.permute(0, 2, 3, 1) * 255).round().cpu().numpy().astype(np.int16)
    largest = int(np.floor(epsilon * 255 + 1e-6))
    base = np.stack([np.asarray(original, np.int16) for original in originals])
    kept = np.clip(rounded, base - largest, base + largest).clip(0, 255)
    return [Image.fromarray(values) for values in kept.astype(np.uint8)]


def add_trigger(image: Image.Image, settings: Settings) -> Image.Image:
    """The image with the trigger of a backdoor.

    ``patch``: a black and white checkerboard of ``size`` pixels a side, four squares by four, at the lower right.
    ``blended``: one random pattern over all of it, ``(1 - epsilon) * image + epsilon * pattern``.

    Raises:
        AfpError: another kind of attack, or the patch is larger than the image.
    """
    if settings.kind == "blended":
        pattern = np.random.default_rng(settings.seed).integers(0, 256, (image.height, image.width, 3))
        mixed = (1 - settings.epsilon) * np.asarray(image, np.float64) + settings.epsilon * pattern
        return Image.fromarray(np.rint(mixed).clip(0, 255).astype(np.uint8))
    if settings.kind != "patch":
        raise AfpError(f"trigger: {settings.kind!r}, expected patch or blended")
    if settings.size > min(image.size):
        raise AfpError(f"size: {settings.size}, expected at most the image's side, {min(image.size)}")
    at = np.arange(settings.size) * 4 // settings.size
    board = Image.fromarray(((at[:, None] + at) % 2 * 255).astype(np.uint8)).convert("RGB")
    marked = image.copy()
    marked.paste(board, (image.width - settings.size, image.height - settings.size))
    return marked


def attack_detector(
    model: nn.Module, images: Sequence[Image.Image], labels: np.ndarray, epsilons: Sequence[float], steps: int
) -> np.ndarray:
    """P(fake) of each image under PGD of each budget against the detector itself (*white box*).

    A larger budget includes the smaller ones, so the strongest attack so far stays: a defender never gains by
    a larger budget.

    Args:
        model: logits (b, 2) of real and fake, such as `afp.studies.gradients.DifferentiableDetector`.
        labels: (n,), 0 real or 1 fake; real images are pushed to fake, fake ones to real.
        epsilons: rising, 0 to 1, in floating point (nothing is rounded to 8 bits).
    Returns:
        (len(epsilons), n).
    Raises:
        AfpError: epsilons not rising or outside of 0 to 1.
    """
    if list(epsilons) != sorted(epsilons) or not all(0 <= e <= 1 for e in epsilons):
        raise AfpError(f"epsilons: {list(epsilons)}, expected rising values from 0 to 1")
    device = next(model.buffers()).device
    pixels, y = to_pixels(images, device), torch.tensor(np.asarray(labels), dtype=torch.long, device=device)
    rows: list[np.ndarray] = []
    for epsilon in epsilons:
        attacked = pgd_attack(model, pixels, y, epsilon, steps) if epsilon else pixels
        with torch.inference_mode():
            parts = [model(part).softmax(1)[:, 1] for part in attacked.split(BATCH)]
        found = torch.cat(parts).double().cpu().numpy()
        best = rows[-1] if rows else found
        rows.append(np.where(np.asarray(labels) == 1, np.minimum(found, best), np.maximum(found, best)))
    return np.stack(rows)
