"""Averages of neighbors' expression: over a dense matrix of few genes, or over rows as they are stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from stinfer.contract import F32, F64, I64, AnyArray, Bool
from stinfer.memory import Scratch
from stinfer.neighbor_file import Neighbors
from stinfer.predict import (
    SPOTS_AT_ONCE,
    expression_from_neighbors,
    spread_from_neighbors,
    spread_from_squares,
)
from stinfer.sparse import Sparse

# Stored values of the references that some spots use, held at once: 64 MB with their columns.
_STORED = 8_000_000
# Stored values that are added up at once, and references made dense at once: these stay in the cache.
_JOINED = 1 << 15
_DENSE = 128


@dataclass(frozen=True)
class GeneGroup:
    """Genes that the same references can predict.

    Parameters
    ----------
    origins : (n_origins,), those that measure them; None where all references do
    positions : (n,), among the genes that are predicted
    columns : (n,), in the bank
    """

    origins: Bool | None
    positions: I64
    columns: I64

    def voters(self, neighbors: Neighbors) -> Neighbors:
        """Return what predicts them."""
        return neighbors if self.origins is None else neighbors.of(self.origins)


def gene_groups(expression: Sparse, chosen: I64) -> list[GeneGroup]:
    """Sort genes, (n,) columns, by what measures them."""
    coverage = expression.coverage
    if coverage is None or not coverage.is_partial(chosen):
        return [GeneGroup(None, np.arange(len(chosen)), chosen)]
    return [
        GeneGroup(origins, positions, chosen[positions]) for origins, positions in coverage.groups(chosen)
    ]


class Averager(Protocol):
    """A way to average the expression of neighbors."""

    def average(self, neighbors: Neighbors) -> tuple[F32, ...]:
        """Predict some spots.

        Returns
        -------
        the mean of their neighbors, (n_spots, n_genes), log1p CP10K, and where it is asked for
        their spread; see `stinfer.predict`
        """


class DenseAverager:
    """Averages few genes, taken out of all references once; any threads may use it at the same time.

    Parameters
    ----------
    expression : (n_refs, n_genes_of_bank)
    groups : of the genes to predict
    middle : (n_genes,), about each gene's mean, for the spread too; None for means alone
    n_workers : threads that take them out
    """

    def __init__(
        self, expression: Sparse, groups: Sequence[GeneGroup], middle: F32 | None, n_workers: int = 1
    ) -> None:
        self._groups = [(group, expression.columns(group.columns, n_workers)) for group in groups]
        self._middle = middle

    def average(self, neighbors: Neighbors) -> tuple[F32, ...]:
        """Predict some spots; see `Averager.average`."""
        n_genes = sum(len(group.positions) for group, _ in self._groups)
        found = empty_moments(len(neighbors), n_genes, 1 if self._middle is None else 2)
        for group, dense in self._groups:
            voters = group.voters(neighbors)
            mean = expression_from_neighbors(voters.weights, voters.indices, dense)
            found[0][:, group.positions] = mean
            if self._middle is not None:
                middle = self._middle[group.positions]
                found[1][:, group.positions] = spread_from_neighbors(
                    voters.weights, voters.indices, dense, mean, middle
                )
        return found


class StoredAverager:
    """Averages any number of genes over the rows that some spots use; for one thread at a time.

    What many spots share is made dense and averaged by a product. The stored values of the others are added
    up one by one, in double precision: that is far less, since most of a row is not stored.

    Parameters
    ----------
    expression, groups, middle : see `DenseAverager`
    """

    def __init__(self, expression: Sparse, groups: Sequence[GeneGroup], middle: F32 | None) -> None:
        self._expression = expression
        self._groups = groups
        self._middle: F32 | None = None
        if middle is not None:
            self._middle = np.zeros(expression.n_columns, dtype=np.float32)
            for group in groups:
                self._middle[group.columns] = middle[group.positions]
        every = np.arange(expression.n_columns)
        self._is_whole = len(groups) == 1 and np.array_equal(groups[0].columns, every)
        self._scratch = Scratch()

    def average(self, neighbors: Neighbors) -> tuple[F32, ...]:
        """Predict some spots; see `Averager.average`."""
        n_genes = sum(len(group.positions) for group in self._groups)
        found = empty_moments(len(neighbors), n_genes, 1 if self._middle is None else 2)
        for part, used, among in self._iter_used(neighbors):
            rows = self._expression.rows(used, self._scratch)
            for group in self._groups:
                moments = [values[part] for values in found]
                if not self._is_whole:
                    shape = (len(among), rows.n_columns)
                    names = [f"moment {number}" for number in range(len(found))]
                    moments = [self._scratch.empty(name, shape, np.float32) for name in names]
                self._average(rows, group.voters(among), moments)
                if self._middle is not None:
                    mean, squares = moments
                    squares[:] = spread_from_squares(squares, mean, self._middle)
                if not self._is_whole:
                    for values, moment in zip(found, moments, strict=True):
                        values[part, group.positions] = moment[:, group.columns]
        return found

    def _iter_used(self, neighbors: Neighbors) -> Iterator[tuple[slice, I64, Neighbors]]:
        """Cut spots into pieces whose references hold up to `_STORED` values, or that are one spot each."""
        n_stored = np.diff(self._expression.indptr)
        first, step = 0, SPOTS_AT_ONCE
        while first < len(neighbors):
            part = slice(first, min(first + step, len(neighbors)))
            used, among = neighbors[part].among_used()
            if n_stored[used].sum() > _STORED and step > 1:
                step //= 2
                continue
            yield part, used, among
            first += step

    def _average(self, rows: Sparse, voters: Neighbors, moments: Sequence[F32]) -> None:
        """Average all columns.

        Parameters
        ----------
        rows : those that are used
        voters : what predicts the spots
        moments : to be filled, each (n_spots, n_columns): the means, and where they are wanted the means of
            squared distances from the middle
        """
        # To add up a row for each of its spots takes about as long as a product of as many columns.
        n_stored = np.diff(rows.indptr)
        shared = np.bincount(voters.indices.reshape(-1), minlength=len(n_stored)) * n_stored >= rows.n_columns
        self._average_shared(rows, voters, np.flatnonzero(shared), moments)
        stored = [None if is_shared else rows.row(row) for row, is_shared in enumerate(shared.tolist())]
        for spot, (indices, weights) in enumerate(zip(voters.indices, voters.weights, strict=True)):
            others = [found for row in indices.tolist() if (found := stored[row]) is not None]
            if others:
                exact = weights[~shared[indices]].astype(np.float64)
                for moment, sums in zip(moments, self._sums(others, exact), strict=True):
                    moment[spot] += sums.astype(np.float32)

    def _average_shared(self, rows: Sparse, voters: Neighbors, shared: I64, moments: Sequence[F32]) -> None:
        """Fill in what some rows, (n,), contribute, by products of their dense form."""
        weights = np.zeros((len(voters), len(rows.indptr) - 1), dtype=np.float32)
        np.add.at(weights, (np.arange(len(voters))[:, np.newaxis], voters.indices), voters.weights)
        for first in range(0, len(shared), _DENSE):
            some = shared[first : first + _DENSE]
            dense = self._scratch.zeros("dense", (len(some), rows.n_columns), np.float32)
            for target, row in zip(dense, some.tolist(), strict=True):
                columns, values = rows.row(row)
                target[columns] = values
            for number, moment in enumerate(moments):
                if number:
                    dense -= self._middle
                    dense *= dense
                if first:
                    product = self._scratch.empty("product", moment.shape, np.float32)
                    moment += np.matmul(weights[:, some], dense, out=product)
                else:
                    np.matmul(weights[:, some], dense, out=moment)
        if not len(shared):
            for moment in moments:
                moment.fill(0)

    def _sums(self, rows: Sequence[tuple[AnyArray, AnyArray]], weights: F64) -> list[F64]:
        """Add up rows, each its columns and its values: what they contribute to each moment, (n_columns,)."""
        width = self._expression.n_columns
        sums, of_squares = np.zeros(width), np.zeros(width)
        lengths = np.array([len(values) for _, values in rows])
        step = max(_JOINED // max(int(lengths.max()), 1), 1)
        for first in range(0, len(rows), step):
            part = slice(first, first + step)
            n = int(lengths[part].sum())
            columns = self._scratch.empty("columns", (n,), np.intp)
            np.concatenate([one for one, _ in rows[part]], out=columns)
            weighted = self._scratch.empty("weighted", (n,), np.float64)
            pieces = np.split(weighted, np.cumsum(lengths[part])[:-1])
            for piece, (_, values), weight in zip(pieces, rows[part], weights[part], strict=True):
                np.multiply(values, weight, out=piece, dtype=np.float64)
            sums += np.bincount(columns, weights=weighted, minlength=width)
            if self._middle is not None:
                for piece, (_, values) in zip(pieces, rows[part], strict=True):
                    piece *= values
                of_squares += np.bincount(columns, weights=weighted, minlength=width)
        if self._middle is None:
            return [sums]
        middle = self._middle.astype(np.float64)
        # Double precision holds the difference.
        return [sums, of_squares - 2 * middle * sums + weights.sum() * middle * middle]


def empty_moments(n_spots: int, n_genes: int, n_moments: int) -> tuple[F32, ...]:
    """Return arrays, (n_spots, n_genes), for the means, and for the spreads where there are two moments."""
    return tuple(np.empty((n_spots, n_genes), dtype=np.float32) for _ in range(n_moments))
