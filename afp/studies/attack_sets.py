"""Test sets of attacked photographs, on disk: PNG images, a manifest, and a record of what was done."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageChops
from tqdm.auto import tqdm

from ..data.images import sha256
from ..data.manifest import COLUMNS, read_manifest, write_manifest
from ..data.preprocess import Normalisation, prepare_all
from ..errors import AfpError
from ..files import check_folder, read_json, write_json, written_folder, written_whole
from ..models.backbones import Backbone, load_backbone
from ..models.differentiable import to_pixels
from .attacks import BATCH, Settings, add_trigger, collide_features, pgd_attack, to_images
from .gradients import PrototypeClassifier

MADE_BY = "afp attack"
LOSSLESS = Normalisation(codec="png")


def make_attack_set(
    frame: pd.DataFrame,
    out: str | Path,
    settings: Settings,
    *,
    per_source: int = 1,
    backbone: str = "demo-clip",
    dtype: str = "float32",
    progress: bool = True,
) -> pd.DataFrame:
    """Attack a manifest's photographs and write the set; a folder that holds this very set is left as it is.

    ``out`` gets ``real/`` (the same photographs, untouched, stored alike), ``<kind>/``, ``manifest.csv`` and
    ``attack.json``: settings, victim, success rate (of the stored images) and the largest change in grey levels.
    Attacked photographs are fakes of kind "attack", in the test split if their photograph is, else "none": joined to
    the manifest they came from, they are one more held-out generator.

    Args:
        frame: a manifest; its label-0 rows are attacked (of "real" alone, if there is that generator).
        per_source: photographs' tiles to attack, each source's first ones.
        backbone: the victim's; a classifier of content (which photograph is this?) on its embedding.
    Returns:
        The written manifest, as `afp.data.manifest.read_manifest` gives it.
    Raises:
        AfpError: no real image, one source only for an attack that needs others, or another set in ``out``.
    """
    out = Path(out)
    real = frame[frame["label"] == 0]
    real = real[real["generator"] == "real"] if (real["generator"] == "real").any() else real
    real = real.sort_values("path", kind="stable").groupby("source").head(per_source).reset_index(drop=True)
    if real.empty or per_source < 1:
        raise AfpError(f"{len(real)} real images with {per_source} a source: expected 1 or more")
    needs_victim = settings.kind in ("pgd", "fgsm", "poison")
    if needs_victim and real["source"].nunique() < 2:
        raise AfpError(f"{settings.kind}: needs photographs of 2 sources or more, to be taken for another")
    record: dict[str, Any] = {"settings": asdict(settings), "n": len(real), "images": sorted(real["sha256"])}
    record["victim"] = f"which photograph, on {backbone} in {dtype}" if needs_victim else None
    if found := read_record(out):
        if {k: found.get(k) for k in record} != record:
            raise AfpError(f"{out}: holds another attacked set; give another folder or delete it")
        return read_manifest(out / "manifest.csv")
    check_folder(out, MADE_BY, frame["file"])
    originals = prepare_all(real, LOSSLESS, progress=progress)
    tower = load_backbone(backbone, dtype=dtype) if needs_victim else None
    attacked, record["success_rate"] = _attack(originals, real["source"].tolist(), settings, tower, progress)
    changes = map(ImageChops.difference, attacked, originals)
    record["largest_change"] = max(int(np.asarray(change).max()) for change in changes)
    split = real["split"].where(real["split"] == "test", "none")
    untouched = {"generator": "real", "kind": "real"}
    as_fakes = {"generator": settings.kind, "kind": "attack", "label": 1, "split": split}
    sets = {"real": (originals, untouched), settings.kind: (attacked, as_fakes)}
    with written_folder(out, MADE_BY, frame["file"]) as folder:
        parts = []
        for name, (images, columns) in sets.items():
            bar = tqdm(images, f"writing {name}", leave=False, disable=not progress)
            files = [_save(image, folder / name / f"{i:04}.png") for i, image in enumerate(bar)]
            parts.append(real.assign(file=files, sha256=[sha256(file) for file in files], **columns))
        write_manifest(pd.concat(parts, ignore_index=True)[[*COLUMNS, "file"]], folder / "manifest.csv")
        write_json(folder / "attack.json", record)
    return read_manifest(out / "manifest.csv")


def read_record(folder: str | Path) -> dict[str, Any]:
    """What `make_attack_set` recorded: settings, n, victim, success_rate (None for triggers), largest_change."""
    return read_json(Path(folder) / "attack.json")


def triggered(frame: pd.DataFrame, out: str | Path, settings: Settings) -> pd.DataFrame:
    """The same rows with a trigger on every image, stored as PNG: to poison a training set, or to pull the trigger.

    Files are named by their pixels, so a folder may hold the images of several calls.

    Raises:
        AfpError: the attack is no trigger, but made for one image each.
    """
    images = [add_trigger(image, settings) for image in prepare_all(frame, LOSSLESS)]
    names = [hashlib.sha256(image.tobytes()).hexdigest()[:20] for image in images]
    files = [_save(image, Path(out, f"{name}.png")) for image, name in zip(images, names, strict=True)]
    return frame.assign(file=files, path=files, sha256=[sha256(file) for file in files])


def _attack(
    originals: list[Image.Image],
    sources: list[str],
    settings: Settings,
    backbone: Backbone | None,
    progress: bool,
) -> tuple[list[Image.Image], float | None]:
    """The attacked images, and the share of them with which the attack succeeds."""
    if backbone is None:  # a trigger has success only with a model that was trained on it
        return [add_trigger(image, settings) for image in originals], None
    victim = PrototypeClassifier(backbone, originals, sources, progress=progress)
    device = victim.prototypes.device
    classes = torch.tensor([victim.classes.index(source) for source in sources], device=device)
    # The photograph to collide with: the next one of another source.
    n = len(sources)
    goals = [next(j % n for j in range(i, i + n) if sources[j % n] != sources[i]) for i in range(n)]
    images: list[Image.Image] = []
    for start in tqdm(range(0, n, BATCH), desc=settings.kind, disable=not progress):
        part = slice(start, start + BATCH)
        pixels, seed = to_pixels(originals[part], device), settings.seed + start
        if settings.kind == "poison":
            others = to_pixels([originals[j] for j in goals[part]], device)
            found = collide_features(victim.tower, pixels, others, settings.epsilon, settings.steps, seed)
        else:
            steps = 1 if settings.kind == "fgsm" else max(2, settings.steps)
            found = pgd_attack(victim, pixels, classes[part], settings.epsilon, steps, seed)
        images += to_images(found, originals[part], settings.epsilon)
    with torch.inference_mode():
        starts = tqdm(range(0, n, BATCH), "success", leave=False, disable=not progress)
        parts = [victim(to_pixels(images[i : i + BATCH], device)) for i in starts]
    taken_for = torch.cat(parts).argmax(1)
    success = taken_for == classes[goals] if settings.kind == "poison" else taken_for != classes
    return images, float(success.double().mean())


def _save(image: Image.Image, file: Path) -> str:
    with written_whole(file) as partial:
        image.save(partial, "png")
    return str(file.absolute())
