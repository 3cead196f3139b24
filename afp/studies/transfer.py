"""Does it matter which generator a detector learned from? Each is trained on, and all are tested."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from tqdm.auto import tqdm

from .. import detectors
from ..data.splits import N_FOLDS, hold_in, use_fold
from ..results.metrics import evaluate
from ..results.scores import score_frame


def transfer(
    name: str,
    frame: pd.DataFrame,
    generators: Sequence[str],
    config: dict | None = None,
    *,
    n_boot: int = 200,
    progress: bool = True,
) -> pd.DataFrame:
    """AUC of one detector on every generator, for each that it is trained on; 5-fold cross-fitted.

    Args:
        name: registered detector.
        frame: a manifest.
        generators: fakes to train on, one at a time; the same are tested.
        config: of the detector.
        n_boot: bootstrap replicates of the intervals, drawn by photograph.
    Returns:
        Columns ``trained``, ``tested``, ``auc``, ``low``, ``high``: against real photographs, within each fold and
        then averaged.
    """
    tables = []
    for trained in tqdm(generators, desc="trained on", disable=not progress):
        held_in = hold_in(frame[(frame["label"] == 0) | frame["generator"].isin(generators)], [trained])
        for k in range(N_FOLDS):
            part = {split: rows for split, rows in use_fold(held_in, k).groupby("split")}
            detector = detectors.create(name, **config or {})
            detector.fit(part["train"], part["validation"], progress=False)
            scores = score_frame(detector, part["test"], fold=k, progress=False)
            tables.append(scores.assign(detector=trained))
    found = evaluate(pd.concat(tables), n_boot=n_boot)
    rows = found[(found["metric"] == "auc") & (found["against"] == "real") & found["group"].isin(generators)]
    names = {"detector": "trained", "group": "tested", "value": "auc"}
    table = rows.rename(columns=names)[["trained", "tested", "auc", "low", "high"]]
    return table.sort_values(
        ["trained", "tested"], key=lambda c: c.map(list(generators).index), ignore_index=True
    )
