"""Writing files: whole or not at all, over nothing that is not `afp`'s own, and with checksums."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from .errors import DataError


class Kind(NamedTuple):
    """What a command writes: how such a file's name ends, and how it begins (empty: none is ever replaced)."""

    suffixes: tuple[str, ...]
    begins: tuple[str, ...]


STAMP = ".afp.json"  # in a folder that `afp` made: what it is, and the SHA-256 of each of its files
HTML_HEAD = '<!doctype html>\n<html lang="en">\n<head>\n<meta name="generator" content="afp">'
SCORES = Kind((".csv",), ("path,sha256,",))
METRICS = Kind((".csv", ".json"), ("detector,", '[\n {\n  "detector"'))
MANIFEST = Kind((".csv", ".parquet"), ("path,label,", "PAR1"))
PAGE = Kind((".html", ".htm"), (HTML_HEAD,))
LEFT_OUT = Kind((".csv",), ("file,group,reason",))
LOG = Kind((), ("run: ",))
CHECKPOINT = Kind((".pth", ".pt"), ())
# Control characters, and those that change the direction of writing.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def check_output(path: str | Path, kind: Kind, inputs: Iterable = ()) -> Path:
    """Refuse a file that must not be written; call it before any work.

    Args:
        path: the file to write, to replace or to append to.
        kind: what is written there; a file of the same kind may be replaced.
        inputs: files and folders that the command reads.
    Returns:
        The path.
    Raises:
        DataError: another suffix, an input, a folder or a device, or a file that `afp` did not make.
    """
    path = Path(path)
    if kind.suffixes and not path.name.lower().endswith(kind.suffixes):
        raise DataError(f"{path}: cannot be written, expected a name ending in {' or '.join(kind.suffixes)}")
    if not path.exists():
        return path
    if not path.is_file():
        raise DataError(f"{path}: is a folder or a device, expected the name of a file")
    with path.open("rb") as stream:
        head = stream.read(200).removeprefix(b"\xef\xbb\xbf")
    if head and not head.startswith(tuple(text.encode() for text in kind.begins)):
        raise DataError(f"{path}: is there and is not what `afp` would write; give another name or delete it")
    if any(Path(other).exists() and path.samefile(other) for other in inputs):
        raise DataError(f"{path}: is one of the inputs and stays as it is; give another name")
    return path


def check_folder(path: str | Path, made_by: str, inputs: Iterable = ()) -> Path:
    """Refuse a folder that must not be written or replaced; `written_folder` asks this itself.

    Args:
        path: the folder. One that is not there, is empty, or bears ``made_by``'s stamp and holds no other files.
        made_by: the command, such as "afp gallery".
        inputs: files and folders that the command reads.
    Raises:
        DataError: it holds an input, or files that ``made_by`` did not write.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise DataError(f"{path}: is a file, expected the name of a folder")
    if not path.exists() or not any(path.iterdir()):
        return path
    stamp = _stamp(path)
    if stamp.get("made_by") != made_by:
        raise DataError(f"{path}: is not empty and was not made by `{made_by}`; give another folder")
    if foreign := sorted(set(_files(path)) - set(stamp["sha256"])):
        raise DataError(f"{path}: holds {foreign[0]}, which `{made_by}` did not write; move it away")
    for other in inputs:
        if path.resolve() in (Path(other).resolve(), *Path(other).resolve().parents):
            raise DataError(f"{path}: holds {other}, which is read; give another folder")
    return path


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A file beside ``path`` to write into; it takes ``path``'s place when the block ends without an error.

    Whoever stops on the way (an error, a kill, a full disk) leaves ``path`` as it was. Folders above are made.

    Args:
        path: the file to write or to replace.
    """
    path = Path(os.path.realpath(path))  # through a link, not over it
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def written_folder(path: str | Path, made_by: str, inputs: Iterable = ()) -> Iterator[Path]:
    """A folder beside ``path`` to build in; stamped, it takes ``path``'s place when the block ends without an error.

    Args, Raises: as of `check_folder`.
    """
    path = Path(os.path.realpath(check_folder(path, made_by, inputs)))
    path.parent.mkdir(parents=True, exist_ok=True)
    _clean_up(path)
    partial, old = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("partial", "old"))
    try:
        partial.mkdir()
        yield partial
        write_stamp(partial, made_by)
        follow_umask(partial)
        with suppress(FileNotFoundError):
            os.rename(path, old)
        try:
            os.rename(partial, path)
        except OSError as error:  # another process has put its own there in between: that one stays
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _clean_up(path: Path) -> None:
    """Delete what builds of this folder left that were killed; bring back what one had moved away."""
    import psutil

    for left in path.parent.glob(f".{glob.escape(path.name)}.*.*"):
        *_, pid, kind = left.name.split(".")
        if kind in ("partial", "old") and pid.isdigit() and not psutil.pid_exists(int(pid)):
            if kind == "old" and not path.exists():
                os.rename(left, path)
            shutil.rmtree(left, ignore_errors=True)


