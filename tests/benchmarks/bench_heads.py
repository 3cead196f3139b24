"""Seconds an epoch of the CLIP heads, with cached features and without, in one run.

``python tests/benchmarks/bench_heads.py`` (needs the demo benchmark; a minute on a core). "Without" reads and
encodes every image in every epoch, which is what one pays who trains a head on pixels; the head's own step is the
same in both. Prints a table, asserts nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pandas as pd
import torch

from afp.data import preprocess
from afp.data.manifest import read_manifest
from afp.data.preprocess import Normalisation
from afp.detectors import create
from afp.models import features
from afp.models.backbones import load_backbone
from afp.paths import demo_manifest

N_IMAGES = 96  # uncached epochs of more images only take longer


def seconds(work: Callable[[], None], repeats: int) -> float:
    """Of one call, the fastest of several."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    backbone, frame = load_backbone("demo-clip"), read_manifest(demo_manifest())
    frame = frame[frame["split"] == "train"].groupby("label").head(N_IMAGES // 2)
    heads = {name: create(name, epochs=1, batch_size=16) for name in ("clip-prompt", "clip-adapter")}

    def encode() -> torch.Tensor:
        images = preprocess.prepare_all(frame, Normalisation())
        parts = [images[i : i + backbone.batch_size] for i in range(0, len(images), backbone.batch_size)]
        found = [backbone.extract(backbone.preprocess(p), ("embedding",))["embedding"] for p in parts]
        return torch.cat(found)

    def cached() -> torch.Tensor:
        return torch.from_numpy(features.extract(frame, backbone, "embedding", progress=False))

    rows, reading = [], seconds(cached, 3)
    uncached = seconds(encode, 2)  # shared by both heads: the tower does not know what comes after it
    for name, detector in heads.items():
        fit = seconds(lambda detector=detector: detector.fit(frame, frame, progress=False), 5)
        step = fit - 3 * reading  # of both sets, and to score
        rows.append((name, len(frame), step, uncached + step, (uncached + step) / step))
    rows.append(("reading the cache, once a fit", len(frame), reading, uncached, None))
    print(
        pd.DataFrame(rows, columns=["head", "images", "cached s", "uncached s", "times"]).round(4).to_string()
    )


if __name__ == "__main__":
    main()
