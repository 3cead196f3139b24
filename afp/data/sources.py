"""Sources: which images derive from one photograph, told from their names. A split never divides a source."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

import pandas as pd

from ..errors import DataError
from .splits import connect_sources

_FRAME = re.compile(r"(?:.*[_-])?(?:frame|frm)[_-]?\d+", re.IGNORECASE)
# vid01_0003, 012-0003; but not ImageNet's n01440764_0003, whose first part is a category.
_FLAT_FRAME = r"^(?!n\d{8}[_-])(.*\d)[_-](\d{2,})$"
_OWN = {"file", "label", "inner", "folder", "sha256", "reason"}  # columns that `afp` adds to a table's
_SWAP = re.compile(r"(\d+)_(\d+)")


def find_sources(images: pd.DataFrame, rule: str = "") -> list[str]:
    """The source of each image; byte-identical files share one, and so does all that a rule connects.

    Args:
        images: with ``inner``, ``folder``, ``label``, ``generator``, ``set``, ``sha256`` (see `afp.data.layouts`).
        rule: ``stem``: files of one name, in whatever folder and in upper or lower case. ``folder``: files of one
            folder. ``column:NAME``: a column of a table; where it is blank, the image's own name. Else a regular
            expression, searched in the path within the class without extension (such as ``vid01/frame_0003``):
            its groups are the parents, several for a swap of several. Empty: the column ``source`` if there is
            one that is not blank, else names, refused where they look like frames or derivatives.
    Raises:
        DataError: names that need a rule, a rule that is none, or one that fits no name.
    """
    # macOS decomposes accents in names, other systems do not.
    inner = images["inner"].astype(str).map(lambda name: unicodedata.normalize("NFC", name))
    stem = _in_one_case(inner.str.rpartition("/")[2])
    if of_column(images, rule):
        column = rule.removeprefix("column:") or "source"
        known = [name for name in images if name not in _OWN and (filled(images, name) != "").any()]
        if column not in known:
            names = ", ".join(map(str, known))
            raise DataError(f"--source-rule {rule}: no such column, expected one of {names}")
        parents = [[name] for name in filled(images, column, inner)]
    elif rule == "stem":
        parents = [[name] for name in stem]
    elif rule == "folder":
        parents = [[path.rpartition("/")[0] or path] for path in inner]
    elif rule:
        parents = _by_expression(inner, rule)
    else:
        _refuse_doubtful(images, inner, stem)
        # A name tells the source, unless it stands several times wherever it stands: numbers within categories.
        alone = ~images.assign(stem=stem).duplicated(["stem", "label", "generator", "set"], keep=False)
        names = stem.where(alone.groupby(stem).transform("any"), inner)
        parents = [[name] for name in prefix_counted(_in_one_case(names), images["set"])]
    return connect_sources(parents, images["sha256"])


def of_column(images: pd.DataFrame, rule: str) -> bool:
    """Whether a column names the sources, and no file."""
    return rule.startswith("column:") or (not rule and bool((filled(images, "source") != "").any()))


def filled(images: pd.DataFrame, column: str, default: str | pd.Series = "") -> pd.Series:
    """A column as text; the default where it is blank, or for all where there is no such column."""
    values = images[column].astype(object) if column in images else pd.Series(None, images.index, object)
    text = values.where(values.notna(), "").astype(str)
    return text.where(text.str.strip() != "", default)


def _in_one_case(names: pd.Series) -> pd.Series:
    """Names that differ in upper and lower case alone, all as the first of them in sorted order."""
    return names.groupby(names.str.casefold()).transform("min")


def prefix_counted(names: pd.Series, sets: pd.Series | str) -> pd.Series:
    """Put the data set's name before names that only count (0001, 0002, ...): they say nothing outside of it.

    Args:
        names: of sources.
        sets: the name of each one's data set, or of all; where it is empty, a name stays as it is.
    """
    parts = names.str.extract(r"^(\D*)(\d+)(.*)$")
    numbers = parts[1].astype(float).groupby([parts[0], parts[2]])
    n, lowest, highest = (numbers.transform(of) for of in ("nunique", "min", "max"))
    counted = (n >= 3) & (highest - lowest < 2 * n)
    prefixed = sets + pd.Series("/", names.index) + names
    return names.mask(counted & ~prefixed.str.startswith("/"), prefixed)


def _by_expression(inner: pd.Series, rule: str) -> list[list[str]]:
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise DataError(
            f"--source-rule {rule!r}: expected stem, folder, column:NAME or a regular expression ({error})"
        ) from error
    if not pattern.groups:
        raise DataError(f"--source-rule {rule!r}: no group in it, expected one in ( ) for each parent")
    found = [match.groups() if (match := pattern.search(path)) else () for path in inner]
    parents = [[part for part in groups if part] for groups in found]
    if missed := [path for path, names in zip(inner, parents, strict=True) if not names]:
        raise DataError(f"--source-rule {rule!r}: {len(missed)} names do not fit, such as {missed[0]!r}")
    return parents


def _refuse_doubtful(images: pd.DataFrame, inner: pd.Series, stem: pd.Series) -> None:
    """Refuse names by which images may derive from one another in a way that the names do not settle."""
    if len(frames := inner[stem.map(lambda name: bool(_FRAME.fullmatch(name)))]):
        rule = "folder" if "/" in frames.iloc[0] else r"'(.+)[_-](?:frame|frm)'"
        _refuse(f"{len(frames)} look like frames of videos, such as {frames.iloc[0]!r}", rule)
    for (_, generator, _), part in images.groupby(["label", "generator", "set"]):
        names, n_folders = stem[part.index], part["folder"].nunique()
        numbered = names.str.extract(_FLAT_FRAME).dropna()
        videos, numbers = numbered[0].nunique(), numbered[1].nunique()
        if videos >= 3 and len(numbered) >= 2 * max(videos, numbers):
            example = f"{videos} videos, such as {names[numbered.index[0]]!r}"
            _refuse(f"{len(numbered)} look like numbered frames of {example}", r"'([^/]*\d)[_-]\d+$'")
        crowded = n_folders > names.nunique() or names.str.fullmatch(r"\d+").all()
        if n_folders >= 3 and len(part) >= 2 * names.nunique() and crowded:
            few = "one name" if names.nunique() == 1 else f"{names.nunique()} names"
            example = f"{few} in {n_folders} folders of {generator}, such as {inner[part.index[0]]!r}"
            _refuse(f"{example}: these may be frames of videos, or a folder may be a photograph", "folder")
    for label, names in stem.groupby(images["label"]):
        if len(names) > 2 and names.nunique() == 1:
            _refuse(f"all {len(names)} files of label {label} have the name {names.iloc[0]!r}", "folder")
    _refuse_derivatives(set(stem[images["label"] == 0]), stem[images["label"] == 1].unique())


def _refuse_derivatives(real: set[str], fakes: Iterable[str]) -> None:
    """Refuse fakes that bear the names of two real images, or of one with something before or after it."""
    swaps = [match.groups() for match in map(_SWAP.fullmatch, fakes) if match]
    before, after = Counter[str](), Counter[str]()
    example = ""
    for name in fakes:
        cuts = [match.start() for match in re.finditer(r"[_\- ]", name)]
        starts = [name[:cut] for cut in reversed(cuts) if name[:cut] in real]
        ends = [name[cut + 1 :] for cut in cuts if name[cut + 1 :] in real]
        if name in real or not (starts or ends):
            continue
        example = example or f"{name!r} beside {(starts or ends)[0]!r}"
        if starts:
            after[name.removeprefix(starts[0])] += 1
        else:
            before[name.removesuffix(ends[0])] += 1
    if {first for first, _ in swaps} & {second for _, second in swaps} or (swaps and example):
        shown = f"{len(swaps)} fakes look like swaps of two, such as {'_'.join(swaps[0])!r}"
        _refuse(shown, r"'(\d+)(?:_(\d+))?$'")
    if example:
        first, last = _any_of(before, r"[^/]*[_\- ]"), _any_of(after, r"[_\- ].*")
        shown = f"{before.total() + after.total()} fakes are named after real images, such as {example}"
        _refuse(shown, f"'{first}([^/]+?){last}$'")


def _any_of(words: Counter[str], many: str) -> str:
    """An expression for one of these words or none; ``many`` for more than eight."""
    known = "|".join(map(re.escape, words)) if len(words) <= 8 else many
    return f"(?:{known})?" if words else ""


def _refuse(found: str, rule: str) -> None:
    raise DataError(
        f"{found}. Images of one photograph or video must share a source, or a split leaks: give --source-rule "
        f"{rule}, or another rule (`afp manifest --help`); --source-rule stem if they are unrelated"
    )
