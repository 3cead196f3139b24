"""Sources: which images derive from one photograph, told from their names. A split never divides a source."""

from __future__ import annotations

import re
from collections import Counter

import pandas as pd

from ..errors import DataError
from .splits import connect_sources

_FRAME = re.compile(r"(?:.*[_-])?(?:frame|frm)[_-]?\d+", re.IGNORECASE)
# vid01_0003, 012-0003; but not ImageNet's n01440764_0003, whose first part is a category.
_FLAT_FRAME = re.compile(r"(?!n\d{8}[_-])(.*\d)[_-](\d{2,})")
_SWAP = re.compile(r"(\d+)_(\d+)")


def find_sources(images: pd.DataFrame, rule: str = "") -> list[str]:
    """The source of each image; byte-identical files share one, and so does all that a rule connects.

    Args:
        images: with ``inner``, ``folder``, ``label``, ``generator``, ``set``, ``sha256`` (see `afp.data.layouts`).
        rule: ``stem``: files of one name, in whatever folder. ``folder``: files of one folder. ``column:NAME``: a
            column of a table. Else a regular expression, searched in the path within the class without extension
            (such as ``vid01/frame_0003``): its groups are the parents, several for a swap of several. Empty:
            the column ``source`` if there is one, else names, refused where they look like frames or derivatives.
    Raises:
        DataError: names that need a rule, a rule that is none, or one that fits no name.
    """
    inner = images["inner"].astype(str)
    stem = inner.str.rpartition("/")[2]
    if rule.startswith("column:") or (not rule and "source" in images):
        column = rule.removeprefix("column:") or "source"
        if column not in images:
            raise DataError(
                f"--source-rule {rule}: no such column, expected one of {', '.join(images.columns)}"
            )
        parents = [[str(value)] for value in images[column]]
    elif rule == "stem":
        parents = [[name] for name in stem]
    elif rule == "folder":
        parents = [[path.rpartition("/")[0] or path] for path in inner]
    elif rule:
        parents = _by_expression(inner, rule)
    else:
        _refuse_doubtful(images, inner, stem)
        # A name tells the source, unless it stands several times wherever it stands: numbers within categories.
        repeated = pd.DataFrame({"stem": stem, "label": images["label"], "generator": images["generator"]})
        alone = ~repeated.assign(set=images["set"]).duplicated(keep=False)
        told = alone.groupby(stem).transform("any")
        parents = [[name] for name in stem.where(told, inner)]
    return connect_sources(parents, images["sha256"])


def _by_expression(inner: pd.Series, rule: str) -> list[list[str]]:
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise DataError(
            f"--source-rule {rule!r}: expected stem, folder, column:NAME or a regular expression ({error})"
        ) from error
    if not pattern.groups:
        raise DataError(f"--source-rule {rule!r}: no group in it, expected one in ( ) for each parent")
    matches = [pattern.search(path) for path in inner]
    if missed := [
        path for path, match in zip(inner, matches, strict=True) if not (match and any(match.groups()))
    ]:
        raise DataError(f"--source-rule {rule!r}: {len(missed)} names do not fit, such as {missed[0]!r}")
    return [[part for part in match.groups() if part] for match in matches if match]


def _refuse_doubtful(images: pd.DataFrame, inner: pd.Series, stem: pd.Series) -> None:
    """Refuse names by which images may derive from one another in a way that the names do not settle."""
    if len(frames := inner[stem.map(lambda name: bool(_FRAME.fullmatch(name)))]):
        rule = "folder" if "/" in frames.iloc[0] else r"'(.+)[_-](?:frame|frm)'"
        _refuse(f"{len(frames)} look like frames of videos, such as {frames.iloc[0]!r}", rule)
    for _, names in stem.groupby([images["label"], images["generator"], images["set"]]):
        parts = names.str.extract(rf"^{_FLAT_FRAME.pattern}$").dropna()
        videos, numbers = parts[0].nunique(), parts[1].nunique()
        if videos >= 3 and len(parts) >= 2 * max(videos, numbers):
            example = names[parts.index[0]]
            _refuse(
                f"{len(parts)} look like numbered frames of {videos} videos, such as {example!r}",
                r"'([^/]*\d)[_-]\d+$'",
            )
    for (_, generator, _), part in images.groupby(["label", "generator", "set"]):
        names, folders = stem[part.index], part["folder"]
        crowded = folders.nunique() > names.nunique() or names.str.fullmatch(r"\d+").all()
        if folders.nunique() >= 3 and len(part) >= 2 * names.nunique() and crowded:
            few = "one name" if names.nunique() == 1 else f"{names.nunique()} names"
            example = f"{few} in {folders.nunique()} folders of {generator}, such as {inner[part.index[0]]!r}"
            _refuse(
                f"{example}: these may be frames of videos, or a folder may be a photograph",
                "folder",
            )
    for label in (0, 1):
        names = stem[images["label"] == label]
        if len(names) > 2 and names.nunique() == 1:
            _refuse(f"all {len(names)} files of label {label} have the name {names.iloc[0]!r}", "folder")
    real, fakes = set(stem[images["label"] == 0]), stem[images["label"] == 1].unique()
    tails: Counter[str] = Counter()
    swaps = [match.groups() for match in map(_SWAP.fullmatch, fakes) if match]
    example = ""
    for name in fakes:
        cuts = [match.start() for match in re.finditer(r"[_\- ]", name)]
        if name not in real and (fitting := [i for i in cuts if name[:i] in real]):
            tails[name[fitting[-1] :]] += 1
            example = example or f"{name!r} beside {name[: fitting[-1]]!r}"
    if {first for first, _ in swaps} & {second for _, second in swaps} or (swaps and tails):
        _refuse(
            f"{len(swaps)} fakes look like swaps of two, such as {'_'.join(swaps[0])!r}",
            r"'(\d+)(?:_(\d+))?$'",
        )
    if tails:
        known = "|".join(re.escape(tail) for tail in tails) if len(tails) <= 8 else r"[_\- ].*"
        _refuse(
            f"{tails.total()} fakes are named after real images, such as {example}",
            f"'([^/]+?)(?:{known})?$'",
        )


def _refuse(found: str, rule: str) -> None:
    raise DataError(
        f"{found}. Images of one photograph or video must share a source, or a split leaks: give --source-rule "
        f"{rule}, or another rule (`afp manifest --help`); --source-rule stem if they are unrelated"
    )
