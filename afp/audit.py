"""The audit of a manifest: leaks between splits, broken files, and shortcuts that would fool everyone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from . import detectors, metrics
from .detectors.metadata import describe
from .images import ImageError, sha256
from .manifest import use_fold

BASELINES = {
    "metadata": ("metadata", {}),
    "metadata + bytes per pixel": ("metadata", {"with_bytes": True}),
    "spectrum": ("spectrum", {}),
}


@dataclass(frozen=True)
class Finding:
    """One check: its name, whether it passed, and what was found, in a line."""

    check: str
    ok: bool
    detail: str


def describe_files(frame: pd.DataFrame, progress: bool = True) -> pd.DataFrame:
    """The frame with what each file tells without being looked at, and ``error`` for an unusable one."""
    rows = []
    for file, digest in tqdm(
        zip(frame["file"], frame["sha256"], strict=True), total=len(frame), desc="files", disable=not progress
    ):
        try:
            row = describe(file) | {"error": ""}
            if sha256(Path(file)) != digest:
                row["error"] = f"{file}: changed since its hash was written"
        except ImageError as error:
            row = {"error": str(error)}
        rows.append(row)
    described = pd.DataFrame(rows, columns=None if rows else ["error"])
    # What the file tells stands above what a manifest's own further columns claim.
    return frame.reset_index(drop=True).drop(columns=described.columns, errors="ignore").join(described)


def find_leaks(frame: pd.DataFrame) -> list[Finding]:
    """No source and no hash in two of train, validation and test; no image under both labels."""
    used = frame[frame["split"] != "none"]
    findings = []
    for column in ("source", "sha256"):
        splits = used[used[column] != ""].groupby(column)["split"].nunique()
        bad = splits[splits > 1].index.tolist()
        detail = f"{len(bad)} in two splits, such as {bad[0]}" if bad else f"{len(splits)}, each in one split"
        findings.append(Finding(f"{column} leaks", not bad, detail))
    hashed = frame[frame["sha256"] != ""]
    labels = hashed.groupby("sha256")["label"].nunique()
    bad = hashed[hashed["sha256"].isin(labels[labels > 1].index)]["path"].tolist()
    detail = f"{len(bad)} images, such as {bad[0]}" if bad else "no image is both real and fake"
    findings.append(Finding("labels agree", not bad, detail))
    twice = hashed[hashed["sha256"].duplicated()]["path"].tolist()
    detail = f"{len(twice)} repeated images, such as {twice[0]}" if twice else "no image stands twice"
    return [*findings, Finding("duplicates", not twice, detail)]


def shortcut_table(described: pd.DataFrame) -> pd.DataFrame:
    """What the two classes' files look like: a line a property, a column a label."""
    good = described[described["error"] == ""]
    rows = {}
    for label, part in good.groupby("label"):
        numbers = part["bytes_per_pixel"]
        rows[{0: "real", 1: "fake"}[label]] = {
            "images": len(part),
            "formats": _shares(part["format"]),
            "modes": _shares(part["mode"]),
            "sizes": _shares(part["size"]),
            "aspect (median)": f"{part['aspect'].median():.3f}",
            "JPEG tables": part["jpeg_tables"].replace("[]", np.nan).nunique(),
            "EXIF / ICC": f"{part['exif'].mean():.0%} / {part['icc'].mean():.0%}",
            "bytes per pixel (median, IQR)": f"{numbers.median():.2f} ({numbers.quantile(0.25):.2f}"
            f" to {numbers.quantile(0.75):.2f})",
        }
    return pd.DataFrame(rows)


def _shares(values: pd.Series, most: int = 3) -> str:
    shares = values.value_counts(normalize=True)
    text = ", ".join(f"{name} {share:.0%}" for name, share in shares.head(most).items())
    return text + (f", {len(shares) - most} more" if len(shares) > most else "")


def shortcut_aucs(frame: pd.DataFrame, n_boot: int = 1000) -> pd.DataFrame:
    """How well files and spectra alone separate real from fake, cross-fitted by source.

    Here every generator is trained on: the question is whether the labels can be told without looking.

    Returns:
        Index: `BASELINES`; columns ``value, low, high``: AUC with its 95 % cluster-bootstrap interval. NaN where
        there are too few sources to train, validate and test apart.
    """
    photos = frame.loc[frame["label"] == 0, "source"].nunique()
    n_folds = min(5, photos)
    rows = {}
    for title, (name, config) in BASELINES.items():
        if n_folds < 3:
            rows[title] = dict.fromkeys(("value", "low", "high"), np.nan)
            continue
        scores = pd.Series(np.nan, index=frame.index)
        for k in range(n_folds):
            part = use_fold(frame.assign(split="train"), k, n_folds)
            sets = [part[part["split"] == s] for s in ("train", "validation", "test")]
            if any(s["label"].nunique() < 2 for s in sets[:2]):
                continue
            scores[sets[2].index] = (
                detectors.create(name, **config).fit(*sets[:2], progress=False).score(sets[2])
            )
        if frame.loc[scores.notna(), "label"].nunique() < 2:  # no fold held both labels in training and validation
            rows[title] = dict.fromkeys(("value", "low", "high"), np.nan)
            continue
        rows[title] = vars(pooled_auc(frame["label"], scores, frame["source"], n_boot))
    return pd.DataFrame(rows).T


def pooled_auc(labels: pd.Series, scores: pd.Series, sources: pd.Series, n_boot: int) -> metrics.Estimate:
    """AUC of all fakes against all real images, with an interval by source."""
    table = pd.DataFrame(
        {"label": labels, "score": scores, "source": sources, "path": sources.index.astype(str)}
    )
    table = table.dropna(subset="score")
    table = table.assign(
        generator=np.where(table["label"] == 1, "fake", "real"), kind="", perturbation="none"
    )
    table = table.assign(detector="baseline", seen=1, threshold=0.5, error="")
    found = metrics.evaluate(table, n_boot=n_boot)
    row = found[(found["group"] == "fake") & (found["metric"] == "auc")].iloc[0]
    return metrics.Estimate(row["value"], row["low"], row["high"])


def audit(frame: pd.DataFrame, progress: bool = True) -> tuple[list[Finding], pd.DataFrame, pd.DataFrame]:
    """The whole audit.

    Returns:
        Findings; `shortcut_table`; `shortcut_aucs` (of the readable images).

    Notebook: 01_prepare_data
    """
    described = describe_files(frame, progress)
    errors = [e for e in described["error"] if e]
    detail = f"{len(errors)} of {len(frame)}, such as {errors[0]}" if errors else f"all {len(frame)} decode"
    findings = [Finding("files", not errors, detail), *find_leaks(frame)]
    readable = frame.reset_index(drop=True)[(described["error"] == "").to_numpy()]
    if readable["label"].nunique() < 2:
        return [*findings, Finding("both labels", False, "one label only, so nothing to compare")], pd.DataFrame(), (
            pd.DataFrame(columns=["value", "low", "high"])
        )  # fmt: skip
    aucs = shortcut_aucs(readable)
    value, low, high = aucs.loc["metadata"]
    if np.isnan(value):
        findings.append(Finding("shortcut", True, "not measured: too few sources to train, validate and test"))
    else:
        ok = not low > 0.5
        detail = f"metadata alone: AUC {metrics.Estimate(value, low, high)}, {'at' if ok else 'above'} chance"
        findings.append(Finding("shortcut", ok, detail))
    return findings, shortcut_table(described), aucs
