"""The audit of a manifest's files: leaks between splits, broken files, and what the two classes' files look like."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from ..errors import ImageError
from .images import describe_file, sha256


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
            row = describe_file(file) | {"error": ""}
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
