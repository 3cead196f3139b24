"""Shortcuts that would fool everyone: how well files and spectra alone tell the labels apart."""

from __future__ import annotations

import numpy as np
import pandas as pd

from .. import detectors
from ..data.audit import Finding, describe_files, find_leaks, shortcut_table
from ..data.splits import N_FOLDS, use_fold
from ..results import metrics

BASELINES = {
    "metadata": ("metadata", {}),
    "metadata + bytes per pixel": ("metadata", {"with_bytes": True}),
    "spectrum": ("spectrum", {}),
}


def shortcut_aucs(frame: pd.DataFrame, n_boot: int = 1000, progress: bool = False) -> pd.DataFrame:
    """How well files and spectra alone separate real from fake, cross-fitted by source.

    Here every generator is trained on: the question is whether the labels can be told without looking.

    Returns:
        Index: `BASELINES`; columns ``value, low, high``: AUC with its 95 % cluster-bootstrap interval. NaN where
        there are too few sources to train, validate and test apart.
    """
    n_sources, rows = frame.loc[frame["label"] == 0, "source"].nunique(), {}
    n_folds = min(N_FOLDS, n_sources) if n_sources >= 3 else 0
    for title, (name, config) in BASELINES.items():
        scores, folds = pd.Series(np.nan, index=frame.index), pd.Series(0, index=frame.index)
        for k in range(n_folds):
            part = use_fold(frame.assign(split="train").drop(columns="fold", errors="ignore"), k, n_folds)
            train, validation, test = (part[part["split"] == s] for s in ("train", "validation", "test"))
            if train["label"].nunique() == validation["label"].nunique() == 2:
                detector = detectors.create(name, **config).fit(train, validation, progress)
                scores[test.index], folds[test.index] = detector.score(test, progress=progress), k
        if frame.loc[scores.notna(), "label"].nunique() == 2:
            rows[title] = vars(pooled_auc(frame["label"], scores, frame["source"], n_boot, folds, progress))
        else:  # no fold could be trained and validated
            rows[title] = dict.fromkeys(("value", "low", "high"), np.nan)
    return pd.DataFrame(rows).T


def pooled_auc(
    labels: pd.Series,
    scores: pd.Series,
    sources: pd.Series,
    n_boot: int,
    folds: pd.Series | int = 0,
    progress: bool = False,
) -> metrics.Estimate:
    """AUC of all fakes against all real images, the mean over folds, with an interval by source."""
    table = pd.DataFrame({"label": labels, "score": scores, "source": sources, "fold": folds})
    table = table.assign(path=table.index.astype(str), generator=table["label"].map({0: "real", 1: "fake"}))
    found = metrics.evaluate(table.dropna(subset="score"), n_boot=n_boot, progress=progress)
    row = found[(found["group"] == "fake") & (found["metric"] == "auc")].iloc[0]
    return metrics.Estimate(row["value"], row["low"], row["high"])


def audit(frame: pd.DataFrame, progress: bool = True) -> tuple[list[Finding], pd.DataFrame, pd.DataFrame]:
    """The whole audit.

    Returns:
        Findings; `shortcut_table`; `shortcut_aucs` (of the readable images).
    """
    described = describe_files(frame, progress)
    errors = [e for e in described["error"] if e]
    detail = f"{len(errors)} of {len(frame)}, such as {errors[0]}" if errors else f"all {len(frame)} decode"
    findings = [Finding("files", not errors, detail), *find_leaks(described, progress)]
    readable = frame.reset_index(drop=True)[(described["error"] == "").to_numpy()]
    if readable["label"].nunique() < 2:
        alone = Finding("both labels", False, "one label only, so nothing to compare")
        return [*findings, alone], pd.DataFrame(), pd.DataFrame(columns=["value", "low", "high"])
    aucs = shortcut_aucs(readable, progress=progress)
    found = metrics.Estimate(*aucs.loc["metadata"])
    ok = not found.low > 0.5
    detail = f"metadata alone: AUC {found}, {'at' if ok else 'above'} chance"
    if np.isnan(found.value):
        detail = "not measured: too few sources to train, validate and test"
    findings.append(Finding("shortcut", ok, detail))
    return findings, shortcut_table(described), aucs
