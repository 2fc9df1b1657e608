"""Expression as it is stored: a compressed sparse row matrix. Imports numpy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stinfer.contract import F32, I64, AnyArray
from stinfer.coverage import Coverage


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

    data: F32
    indices: AnyArray
    indptr: AnyArray
    n_columns: int
    coverage: Coverage | None = None

    def columns(self, chosen: I64) -> F32:
        """Return some columns as a dense matrix.

        Parameters
        ----------
        chosen : (n,), columns without repeats

        Returns
        -------
        (n_rows, n), 0 where nothing is stored, whether it was measured or not
        """
        position = np.full(self.n_columns, -1, dtype=np.int64)
        position[chosen] = np.arange(len(chosen))
        target = position[self.indices]
        kept = target >= 0
        rows = np.repeat(np.arange(len(self.indptr) - 1), np.diff(self.indptr))[kept]
        dense = np.zeros((len(self.indptr) - 1, len(chosen)), dtype=np.float32)
        dense[rows, target[kept]] = self.data[kept]
        return dense

    def is_valid(self) -> bool:
        """Say whether rows follow each other and columns ascend in every row."""
        if not (
            self.data.ndim == self.indices.ndim == 1
            and len(self.data) == len(self.indices)
            and len(self.indptr) > 0
            and int(self.indptr[0]) == 0
            and int(self.indptr[-1]) == len(self.data)
            and bool((np.diff(self.indptr) >= 0).all())
            and (not self.indices.size or 0 <= self.indices.min() <= self.indices.max() < self.n_columns)
        ):
            return False
        ascends = np.diff(self.indices) > 0
        starts = self.indptr[1:-1]
        ascends[starts[(starts > 0) & (starts < len(self.indices))] - 1] = True
        return bool(ascends.all())

    def only_columns(self, chosen: I64) -> Sparse:
        """Return some columns, all of them measured of every row.

        Parameters
        ----------
        chosen : (n,), ascending
        """
        position = np.full(self.n_columns, -1, dtype=np.int64)
        position[chosen] = np.arange(len(chosen))
        target = position[self.indices]
        kept = target >= 0
        before = np.concatenate([[0], np.cumsum(kept)])
        return Sparse(
            self.data[kept], target[kept].astype(np.int32), before[self.indptr].astype(np.int64), len(chosen)
        )

    def rows(self, chosen: I64) -> Sparse:
        """Return some rows.

        Parameters
        ----------
        chosen : (n,)
        """
        lengths = np.diff(self.indptr)[chosen]
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        entries = np.repeat(self.indptr[:-1][chosen] - indptr[:-1], lengths) + np.arange(indptr[-1])
        coverage = None if self.coverage is None else self.coverage.rows(chosen)
        return Sparse(self.data[entries], self.indices[entries], indptr, self.n_columns, coverage)
