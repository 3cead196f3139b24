"""Detectors under attack: scores tables of attacked sets, of white-box budgets, and of poisoned training sets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from .. import detectors
from ..data.preprocess import prepare_all
from ..data.splits import N_FOLDS, use_fold
from ..detectors.linear_probe import LinearProbe
from ..errors import AfpError
from ..files import written_whole
from ..results.runs import fold_folder
from ..results.scores import score_frame
from .attack_sets import LOSSLESS, triggered
from .attacks import Settings, attack_detector
from .gradients import DifferentiableDetector


def score_attack_sets(folder: str | Path, frame: pd.DataFrame, lossless: bool) -> pd.DataFrame:
    """Scores of attacked sets by a cross-fitted run: each image by the fold that never saw its photograph.

    Args:
        folder: a run of `afp.results.runs.cross_fit`.
        frame: rows of attacked sets' manifests (`afp.studies.attack_sets`), of all the photographs that the
            run was fitted on.
        lossless: the stored pixels as they are; else through the run's normalisation, which encodes them again.
    Returns:
        A scores table, the way of storing as its ``perturbation``: "PNG" or the codec, such as "JPEG 95".
    """
    tables = []
    for k in range(N_FOLDS):
        detector = detectors.load(fold_folder(folder, k))
        stored = f"{detector.normalisation.codec.upper()} {detector.normalisation.quality}"
        if lossless:
            detector.normalisation, stored = LOSSLESS, "PNG"
        part = use_fold(frame, k)
        part = part[part["split"] == "test"]
        table = score_frame(detector, part, run=Path(folder).name, fold=k, progress=False)
        tables.append(table.assign(perturbation=stored))
    return pd.concat(tables, ignore_index=True)


def white_box_scores(
    folder: str | Path, frame: pd.DataFrame, epsilons: Sequence[float], steps: int, cache: str | Path
) -> pd.DataFrame:
    """Scores of a linear probe under PGD against the probe itself, one block of rows a budget.

    Pixels are attacked after normalisation, where perturbations act too. The table is kept in ``cache`` and read
    from there if run, images, budgets and steps are the same.

    Args:
        frame: images with labels; each is attacked against its own label.
        epsilons: rising, 0 to 1.
    Returns:
        A scores table; ``perturbation`` is the budget in grey levels, such as "pgd 0.5/255".
    """
    probe, cache = detectors.load(folder), Path(cache)
    key = [Path(folder).name, probe.config(), sorted(frame["sha256"]), list(epsilons), steps]
    stamp = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    if cache.is_file():
        known = pd.read_csv(cache, keep_default_na=False)
        if set(known.get("key", [])) == {stamp}:
            return known.drop(columns="key")
    images, labels = prepare_all(frame, probe.normalisation), frame["label"].to_numpy()
    found = attack_detector(DifferentiableDetector.of(probe), images, labels, epsilons, steps)
    columns = ["path", "label", "generator", "kind", "source"]
    tables = [
        frame[columns].assign(score=scores, perturbation=f"pgd {epsilon * 255:g}/255")
        for epsilon, scores in zip(epsilons, found, strict=True)
    ]
    table = pd.concat(tables, ignore_index=True)
    seen = table["generator"].isin(probe.generators_).astype(int)
    table = table.assign(detector=probe.name, seen=seen, threshold=probe.threshold_, error="")
    with written_whole(cache) as partial:
        table.assign(key=stamp).to_csv(partial, index=False)
    return table


def poisoned_scores(
    probe: LinearProbe, frame: pd.DataFrame, sizes: Sequence[int], shares: Sequence[float], out: str | Path
) -> pd.DataFrame:
    """Scores of linear probes whose training fakes were partly stamped with a patch and called real.

    The block and C are the fitted probe's; the threshold is chosen on clean validation images, as a victim would.

    Args:
        frame: a manifest with its splits.
        sizes: sides of the patch in pixels.
        shares: of the training fakes that are poisoned, 0 to 1.
        out: folder for the stamped images.
    Returns:
        A scores table of the test split's photographs and held-in fakes (``perturbation`` "clean") and of the same
        fakes with the patch ("triggered", beside the same clean photographs); ``detector`` is "SIZE px, SHARE".
    """
    if not all(0 <= share <= 1 for share in shares):
        raise AfpError(f"shares: {list(shares)}, expected 0 to 1")
    used = frame[(frame["label"] == 0) | frame["generator"].isin(probe.generators_)]
    train, validation, test = (used[used["split"] == s] for s in ("train", "validation", "test"))
    targets = test[test["label"] == 1]
    fakes = np.flatnonzero(train["label"] == 1)
    order = np.random.default_rng(0).permutation(len(fakes))[: round(max(shares) * len(fakes))]
    block = "embedding" if probe.block_ is None else probe.block_
    config = {"backbone": probe.backbone, "block": block, "c": probe.c_, "normalisation": probe.normalisation}
    tables = []
    for size in tqdm(sizes, desc="poison", disable=len(sizes) < 2):
        patch, folder = Settings("patch", size=size), Path(out) / f"patch-{size}"
        poison = triggered(train.iloc[fakes[order]], folder, patch).assign(label=0)
        marked = triggered(targets, folder, patch)
        for share in shares:
            n = round(share * len(fakes))
            bad = train.copy()
            bad.iloc[fakes[order[:n]]] = poison.iloc[:n]
            victim = detectors.create("linear-probe", **config).fit(bad, validation, progress=False)
            clean = test.assign(score=victim.score(test), perturbation="clean")
            pulled = targets.assign(score=victim.score(marked))
            pulled = pd.concat([clean[clean["label"] == 0], pulled]).assign(perturbation="triggered")
            scored = pd.concat([clean, pulled]).assign(threshold=victim.threshold_)
            tables.append(scored.assign(detector=f"{size} px, {share:g}", size=size, share=share))
    columns = "path label generator kind source perturbation detector threshold score size share"
    return pd.concat(tables, ignore_index=True)[columns.split()].assign(seen=1, error="")
