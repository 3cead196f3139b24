"""The scores table: one row an image, written as it is made, read back, continued after an interruption."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from .. import detectors
from ..detectors.base import Detector
from ..errors import DataError, UnreadableImages

SCORE_COLUMNS = [
    *("path", "sha256", "label", "generator", "kind", "split", "source", "perturbation"),
    *("detector", "run", "fold", "seen", "threshold", "score", "error"),
]
CHUNK = 64  # images between two flushes of a scores table


def score_frame(
    detector: Detector,
    frame: pd.DataFrame,
    *,
    run: str = "",
    fold: int | None = None,
    perturbation: str = "none",
    progress: bool = True,
) -> pd.DataFrame:
    """The scores table of a frame: one row an image, an unreadable one with its ``error`` and no score.

    Args:
        frame: a manifest, or `afp.data.manifest.from_files`; columns that it lacks stay empty.
    Returns:
        DataFrame with `SCORE_COLUMNS`, in the frame's order.
    """
    table = unscored_table(detector, frame, run, fold, perturbation)
    scores, errors = _score_readable(detector, frame.reset_index(drop=True), perturbation, progress)
    table["score"] = scores
    for i, message in errors.items():
        table.loc[i, "error"] = message
    return table


def unscored_table(
    detector: Detector, frame: pd.DataFrame, run: str, fold: int | None, perturbation: str
) -> pd.DataFrame:
    table = frame.reindex(columns=[c for c in SCORE_COLUMNS if c in frame.columns]).reset_index(drop=True)
    table = table.assign(perturbation=perturbation, detector=detector.name, run=run, fold=fold)
    seen = table["generator"].isin(detector.generators_).astype(int) if "generator" in table else None
    table = table.assign(seen=seen, threshold=detector.threshold_, error="")
    return table.reindex(columns=SCORE_COLUMNS)


def _score_readable(
    detector: Detector, frame: pd.DataFrame, perturbation: str, progress: bool
) -> tuple[pd.Series, dict[int, str]]:
    scores = pd.Series(float("nan"), index=frame.index)
    errors: dict[int, str] = {}
    good = frame
    try:
        values = detector.score(good, perturbation, progress)
    except UnreadableImages as error:
        errors = {i: error.errors[f] for i, f in frame["file"].items() if f in error.errors}
        good = frame.drop(index=list(errors))
        values = detector.score(good, perturbation, progress)
    scores[good.index] = values
    return scores, errors


def score_to_csv(
    folder: str | Path,
    frame: pd.DataFrame,
    out: str | Path,
    *,
    perturbation: str = "none",
    progress: bool = True,
) -> pd.DataFrame:
    """Score a frame with a run, row by row into a CSV that survives an interruption.

    Rows already in ``out`` (same path, hash and perturbation) are kept and not computed again, as are those of
    other images; a half-written last row is dropped. The finished file is the same as that of one uninterrupted run.

    Raises:
        DataError: ``out`` holds another run's scores, or is no scores table.
    """
    detector, out = detectors.load(folder), Path(out)
    run = Path(folder).resolve().name
    done = _completed(out, detector.name, run)
    key = list(zip(frame["path"], frame["sha256"], strict=True))
    todo = frame[[(p, h, perturbation) not in done for p, h in key]]
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    kept = [done[(p, h, perturbation)] for p, h in key if (p, h, perturbation) in done]
    wanted = {(p, perturbation) for p, _ in key}
    # Scores of other images stay; those of an image that has changed since are replaced.
    others = [row for k, row in done.items() if (k[0], k[2]) not in wanted]
    with partial.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([SCORE_COLUMNS, *others, *kept])
    partial.replace(out)
    with out.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        with tqdm(
            total=len(frame), initial=len(frame) - len(todo), unit="image", disable=not progress
        ) as bar:
            for start in range(0, len(todo), CHUNK):
                chunk = todo.iloc[start : start + CHUNK]
                rows = score_frame(detector, chunk, run=run, perturbation=perturbation, progress=False)
                writer.writerows(rows.astype(object).where(rows.notna(), "").to_numpy().tolist())
                stream.flush()
                bar.update(len(chunk))
    table = read_scores(out)
    asked = (table["perturbation"] == perturbation) & table["path"].isin(frame["path"])
    return table[asked].reset_index(drop=True)


def _completed(out: Path, detector: str, run: str) -> dict[tuple[str, str, str], list[str]]:
    """(path, sha256, perturbation) -> complete row of an interrupted scores table; empty if there is none."""
    if not out.exists():
        return {}
    try:
        with out.open(newline="", encoding="utf-8") as stream:
            header, *rows = list(csv.reader(stream)) or [SCORE_COLUMNS]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{out}: not a scores table ({error}); give another --out") from error
    if header != SCORE_COLUMNS[: len(header)] or (rows and header != SCORE_COLUMNS):
        raise DataError(f"{out}: not a scores table (its columns: {header[:4]}…); give another --out")
    at = SCORE_COLUMNS.index
    content = out.read_bytes()
    # A line end within open quotes belongs to a file's name, and not to the end of a row.
    complete_end = content.endswith(b"\n") and content.count(b'"') % 2 == 0
    rows = rows if complete_end else rows[:-1]
    rows = [r for r in rows if len(r) == len(SCORE_COLUMNS)]
    for row in rows:
        if (row[at("detector")], row[at("run")]) != (detector, run):
            raise DataError(f"{out}: holds scores of run {row[at('run')]}, not of {run}; give another --out")
    return {(r[at("path")], r[at("sha256")], r[at("perturbation")]): r for r in rows}


def read_scores(path: str | Path) -> pd.DataFrame:
    """A scores table from CSV. Raises DataError naming the file if it cannot be read as one."""
    text = {c: str for c in SCORE_COLUMNS if c not in ("label", "fold", "seen", "threshold", "score")}
    try:
        # "NA" and "null" are names of files and generators here; only a number can be missing.
        empty = {c: [""] for c in SCORE_COLUMNS if c not in text}
        table = pd.read_csv(path, dtype=text, keep_default_na=False, na_values=empty)
    except FileNotFoundError:
        raise DataError(f"{path}: no such scores table; make one with `afp score`") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable scores table ({error})") from error
    if missing := [c for c in SCORE_COLUMNS if c not in table.columns]:
        raise DataError(f"{path}: columns missing: {', '.join(missing)}")
    return table.fillna({c: "" for c in text})
