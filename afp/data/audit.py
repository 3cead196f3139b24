"""The audit of a manifest's files: leaks between splits, broken files, and what the two classes' files look like."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.fft import dctn, irfft2, rfft2
from tqdm.auto import tqdm

from ..errors import ImageError
from .images import GREY_SIDE, describe_file, extension_caution, sha256, small_grey

ALIKE = 0.9  # cosine of two windows' coarse structure: worth a closer look
SAME = 0.5  # peak of the phase correlation: the same picture; no 2 of the 61 demo photographs reach it (.42 at most)
BY_CHANCE = 0.002  # share of the pictures that may be alike by chance: 6 of 6,000 crops of 62 pictures were
_WINDOW = GREY_SIDE * 3 // 4
_CELLS = 2**26  # similarities held in memory at a time


@dataclass(frozen=True)
class Finding:
    """One check: its name, whether it passed, and what was found, in a line."""

    check: str
    ok: bool
    detail: str


def describe_files(frame: pd.DataFrame, progress: bool = True) -> pd.DataFrame:
    """The frame with what each file tells beside its picture, and ``error`` for an unusable one."""
    rows: list[dict] = []
    files = zip(frame["file"], frame["sha256"], strict=True)
    for file, digest in tqdm(files, total=len(frame), desc="files", disable=not progress):
        try:
            about = {"disguised": bool(extension_caution(file)), "grey": small_grey(file)}
            changed = (
                f"{file}: changed since its hash was written" if digest else f"{file}: no hash of it is known"
            )
            error = "" if sha256(file) == digest else changed
            rows.append(describe_file(file) | about | {"error": error})
        except ImageError as reason:
            rows.append({"error": str(reason)})
    described = pd.DataFrame(rows, columns=None if rows else ["error"])
    # What the file tells stands above what a manifest's own further columns claim.
    return frame.reset_index(drop=True).drop(columns=described.columns, errors="ignore").join(described)


def find_leaks(frame: pd.DataFrame, progress: bool = False) -> list[Finding]:
    """No source, no hash and no picture in two of train, validation and test; no image under both labels.

    Args:
        frame: a manifest; pictures are compared where it comes from `describe_files`.
        progress: show a bar while comparing.
    """
    findings = []
    for column in ("source", "sha256"):
        used = frame.loc[(frame["split"] != "none") & (frame[column] != ""), [column, "split"]]
        splits = used.groupby(column)["split"].nunique()
        bad = splits.index[splits > 1]
        findings.append(
            _finding(f"{column} leaks", bad, "in two splits", f"{len(splits)}, each in one split")
        )
    if "grey" in frame:
        findings.append(find_lookalikes(frame, progress))
    hashed = frame.loc[frame["sha256"] != "", ["path", "label", "sha256"]]
    both = hashed.loc[hashed.groupby("sha256")["label"].transform("nunique") > 1, "path"]
    named = frame["generator"].str.lower().map({"real": 0, "fake": 1}).fillna(frame["label"])
    other = frame.loc[named != frame["label"], "path"]
    twice = hashed.loc[hashed["sha256"].duplicated(), "path"]
    return [
        *findings,
        _finding("labels agree", both, "images", "no image is both real and fake"),
        _finding("names agree", other, "images are named the other class (are 0 and 1 swapped?)", "all do"),
        _finding("duplicates", twice, "repeated images", "no image stands twice"),
    ]


def _finding(check: str, bad: Iterable[str], found: str, fine: str) -> Finding:
    bad = list(bad)
    return Finding(check, not bad, f"{len(bad)} {found}, such as {bad[0]}" if bad else fine)


def find_lookalikes(described: pd.DataFrame, progress: bool = False) -> Finding:
    """Pictures of different sources that show the same and stand in two splits, or in two folds.

    The coarse structure (low frequencies of a discrete cosine transform) of each picture's middle is compared with
    25 windows of every other; what is alike is confirmed by phase correlation. So are found: copies saved, scaled
    or edited anew, and crops of one picture up to about an eighth of its side apart, such as frames of a video. Not
    found: mirrored, turned, or strongly enlarged pictures, crops further apart, a scene from another place.

    Args:
        described: what `describe_files` gave.
        progress: show a bar.
    """
    rows = described[described["error"] == ""].reset_index(drop=True)
    if rows.empty:
        return Finding("pictures", True, "none to compare")
    grey = np.frombuffer(b"".join(rows["grey"]), np.uint8).reshape(-1, GREY_SIDE, GREY_SIDE)
    source, split = (pd.factorize(rows[c])[0] for c in ("source", "split"))
    fold, unused = rows["fold"].to_numpy(), (rows["split"] == "none").to_numpy()
    step = (GREY_SIDE - _WINDOW) // 4
    middle = _coarse(grey, 2 * step, 2 * step)
    size = max(1, _CELLS // max(1, len(rows)))
    found: set[int] = set()
    example = ""
    for start in tqdm(range(0, len(rows), size), desc="comparing", disable=not progress, leave=False):
        part = grey[start : start + size]
        alike = np.zeros((len(part), len(rows) - start), dtype=bool)
        for place in range(25):
            alike |= _coarse(part, place // 5 * step, place % 5 * step) @ middle[start:].T >= ALIKE
        first, second = (index + start for index in np.nonzero(alike))
        apart = (split[first] != split[second]) & ~unused[first] & ~unused[second]
        apart |= fold[first] != fold[second]
        pairs = np.column_stack([first, second])[apart & (first < second) & (source[first] != source[second])]
        for k in range(0, len(pairs), 4096):
            some = pairs[k : k + 4096]
            same = some[_phase_peaks(grey[some[:, 0]], grey[some[:, 1]]) >= SAME]
            example = example or " and ".join(rows["path"].iloc[pair] for pair in same[:1].ravel())
            found.update(same.ravel().tolist())
    if not found:
        return Finding(
            "pictures", True, f"{len(rows)} compared, none looks like one of another split or fold"
        )
    chance = len(found) <= BY_CHANCE * len(rows)
    mend = ": so few may be chance" if chance else "; give them one source (`afp manifest --source-rule`)"
    detail = f"{len(found)} of {len(rows)} look like one of another split or fold, such as {example}{mend}"
    return Finding("pictures", chance, detail)


def _coarse(grey: np.ndarray, top: int, left: int) -> np.ndarray:
    """Unit vectors (n, 24) of the 5 x 5 lowest frequencies but the mean; zero where a window is flat."""
    window = grey[:, top : top + _WINDOW, left : left + _WINDOW].astype(np.float32)
    low = dctn(window, axes=(1, 2), norm="ortho")[:, :5, :5].reshape(len(grey), -1)[:, 1:]
    norm = np.linalg.norm(low, axis=1, keepdims=True)
    return np.where(norm > _WINDOW, low / np.maximum(norm, 1e-6), 0)


def _phase_peaks(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Highest value of the phase correlation of each pair, 0 to 1, whatever their shift (Kuglin and Hines 1975)."""
    taper = np.hanning(GREY_SIDE + 2)[1:-1]
    spectra = []
    for grey in (one, other):
        centred = grey - grey.mean(axis=(1, 2), keepdims=True, dtype=np.float32)
        spectrum = rfft2(centred * np.outer(taper, taper).astype(np.float32))
        spectra.append(spectrum / np.maximum(np.abs(spectrum), 1e-3))
    return irfft2(spectra[0] * spectra[1].conj()).max(axis=(1, 2))


def shortcut_table(described: pd.DataFrame) -> pd.DataFrame:
    """What the two classes' files look like: a line a property, a column a label."""
    good = described[described["error"] == ""]
    rows = {}
    for label, part in good.groupby("label"):
        numbers = part["bytes_per_pixel"]
        rows[{0: "real", 1: "fake"}[label]] = {
            "images": len(part),
            "formats": _shares(part["format"]),
            "not what the extension says": f"{part['disguised'].mean():.0%}",
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
