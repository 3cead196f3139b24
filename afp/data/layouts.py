"""Data sets as they come, to a manifest: trees with class words, folders by name, tables, shards.

Reading gives a `Listing`: what was understood, and every file that was left out with its reason. `make_manifest`
then decides on sources, folds and splits.
"""

from __future__ import annotations

import csv
import hashlib
import pickle
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, NoReturn

import pandas as pd
from tqdm.auto import tqdm

from ..errors import AfpError, DataError, ImageError
from ..files import check_input, printable
from .archives import BAD_NAME, SUFFIXES, holds_images, is_hidden, list_members, normalised, split_member
from .images import FORMAT_OF, begins_like_an_image, list_images, open_image, read_file
from .manifest import COLUMNS
from .sources import filled, find_sources, of_column, prefix_counted
from .splits import N_FOLDS, deal_folds, hash_folds

LAYOUTS = ("auto", "sets", "categories")
OUTSIDE = "outside of the layout"
NO_WORD = "no class word in its path"
_CLASSES = {
    **dict.fromkeys(
        ("real", "reals", "nature", "natural", "original", "originals", "authentic", "genuine"), 0
    ),
    **dict.fromkeys(("fake", "fakes", "ai", "generated", "synthetic", "manipulated"), 1),
    "original_sequences": 0,  # FaceForensics++
    "manipulated_sequences": 1,
}
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# The archive of CLIPping the Deception keeps its classes under two of ImageNet's names.
_CLIPPING = {"images/val/n01440764/": "real/", "images/val/n01443537/": "fake/"}
_NO_LABEL = ("nan", "null", "none", "n/a", "na", "<na>")
# Usual names of columns, without underscores.
_PATHS = ("path", "file", "filename", "filepath", "image", "imagepath", "img", "imgpath")
_LABELS = ("label", "labels", "class", "target", "cls", "isfake", "generated", "y")


class LeftOut(NamedTuple):
    """A file that is not in the manifest: of which class or generator, and why."""

    file: str
    group: str
    reason: str


@dataclass
class Listing:
    """What a data set holds, before any image of it is opened.

    Args:
        images: a row an image: ``file``, ``label``, ``generator``, ``set``, ``split`` (the data set's own, or
            empty), ``inner`` (its place within the class, without extension), ``folder`` (of these the folders
            below the class); of a table its further columns too.
        left_out: what was not taken.
        name: of the data set, its folder's; it tells apart the numbers that two data sets have for names.
    """

    images: pd.DataFrame
    left_out: list[LeftOut] = field(default_factory=list)
    name: str = ""


def read_tree(folder: Path, layout: str = "auto") -> Listing:
    """Find class words in the folders' names, in any case and at any depth; ``0_real`` is ``real``.

    Folders above a class word are a set with its own reals (the first) and categories, below ``fake`` they name
    the generator (the first); train, val and test are the data set's own split.

    Args:
        folder: the tree.
        layout: ``"auto"``; ``"sets"``: the first folder names the generator, whatever stands below the class;
            ``"categories"``: no folder names a generator, all are categories.
    Raises:
        DataError: no image below a class word, or a path that names both classes.
    """
    files, left_out = _list_named(folder, OUTSIDE)
    rows = []
    for file in files:
        if place := _place(file.relative_to(folder).as_posix(), layout):
            rows.append({"file": str(file.absolute()), **place})
        else:
            left_out.append(LeftOut(printable(file), OUTSIDE, NO_WORD))
    for i, skipped in enumerate(left_out):
        name = skipped.file.removeprefix(str(folder)).lstrip("/")  # empty for the tree itself
        if name and (place := _place(name, layout)):
            left_out[i] = skipped._replace(group=place["generator"])
    if not rows:
        raise DataError(
            f"{folder}: no image below a folder named real or fake (or 0_real and 1_fake, nature and ai, ...); "
            f"{len(files)} images elsewhere. Name the folders by --real DIR and --fake NAME=DIR"
        )
    return Listing(_pair_sets(pd.DataFrame(rows)), left_out, _name_of(folder))


