"""Expression as it is stored: a compressed sparse row matrix, in memory or in its file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np

from stinfer.ahead import in_parallel
from stinfer.contract import F32, I64, AnyArray
from stinfer.coverage import Coverage
from stinfer.memory import Scratch
from stinfer.stored_array import StoredArray, take_ranges

# Stored values that are looked at at once.
_BLOCK = 1 << 17


@dataclass(frozen=True)
class Sparse:
    """A compressed sparse row matrix.

    Parameters
    ----------
    data, indices : (n_stored,) values and their columns
    indptr : (n_rows + 1,) where each row starts
    n_columns : width
    coverage : which columns were measured of which rows; None where all were of all
    """

    data: F32 | StoredArray
    indices: AnyArray | StoredArray
    indptr: AnyArray
    n_columns: int
    coverage: Coverage | None = None

    def columns(self, chosen: I64, n_workers: int = 1) -> F32:
        """Return some columns as a dense matrix.

        Parameters
        ----------
        chosen : (n,), columns without repeats
        n_workers : threads that share the rows

        Returns
        -------
        (n_rows, n), 0 where nothing is stored, whether it was measured or not
        """
        n_rows, width = len(self.indptr) - 1, len(chosen)
        dense = np.zeros(n_rows * width, dtype=np.float32)
        position = None
        if not np.array_equal(chosen, np.arange(self.n_columns)):
            position = np.full(self.n_columns, -1, dtype=np.int32)
            position[chosen] = np.arange(width)

        def fill(first: int, last: int) -> None:
            indptr = self.indptr[first : last + 1]
            entries = slice(int(indptr[0]), int(indptr[-1]))
            values, target, ends = self.data[entries], self.indices[entries], indptr - indptr[0]
            if position is not None:
                found = position.take(target)
                kept = np.flatnonzero(found >= 0)
                values, target, ends = values[kept], found[kept], np.searchsorted(kept, ends)
            starts = np.arange(first, last, dtype=np.int64) * width
            dense[np.repeat(starts, np.diff(ends)) + target] = values

        tasks = (partial(fill, first, last) for first, last in self._row_blocks())
        with closing(in_parallel(tasks, n_workers)) as filled:
            for _ in filled:
                pass
        return dense.reshape(n_rows, width)

    def column_means(self, chosen: I64) -> F32:
        """Return the mean of some columns over all rows, (n,)."""
        total = np.zeros(self.n_columns)
        for first, last in self._row_blocks():
            entries = slice(int(self.indptr[first]), int(self.indptr[last]))
            total += np.bincount(self.indices[entries], weights=self.data[entries], minlength=self.n_columns)
        return np.asarray(total[chosen] / max(len(self.indptr) - 1, 1), dtype=np.float32)

    @property
    def is_stored(self) -> bool:
        """Whether values stay in their file."""
        return isinstance(self.data, StoredArray) or isinstance(self.indices, StoredArray)

    def is_valid(self) -> bool:
        """Say whether rows follow each other and columns ascend in every row."""
        if not (
            self.data.ndim == self.indices.ndim == 1
            and len(self.data) == len(self.indices)
            and len(self.indptr) > 0
            and int(self.indptr[0]) == 0
            and int(self.indptr[-1]) == len(self.data)
            and bool((np.diff(self.indptr) >= 0).all())
        ):
            return False
        return all(self._rows_ascend(first, last) for first, last in self._row_blocks())

    def is_covered(self) -> bool:
        """Say whether every stored value is of a column that was measured of its row."""
        coverage = self.coverage
        if coverage is None:
            return True
        for first, last in self._row_blocks():
            entries = slice(int(self.indptr[first]), int(self.indptr[last]))
            origins = np.repeat(coverage.origin_of[first:last], np.diff(self.indptr[first : last + 1]))
            if not coverage.measured[origins, self.indices[entries]].all():
                return False
        return True

    def _rows_ascend(self, first: int, last: int) -> bool:
        start, end = int(self.indptr[first]), int(self.indptr[last])
        indices = self.indices[start:end]
        if not indices.size:
            return True
        ascends = np.diff(indices) > 0
        starts = self.indptr[first + 1 : last] - start
        ascends[starts[(starts > 0) & (starts < len(indices))] - 1] = True
        return bool(0 <= indices.min() <= indices.max() < self.n_columns and ascends.all())

    def _row_blocks(self) -> Iterator[tuple[int, int]]:
        """Cut the rows into pieces of not much more than `_BLOCK` stored values: first and past the last."""
        n_rows = len(self.indptr) - 1
        first = 0
        while first < n_rows:
            end = int(self.indptr[first]) + _BLOCK
            last = int(np.searchsorted(self.indptr, end, side="right")) - 1
            last = min(max(last, first + 1), n_rows)
            yield first, last
            first = last

    @property
    def n_measured(self) -> int:
        """Number of values that were measured, 0 or not."""
        if self.coverage is None:
            return (len(self.indptr) - 1) * self.n_columns
        return int(self.coverage.n_measuring().sum())

    def only_columns(self, chosen: I64) -> Sparse:
        """Return some columns, all of them measured of every row.

        Parameters
        ----------
        chosen : (n,), ascending
        """
        position = np.full(self.n_columns, -1, dtype=np.int64)
        position[chosen] = np.arange(len(chosen))
        target = position[self.indices[:]]
        kept = target >= 0
        before = np.concatenate([[0], np.cumsum(kept)])
        return Sparse(
            self.data[:][kept],
            target[kept].astype(np.int32),
            before[self.indptr].astype(np.int64),
            len(chosen),
        )

    def row(self, number: int) -> tuple[AnyArray, AnyArray]:
        """Return the columns of a row that are stored, and their values."""
        part = slice(int(self.indptr[number]), int(self.indptr[number + 1]))
        return self.indices[part], self.data[part]

    def rows(self, chosen: I64, scratch: Scratch | None = None) -> Sparse:
        """Return some rows, in memory.

        Parameters
        ----------
        chosen : (n,)
        scratch : whose memory they are to take, until the next ones do; None for memory of their own
        """
        starts, ends = self.indptr[:-1][chosen], self.indptr[1:][chosen]
        ranges = list(zip(starts.tolist(), ends.tolist(), strict=True))
        indptr = np.concatenate([[0], np.cumsum(ends - starts)]).astype(np.int64)
        coverage = None if self.coverage is None else self.coverage.rows(chosen)
        scratch = Scratch() if scratch is None else scratch
        n_stored = (int(indptr[-1]),)
        data, indices = (
            take_ranges(array, ranges, scratch.empty(name, n_stored, array.dtype))
            for name, array in (("row values", self.data), ("row columns", self.indices))
        )
        return Sparse(data, indices, indptr, self.n_columns, coverage)
