"""Where a detector looks: how much each patch of an image adds to the logit of "fake".

Relevance is by integrated gradients (Sundararajan et al., 2017; captum) over the patch embeddings. The baseline of
a patch is the mean patch of the same image: "nothing special here". With many steps the relevances of an image sum
to the difference that its patches make to the logit; with few they rank patches, which is what maps are for.
Whether a map tells where the evidence lies is measured, not supposed: `faithfulness`, `pointing`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from captum.attr import IntegratedGradients
from PIL import Image
from PIL.Image import Resampling
from sklearn.metrics import roc_auc_score
from tqdm.auto import tqdm

from .detectors import Detector
from .features import prepare
from .metrics import Estimate
from .victims import Victim, to_pixels

BATCH = 8


def relevance(victim: Victim, images: Sequence[Image.Image], n_steps: int = 8) -> np.ndarray:
    """Each patch's part in the logit of "fake"; negative speaks for "real".

    Args:
        images: RGB, as the detector's normalisation leaves them.
        n_steps: points between baseline and image.
    Returns:
        (n, g, g) for a grid of g x g patches.

    Notebook: 10_see_where_it_looks
    """
    maps = []
    gradients = IntegratedGradients(victim.logit)
    for start in range(0, len(images), BATCH):
        with torch.no_grad():
            states = victim.tower.embed(to_pixels(images[start : start + BATCH], victim.device))
        found = gradients.attribute(states, baselines=_baseline(states), n_steps=n_steps, internal_batch_size=BATCH)
        maps.append(found[:, 1:].float().sum(-1).cpu().numpy())
    flat = np.concatenate(maps)
    side = round(flat.shape[1] ** 0.5)
    return flat.reshape(-1, side, side)


def _baseline(states: torch.Tensor) -> torch.Tensor:
    """Every patch is the image's mean patch; the class token stays."""
    return torch.cat([states[:, :1], states[:, 1:].mean(1, keepdim=True).expand_as(states[:, 1:])], dim=1)


def deletion(
    victim: Victim, images: Sequence[Image.Image], maps: np.ndarray, share: float = 0.2, n_random: int = 5
) -> pd.DataFrame:
    """What deleting patches does to the decision: the most relevant ones, and as many at random.

    A deleted patch becomes the image's mean patch. The most relevant patches are those that speak most for the
    decision that the detector took, at its own threshold.

    Args:
        maps: (n, g, g), of `relevance`.
        share: of the patches, above 0 and below 1.
    Returns:
        A row an image: logit, and how far it moves towards the other decision: ``relevant``, ``random`` (mean).
    Raises:
        ValueError: share out of range.

    Notebook: 10_see_where_it_looks
    """
    if not 0 < share < 1:
        raise ValueError(f"share: {share}, expected above 0 and below 1")
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

    Notebook: 10_see_where_it_looks
    """
    return mean_by_source(deleted["relevant"] - deleted["random"], sources, n_boot)


def pointing(of_image: np.ndarray, mask: Image.Image) -> float:
    """The chance that a patch inside the mask is more relevant than one outside: .5 is guessing.

    Args:
        of_image: (g, g), of `relevance`.
        mask: grey, over the same square; a patch is inside where the mask's mean is over half of white.
    Returns:
        NaN where all patches are on one side.

    Notebook: 10_see_where_it_looks
    """
    inside = np.asarray(mask.convert("L").resize(of_image.shape[::-1], Resampling.BOX)) > 127
    return float(roc_auc_score(inside.ravel(), of_image.ravel())) if 0 < inside.mean() < 1 else float("nan")


def mean_by_source(values: Sequence[float], sources: Sequence[str], n_boot: int = 1000) -> Estimate:
    """A mean over images, with a 95 % interval from a bootstrap over sources.

    Notebook: 10_see_where_it_looks
    """
    gain = np.asarray(values, float)
    codes, names = pd.factorize(np.asarray(sources), sort=True)
    counts = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=n_boot)
    weights = np.concatenate([np.ones((1, len(gain))), counts[:, codes]])
    return Estimate.of(weights @ gain / weights.sum(1))


def overlay(image: Image.Image, of_image: np.ndarray, strength: float | None = None) -> Image.Image:
    """The image, grey, under its relevance: red speaks for fake, blue for real.

    Args:
        of_image: (g, g), of `relevance`.
        strength: the relevance of full colour; default the image's own largest.

    Notebook: 10_see_where_it_looks
    """
    scaled = of_image / max(strength or np.abs(of_image).max(), 1e-12)
    small = Image.fromarray(np.clip(scaled, -1, 1).astype(np.float32))
    wide = np.asarray(small.resize(image.size, Resampling.BICUBIC)).clip(-1, 1)
    colours = mpl.colormaps["RdBu_r"]((wide + 1) / 2)[..., :3] * 255
    share = 0.65 * np.abs(wide)[..., None]
    grey = np.asarray(image.convert("L").convert("RGB"), np.float64)
    return Image.fromarray((grey * (1 - share) + colours * share).round().astype(np.uint8))


def write_overlays(
    detector: Detector, frame: pd.DataFrame, out: str | Path, perturbation: str = "none"
) -> list[Path]:
    """`overlay` of every row as ``out/NNNN-<name>.png``. DetectorError: the detector's score has no gradient.

    Notebook: 10_see_where_it_looks
    """
    victim, out, files = Victim.of(detector), Path(out), []
    out.mkdir(parents=True, exist_ok=True)
    for i, row in enumerate(tqdm(frame.itertuples(), total=len(frame), desc="explain", unit="image")):
        image = prepare(row.file, row.sha256, detector.normalisation, perturbation)
        name = re.sub(r"[^A-Za-z0-9_-]", "_", Path(row.path).stem)[:80]
        files.append(out / f"{i:04}-{name}.png")
        overlay(image, relevance(victim, [image])[0]).save(files[-1])
    return files