def write_stamp(folder: str | Path, made_by: str) -> None:
    """Note in a folder what made it and the SHA-256 of each of its files, for `check_folder` and `damaged`."""
    folder = Path(folder)
    content = {"made_by": made_by, "sha256": {name: checksum(folder / name) for name in _files(folder)}}
    write_json(folder / STAMP, content)


def damaged(folder: str | Path) -> list[str] | None:
    """Names of a folder's files that are missing or differ from what was written; None where no stamp is."""
    folder = Path(folder)
    if not (stamp := _stamp(folder)):
        return None
    files = stamp["sha256"].items()
    return [
        name for name, digest in files if not (folder / name).is_file() or checksum(folder / name) != digest
    ]


def _stamp(folder: Path) -> dict[str, Any]:
    """What a folder's stamp says; empty where there is none that can be read."""
    stamp = read_json(folder / STAMP)
    return stamp if isinstance(stamp, dict) and isinstance(stamp.get("sha256"), dict) else {}


def checksum(file: Path) -> str:
    """The SHA-256 of a file's bytes, as hex digits."""
    from tqdm.auto import tqdm

    digest, size = hashlib.sha256(), file.stat().st_size
    bar = tqdm(total=size, desc=f"hashing {file.name}", unit="B", unit_scale=True, leave=False, delay=2)
    with file.open("rb") as stream, bar:
        while block := stream.read(2**20):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def follow_umask(folder: str | Path) -> None:
    """Give a folder's files the permissions of any new file: safetensors lets their owner alone read them."""
    probe = Path(folder) / ".permissions"
    probe.touch()
    mode = probe.stat().st_mode & 0o666
    probe.unlink()
    for name in _files(Path(folder)):
        os.chmod(Path(folder) / name, mode)


def write_text(path: str | Path, text: str) -> Path:
    """Write UTF-8 text, whole; returns the path."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | Path, content: Any) -> Path:
    """Write a JSON file, whole; returns the path."""
    return write_text(path, json.dumps(content, indent=1) + "\n")


def read_json(path: str | Path) -> Any:
    """The content of a JSON file; None where there is none or it cannot be read, as after a full disk."""
    try:
        check_input(path)
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def check_input(path: str | Path) -> None:
    """Refuse a pipe or a device: it may hang, or feed bytes without end. Raises DataError."""
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise DataError(f"{path}: is a pipe or a device, expected a file")


def read_notebook(path: str | Path) -> Any:
    """A notebook from its file, as an ``nbformat.NotebookNode``. Raises DataError for a file that is none."""
    import nbformat

    check_input(path)
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except (nbformat.ValidationError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a notebook ({str(error).splitlines()[0]})") from None
    return notebook


def printable(path: str | Path) -> str:
    """The path as text that any UTF-8 file or screen takes; other bytes and control characters as ``\\x1b``."""
    return _escape(os.fsencode(path).decode("utf-8", "backslashreplace"))


def on_screen(text: object) -> str:
    """Text of several lines for a screen, in which names cannot move the cursor or hide the rest of a line."""
    whole = str(text).encode("utf-8", "backslashreplace").decode()
    return "".join(part if part in "\n\t" else _escape(part) for part in re.split(r"([\n\t])", whole))


def _escape(text: str) -> str:
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _files(folder: Path) -> list[str]:
    """Names of all files in a folder, relative to it."""
    found = (p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if not p.is_dir())
    return [name for name in found if name != STAMP and not name.endswith(".lock")]
