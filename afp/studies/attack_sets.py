"""Test sets of attacked photographs, on disk: PNG images, a manifest, and a record of what was done."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm.auto import tqdm

from ..data.images import sha256
from ..data.manifest import COLUMNS, read_manifest, write_manifest
from ..data.preprocess import Normalisation, prepare_all
from ..errors import AfpError
from ..models.backbones import load_backbone
from ..models.differentiable import to_pixels
from . import attacks
from .attacks import Settings
from .gradients import PrototypeClassifier

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
    record = {"settings": asdict(settings), "n": len(real), "images": sorted(real["sha256"])}
    record["victim"] = f"which photograph, on {backbone} in {dtype}" if needs_victim else None
    stamp, manifest = out / "attack.json", out / "manifest.csv"
    if stamp.is_file():
        found = json.loads(stamp.read_text(encoding="utf-8"))
        if {k: found.get(k) for k in record} != json.loads(json.dumps(record)):
            raise AfpError(f"{out}: holds another attacked set; give another folder or delete it")
        return read_manifest(manifest)
    originals = prepare_all(real, LOSSLESS)
    tower = load_backbone(backbone, dtype=dtype) if needs_victim else None
    attacked, success = _attack(originals, real["source"].tolist(), settings, tower, progress)
    rows = [
        {
            **row._asdict(),
            "file": str(_save(image, out / name / f"{row.Index:04}.png")),
            "generator": generator,
            "label": label,
            "kind": kind,
        }
        for name, generator, label, kind, images in (
            ("real", None, 0, "real", originals),
            (settings.kind, settings.kind, 1, "attack", attacked),
        )
        for row, image in zip(real.itertuples(), images, strict=True)
    ]
    written = pd.DataFrame(rows).drop(columns="Index")
    written["generator"] = written["generator"].fillna("real")
    away = (written["label"] == 1) & (written["split"] != "test")
    written = written.assign(
        split=written["split"].mask(away, "none"), sha256=[sha256(f) for f in written["file"]]
    )
    pairs = zip(attacked, originals, strict=True)
    change = max(int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max()) for a, b in pairs)
    record |= {"success_rate": success, "largest_change": change}
    write_manifest(written[[*COLUMNS, "file"]], manifest)
    stamp.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return read_manifest(manifest)


def read_record(folder: str | Path) -> dict:
    """What `make` recorded: settings, n, victim, success_rate (None for triggers), largest_change."""
    return json.loads((Path(folder) / "attack.json").read_text(encoding="utf-8"))


def triggered(frame: pd.DataFrame, out: str | Path, settings: Settings) -> pd.DataFrame:
    """The same rows with a trigger on every image, stored as PNG: to poison a training set, or to pull the trigger.

    Raises:
        AfpError: the attack is no trigger, but made for one image each.
    """
    if settings.kind not in ("patch", "blended"):
        raise AfpError(f"trigger: {settings.kind!r}, expected patch or blended")
    images = [_trigger(image, settings) for image in prepare_all(frame, LOSSLESS)]
    names = [Path(out, f"{row.generator}-{Path(row.path).stem}.png") for row in frame.itertuples()]
    files = [str(_save(image, name)) for image, name in zip(images, names, strict=True)]
    return frame.assign(file=files, path=files, sha256=[sha256(f) for f in files])


def _attack(
    originals: list[Image.Image], sources: list[str], settings: Settings, backbone, progress: bool
) -> tuple[list[Image.Image], float | None]:
    if backbone is None:  # a trigger has success only with a model that was trained on it
        return [_trigger(image, settings) for image in originals], None
    victim = PrototypeClassifier(backbone, originals, sources)
    device = victim.prototypes.device
    of = torch.tensor([victim.classes.index(s) for s in sources], device=device)
    order = np.array([next(j for j in _others(i, sources)) for i in range(len(sources))])
    images: list[Image.Image] = []
    step = attacks.BATCH
    for start in tqdm(range(0, len(originals), step), desc=settings.kind, disable=not progress):
        part = originals[start : start + step]
        pixels, budget = to_pixels(part, device), (settings.epsilon, settings.steps, settings.seed + start)
        if settings.kind == "poison":
            goals = to_pixels([originals[j] for j in order[start : start + step]], device)
            found = attacks.collide(victim.tower, pixels, goals, *budget)
        else:
            steps = 1 if settings.kind == "fgsm" else max(2, settings.steps)
            found = attacks.adversarial(victim, pixels, of[start : start + step], budget[0], steps, budget[2])
        images += attacks.to_images(found, part, settings.epsilon)
    with torch.inference_mode():
        parts = [victim(to_pixels(images[i : i + step], device)) for i in range(0, len(images), step)]
    taken_for = torch.cat(parts).argmax(1)
    if settings.kind == "poison":
        return images, float((taken_for == of[torch.from_numpy(order)]).double().mean())
    return images, float((taken_for != of).double().mean())


def _others(i: int, sources: list[str]):
    """Indices of images of other sources, from the next one on."""
    n = len(sources)
    return (j % n for j in range(i + 1, i + n) if sources[j % n] != sources[i])


def _trigger(image: Image.Image, settings: Settings) -> Image.Image:
    if settings.kind == "patch":
        return attacks.patch(image, settings.size)
    return attacks.blend(image, settings.epsilon, settings.seed)


def _save(image: Image.Image, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)
    return file.absolute()