def _list_named(folder: Path, group: str) -> tuple[list[Path], list[LeftOut]]:
    """Images in a folder; and what was left out, also for a name that no table and no screen can hold."""
    files, skipped = list_images(folder, progress=True)
    bad = [file for file in files if printable(file) != str(file)]
    skipped |= {printable(file): BAD_NAME for file in bad}
    return sorted(set(files) - set(bad)), [LeftOut(file, group, reason) for file, reason in skipped.items()]


def _name_of(folder: Path) -> str:
    """The last part of a folder's path that is no class word and no split."""
    parts = [part for part in folder.resolve().parts if part.lower() not in _CLASSES | _SPLITS]
    return parts[-1]


def _place(name: str, layout: str) -> dict[str, Any] | None:
    """Label, generator, set, split, inner and folder from a path below the tree's root; None: no class word."""
    for archived, plain in _CLIPPING.items():
        name = name.replace(archived, plain)
    *folders, stem = PurePosixPath(name).with_suffix("").parts
    words = [re.sub(r"^\d+[_-]", "", part.lower()) for part in folders]
    hits = [i for i, word in enumerate(words) if word in _CLASSES]
    if not hits:
        return None
    if len({_CLASSES[words[i]] for i in hits}) > 1:
        raise DataError(f"{printable(name)}: names both classes; give --real DIR and --fake NAME=DIR")
    label, split = _CLASSES[words[hits[0]]], next((_SPLITS[w] for w in words if w in _SPLITS), "")
    kept = [(i, part) for i, part in enumerate(folders) if words[i] not in _SPLITS and i not in hits]
    above, below = ([part for i, part in kept if i < hits[0]], [part for i, part in kept if i > hits[0]])
    group = generator = ""
    if layout != "categories" and above:
        group = generator = above.pop(0)
    if layout != "categories" and below and (layout == "auto" or not group):
        if label or not group:
            generator = below.pop(0)
        group = group or generator
    return {
        "label": label,
        "generator": (generator or "fake") if label else "real",
        "set": group,
        "split": split,
        "inner": "/".join([split, *above, *below, stem]).lstrip("/"),
        "folder": "/".join(below),
    }


def _pair_sets(images: pd.DataFrame) -> pd.DataFrame:
    """Keep the sets that have both labels; a folder of reals that is no such set goes back to its place."""
    paired = images.groupby("set")["label"].transform("nunique") == 2
    back = (images["label"] == 0) & ~paired & (images["set"] != "")
    for column in ("inner", "folder"):
        images[column] = images[column].mask(back, images["set"] + "/" + images[column]).str.rstrip("/")
    images["set"] = images["set"].where(paired, "")
    return images


def read_places(real: Iterable[tuple[str, Path]], fake: Iterable[tuple[str, Path]]) -> Listing:
    """Folders, or lists of files, by the name of what made their images.

    Args:
        real: name (usually ``real``) and folder; or a ``.txt`` of paths, a line each, or a ``.pickle`` of them, as
            UniversalFakeDetect has it; paths are relative to the list's folder.
        fake: generator and folder or list; a generator may come several times.
    Raises:
        DataError: no image in a place, or a list that holds something else.
    """
    places = [(0, *pair) for pair in real] + [(1, *pair) for pair in fake]
    rows, left_out = [], []
    for label, name, place in places:
        files, skipped = _list_named(place, name) if place.is_dir() else (_read_list(place), [])
        left_out += skipped
        if not files:
            raise DataError(f"{place}: no image in it")
        base = place if place.is_dir() else place.parent
        for file in files:
            near = file.relative_to(base) if file.is_relative_to(base) else Path(*file.parts[-2:])
            inner = near.with_suffix("").as_posix()
            row = {"file": str(file.absolute()), "label": label, "generator": name, "set": "", "split": ""}
            rows.append({**row, "inner": inner, "folder": inner.rpartition("/")[0]})
    first = places[0][2]
    return Listing(pd.DataFrame(rows), left_out, _name_of(first if first.is_dir() else first.parent))


