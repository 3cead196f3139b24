"""The full-size models on one GPU, by the library's own calls: speed, memory, agreement, a fit, a save and a load.

``python tests/benchmarks/bench_gpu.py`` (a GPU of 80 GB, 60 GB of disk in $TMPDIR). Nothing is downloaded: CLIP
ViT-L/14 and InstructBLIP-Vicuna-7B are built with random weights in their exact architecture, written as folders and
used like any ``--backbone FOLDER``. ``--tiny`` runs the same on small ones, on a CPU in seconds. Prints a Markdown
table.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from bench import pictures, seconds
from transformers import (
    BlipImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    LlamaConfig,
)

from afp import detectors
from afp.data.manifest import from_files
from afp.models.backbones import best_device, load_backbone
from afp.models.instructblip import load_vlm
from afp.paths import ROOT

sys.path.insert(0, str(ROOT / "data" / "build"))
from demo_vlm import llm_tokenizer, qformer_tokenizer

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
VISION = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
LLAMA = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
N_CLIP, N_VLM, N_TRAINED = 427_616_513, 7_913_726_720, 4_864  # numbers of the real ones
N_EPOCHS, N_IMAGES = 10, 150_000
Row = tuple[str, str]


def write_clip(folder: Path, tiny: bool) -> int:
    """CLIP ViT-L/14 as a folder; returns how many numbers it has."""
    side = {"image_size": 224, "patch_size": 14}
    text = (SMALL if tiny else TEXT) | {"bos_token_id": 2, "eos_token_id": 3}
    config = CLIPConfig(
        text_config=text,
        vision_config=(SMALL if tiny else VISION) | side,
        projection_dim=32 if tiny else 768,
    )
    return _write(CLIPModel(config), folder, llm_tokenizer(), CLIPImageProcessorPil())


def write_vlm(folder: Path, tiny: bool) -> int:
    """InstructBLIP-Vicuna-7B as a folder, in bfloat16; returns how many numbers it has."""
    words, vision = llm_tokenizer(), SMALL if tiny else {}
    text = LlamaConfig(
        vocab_size=32064, bos_token_id=2, eos_token_id=3, pad_token_id=0, **(SMALL if tiny else LLAMA)
    )
    config = InstructBlipConfig(
        vision_config=vision,
        qformer_config=vision | {"vocab_size": 30523, "encoder_hidden_size": 32 if tiny else 1408},
        text_config=text.to_dict(),
        num_query_tokens=32,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(best_device()):
            model = InstructBlipForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(torch.float32)
    for parameter in model.parameters():  # enough spread that images get different answers
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1 if tiny else 0.02)
    qformer_tokenizer().save_pretrained(folder / "qformer_tokenizer")
    return _write(model, folder, words, BlipImageProcessorPil(size={"height": 224, "width": 224}))


def _write(model: Any, folder: Path, *parts: Any) -> int:
    for part in (model, *parts):
        part.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def peak() -> str:
    """The largest memory since the last call."""
    if not torch.cuda.is_available():
        return "no GPU"
    found = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return f"{found:.1f} GiB"


def speeds(sizes: tuple[int, ...], work: Any) -> str:
    """Images a second at these batch sizes, up to the first that does not fit."""
    found = []
    for n in sizes:
        try:
            took = seconds({"": lambda n=n: work(n)}, 3)[""]  # results come to the CPU: it is waited for
        except torch.cuda.OutOfMemoryError:
            return ", ".join([*found, f"{n}: out of memory"])
        found.append(f"{n}: {n / took:.0f} ({peak()})")
    return ", ".join(found)


def clip(folder: Path, frame: pd.DataFrame, tiny: bool) -> Iterator[Row]:
    """Features in both precisions, and a fit of the whole model."""
    n, sizes = write_clip(folder, tiny), (4, 8) if tiny else (16, 64, 256, 1024)
    yield "CLIP ViT-L/14: numbers", f"{n:,} (the real one: {N_CLIP:,})"
    pixels, found = torch.randn(max(sizes), 3, 224, 224), {}
    for dtype in ("bfloat16", "float32"):
        tower = load_backbone(str(folder), dtype=dtype)
        found[dtype] = tower.extract(pixels[:8], ("embedding",))["embedding"]
        work = speeds(sizes, lambda b, tower=tower: tower.extract(pixels[:b], ("embedding",)))
        yield f"its embeddings in {dtype}, images a second by batch size", work
    yield "the lowest cosine between both", f"{torch.cosine_similarity(*found.values()).min():.5f}"
    yield from fit("clip-finetune", frame, folder, preset="paper", batch_size=16)


def vlm(folder: Path, frame: pd.DataFrame, tiny: bool) -> Iterator[Row]:
    """Image tower, answers, agreement of precisions, and a fit of AntifakePrompt."""
    n, sizes = write_vlm(folder, tiny), (4, 8) if tiny else (1, 8, 32, 128)
    yield "InstructBLIP-Vicuna-7B: numbers", f"{n:,} (the real one: {N_VLM:,})"
    pixels, few, found = torch.randn(max(sizes), 3, 224, 224), min(sizes[-1], 32), {}
    for dtype in ("float32", "mixed", "bfloat16"):
        if dtype == "mixed" and not torch.cuda.is_available():
            continue
        started = time.perf_counter()
        model = load_vlm(str(folder), dtype=dtype)
        yield f"loaded in {dtype}", f"{time.perf_counter() - started:.0f} s, {peak()}"
        tokens = model.tower.extract(pixels, ("tokens",))["tokens"].clone()
        for scoring in ("logits", "rank"):
            detector: Any = detectors.create("vlm-zero-shot", backbone=str(folder), answer_scoring=scoring)
            detector.vlm_ = model
            with torch.inference_mode():
                found[dtype, scoring] = detector.logits(tokens[:few]).double().softmax(1)[:, 1].cpu()
                if dtype == "bfloat16":
                    work = speeds(sizes, lambda b, d=detector, t=tokens: d.logits(t[:b]).cpu())
                    yield f"its answers in bfloat16 by {scoring}, images a second by batch size", work
        if dtype == "bfloat16":
            work = speeds(sizes, lambda b, tower=model.tower: tower.extract(pixels[:b], ("tokens",)))
            yield "its image tower in bfloat16, images a second by batch size", work
        del model, detector
    exact = found["float32", "logits"]
    for dtype in ("mixed", "bfloat16"):
        if (dtype, "logits") in found:
            largest = (found[dtype, "logits"] - exact).abs().max()
            text = f"{largest:.4f} (standard deviation over images {exact.std():.4f})"
            yield f"P(fake): largest difference between {dtype} and float32", text
    yield from fit("vlm-prompt", frame, folder, preset="antifakeprompt", dtype="bfloat16")


def fit(name: str, frame: pd.DataFrame, backbone: Path, **config: Any) -> Iterator[Row]:
    """One epoch through the detector itself, from files; a save, a load, and the same scores."""
    took, validation = [], frame[:2]
    for n in (len(frame) // 2, len(frame)):  # their difference leaves out what each fit does once
        detector: Any = detectors.create(name, backbone=str(backbone), epochs=1, **config)
        started = time.perf_counter()
        detector.fit(frame[:n], validation, progress=False)
        took.append(time.perf_counter() - started)
    rate = len(frame) / 2 / max(took[1] - took[0], 1e-3)
    yield f"`{name}`: numbers trained", f"{detector.n_trainable:,}"
    text = f"{rate:.1f} images a second, decoded anew, in batches of {detector.recipe().batch_size}; {peak()}"
    yield f"`{name}`: training", text
    hours = N_EPOCHS * N_IMAGES / rate / 3600
    title = f"`{name}`: {N_EPOCHS} epochs of {N_IMAGES:,} images at that rate"
    yield title, f"{hours:.1f} hours, an eighth of it on eight cards: {hours / 8:.1f}"
    run = detector.save(backbone.parent / name)
    same = np.abs(detectors.load(run).score(validation) - detector.score(validation)).max()
    yield f"`{name}`: saved and loaded, largest difference of a score", f"{same:.1g}"


def main() -> None:
    """Print the table, each row as soon as it is measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true", help="small models, a few images")
    tiny = parser.parse_args().tiny
    device = best_device()
    card = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{device}, {torch.get_num_threads()} threads"
    )
    print(f"| {card}{', tiny models' if tiny else ''} | measured |\n|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as work:
        os.environ["AFP_DATA"] = work
        frame = from_files(pictures(Path(work, "images"), 8 if tiny else 256, (640, 480), ".jpg"))
        label = np.arange(len(frame)) % 2
        frame = frame.assign(label=label, generator=np.where(label, "fake", "real"), source=frame["path"])
        for rows in (clip, vlm):
            for row in rows(Path(work, rows.__name__), frame, tiny):
                print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
