"""Average a map of cells over windows centred on places, while the map arrives in bands.

Coordinates are in cells: the cell of row r and column c covers [c, c + 1) x [r, r + 1), and a place is
(x, y). A window is a square or a disc; a cell counts with the exact area that lies in the window, times
the cell's own weight. What lies beyond the lattice weighs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from stinfer.contract import F32, F64, I64, WindowShape

BATCH_PLACES = 1024

# Places pooled by one matrix product lie within a window's side of each other, or within this many cells:
# then at least about half of what the product multiplies is not zero.
_BLOCK_CELLS = 32
_BLOCK_PLACES = 256

# What a product of discs may copy of the map at a time, in values.
_DISC_VALUES = 1 << 22

# Below this part of a disc's squared radius, a cell's area is rounding: the cell lies outside the disc.
_ROUNDING = 1e-14


def interval_overlap(low: F64, high: F64, cells: I64) -> F64:
    """Length of each unit cell [cell, cell + 1) that lies in each interval.

    Parameters
    ----------
    low, high : (...), ends of the intervals, in cells
    cells : (n,), numbers of the cells, in any order

    Returns
    -------
    (..., n), 0 to 1
    """
    overlap: F64 = np.minimum(high[..., None], cells + 1.0) - np.maximum(low[..., None], cells)
    return overlap.clip(min=0.0)


def disc_coverage(center: F64, radius: float, rows: range, columns: range) -> F64:
    """Area of each unit cell that lies in each disc.

    With both coordinates taken from the disc's centre, the area Q(x, y) that the disc has in common with
    the rectangle between the centre and a corner (x, y), signed as x times y, gives the area in any cell
    as a difference over its four corners. In the quadrant of positive x and y, the rectangle's top edge
    leaves the disc at h = sqrt(r^2 - y^2), so that Q = y min(x, h) + max(A(x) - A(h), 0), where
    A(t) = (t sqrt(r^2 - t^2) + r^2 asin(t / r)) / 2 is the area under the circle from 0 to t.

    Parameters
    ----------
    center : (..., 2), x and y, in cells
    radius : in cells, above 0
    rows, columns : the cells, each range with step 1

    Returns
    -------
    (..., n_rows, n_columns), 0 to 1 but for rounding; the areas of a disc sum to pi r^2
    """

    def under_circle(to: F64) -> F64:
        chord = np.sqrt((radius - to) * (radius + to))
        return (to * chord + radius**2 * np.arcsin(np.minimum(to / radius, 1.0))) / 2

    x = np.clip(np.arange(columns.start, columns.stop + 1) - center[..., 0, None], -radius, radius)
    y = np.clip(np.arange(rows.start, rows.stop + 1) - center[..., 1, None], -radius, radius)
    x_size, y_size = np.abs(x)[..., None, :], np.abs(y)[..., :, None]
    leaves = np.sqrt((radius - y_size) * (radius + y_size))
    corners = y_size * np.minimum(x_size, leaves)
    corners += np.maximum(under_circle(x_size) - under_circle(leaves), 0.0)
    corners *= np.sign(x)[..., None, :]
    corners *= np.sign(y)[..., :, None]
    in_strip = corners[..., 1:, :] - corners[..., :-1, :]
    area: F64 = in_strip[..., 1:] - in_strip[..., :-1]
    area[np.abs(area) < _ROUNDING * max(radius**2, 1.0)] = 0.0
    return area


class WindowPooler:
    """Average a map over several windows around every place, from bands of rows.

    1. On arrival, features are multiplied by their cells' weights; the weight itself travels along as one
       more channel, so that every sum below is formed once for both.
    2. Places are taken in the order of y, then x. Places of the same y form a strip.
    3. Squares: the rows of a strip are summed into one row per window, then its columns into places; each
       sum is a product with a matrix of overlaps. Both are plain sums of the cells in the window: nothing
       cancels, as differences of running sums would.
       Discs: rows and columns are summed at once, with the matrix of the discs' areas.
    4. The sums of features are divided by the sum of weights.

    Which places share a product is settled from `centers` and `sides` alone, and a product sees all rows
    of its windows at once: what a place gets does not depend, to the last bit, on how the map was cut.

    Parameters
    ----------
    centers : (n_places, 2), x and y, in cells; may lie beyond the lattice
    sides : of squares, or diameters of discs, in cells, each above 0
    shape : of the windows
    n_columns, n_rows : of the lattice

    Raises
    ------
    ValueError
        No window, a side that is not above 0, or a centre that is not finite.
    """

    def __init__(
        self, centers: F64, sides: tuple[float, ...], shape: WindowShape, n_columns: int, n_rows: int
    ) -> None:
        finite = np.isfinite(sides).all() and np.isfinite(centers).all()
        if not finite or not sides or min(sides) <= 0:
            msg = f"windows need sides above 0 and finite centres; the sides are {sides}"
            raise ValueError(msg)
        self._order = np.lexsort((centers[:, 0], centers[:, 1]))
        self._x, self._y = centers[self._order].T.astype(np.float64)
        self._half = np.array(sides, dtype=np.float64) / 2
        self._reach = float(self._half.max())
        self._shape = shape
        self._n_columns, self._n_rows = n_columns, n_rows

        # Places farther apart than this share no columns worth summing together.
        apart = np.diff(self._x) > 4 * self._reach
        starts = np.flatnonzero(apart | (np.diff(self._y) != 0)) + 1
        self._strips = [
            (at, min(at + BATCH_PLACES, stop))
            for start, stop in pairwise([0, *starts.tolist(), len(self._order)])
            for at in range(start, stop, BATCH_PLACES)
        ]
        self._next_strip = 0

        self._arrived = 0  # rows above this one have arrived, or never will
        # (n_held, n_columns, channels + 1), weighted; the last channel is the weight.
        self._held: F32 = np.empty((0, n_columns, 0), dtype=np.float32)
        self._held_rows: I64 = np.empty(0, dtype=np.int64)  # ascending; rows nobody fed are missing

    def feed(self, first_row: int, features: F32, weights: F32) -> Iterator[tuple[I64, F32]]:
        """Take the next band; give the places whose windows are complete with it.

        A row that is skipped between two bands counts as weight 0.

        Parameters
        ----------
        first_row : of the band; not above the end of the band before
        features : (n_band_rows, n_columns, channels), finite wherever the weight is above 0
        weights : (n_band_rows, n_columns), 0 or more

        Returns
        -------
        Batches of at most `BATCH_PLACES` places: (n,) rows of `centers`, and (n, n_windows, channels) means
        in the order of `sides`. Where all of a window weighs 0 the mean is 0, which says nothing: callers
        leave such places out. Each place is given once. What is not taken before the next band comes with
        that one; rows are let go when the last batch has been taken.

        Raises
        ------
        ValueError
            The band overlaps an earlier one, is not as wide as the lattice, or reaches below it.
        """
        stop = first_row + len(features)
        expected = (len(features), self._n_columns)
        if features.shape[:2] != expected or weights.shape != expected:
            msg = f"a band of {expected} cells has features {features.shape} and weights {weights.shape}"
            raise ValueError(msg)
        if first_row < self._arrived or stop > self._n_rows:
            msg = f"rows {first_row} to {stop} do not lie between {self._arrived} and {self._n_rows}"
            raise ValueError(msg)
        self._hold(first_row, features, weights)
        self._arrived = stop
        return self._complete(stop)

    def finish(self) -> Iterator[tuple[I64, F32]]:
        """Give the places whose windows reach below the last band, as `feed` does.

        Raises
        ------
        ValueError
            There are places, but no band was ever fed.
        """
        if self._held.shape[2] == 0 and self._strips:
            msg = "no band was fed, so the number of channels is unknown"
            raise ValueError(msg)
        self._arrived = self._n_rows
        return self._complete(self._n_rows)

    def _rows_under(self, y: float, reach: float) -> range:
        return _cells_between(y - reach, y + reach, self._n_rows)

    def _columns_under(self, x: F64, reach: float) -> range:
        """Columns that ascending `x` need together."""
        return _cells_between(x[0] - reach, x[-1] + reach, self._n_columns)

    def _held_between(self, rows: range) -> slice:
        top, bottom = np.searchsorted(self._held_rows, [rows.start, rows.stop]).tolist()
        return slice(top, bottom)

    def _first_needed(self) -> int:
        if self._next_strip == len(self._strips):
            return self._n_rows
        return self._rows_under(self._y[self._strips[self._next_strip][0]], self._reach).start

    def _hold(self, first_row: int, features: F32, weights: F32) -> None:
        skip = min(max(self._first_needed() - first_row, 0), len(features))
        features, weights = features[skip:], weights[skip:]
        n_old, n_new, n_values = len(self._held_rows), len(features), features.shape[2] + 1
        held = np.empty((n_old + n_new, self._n_columns, n_values), dtype=np.float32)
        if n_old:
            held[:n_old] = self._held
        band = held[n_old:]
        with np.errstate(invalid="ignore"):
            np.multiply(features, weights[..., None], out=band[..., :-1])
        band[..., -1] = weights
        band[weights == 0] = 0.0  # also where the feature was not a number
        self._held = held
        new_rows = np.arange(n_new, dtype=np.int64) + (first_row + skip)
        self._held_rows = np.concatenate([self._held_rows, new_rows])

    def _let_go(self) -> None:
        n_done = int(np.searchsorted(self._held_rows, self._first_needed()))
        # A copy, since a view would keep all of the old rows in memory.
        self._held, self._held_rows = self._held[n_done:].copy(), self._held_rows[n_done:]

    def _complete(self, stop_row: int) -> Iterator[tuple[I64, F32]]:
        while strips := self._take(stop_row):
            first, stop = strips[0][0], strips[-1][1]
            yield self._order[first:stop], np.concatenate([self._means(*strip) for strip in strips])
        self._let_go()

    def _take(self, stop_row: int) -> list[tuple[int, int]]:
        """Next strips that need no row from `stop_row` on, as many as fit into a batch."""
        taken: list[tuple[int, int]] = []
        for start, stop in self._strips[self._next_strip : self._next_strip + BATCH_PLACES]:
            last_row = self._rows_under(self._y[start], self._reach).stop
            if last_row > stop_row or (taken and stop - taken[0][0] > BATCH_PLACES):
                break
            taken.append((start, stop))
        self._next_strip += len(taken)
        return taken

    def _means(self, start: int, stop: int) -> F32:
        """Means (n, n_windows, channels) of a strip."""
        x, y = self._x[start:stop], float(self._y[start])
        pool = self._square_sums if self._shape == "square" else self._disc_sums
        means = np.empty((len(x), len(self._half), self._held.shape[2] - 1), dtype=np.float32)
        for block, sums in pool(x, y):
            weight = sums[..., -1:]
            values = sums[..., :-1]
            np.divide(values, weight, out=values, where=weight > 0)
            means[block] = values.swapaxes(0, 1)
        return means

    def _blocks(self, x: F64) -> Iterator[slice]:
        """Cut ascending `x` into blocks that one product serves."""
        start = 0
        while start < len(x):
            end = x[start] + max(2 * self._reach, _BLOCK_CELLS)
            stop = min(int(np.searchsorted(x, end, side="right")), start + _BLOCK_PLACES)
            yield slice(start, stop)
            start = stop

    def _square_sums(self, x: F64, y: float) -> Iterator[tuple[slice, F64]]:
        """Sum (n_windows, n, channels + 1) over squares, block by block."""
        held = self._held_between(self._rows_under(y, self._reach))
        columns = self._columns_under(x, self._reach)
        overlap = interval_overlap(y - self._half, y + self._half, self._held_rows[held])
        cells = self._held[held, columns.start : columns.stop]
        flat = cells.reshape(cells.shape[0], cells.shape[1] * cells.shape[2])  # a view: nothing is copied
        in_rows = np.matmul(overlap.astype(np.float32), flat).reshape(len(overlap), *cells.shape[1:])
        half = self._half[:, None]
        for block in self._blocks(x):
            span = self._columns_under(x[block], self._reach)
            overlap = interval_overlap(x[block] - half, x[block] + half, np.arange(span.start, span.stop))
            of_block = in_rows[:, span.start - columns.start : span.stop - columns.start]
            yield block, np.matmul(overlap, of_block.astype(np.float64))

    def _disc_sums(self, x: F64, y: float) -> Iterator[tuple[slice, F64]]:
        """Sum (n_windows, n, channels + 1) over discs, block by block."""
        n_values = self._held.shape[2]
        for block in self._blocks(x):
            center = np.stack([x[block], np.full(len(x[block]), y)], axis=1)
            sums = np.zeros((len(self._half), len(center), n_values))
            for window, radius in enumerate(self._half.tolist()):
                rows, columns = self._rows_under(y, radius), self._columns_under(x[block], radius)
                n_at_once = _DISC_VALUES // (len(columns) * (n_values + len(center)) + 1) + 1
                for first in range(rows.start, rows.stop, n_at_once):
                    some = range(first, min(first + n_at_once, rows.stop))
                    held = self._held_between(some)
                    cells = self._held[held, columns.start : columns.stop].astype(np.float64)
                    area = disc_coverage(center, radius, some, columns)[:, self._held_rows[held] - first]
                    n_cells = cells.shape[0] * cells.shape[1]
                    sums[window] += area.reshape(len(center), n_cells) @ cells.reshape(n_cells, n_values)
            yield block, sums


def _cells_between(low: float, high: float, n_cells: int) -> range:
    """Cells of a lattice of `n_cells` that have a part from `low` to `high`."""
    start = min(max(int(np.floor(low)), 0), n_cells)
    return range(start, min(max(int(np.ceil(high)), start), n_cells))
