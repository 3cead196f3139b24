"""The scores table: one row an image, written as it is made, read back, continued after an interruption."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TextIO

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from .. import detectors
from ..detectors.base import Detector, read_images, run_key
from ..errors import DataError, UnreadableImages
from ..files import check_input, written_whole
from ..models import processes

ABOUT = ["path", "sha256", "label", "generator", "kind", "split", "source", "set"]  # as the manifest has it
SCORE_COLUMNS = [
    *(*ABOUT, "role", "perturbation", "detector", "run", "fold", "seen"),
    *("threshold", "score", "verdict", "error", "place"),
]
NUMBERS = ("label", "fold", "seen", "threshold", "score")
NEEDED = ("path", "label", "score")  # of a table that another program wrote
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
        detector: fitted.
        frame: a manifest, or `afp.data.manifest.from_files`; columns that it lacks stay empty.
        run, fold, perturbation: what the table says about all rows.
    Returns:
        DataFrame with `SCORE_COLUMNS`, in the frame's order. ``role`` is train, validation or calibration for an
        image that the detector has met, or whose photograph it has met; ``place`` tells files of one name apart.
    """
    table = unscored_table(detector, frame, run, fold, perturbation)
    return _fill(table, detector, frame.reset_index(drop=True), progress)


def place_of(file: str | Path) -> str:
    """What tells a file from others of its name in a scores table: twelve hex digits of its whole path."""
    return hashlib.sha256(os.fsencode(Path(file).absolute())).hexdigest()[:12]


def with_files(table: pd.DataFrame, frame: pd.DataFrame) -> Iterator[tuple]:
    """Every row of a scores table with its file: a table holds names, not where they are."""
    files = {place_of(file): file for file in frame["file"]}
    for row in table.itertuples():
        yield row, files[row.place]


def unscored_table(
    detector: Detector,
    frame: pd.DataFrame,
    run: str,
    fold: int | None = None,
    perturbation: str = "none",
    thresholds: dict[str, float] | None = None,
) -> pd.DataFrame:
    """A scores table of the frame without scores; ``thresholds`` as of `score_to_csv`."""
    table = frame.reindex(columns=[c for c in ABOUT if c in frame.columns]).reset_index(drop=True)
    table = table.assign(perturbation=perturbation, detector=detector.name, run=run, fold=fold, error="")
    table["role"] = _roles(detector, table)
    table["place"] = frame["file"].map(place_of).to_numpy()
    own = thresholds or {}
    table["threshold"] = own.get("", detector.threshold_)
    if "generator" in table:
        table["seen"] = table["generator"].isin(detector.generators_).astype(int)
        table["threshold"] = table["generator"].map(own).fillna(table["threshold"])
    return table.reindex(columns=SCORE_COLUMNS)


def _roles(detector: Detector, table: pd.DataFrame) -> pd.Series:
    """What each row's image was for the detector: known by its hash, or by its photograph.

    A photograph is known where one of its images is, or by its name.
    """
    roles = pd.Series("", index=table.index, dtype=object)
    known = getattr(detector, "images_", pd.DataFrame(columns=["source", "sha256", "role"]))
    table = table.reindex(columns=["source", "sha256"]).astype(object).fillna("")
    for role in ("calibration", "validation", "train"):  # the last of several stays
        part = known[known["role"] == role]
        roles[_is_known(part, table) | table["source"].isin(set(part["source"]) - {""})] = role
    return roles


def _is_known(known: pd.DataFrame, table: pd.DataFrame) -> pd.Series:
    """Whether each row's image is known by its hash, or another one of its photograph is."""
    same = table["sha256"].isin(set(known["sha256"]) - {""})
    return same | table["source"].isin(set(table.loc[same, "source"]) - {""})


def count_known_by_name(folder: str | Path, table: pd.DataFrame) -> int:
    """Rows of a scores table that a run (its folder) knows by the name of their photograph alone."""
    known = read_images(folder)
    return int(((table["role"] != "") & ~_is_known(known, table)).sum())


def _fill(table: pd.DataFrame, detector: Detector, frame: pd.DataFrame, progress: bool) -> pd.DataFrame:
    """The table with scores, verdicts and errors; both have the same index."""
    perturbation = table["perturbation"].iloc[0] if len(table) else "none"
    good, errors = frame, pd.Series("", index=frame.index)
    try:
        values = detector.score(good, perturbation, progress)
    except UnreadableImages as error:
        errors = pd.Series([error.errors.get(file, "") for file in frame["file"]], frame.index)
        good = frame[errors == ""]
        values = detector.score(good, perturbation, progress)
    filled = table.assign(score=pd.Series(values, good.index, dtype=float), error=errors)
    return filled.assign(verdict=verdicts(filled))


