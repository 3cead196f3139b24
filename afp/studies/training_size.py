"""Repeated fits for the comparisons of notebooks 03 and 07: each with another seed and another fold."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from .. import detectors
from ..data.splits import N_FOLDS, held_in_generators, use_fold
from ..detectors.base import Detector
from ..errors import AfpError, DataError
from ..results.metrics import evaluate
from ..results.scores import score_frame


@dataclass(frozen=True)
class Attempt:
    """One fit: the detector, its scores of the test fold, the seconds of the fit, the megabytes of its folder."""

    detector: Detector
    scores: pd.DataFrame
    n_train: int
    seconds: float
    mb: float

    def held_out(self, kind: str = "all", metric: str = "auc", against: str = "real") -> float:
        """Mean of a metric over the held-out generators of a kind. Raises ValueError if there is no such row."""
        found = evaluate(self.scores, n_boot=0)
        wanted = {"group": "mean held-out", "kind": kind, "metric": metric, "against": against}
        rows = found[np.logical_and.reduce([found[column] == value for column, value in wanted.items()])]
        if len(rows) != 1:
            raise AfpError(f"{wanted}: {len(rows)} rows in the metrics, expected one")
        return rows["value"].item()


def check_kind(frame: pd.DataFrame, kind: str) -> str:
    """A kind of held-out generator, as `Attempt.held_out` takes it; before any fit.

    Raises:
        DataError: no held-out generator of this kind.
    """
    held_out = frame[(frame["label"] == 1) & ~frame["generator"].isin(held_in_generators(frame))]
    if kind not in (known := {"all", *held_out["kind"]}):
        raise DataError(f"kind: {kind!r}, expected one of {', '.join(sorted(known))}")
    if held_out.empty:
        seen = held_in_generators(frame)
        raise DataError(
            f"generators {seen} are all in training, expected a held-out one; `afp manifest --split --held-out "
            "NAME` keeps one out"
        )
    return kind


def attempt(
    name: str,
    frame: pd.DataFrame,
    seed: int,
    config: dict,
    *,
    photos: int | None = None,
    shots: int | None = None,
    without: Sequence[str] = (),
    progress: bool = False,
) -> Attempt:
    """Fit a detector on fold ``seed`` modulo 5 and score the fold's test images.

    The seed goes to the detector too, where its training draws from one.

    Args:
        frame: a manifest that is not split yet, or whose split may be dealt anew.
        photos, shots: see `fewer`.
        without: generators left out of training and validation, and scored all the same.
    """
    part = use_fold(frame, seed % N_FOLDS)
    used = part[~part["generator"].isin(without)]
    train, validation = (used[used["split"] == split] for split in ("train", "validation"))
    train = fewer(train, photos, shots, seed)
    if "preset" in detectors.detector_class(name).__dataclass_fields__:
        config = config | {"seed": seed}
    detector = detectors.create(name, **config)
    started = time.perf_counter()
    detector.fit(train, validation, progress=progress)
    seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        size = sum(f.stat().st_size for f in detector.save(folder).rglob("*") if f.is_file()) / 1e6
    scores = score_frame(detector, part[part["split"] == "test"], progress=progress)
    return Attempt(detector, scores, len(train), seconds, size)


def fewer(rows: pd.DataFrame, photos: int | None, shots: int | None, seed: int) -> pd.DataFrame:
    """Rows of some photographs, of some tiles a generator of every photograph, or both; drawn by ``seed``.

    Where no photograph drawn has a fake made of it, or no fake its photograph (as in a folder of unrelated images),
    as many sources of the missing class join them.
    """
    drawn = rows.sample(frac=1, random_state=seed)
    if photos is not None:
        kept = list(drawn["source"].unique()[:photos])
        for missing in set(drawn["label"]) - set(drawn.loc[drawn["source"].isin(kept), "label"]):
            kept += list(drawn.loc[drawn["label"] == missing, "source"].unique()[:photos])
        drawn = drawn[drawn["source"].isin(kept)]
    return drawn if shots is None else drawn.groupby(["source", "generator"]).head(shots)


def half_width(values: pd.Series) -> float:
    """Half the width of Student's 95 % interval of the mean; NaN for a single value."""
    n = values.count()
    return float(stats.t.ppf(0.975, n - 1) * values.std() / n**0.5) if n > 1 else float("nan")
