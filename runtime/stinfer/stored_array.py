"""Large arrays that stay in their file: rows are read as they are asked for, and never held all at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stinfer.contract import AnyArray

# Of an array that is gone through block by block.
BLOCK_BYTES = 16 << 20


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
        OSError
            The file is gone, or is shorter than it was.
        """
        first, last, _ = rows.indices(len(self))
        return self.ranges([(first, max(last, first))])

    def take(self, rows: AnyArray) -> AnyArray:
        """Read some rows, (n,); raises as indexing does."""
        return self.ranges([(row, row + 1) for row in rows.tolist()])

    def ranges(self, ranges: Sequence[tuple[int, int]]) -> AnyArray:
        """Read ranges of rows, each from its first up to, not with, its last, one after the other."""
        row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        n_rows = sum(last - first for first, last in ranges)
        found = np.empty((n_rows, *self.shape[1:]), dtype=self.dtype)
        target = found.reshape(-1).view(np.uint8).data
        at = 0
        # Opened anew each time: no handle is shared between threads, and none is left open.
        with self.path.open("rb", buffering=0) as file:
            for first, last in ranges:
                end = at + (last - first) * row_bytes
                file.seek(self.offset + first * row_bytes)
                while at < end:
                    n_read = file.readinto(target[at:end])
                    if not n_read:
                        msg = f"{self.path} is shorter than it was when it was opened"
                        raise OSError(msg)
                    at += n_read
        return found


def iter_blocks(array: AnyArray | StoredArray, n_bytes: int = BLOCK_BYTES) -> Iterator[AnyArray]:
    """Give an array's rows in blocks of about so many bytes; none where it has none."""
    row_bytes = max(array.dtype.itemsize * math.prod(array.shape[1:]), 1)
    step = max(n_bytes // row_bytes, 1)
    for first in range(0, len(array), step):
        yield array[first : first + step]


def take_rows(array: AnyArray | StoredArray, rows: AnyArray) -> AnyArray:
    """Return some rows, (n,)."""
    return array.take(rows) if isinstance(array, StoredArray) else array[rows]


def take_ranges(array: AnyArray | StoredArray, ranges: Sequence[tuple[int, int]]) -> AnyArray:
    """Return ranges of rows, one after the other."""
    if isinstance(array, StoredArray):
        return array.ranges(ranges)
    return np.concatenate([array[first:last] for first, last in ranges] or [array[:0]])
