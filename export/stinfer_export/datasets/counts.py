"""Raw counts, spots x genes, kept sparse: a section has thousands of each, and most are 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stinfer.contract import F64, I64, AnyArray

# Totals of normalised spots differ by the rounding of float32, those of raw ones by far more.
_SAME_TOTAL = 1e-3
# log1p of a count per 10,000 is at most 9.3, of one per million 13.9.
_LARGEST_LOG = 15.0


@dataclass(frozen=True)
class Counts:
    """A compressed sparse row matrix of counts.

    Parameters
    ----------
    values : (n_stored,), above 0
    columns : (n_stored,), genes; ascending in every row, none twice
    starts : (n_spots + 1,), where each spot's values start
    n_genes : width
    """

    values: I64
    columns: I64
    starts: I64
    n_genes: int

    @classmethod
    def from_dense(cls, counts: I64) -> Counts:
        """Leave out the zeros of (n_spots, n_genes), not negative."""
        rows, columns = np.nonzero(counts)
        starts = np.searchsorted(rows, np.arange(len(counts) + 1))
        return cls(counts[rows, columns], columns, starts.astype(np.int64), counts.shape[1])

    @classmethod
    def from_entries(cls, rows: I64, columns: I64, values: AnyArray, shape: tuple[int, int]) -> Counts:
        """Put entries, in any order and of any number type, in order.

        Parameters
        ----------
        rows, columns, values : (n_entries,)
        shape : spots and genes

        Raises
        ------
        ValueError
            An entry lies outside the table or stands in it twice, or a value is no raw count; the message
            says which, as the rest of a sentence that begins with what holds them.
        """
        for places, size, kind in ((rows, shape[0], "spot"), (columns, shape[1], "gene")):
            if places.size and not 0 <= places.min() <= places.max() < size:
                wrong = places.max() if places.max() >= size else places.min()
                msg = f"has an entry of {kind} {wrong + 1}, but only {size}"
                raise ValueError(msg)
        complaint = complain_of_values(values, rows, shape[0])
        if complaint:
            raise ValueError(complaint)
        place = rows * shape[1] + columns
        if not (np.diff(place) > 0).all():
            # Space Ranger's own files are in order, and may be too large to sort at ease.
            order = np.argsort(place, kind="stable")
            rows, columns, values, place = rows[order], columns[order], values[order], place[order]
        repeats = np.diff(place) == 0
        if repeats.any():
            first = int(np.argmax(repeats))
            msg = f"holds spot {rows[first] + 1}, gene {columns[first] + 1} twice"
            raise ValueError(msg)
        stored = values != 0
        starts = np.concatenate([[0], np.cumsum(np.bincount(rows[stored], minlength=shape[0]))])
        return cls(values[stored].astype(np.int64), columns[stored], starts.astype(np.int64), shape[1])

    @property
    def n_spots(self) -> int:
        """Number of spots."""
        return len(self.starts) - 1

    @property
    def rows(self) -> I64:
        """(n_stored,), the spot of each value."""
        return np.repeat(np.arange(self.n_spots), np.diff(self.starts))

    def totals(self) -> F64:
        """Return (n_spots,), counts of each spot over all genes."""
        return np.bincount(self.rows, self.values, minlength=self.n_spots).astype(np.float64)

    def take_spots(self, chosen: Sequence[int] | I64) -> Counts:
        """Return some spots, in the order given."""
        spots = np.asarray(chosen, dtype=np.int64)
        lengths = np.diff(self.starts)[spots]
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        # Of each kept value: where its spot began, and how far it lies from there.
        source = np.repeat(self.starts[spots] - starts[:-1], lengths) + np.arange(starts[-1])
        return Counts(self.values[source], self.columns[source], starts, self.n_genes)

    def take_genes(self, chosen: Sequence[int] | I64) -> Counts:
        """Return some genes, whose positions ascend."""
        genes = np.asarray(chosen, dtype=np.int64)
        position = np.full(self.n_genes, -1, dtype=np.int64)
        position[genes] = np.arange(len(genes))
        columns = position[self.columns]
        kept = columns >= 0
        starts = np.concatenate([[0], np.cumsum(kept)])[self.starts].astype(np.int64)
        return Counts(self.values[kept], columns[kept], starts, len(genes))

    def to_dense(self) -> I64:
        """Return (n_spots, n_genes)."""
        dense = np.zeros((self.n_spots, self.n_genes), dtype=np.int64)
        dense[self.rows, self.columns] = self.values
        return dense


def complain_of_values(values: AnyArray, rows: I64, n_spots: int) -> str:
    """Say why values are no raw counts, as the rest of a sentence; nothing where they are.

    Parameters
    ----------
    values : (n,), all that are not 0, at least
    rows : (n,), the spot of each
    n_spots : how many there are
    """
    if values.dtype.kind not in "iufb":
        return f"holds values of type {values.dtype}, not counts"
    if not values.size:
        return ""
    if not np.isfinite(values).all():
        return "holds values that are not finite"
    if values.min() < 0:
        return (
            f"holds negative values ({values.min():g}): it is scaled or centered, and raw counts are needed"
        )
    whole = values == np.rint(values)
    if whole.all():
        # Beyond 2^53 a float no longer holds whole numbers.
        return "" if values.max() <= 2.0**53 else f"holds {values.max():g}, which is no count"
    said = f"holds fractions ({values[~whole][0]:g}): "
    depth = _common_total(values, rows, n_spots)
    if depth:
        return f"{said}every spot is normalised to {depth:.6g}, and raw counts are needed"
    if values.max() <= _LARGEST_LOG:
        depth = _common_total(np.expm1(values.astype(np.float64)), rows, n_spots)
        if depth:
            return f"{said}it is log1p of counts per {depth:.6g}, and raw counts are needed"
        return f"{said}none is above {values.max():.3g}, so it may hold logarithms; raw counts are needed"
    return f"{said}raw counts are whole numbers"


def _common_total(values: AnyArray, rows: I64, n_spots: int) -> float:
    """Return what the values of every spot add up to; 0 where spots differ."""
    totals = np.bincount(rows, values, minlength=n_spots)
    totals = totals[totals > 0]
    middle = float(np.median(totals)) if len(totals) > 1 else 0.0
    return middle if middle and np.ptp(totals) <= _SAME_TOTAL * middle else 0.0