def verdicts(table: pd.DataFrame) -> np.ndarray:
    """``fake`` from the row's threshold on, else ``nothing found``: a detector knows its own generators alone."""
    called = np.where(table["score"] >= table["threshold"], "fake", "nothing found")
    return np.where(table["score"].notna(), called, "")


def score_to_csv(
    folder: str | Path,
    frame: pd.DataFrame,
    out: str | Path,
    *,
    perturbation: str = "none",
    thresholds: dict[str, float] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Score a frame with a run, row by row into a CSV that survives an interruption.

    A score in ``out`` is not computed again where place, hash, perturbation and run are the same; everything else in
    its row is written anew, and an error is tried again. Rows of other images are kept, those of an image that has
    changed since replaced; a half-written last row is dropped. The finished file is the same as that of one
    uninterrupted run. Until then ``<out>.unfinished`` lies beside it.

    Args:
        folder: a run.
        frame, perturbation: see `score_frame`.
        out: the table.
        thresholds: instead of the run's: generator -> threshold; under "" for all others.
    Returns:
        The frame's rows of the table.
    Raises:
        DataError: ``out`` holds another run's scores, is no scores table, or is being written by another process.
    """
    detector, out = detectors.load(folder), Path(out)
    run = f"{Path(folder).resolve().name}@{run_key(folder)}"
    frame = frame.reset_index(drop=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    writes = processes.rank() == 0
    with _only_writer(out) if writes else nullcontext():
        table = unscored_table(detector, frame, run, None, perturbation, thresholds)
        n_others = _begin(out, table, run, perturbation) if writes else 0
        table[["score", "verdict"]] = processes.gather(table[["score", "verdict"]])[0]
        done = table["score"].notna()
        todo, size = table.index[~done], CHUNK * processes.count()
        progress = progress and writes
        bar = tqdm(total=len(table), initial=int(done.sum()), unit="image", disable=not progress)
        with bar, open(out if writes else os.devnull, "a", newline="", encoding="utf-8") as stream:
            for start in range(0, len(todo), size):
                chunk = todo[start : start + size]
                write_rows(_fill(table.loc[chunk], detector, frame.loc[chunk], False), stream)
                stream.flush()
                bar.update(len(chunk))
        if writes and len(todo) and todo[0] < done.sum():  # some were tried again: back to the frame's order
            rows = pd.read_csv(out, dtype=str, keep_default_na=False)
            order = np.argsort([*range(-n_others, 0), *table.index[done], *todo])
            with written_whole(out) as partial:
                rows.iloc[order].to_csv(partial, index=False, lineterminator="\r\n")
    processes.gather(None)  # nobody reads the table before it is whole
    scored = read_scores(out)
    asked = (scored["perturbation"] == perturbation) & scored["place"].isin(table["place"])
    return scored[asked].reset_index(drop=True)


def _begin(out: Path, table: pd.DataFrame, run: str, perturbation: str) -> int:
    """Write what an earlier run scored, and put its scores of this table's rows into the table.

    Returns:
        How many rows of others there are.
    """
    earlier = _earlier(out, run)
    of_this = earlier[earlier["perturbation"] == perturbation]
    known = of_this[(of_this["score"] != "") & (of_this["sha256"] != "")].set_index(["place", "sha256"])
    known = known[~known.index.duplicated()]
    wanted = pd.MultiIndex.from_frame(table[["place", "sha256"]])
    table["score"] = known["score"].reindex(wanted).to_numpy(float)
    table["verdict"] = verdicts(table)
    others = earlier.drop(index=of_this.index[of_this["place"].isin(table["place"])])
    with written_whole(out) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        others.to_csv(stream, index=False, lineterminator="\r\n")
        write_rows(table[table["score"].notna()], stream)
    return len(others)


@contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    """Lets one process at a time write a table, by a file beside it that stays where the work was not finished."""
    mark = out.with_name(out.name + ".unfinished")
    was_unfinished = mark.exists()
    try:
        with FileLock(mark, timeout=0):
            try:
                yield
            except DataError:  # refused before anything was written
                if not was_unfinished:
                    mark.unlink()
                raise
            mark.unlink()
    except Timeout:
        raise DataError(f"{out}: another process is writing it; wait, or give another --out") from None


def _earlier(out: Path, run: str) -> pd.DataFrame:
    """The complete rows of an interrupted scores table as they were written; none if there is no table."""
    content = out.read_bytes() if out.exists() else b""
    end = len(content)
    # A line end within open quotes belongs to a file's name, and not to the end of a row.
    while end and not (content[end - 1 : end] == b"\n" and content.count(b'"', 0, end) % 2 == 0):
        end = content.rfind(b"\n", 0, end - 1) + 1
    if (",".join(SCORE_COLUMNS) + "\r\n").encode().startswith(content):  # nothing, or cut in its first line
        return pd.DataFrame(columns=SCORE_COLUMNS, dtype=str)
    try:
        table = pd.read_csv(io.BytesIO(content[:end]), dtype=str, keep_default_na=False)
    except ValueError as error:
        raise DataError(f"{out}: not a scores table ({error}); give another --out") from error
    if list(table.columns) != SCORE_COLUMNS:
        raise DataError(f"{out}: not a scores table of this version; give another --out")
    for other in table["run"].unique():
        if other.split("@")[-1] != run.split("@")[-1]:
            raise DataError(f"{out}: holds scores of run {other}, not of {run}; give another --out")
    return table


def write_rows(table: pd.DataFrame, stream: TextIO | Path, header: bool = False) -> None:
    """Rows as CSV. A cell that a spreadsheet would compute (= + - @) begins with a quote, and is read as text."""
    for column in table.select_dtypes(["object", "str"]).columns.difference(NUMBERS):
        text = table[column].astype("str").str.replace(r"^('*[=+\-@\t\r])", r"'\1", regex=True)
        table = table.assign(**{column: text})
    table.to_csv(stream, index=False, header=header, lineterminator="\r\n")


def read_scores(path: str | Path) -> pd.DataFrame:
    """A scores table from CSV, of this workbook or of another detector.

    Of another detector's, `NEEDED` suffices: without a generator all fakes are one, the detector is named after the
    file, and there is no threshold. Columns beyond `SCORE_COLUMNS` are kept.

    Raises:
        DataError: names the file if it cannot be read as a scores table, or is not finished.
    """
    path = Path(path)
    if path.with_name(path.name + ".unfinished").exists():
        raise DataError(
            f"{path}: unfinished; the same `afp score` goes on with it (or evaluate a copy of it)"
        )
    check_input(path)
    text = [c for c in SCORE_COLUMNS if c not in NUMBERS]
    try:
        # "NA" and "null" are names of files and generators here; only a number can be missing.
        parts = pd.read_csv(
            path,
            dtype=dict.fromkeys(text, str),
            keep_default_na=False,
            na_values={c: ["", "nan", "NaN"] for c in NUMBERS},
            chunksize=100_000,  # the reader holds text as Python's, several times as large as the table's
        )
        bar = tqdm(parts, f"reading {path.name}", unit="part", leave=False, delay=2)
        table = pd.concat(list(bar), ignore_index=True)
    except FileNotFoundError:
        raise DataError(f"{path}: no such scores table; make one with `afp score`") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable scores table ({error})") from error
    if missing := [c for c in NEEDED if c not in table.columns]:
        raise DataError(
            f"{path}: columns missing: {', '.join(missing)}; expected at least {', '.join(NEEDED)}, "
            f"separated by commas; found {', '.join(map(str, table.columns[:8]))}"
        )
    label, score = (pd.to_numeric(table[column], errors="coerce") for column in ("label", "score"))
    for column, good, expected in (
        ("label", label.isin([0, 1]), "0 (real) or 1 (fake)"),
        ("score", score.between(0, 1), "P(fake), a number from 0 to 1"),
    ):
        wrong = table.loc[table[column].notna() & ~good, column]
        if len(wrong):
            row, value = wrong.index[0] + 2, str(wrong.iloc[0])
            raise DataError(f"{path}: row {row}: {column} is {value!r}, expected {expected}")
    names = dict.fromkeys(("detector", "run"), path.name.split(".")[0]) | {"perturbation": "none"}
    label = label.astype(float)  # true and false are labels too
    names |= {"generator": label.map({0: "real", 1: "fake"}), "kind": label.map({0: "real"})}
    for column in SCORE_COLUMNS:
        if column not in table:
            table[column] = names.get(column, np.nan if column in NUMBERS else "")
    for column in text:
        table[column] = table[column].fillna("")
        if table[column].str.startswith("'").any():
            table[column] = table[column].str.replace(r"^'('*[=+\-@\t\r])", r"\1", regex=True)
    return table[[*SCORE_COLUMNS, *(c for c in table.columns if c not in SCORE_COLUMNS)]]


def held_out_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a scores table that may be evaluated.

    Where a run met some of the table's images, its roles decide: every other row is held out, whatever a manifest's
    split says. Where it met none, or kept no list, the split does: ``test``, or none at all.
    """
    met = table["role"] != ""
    knows = met.groupby(table["run"]).transform("any")
    return table[np.where(knows, ~met, table["split"].isin(["test", ""]))]
