"""Where a detector looks: how much each patch of an image adds to the logit of "fake".

Relevance is by integrated gradients (Sundararajan et al., 2017; captum) over the patch embeddings. The baseline of
a patch is the mean patch of the same image: "nothing special here". With many steps the relevances of an image sum
to the difference that its patches make to the logit; with few they rank patches, which is what maps are for.
Whether a map tells where the evidence lies is measured, not supposed: `faithfulness`, `pointing`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from PIL import Image
from PIL.Image import Resampling
from sklearn.metrics import roc_auc_score

from ..errors import AfpError, require
from ..models.differentiable import to_pixels
from ..results.metrics import Estimate, mean_by_source
from .attacks import BATCH
from .gradients import DifferentiableDetector


def relevance(victim: DifferentiableDetector, images: Sequence[Image.Image], n_steps: int = 8) -> np.ndarray:
    """Each patch's part in the logit of "fake"; negative speaks for "real".

    Args:
        images: RGB, as the detector's normalisation leaves them.
        n_steps: points between baseline and image.
    Returns:
        (n, g, g) for a grid of g x g patches.
    """
    maps = []
    gradients = require("captum.attr", extra="attacks").IntegratedGradients(victim.logit)
    for start in range(0, len(images), BATCH):
        with torch.no_grad():
            states = victim.tower.embed(to_pixels(images[start : start + BATCH], victim.device))
        found = gradients.attribute(
            states, baselines=_baseline(states), n_steps=n_steps, internal_batch_size=BATCH
        )
        maps.append(found[:, 1:].float().sum(-1).cpu().numpy())
    flat = np.concatenate(maps)
    side = round(flat.shape[1] ** 0.5)
    return flat.reshape(-1, side, side)


def _baseline(states: torch.Tensor) -> torch.Tensor:
    """Every patch is the image's mean patch; the class token stays."""
    return torch.cat([states[:, :1], states[:, 1:].mean(1, keepdim=True).expand_as(states[:, 1:])], dim=1)


def deletion(
    victim: DifferentiableDetector,
    images: Sequence[Image.Image],
    maps: np.ndarray,
    share: float = 0.2,
    n_random: int = 5,
) -> pd.DataFrame:
    """What deleting patches does to the decision: the most relevant ones, and as many at random.

    A deleted patch becomes the image's mean patch. The most relevant patches are those that speak most for the
    decision that the detector took, at its own threshold.

    Args:
        maps: (n, g, g), of `relevance`.
        share: of the patches, above 0 and below 1.
        n_random: draws of as many patches at random, whose mean is taken.
    Returns:
        A row an image: logit, and how far it moves towards the other decision: ``relevant``, ``random`` (mean).
    Raises:
        ValueError: share out of range.
    """
    if not 0 < share < 1:
        raise AfpError(f"share: {share}, expected above 0 and below 1")
    rng, rows = np.random.default_rng(0), []
    for image, of_image in zip(images, maps, strict=True):
        with torch.no_grad():
            states = victim.tower.embed(to_pixels([image], victim.device))
            logit = victim.logit(states).item()
            sign = 1 if logit >= victim.threshold else -1
            n = max(1, round(share * of_image.size))
            chosen = [np.argsort(-sign * of_image.ravel(), kind="stable")[:n]]
            chosen += [rng.choice(of_image.size, n, replace=False) for _ in range(n_random)]
            masked, base = states.repeat(len(chosen), 1, 1), _baseline(states)
            for i, patches in enumerate(chosen):
                masked[i, 1 + patches] = base[0, 1 + patches]
            moved = sign * (logit - victim.logit(masked).cpu().numpy())
        rows.append({"logit": logit, "relevant": float(moved[0]), "random": float(moved[1:].mean())})
    return pd.DataFrame(rows)


def faithfulness(deleted: pd.DataFrame, sources: Sequence[str], n_boot: int = 1000) -> Estimate:
    """Mean of relevant - random over images, with a 95 % interval from a bootstrap over sources.

    An interval above 0: the map points at evidence. One that holds 0: do not believe the map.
    """
    return mean_by_source(deleted["relevant"] - deleted["random"], sources, n_boot)


def pointing(of_image: np.ndarray, mask: Image.Image) -> float:
    """The chance that a patch inside the mask is more relevant than one outside: .5 is guessing.

    Args:
        of_image: (g, g), of `relevance`.
        mask: grey, over the same square; a patch is inside where the mask's mean is over half of white.
    Returns:
        NaN where all patches are on one side.
    """
    inside = np.asarray(mask.convert("L").resize(of_image.shape[::-1], Resampling.BOX)) > 127
    return float(roc_auc_score(inside.ravel(), of_image.ravel())) if 0 < inside.mean() < 1 else float("nan")
