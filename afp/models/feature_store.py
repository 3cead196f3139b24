"""Where features are kept: rows in a few large files, found by an image's hash, read without loading."""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

# An image's SHA-256 in hex digits, and the checksum of its row; in the order of the rows.
ENTRY = np.dtype([("image", "S64"), ("checksum", "<u4")])
NOWHERE = -1  # the shard of an image that is not there


class FeatureStore:
    """float16 rows in a folder's shards, ``0.rows`` with ``0.index`` and so on, of which a writer fills one alone.

    A row is written before its entry, both at the place that their number gives: what a killed writer left half is
    overwritten by the next one, and found by nobody. A row that does not fit its checksum counts as absent.

    Args:
        folder: named by all that the rows depend on; its name is part of the checksums.
        length: numbers of a row.
    """

    def __init__(self, folder: Path, length: int):
        self.folder, self.length = folder, length
        self.n_bytes = 2 * length
        self._rows: dict[tuple[int, bool], int] = {}  # shard, whether it is written -> descriptor of its rows
        self._entries: dict[int, np.ndarray] = {}
        self._writer: tuple[int, int, FileLock] | None = None  # shard, descriptor of its index, who holds it

    def __enter__(self) -> FeatureStore:
        """Whoever appends leaves the shard to the next writer when the block ends."""
        return self

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            _, index, lock = self._writer
            os.close(index)
            lock.release()
            self._writer = None

    def __del__(self) -> None:
        for descriptor in self._rows.values():
            os.close(descriptor)

    def find(self, digests: Sequence[str], progress: bool = False) -> tuple[np.ndarray, int]:
        """Where these images' rows are, each of which is read once and compared with its checksum.

        Returns:
            Shard and number of each row, (n, 2), `NOWHERE` where there is none; and how many are damaged.
        """
        places, images = [], []
        for file in sorted(self.folder.glob("[0-9]*.rows")):
            shard, content = int(file.stem), file.with_suffix(".index").read_bytes()
            entries = np.frombuffer(content[: len(content) // ENTRY.itemsize * ENTRY.itemsize], ENTRY)
            self._entries[shard] = entries
            images.append(entries["image"])
            places.append(np.stack([np.full(len(entries), shard), np.arange(len(entries))], axis=1))
        found, damaged = np.full((len(digests), 2), NOWHERE), 0
        if not images:
            return found, damaged
        known, place = np.concatenate(images), np.concatenate(places)
        order = np.argsort(known, kind="stable")
        wanted = np.array([digest.encode() for digest in digests], "S64")
        bounds = np.stack([np.searchsorted(known, wanted, side, order) for side in ("left", "right")], axis=1)
        for i, (low, high) in enumerate(tqdm(bounds, "checking features", disable=not progress, delay=5)):
            good = (place[j] for j in order[low:high] if self._is_whole(*place[j]))
            found[i] = next(good, (NOWHERE, NOWHERE))
            damaged += int(low < high and found[i][0] == NOWHERE)
        return found, damaged

    def read(self, shard: int, number: int, start: int = 0, length: int | None = None) -> np.ndarray:
        """Numbers ``start`` to ``start + length`` of a row, float16."""
        n_bytes = 2 * (self.length if length is None else length)
        content = os.pread(self._descriptor(shard), n_bytes, number * self.n_bytes + 2 * start)
        return np.frombuffer(content, "<f2")

    def append(self, digest: str, row: np.ndarray) -> tuple[int, int]:
        """Keep an image's row; returns its shard and number. Others may do the same at any time."""
        shard, index, _ = self._writer or self._open_shard()
        content = np.ascontiguousarray(row, "<f2").tobytes()
        if len(content) != self.n_bytes:
            raise ValueError(f"a row of {len(content) // 2} numbers, expected {self.length}")
        image, number = digest.encode(), os.fstat(index).st_size // ENTRY.itemsize
        entry = np.array((image, self._checksum(image, content)), ENTRY).tobytes()
        _write(self._descriptor(shard, writes=True), content, number * self.n_bytes)
        _write(index, entry, number * ENTRY.itemsize)
        return shard, number

    def _open_shard(self) -> tuple[int, int, FileLock]:
        """The first shard that nobody writes to."""
        self.folder.mkdir(parents=True, exist_ok=True)
        shard = 0
        while True:
            lock = FileLock(self.folder / f"{shard}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                shard += 1
                continue
            self._writer = shard, os.open(self.folder / f"{shard}.index", os.O_RDWR | os.O_CREAT, 0o666), lock
            return self._writer

    def _descriptor(self, shard: int, writes: bool = False) -> int:
        if (shard, writes) not in self._rows:
            flags = os.O_RDWR | os.O_CREAT if writes else os.O_RDONLY
            self._rows[shard, writes] = os.open(self.folder / f"{shard}.rows", flags, 0o666)
        return self._rows[shard, writes]

    def _is_whole(self, shard: int, number: int) -> bool:
        content = os.pread(self._descriptor(shard), self.n_bytes, number * self.n_bytes)
        image, checksum = self._entries[shard][number]
        return len(content) == self.n_bytes and self._checksum(image, content) == checksum

    def _checksum(self, image: bytes, content: bytes) -> int:
        return zlib.crc32(content, zlib.crc32(self.folder.name.encode() + image))


def _write(descriptor: int, content: bytes, at: int) -> None:
    if os.pwrite(descriptor, content, at) < len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
