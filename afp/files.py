"""Writing files: whole or not at all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A file beside ``path`` to write into; it takes ``path``'s place when the block ends without an error.

    Whoever stops on the way (an error, a kill, a full disk) leaves ``path`` as it was. Folders above are made.

    Args:
        path: the file to write or to replace.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


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
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def printable(path: str | Path) -> str:
    """The path as text for any UTF-8 file or screen: bytes that are not UTF-8 and control characters are escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return re.sub(
        r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", lambda found: ascii(found[0])[1:-1], text
    )
