"""Images inside WebDataset tar shards and Parquet files, read where they lie.

Such an image is written ``shard.tar::folder/name.jpg`` or ``table.parquet::row``. Only the bytes of the asked member
are read (of Parquet: its row group, of which the last two are kept).
"""

from __future__ import annotations

import io
import json
import os
import posixpath
import re
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from ..errors import DataError, ImageError
from ..files import printable

SUFFIXES = (".tar", ".parquet")
_MEMBER = re.compile(rf"(.*?(?:{'|'.join(map(re.escape, SUFFIXES))}))::(.*)", re.IGNORECASE | re.DOTALL)
BAD_NAME = "name is not UTF-8 or has control characters"
# Usual names of a column with images, without underscores.
_IMAGES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "bytes", "imagebytes")
MAX_GROUP = 2**31  # bytes of a Parquet row group, uncompressed: it is held in memory as a whole


@contextmanager
def open_regular(path: str | Path) -> Iterator[io.BufferedReader]:
    """Open a regular file for reading; a pipe or device must neither hang nor feed bytes without end.

    Raises:
        ImageError: it is missing, may not be read, or is no regular file.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK
    try:
        with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(0, "not a regular file")
            yield file
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ImageError(f"{printable(path)}: {getattr(error, 'strerror', None) or error}") from error


def split_member(file: str | Path) -> tuple[str, str] | None:
    """Archive and member of ``shard.tar::member``; None for a plain path."""
    found = _MEMBER.fullmatch(str(file))
    return (found[1], found[2]) if found else None


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is ignored: hidden, or what macOS puts into archives."""
    return name == "__MACOSX" or (name.startswith(".") and name != "..")


def normalised(file: str | Path) -> str:
    """A file's absolute path without ``.`` and ``..`` in it; of ``shard.tar::member`` the shard's.

    A ``..`` behind a link leads to the parent of the folder that is linked.
    """
    archive, *member = split_member(file) or (str(file),)
    folder, name = os.path.split(archive)
    whole = os.path.join(os.getcwd(), folder)
    linked = ".." in folder.split(os.sep) and "\0" not in folder  # which no file has
    place = _real(whole) if linked else os.path.abspath(whole)
    return "::".join([os.path.join(place, name), *member])


@lru_cache(maxsize=2**16)  # once a folder
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def read_member(archive: str, member: str, most: int) -> bytes:
    """The first ``most`` + 1 bytes of a member.

    Raises:
        ImageError: no such archive or member, or one that cannot be read.
    """
    name = f"{printable(archive)}::{printable(member)}"
    try:
        status = os.stat(archive)
        if archive.lower().endswith(".tar"):
            offset, size = _tar_index(archive, status.st_size, status.st_mtime_ns)[member]
            with open_regular(archive) as stream:
                stream.seek(offset)
                return stream.read(min(size, most + 1))
        starts, column = _parquet_index(archive, status.st_size, status.st_mtime_ns)
        row = int(member)
        group = int(np.searchsorted(starts, row, "right")) - 1
        if not 0 <= row < starts[-1]:
            raise KeyError(member)
        values = _row_group(archive, group, column, status.st_size, status.st_mtime_ns)
        value = values[row - int(starts[group])].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        return (content or b"")[: most + 1]
    except (KeyError, DataError, OSError, ValueError, pa.ArrowException) as error:
        reason = "no such member" if isinstance(error, KeyError) else str(error)
        raise ImageError(f"{name}: {reason}") from error


def holds_images(path: Path) -> bool:
    """Whether this is a tar shard, or a Parquet file with a column of image bytes."""
    if path.suffix.lower() == ".parquet":
        try:
            with open_regular(path) as stream:
                return _image_column(pq.read_schema(stream)) is not None
        except (OSError, ImageError, pa.ArrowException) as error:
            raise DataError(f"{path}: not a readable Parquet file ({error})") from error
    return path.suffix.lower() == ".tar"


