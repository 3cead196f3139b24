"""Where features are kept: rows in a few large files, found by an image's hash, read without loading."""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

# An image's SHA-256 and the checksum of its row; in the order of the rows.
ENTRY = np.dtype([("image", "V32"), ("checksum", "<u4")])
NOWHERE = -1  # the shard of an image that is not there
_NUMBERS = 2**40  # rows that a shard may have


class FeatureStore:
    """float16 rows in a folder's shards, ``0.rows`` with ``0.index`` and so on, of which a writer fills one alone.

    A row is written before its entry, both at the place that their number gives: what a killed writer left half is
    found by nobody, and overwritten by the next one. A row that does not fit its checksum counts as absent; of an
    image's rows the last one counts.

    Args:
        folder: named by all that the rows depend on; its name is part of the checksums.
        length: numbers of a row.
    """

    def __init__(self, folder: Path, length: int):
        self.folder, self.length, self.n_bytes = folder, length, 2 * length
        self._files: dict[str, int] = {}  # name -> descriptor
        self._n_read: dict[int, int] = {}  # shard -> entries taken in
        self._known: dict[bytes, int] = {}  # image -> shard * _NUMBERS + number
        self._writer: tuple[int, FileLock] | None = None  # its shard

    def __enter__(self) -> FeatureStore:
        """Whoever appends leaves the shard to the next writer when the block ends."""
        return self

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            self._writer[1].release()
            self._writer = None

    def find(self, digests: Sequence[str], progress: bool = False) -> tuple[np.ndarray, int]:
        """Where these images' rows are, each of which is read once and compared with its checksum.

        Returns:
            Shard and number of each row, (n, 2), `NOWHERE` where there is none; and how many are damaged.
        """
        self._take_in()
        found, damaged = np.full((len(digests), 2), NOWHERE), 0
        for i, digest in enumerate(tqdm(digests, "checking features", disable=not progress, delay=5)):
            image = _image(digest)
            if image in self._known:
                place = divmod(self._known[image], _NUMBERS)
                if self._is_whole(image, *place):
                    found[i] = place
                else:
                    damaged += 1
        return found, damaged

    def known(self, digests: Iterable[str]) -> set[str]:
        """Those of these images that have a row; none is read."""
        self._take_in()
        return {digest for digest in digests if _image(digest) in self._known}

    def read(self, shard: int, number: int, start: int = 0, length: int | None = None) -> np.ndarray:
        """Numbers ``start`` to ``start + length`` of a row, float16."""
        n_bytes = 2 * (self.length if length is None else length)
        content = os.pread(self._open(f"{shard}.rows"), n_bytes, number * self.n_bytes + 2 * start)
        return np.frombuffer(content, "<f2")

    def append(self, digest: str, row: np.ndarray) -> tuple[int, int]:
        """Keep an image's row; returns its shard and number. Others may do the same at any time."""
        content, image = np.ascontiguousarray(row, "<f2").tobytes(), _image(digest)
        if len(content) != self.n_bytes:
            raise ValueError(f"a row of {len(content) // 2} numbers, expected {self.length}")
        if self._writer is None:
            self._writer = self._free_shard()
        shard = self._writer[0]
        # In this order: whoever finds rows looks for their index.
        index, rows = (self._open(f"{shard}.{kind}", writes=True) for kind in ("index", "rows"))
        number = os.fstat(index).st_size // ENTRY.itemsize
        entry = np.array((image, self._checksum(image, content)), ENTRY).tobytes()
        _write(rows, content, number * self.n_bytes)
        _write(index, entry, number * ENTRY.itemsize)
        return shard, number

    def _free_shard(self) -> tuple[int, FileLock]:
        """The first shard that nobody writes to."""
        self.folder.mkdir(parents=True, exist_ok=True)
        shard = 0
        while True:
            lock = FileLock(self.folder / f"{shard}.lock")
            try:
                lock.acquire(timeout=0)
                return shard, lock
            except Timeout:
                shard += 1

    def _take_in(self) -> None:
        """Read the entries that were written since, by whomever."""
        names = [file.name for file in self.folder.glob("[0-9]*.rows")]
        if any(name not in names for name in self._files if name.endswith(".rows")) or not all(
            os.fstat(self._open(name)).st_ino == (self.folder / name).stat().st_ino for name in names
        ):
            self._forget()
        for name in names:
            shard, index = int(name.split(".")[0]), self._open(name.replace("rows", "index"))
            first, last = self._n_read.get(shard, 0), os.fstat(index).st_size // ENTRY.itemsize
            new = os.pread(index, (last - first) * ENTRY.itemsize, first * ENTRY.itemsize)
            images = np.frombuffer(new, ENTRY)["image"].tolist()
            self._known |= zip(images, range(shard * _NUMBERS + first, shard * _NUMBERS + last), strict=True)
            self._n_read[shard] = last

    def _forget(self) -> None:
        """Drop what is known of files that are gone."""
        for descriptor in self._files.values():
            os.close(descriptor)
        for kept in (self._files, self._n_read, self._known):
            kept.clear()

    def __del__(self) -> None:
        self._forget()

    def _open(self, name: str, writes: bool = False) -> int:
        key = f"{name} to write" if writes else name
        if key not in self._files:
            flags = os.O_RDWR | os.O_CREAT if writes else os.O_RDONLY
            self._files[key] = os.open(self.folder / name, flags, 0o666)
        return self._files[key]

    def _is_whole(self, image: bytes, shard: int, number: int) -> bool:
        content = os.pread(self._open(f"{shard}.rows"), self.n_bytes, number * self.n_bytes)
        entry = os.pread(self._open(f"{shard}.index"), ENTRY.itemsize, number * ENTRY.itemsize)
        return len(content) == self.n_bytes and self._checksum(image, content) == int.from_bytes(
            entry[32:], "little"
        )

    def _checksum(self, image: bytes, content: bytes) -> int:
        return zlib.crc32(content, zlib.crc32(self.folder.name.encode() + image))


def _image(digest: str) -> bytes:
    try:
        return bytes.fromhex(digest)
    except ValueError:
        return b""  # the hash of no file


def _write(descriptor: int, content: bytes, at: int) -> None:
    if os.pwrite(descriptor, content, at) < len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
