"""Make ``data/demo-text.safetensors``, the trained matrix of `afp.demo.text`, from captioned pictures.

Unpack the Debian packages that ``data/demo-text-captions.csv`` names into a folder (``apt-get download``,
``dpkg -x``), then run ``python data/build/demo_text.py FOLDER`` (6 minutes on a core).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import TensorDataset
from tqdm.auto import tqdm
from transformers import BertModel, BertTokenizerFast

from afp.data.preprocess import perturb
from afp.demo.text import LOGIT_SCALE, PROJECTION, text_tower
from afp.models.backbones import Backbone, load_backbone
from afp.models.training import Recipe, train
from afp.paths import ROOT

CAPTIONS = ROOT / "data" / "demo-text-captions.csv"
RECIPE = Recipe(lr=1e-3, epochs=60, batch_size=256, weight_decay=0.1)
# What is done to a picture, and the words for it. No network is among them, nothing is called fake or generated.
CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "a {kind} of {what}": lambda x: x,
    "a blurry {kind} of {what}": lambda x: perturb(x, "blur:2", 0),
    "a slightly blurred {kind} of {what}": lambda x: perturb(x, "blur:1", 0),
    "a noisy, grainy {kind} of {what}": lambda x: perturb(x, "noise:20", 0),
    "a {kind} of {what} with strong compression artifacts": lambda x: perturb(x, "jpeg:10", 0),
    "a low resolution {kind} of {what}": lambda x: perturb(x, "rescale:0.25", 0),
    "a pixelated {kind} of {what}": lambda x: x.resize((48, 48)).resize(x.size, Image.Resampling.NEAREST),
    "a sharpened {kind} of {what}": lambda x: x.filter(ImageFilter.UnsharpMask(2, 250, 0)),
    "a smooth {kind} of {what} without fine detail": lambda x: x.filter(ImageFilter.MedianFilter(7)),
    "a dark {kind} of {what}": lambda x: ImageEnhance.Brightness(x).enhance(0.35),
    "a bright, overexposed {kind} of {what}": lambda x: ImageEnhance.Brightness(x).enhance(1.9),
    "a washed out {kind} of {what}": lambda x: ImageEnhance.Contrast(x).enhance(0.35),
    "a black and white {kind} of {what}": lambda x: ImageOps.grayscale(x).convert("RGB"),
    "a {kind} of {what} with strong colours": lambda x: ImageEnhance.Color(x).enhance(2.5),
    "a {kind} of {what} upside down": ImageOps.flip,
    "a {kind} of {what} with few colours": lambda x: ImageOps.posterize(x, 2),
}


def captioned(folder: Path, backbone: Backbone, progress: bool = True) -> tuple[torch.Tensor, pd.DataFrame]:
    """Every captioned picture, cut in three and changed in every way of `CHANGES`.

    Returns:
        Normalised image embeddings (n, P), and a row each: ``picture``, ``change``, ``caption``, ``held_out``.
    """
    rows, embeddings = [], []
    table = pd.read_csv(CAPTIONS)
    for i, picture in enumerate(
        tqdm(table.itertuples(), total=len(table), desc="pictures", disable=not progress)
    ):
        with Image.open(folder / picture.file) as opened:
            whole = ImageOps.fit(opened.convert("RGB"), (480, 320), Image.Resampling.LANCZOS)
        tiles = [whole.crop((left, 0, left + 320, 320)).resize((256, 256)) for left in (0, 80, 160)]
        for template, change in CHANGES.items():
            pixels = backbone.preprocess([change(tile) for tile in tiles])
            embeddings.append(backbone.extract(pixels, ("embedding",))["embedding"])
            caption = template.format(kind=picture.kind, what=picture.caption)
            rows += [(i, template, caption, i % 4 == 3)] * len(tiles)
    found = nn.functional.normalize(torch.cat(embeddings), dim=-1)
    return found, pd.DataFrame(rows, columns=["picture", "change", "caption", "held_out"])


@torch.inference_mode()
def pooled(texts: list[str], tower: BertModel, tokenizer: BertTokenizerFast) -> torch.Tensor:
    """MiniLM's pooled output: (n, 384)."""
    parts = [texts[i : i + 64] for i in range(0, len(texts), 64)]
    return torch.cat(
        [tower(**tokenizer(p, padding=True, return_tensors="pt")).pooler_output for p in parts]
    ).clone()


def fit(images: torch.Tensor, rows: pd.DataFrame, texts: torch.Tensor) -> nn.Linear:
    """The text projection, trained to tell each picture's caption from the batch's others (and the reverse).

    Args:
        images: normalised embeddings (n, P); rows: theirs; texts: pooled text (m, 384), one a distinct caption.
    """
    torch.manual_seed(RECIPE.seed)
    projection = nn.Linear(texts.shape[1], images.shape[1], bias=False)
    caption = torch.from_numpy(pd.factorize(rows["caption"])[0])

    def loss(model: nn.Module, batch) -> tuple[torch.Tensor, float]:
        image, own = batch
        present, target = own.unique(return_inverse=True)  # a caption that stands twice is one caption
        logits = np.exp(LOGIT_SCALE) / 4 * image @ nn.functional.normalize(model(texts[present]), dim=-1).T
        of_text = torch.zeros_like(logits).scatter_(1, target[:, None], 1.0)
        back = -(of_text / of_text.sum(0) * logits.log_softmax(0)).sum(0).mean()
        return (nn.functional.cross_entropy(logits, target) + back) * len(image), len(image)

    train(projection, TensorDataset(images, caption), loss, RECIPE)
    return projection


@torch.inference_mode()
def quality(projection: nn.Linear, images: torch.Tensor, rows: pd.DataFrame, texts: torch.Tensor) -> dict:
    """Zero-shot retrieval on pictures of which no crop was trained on: right captions at rank 1."""
    names = list(dict.fromkeys(rows["caption"]))
    vectors = nn.functional.normalize(projection(texts), dim=-1)
    held = rows[rows["held_out"]]
    similar = images[held.index.tolist()] @ vectors.T
    plain = next(iter(CHANGES))

    def at_one(part: pd.DataFrame, choices: Callable[[pd.Series], pd.Series]) -> float:
        hits = []
        for at, row in zip(held.index.get_indexer(part.index), part.itertuples(), strict=True):
            own = held[choices(row)]["caption"].unique().tolist()
            ids = [names.index(c) for c in own]
            hits.append(own[int(similar[at, ids].argmax())] == row.caption)
        return round(float(np.mean(hits)), 3)

    undone = held[held["change"] == plain]
    n = held["picture"].nunique()
    return {
        "held_out_pictures": n,
        "which_picture": at_one(undone, lambda r: held["change"] == plain),
        "which_picture_chance": round(1 / n, 3),
        "which_change": at_one(held, lambda r: held["picture"] == r.picture),
        "which_change_chance": round(1 / len(CHANGES), 3),
    }


def main(folder: str) -> None:
    """Train the projection, write it and its quality."""
    images, rows = captioned(Path(folder), load_backbone("demo-clip"))
    names = list(dict.fromkeys(rows["caption"]))
    texts = pooled(names, *text_tower())
    learned = ~rows["held_out"].to_numpy()
    own = list(dict.fromkeys(rows.loc[learned, "caption"]))
    some = texts[[names.index(c) for c in own]]
    projection = fit(images[learned], rows[learned], some)
    report = {"captions": CAPTIONS.name, **quality(projection, images, rows, texts)}
    save_file({"text_projection.weight": projection.weight.detach().half().contiguous()}, PROJECTION)
    PROJECTION.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