def list_members(path: Path, image_suffixes: frozenset[str]) -> tuple[pd.DataFrame, dict[str, str]]:
    """What an archive holds: a row an image with its ``path`` and whatever else is told of it.

    Of a tar shard these are the fields of the ``.json`` and the text of the ``.cls`` that share an image's name up
    to the first dot; of a Parquet file its plain columns (class numbers as names, where the file tells them).
    Hidden files and folders and ``__MACOSX`` are ignored.

    Returns:
        The rows; and the other members, each with its extension or what is wrong with its name.
    Raises:
        DataError: the archive cannot be read.
    """
    status = path.stat()
    if path.suffix.lower() == ".parquet":
        try:
            return _parquet_rows(path), {}
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(f"{path}: not a readable Parquet file ({error})") from error
    told: dict[str, dict] = {}
    images, skipped = [], {}
    index = _tar_index(str(path), status.st_size, status.st_mtime_ns)
    for member, (_, size) in index.items():
        if any(map(is_hidden, member.split("/"))):
            continue
        folder, name = posixpath.split(member)
        key, suffix = posixpath.join(folder, name.split(".")[0]), Path(name).suffix.lower()
        if printable(member) != member:
            skipped[printable(f"{path}::{member}")] = BAD_NAME
        elif suffix in image_suffixes:
            images.append((member, key))
        elif suffix in (".json", ".cls") and size < 2**20:
            told.setdefault(key, {}).update(_fields(suffix, read_member(str(path), member, size)))
        else:
            skipped[f"{path}::{member}"] = suffix or "no extension"
    rows = [{**told.get(key, {}), "path": f"{path}::{m}"} for m, key in images]
    return pd.DataFrame(rows, dtype=object), skipped  # a number stays what it is beside a row without one


def _fields(suffix: str, content: bytes) -> dict:
    text = content.decode("utf-8", "replace").strip()
    if suffix == ".cls":
        return {"cls": text}
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return (
        {k: v for k, v in found.items() if not isinstance(v, list | dict)} if isinstance(found, dict) else {}
    )


@lru_cache(maxsize=1024)  # shards that are read in random order
def _tar_index(archive: str, size: int, changed: int) -> dict[str, tuple[int, int]]:
    """Member -> where its bytes begin, and how many they are."""
    try:
        with open_regular(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            members = tqdm(tar, "listing", unit=" files", leave=False, delay=2)
            plain = (m for m in members if m.isreg() and not m.sparse)
            return {posixpath.normpath(m.name): (m.offset_data, m.size) for m in plain}
    except (tarfile.TarError, OSError, ValueError) as error:
        mend = "expected an uncompressed tar, whole"
        raise DataError(f"{printable(archive)}: not a readable tar shard ({error}); {mend}") from error


def _image_column(schema: pa.Schema) -> str | None:
    """The first of the columns that hold bytes in a struct, or else bytes; one named as an image goes before."""
    structs: list[str] = []
    plain: list[str] = []
    for field in schema:
        held, found = field.type, plain
        if pa.types.is_struct(held) and held.get_field_index("bytes") >= 0:
            held, found = held.field("bytes").type, structs
        if pa.types.is_binary(held) or pa.types.is_large_binary(held):
            found.append(field.name)
    held_in = structs or plain
    named = [name for name in held_in if name.lower().replace("_", "") in _IMAGES]
    return next(iter(named or held_in), None)


@lru_cache(maxsize=64)
def _parquet_index(archive: str, size: int, changed: int) -> tuple[np.ndarray, str]:
    """Row at which each group begins, and the number of rows last; the name of the column with the images."""
    with open_regular(archive) as stream:
        table = pq.ParquetFile(stream)
        column = _image_column(table.schema_arrow)
        if column is None:
            raise DataError("no column of image bytes")
        rows = [table.metadata.row_group(g).num_rows for g in range(table.num_row_groups)]
    return np.cumsum([0, *rows]), column


@lru_cache(maxsize=2)
def _row_group(archive: str, group: int, column: str, size: int, changed: int) -> pa.ChunkedArray:
    with open_regular(archive) as stream:
        table = pq.ParquetFile(stream)
        if (held := table.metadata.row_group(group).total_byte_size) > MAX_GROUP:
            raise DataError(
                f"a row group of {held:,} bytes, expected at most {MAX_GROUP:,}; write smaller ones"
            )
        return table.read_row_group(group, columns=[column]).column(0)


def _parquet_rows(path: Path) -> pd.DataFrame:
    table = pq.ParquetFile(path)
    plain = [f.name for f in table.schema_arrow if not pa.types.is_nested(f.type) and f.name != "path"]
    binary = {f.name for f in table.schema_arrow if "binary" in str(f.type)}
    held = table.read(columns=[name for name in plain if name not in binary])
    frame = held.to_pandas(ignore_metadata=True, integer_object_nulls=True)
    told = json.loads((table.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
    features = told.get("info", {}).get("features", {})
    for column, feature in features.items():
        if column in frame and isinstance(feature, dict) and feature.get("names"):
            frame[column] = frame[column].map(dict(enumerate(feature["names"])))
    return frame.assign(path=[f"{path}::{row}" for row in range(table.metadata.num_rows)])
