"""Large arrays of a bank that stay in its file: rows are read as they are asked for, and never all held."""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stinfer.contract import AnyArray
from stinfer.errors import BankAlteredError

# Of an array that is gone through block by block: what stays in the processor's cache.
BLOCK_BYTES = 1 << 19


@dataclass(frozen=True)
class StoredArray:
    """An array whose values lie one after the other in a file, in C order.

    Parameters
    ----------
    path : the file
    offset : bytes before the first value
    dtype : of the values, as stored
    shape : of the array, at least one axis
    """

    path: Path
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    _identity: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_identity", _identity(self.path.stat()))

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def __getitem__(self, rows: slice) -> AnyArray:
        """Read rows that follow each other.

        Raises
        ------
        BankAlteredError
            The file is not the one that was opened and checked, or cannot be read any more.
        """
        first, last, _ = rows.indices(len(self))
        return self.ranges([(first, max(last, first))])

    def take(self, rows: AnyArray) -> AnyArray:
        """Read some rows, (n,); raises as indexing does."""
        return self.ranges([(row, row + 1) for row in rows.tolist()])

    def ranges(self, ranges: Sequence[tuple[int, int]], found: AnyArray | None = None) -> AnyArray:
        """Read ranges of rows, each from its first up to, not with, its last, one after the other.

        Parameters
        ----------
        ranges : of rows
        found : array to fill and return, of the right size and kind; None for a new one
        """
        row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        if found is None:
            n_rows = sum(last - first for first, last in ranges)
            found = np.empty((n_rows, *self.shape[1:]), dtype=self.dtype)
        target = found.reshape(-1).view(np.uint8).data
        at = 0
        with self._opened() as file:
            for first, last in ranges:
                end = at + (last - first) * row_bytes
                file.seek(self.offset + first * row_bytes)
                while at < end:
                    n_read = file.readinto(target[at:end])
                    if not n_read:
                        raise BankAlteredError(self.path, "file", "it is cut short")
                    at += n_read
        return found

    def to_bytes(self) -> bytes:
        """Read all values as bytes, which are held once; raises as indexing does."""
        with self._opened() as file, io.BufferedReader(file) as buffered:
            buffered.seek(self.offset)
            return buffered.read(self.dtype.itemsize * self.size)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[io.FileIO]:
        """Open the file anew: no handle is shared between threads, and none is left open."""
        try:
            with self.path.open("rb", buffering=0) as file:
                if _identity(os.fstat(file.fileno())) != self._identity:
                    raise BankAlteredError(
                        self.path, "file", "it was replaced or written while it was in use"
                    )
                yield file
        except OSError as error:
            raise BankAlteredError(self.path, "file", f"it cannot be read: {error.strerror}") from error


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def iter_blocks(array: AnyArray | StoredArray, n_bytes: int = BLOCK_BYTES) -> Iterator[AnyArray]:
    """Give an array's rows in blocks of about so many bytes; none where it has none."""
    row_bytes = max(array.dtype.itemsize * math.prod(array.shape[1:]), 1)
    step = max(n_bytes // row_bytes, 1)
    for first in range(0, len(array), step):
        yield array[first : first + step]


def take_rows(array: AnyArray | StoredArray, rows: AnyArray) -> AnyArray:
    """Return some rows, (n,)."""
    return array.take(rows) if isinstance(array, StoredArray) else array[rows]


def take_ranges(
    array: AnyArray | StoredArray, ranges: Sequence[tuple[int, int]], found: AnyArray | None = None
) -> AnyArray:
    """Return ranges of rows, one after the other; see `StoredArray.ranges`."""
    if isinstance(array, StoredArray):
        return array.ranges(ranges, found)
    return np.concatenate([array[first:last] for first, last in ranges] or [array[:0]], out=found)