class _PlainUnpickler(pickle.Unpickler):
    """Reads strings, numbers and lists, and never calls anything."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _read_list(path: Path) -> list[Path]:
    try:
        check_input(path)
        if path.suffix.lower() == ".txt":
            names = path.read_text(encoding="utf-8-sig").split("\n")  # not at what else may end a line
        elif path.suffix.lower() in (".pickle", ".pkl"):
            with path.open("rb") as stream:
                names = _PlainUnpickler(stream).load()
        else:
            raise AfpError("expected a folder, or a list of paths: .txt, .pickle")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise AfpError("holds something else than paths")
    except Exception as error:  # a pickle's bytes may raise nearly anything
        raise DataError(f"{path}: not a folder and not a readable list ({error})") from error
    return [path.parent / name for name in names if name.strip()]


def find_shards(folder: Path) -> list[Path]:
    """The tar shards and Parquet files of images in a folder; raises DataError beside loose images."""
    found = [p for p in sorted(folder.iterdir()) if not is_hidden(p.name)]
    shards = [p for p in found if p.suffix.lower() in SUFFIXES and holds_images(p)]
    if shards and (loose := list_images(folder, progress=True)[0]):
        raise DataError(
            f"{folder}: {len(shards)} shards and {len(loose)} loose images; give the shards by name"
        )
    return shards


def read_tables(
    tables: Sequence[Path], path_column: str = "", label_column: str = "", real_value: str = ""
) -> Listing:
    """Tables of paths (relative to the table's folder) and labels; Parquet files and tar shards of images.

    Columns ``generator``, ``kind``, ``set``, ``split`` and ``source`` are taken as they are; a blank one counts as
    none. Three and more labels are generators. Without a column of labels, class words in the paths tell them. Rows
    without a label or a path are left out.

    Args:
        tables: files of one kind, their rows joined.
        path_column: of the paths; usual names are found.
        label_column: of the labels; usual names are found.
        real_value: the label that means real; not needed for words such as ``real``.
    Raises:
        DataError: an unreadable table, or columns or labels that could mean several things.
    """
    frames: list[pd.DataFrame] = []
    left_out: list[LeftOut] = []
    own = [_SPLITS.get(re.split(r"[-_.]", table.name.lower())[0], "") for table in tables]
    for table, split in zip(tables, own, strict=True):
        if holds_images(table):
            frame, skipped = list_members(table, frozenset(FORMAT_OF))
            left_out += [LeftOut(file, "", reason) for file, reason in skipped.items()]
            members = [split_member(path) or ("", "") for path in frame.get("path", [])]
            inner = pd.Series([member for _, member in members], dtype=str)
            if table.suffix.lower() == ".parquet":  # a row's number says nothing outside of its file
                inner = f"{table.stem} row " + inner
            if len(set(own)) > 1 and "split" not in frame:  # train-00000.parquet beside test-00000.parquet
                frame["split"] = split
                inner = f"{split}/" + inner
        else:
            frame = _read_table(table)
            column = _find_column(frame, path_column, _PATHS, f"{table}: paths", "--path-column")
            inner = filled(frame, column)
            left_out += [LeftOut(printable(table), "", "no path")] * int((inner == "").sum())
            frame, inner = frame[inner != ""], inner[inner != ""]
            frame = frame.assign(path=[str(table.parent / name) for name in inner])
        frames.append(frame.astype(object).assign(inner=inner))
    images = pd.concat(frames, ignore_index=True)
    if images.empty:
        raise DataError(f"{tables[0]}: no image in it")
    images["inner"] = images["inner"].str.replace(r"\.\w+$", "", regex=True)
    if label_column or any(_plain(column) in _LABELS for column in images):
        column = _find_column(images, label_column, _LABELS, f"{tables[0]}: labels", "--label-column")
        values, where = filled(images, column).map(_label), f"{tables[0]}: column {column!r}"
        left_out += [LeftOut(printable(file), "", "no label") for file in images.loc[values == "", "path"]]
        images, values = (part[values != ""].reset_index(drop=True) for part in (images, values))
        if images.empty:
            raise DataError(f"{where}: no image has a label")
        images["label"] = _as_labels(values, real_value, where)
        fakes = values if values.nunique() > 2 else "fake"
        generators = images["label"].map({0: "real"}).fillna(fakes)
    else:
        places = [_place(name, "auto") for name in images["inner"]]
        if unplaced := places.count(None):
            raise DataError(f"{tables[0]}: {unplaced} images without a label; give --label-column")
        images["label"] = [place["label"] for place in places if place]
        generators = pd.Series([place["generator"] for place in places if place])
    for name, default in [("generator", generators), ("set", ""), ("split", "")]:
        images[name] = filled(images, name, default)
    images["split"] = images["split"].str.lower().replace(_SPLITS)
    images = images.assign(file=images["path"], folder="").drop(columns="path")
    return Listing(images, left_out, _name_of(tables[0].parent))


def _read_table(path: Path) -> pd.DataFrame:
    try:
        check_input(path)
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path, to_pandas_kwargs={"integer_object_nulls": True})
        with path.open(encoding="utf-8-sig", newline="") as stream:
            sample = stream.read(2**16)
        try:
            separator = csv.Sniffer().sniff(sample, ",;\t|").delimiter
        except csv.Error:  # one column
            separator = ","
        return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except Exception as error:  # on arbitrary bytes the readers raise nearly anything
        raise DataError(f"{path}: not a readable table of paths, or tar shard ({error})") from error


def _find_column(frame: pd.DataFrame, asked: str, usual: Sequence[str], what: str, option: str) -> str:
    found = [asked] if asked else [column for column in frame if _plain(column) in usual]
    if len(found) != 1 or found[0] not in frame:
        raise DataError(f"{what}: which column? Give {option}, one of {', '.join(map(str, frame.columns))}")
    return found[0]


def _plain(column: object) -> str:
    return str(column).lower().replace("_", "")


def _label(text: str) -> str:
    """A label without blanks around it: 1.0 is 1, and what stands for no label is empty."""
    text = text.strip()
    if text.casefold() in _NO_LABEL:
        return ""
    return text.removesuffix(".0") if re.fullmatch(r"\d+\.0", text) else text


def _as_labels(values: pd.Series, real_value: str, where: str) -> pd.Series:
    distinct = sorted(values.unique())
    if real_value:
        is_real = values.str.casefold() == _label(real_value).casefold()
        if not is_real.any():
            raise DataError(f"{where}: --real-value {real_value!r}, expected one of {distinct[:20]}")
        return (~is_real).astype(int)
    if not set(values.str.lower()) <= set(_CLASSES):
        raise DataError(f"{where}: holds {', '.join(distinct[:20])}; which is real? Give --real-value")
    return values.str.lower().map(_CLASSES)


def make_manifest(
    listing: Listing,
    rule: str = "",
    split: bool = False,
    seed: int = 0,
    drop_unreadable: bool = False,
) -> tuple[pd.DataFrame, list[str]]:
    """A manifest of what was listed; what cannot stand in it goes to ``listing.left_out``.

    Args:
        listing: what was read.
        rule: how sources are told from names, see `afp.data.sources.find_sources`.
        split: 60/20/20 % of the sources to train/validation/test, for the data set's own split; without either,
            all rows are ``test``.
        seed: changes which source is in which fold.
        drop_unreadable: decode every image and leave out what cannot be; without it, such images stay in.
    Returns:
        A frame as `read_manifest` gives it, and remarks, a sentence each.
    Raises:
        DataError: a file of two labels or generators, names that need a rule, or too few sources to split.
    """
    images, notes = listing.images.assign(file=listing.images["file"].map(normalised)), []
    _refuse_two_names(images)
    images = images.drop_duplicates("file", ignore_index=True)
    if len(images) < len(listing.images):
        notes.append(f"{len(listing.images) - len(images)} files are listed twice and taken once")
    reading = tqdm(images["file"], desc="reading", unit="image", leave=False)
    checked = [_check_file(file, drop_unreadable) for file in reading]
    images["sha256"], images["reason"] = zip(*checked, strict=True)
    lost = images["reason"] != ""
    if lost.any() and not drop_unreadable:
        first = images.loc[lost, "reason"].iloc[0]
        notes.append(
            f"{lost.sum()} images cannot be used, such as {first}; --drop-unreadable leaves such out"
        )
    elif lost.any():
        shares = lost.groupby(images["generator"]).mean().loc[lambda share: share > 0]
        shown = ", ".join(f"{share:.0%} of {name}" for name, share in shares.items())
        notes.append(f"unreadable: {shown}; what one class alone loses may be a shortcut of its own")
        gone = images.loc[lost, ["file", "generator", "reason"]].itertuples(index=False)
        listing.left_out += [LeftOut(*row) for row in gone]
        images = images[~lost].reset_index(drop=True)
    if images.empty:
        raise DataError("no readable image")
    images["source"] = find_sources(images, rule)
    images["fold"] = hash_folds(images, seed)
    if images.groupby("fold")["label"].nunique().reindex(range(N_FOLDS)).ne(images["label"].nunique()).any():
        images["fold"] = deal_folds(images, seed=seed)
        n = images["source"].nunique()
        notes.append(f"{n} sources are few: dealt evenly to the folds; a new one moves others")
    images["split"] = _split_anew(images) if split else _own_split(images, notes)
    if split and listing.images["split"].any():
        notes.append("the data set's own split is not kept: --split deals anew")
    if not of_column(listing.images, rule):  # after the folds: they do not change with the data set's name
        images["source"] = prefix_counted(images["source"], listing.name)
    images["kind"] = filled(images, "kind", images["label"].map({0: "real", 1: "unknown"}))
    return images.assign(path=images["file"])[[*COLUMNS, "file"]], notes


def _refuse_two_names(images: pd.DataFrame) -> None:
    """Refuse a file that is listed under two labels or generators, as where a folder lies within another."""
    named = images.drop_duplicates(["file", "label", "generator"])
    if twice := named.loc[named["file"].duplicated(), "file"].tolist():
        rows = named[named["file"] == twice[0]].head(2)
        one, two = (
            f"{'fake' if row.label else 'real'} {row.generator!r}" for row in rows.itertuples(index=False)
        )
        n = f"; {len(twice)} files are listed twice" if len(twice) > 1 else ""
        raise DataError(
            f"{printable(twice[0])}: is listed as {one} and as {two}{n}. List each file as one of them"
        )


def _check_file(file: str, decode: bool) -> tuple[str, str]:
    """A file's hash, and why it is no image; in a glance at how it begins, or by decoding it."""
    try:
        content = read_file(file)
        if decode:
            open_image(file)
        reason = "" if decode or begins_like_an_image(content) else f"unreadable: {file}: no image"
        return hashlib.sha256(content).hexdigest(), reason
    except ImageError as error:
        return "", f"unreadable: {error}"


def _split_anew(images: pd.DataFrame) -> pd.Series:
    """Test and validation a fold each, the others for training."""
    if (n := images["source"].nunique()) < 3:
        raise DataError(f"{n} sources cannot be split in three; say how names tell them by --source-rule")
    chosen = images["fold"].map({0: "test", 1: "validation"}).fillna("train")
    if lacking := _of_one_class(images, chosen):
        raise DataError(f"{lacking[0]}: no image of one class; {n} sources are too few to split")
    return chosen


def _own_split(images: pd.DataFrame, notes: list[str]) -> pd.Series:
    """The data set's own split, completed where it lacks a part; without one, all is test."""
    if not images["split"].any():
        return pd.Series("test", images.index)
    own = images["split"].replace("", "none")
    if unknown := sorted(set(own) - {*_SPLITS.values(), "none"}):
        raise DataError(f"split: {unknown[0]!r} for some images, expected train, validation, test or none")
    if n := int((images["split"] == "").sum()):
        notes.append(f"{n} images without a split beside others with one are used for nothing (none)")
    if not (own == "test").any() and (own == "validation").any():
        own = own.replace("validation", "test")
        notes.append("the data set has no test split: its validation images are the test")
    if not (own == "validation").any():
        own = own.mask((own == "train") & (images["fold"] == 1), "validation")
        notes.append("the data set has no validation split: a fifth of its training sources is one")
    notes += [f"{name}: no image of one class" for name in _of_one_class(images, own)]
    return own


def _of_one_class(images: pd.DataFrame, split: pd.Series) -> list[str]:
    """Parts of a split that lack a class that there is."""
    both = set(images["label"])
    return [
        name for name in ("train", "validation", "test") if both - set(images.loc[split == name, "label"])
    ]
