"""The lattice of cells that a slide's feature map lies on. Imports numpy alone.

A lattice begins at the slide's upper left corner and has square cells of `cell_um`, so that it depends
on the slide's size and scale and on nothing else: not on the tissue, nor on how the slide is read. In
units of cells, column c covers [c, c + 1) from left to right, row r [r, r + 1) from top to bottom.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from itertools import pairwise

import numpy as np

from stinfer.contract import F64, Bool
from stinfer.errors import SettingError

# A slide that ends a hair beyond a cell has no further one there.
_ROUNDING = 1e-6
MAX_CELLS = 2**26


@dataclass(frozen=True)
class Lattice:
    """Cells over a whole slide.

    Parameters
    ----------
    cell_um : side of a cell
    n_rows, n_columns : cells down and across; the last of each may reach beyond the slide
    """

    cell_um: float
    n_rows: int
    n_columns: int

    def to_cells(self, points_l0: F64, mpp: tuple[float, float]) -> F64:
        """Express points, (n, 2) in level-0 px, in units of cells."""
        return np.asarray(points_l0 * (np.asarray(mpp) / self.cell_um), dtype=np.float64)


def lay_lattice(size_l0: tuple[int, int], mpp: tuple[float, float], cell_um: float) -> Lattice:
    """Cover a slide with cells.

    Parameters
    ----------
    size_l0 : slide's width and height
    mpp : µm per level-0 pixel, x and y
    cell_um : side of a cell

    Raises
    ------
    SettingError
        There are more cells than any slide has.
    """
    n_columns, n_rows = (
        max(math.ceil(length * scale / cell_um - _ROUNDING), 1)
        for length, scale in zip(size_l0, mpp, strict=True)
    )
    if n_rows * n_columns > MAX_CELLS:
        what = f"a slide of {n_columns} x {n_rows} cells of {cell_um:g} µm is too large"
        raise SettingError(what, "check that its scale (--mpp) is right")
    return Lattice(cell_um, n_rows, n_columns)


@dataclass(frozen=True)
class Region:
    """A box of cells that is encoded at once: rows and columns from the first up to, not with, the last."""

    first_row: int
    last_row: int
    first_column: int
    last_column: int

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and columns."""
        return self.last_row - self.first_row, self.last_column - self.first_column


def plan_bands(needed: Bool, side_cells: int, halo_cells: int, step_cells: int = 1) -> list[list[Region]]:
    """Cut the needed cells into regions, in bands from top to bottom.

    1. Rows that are needed are cut into bands of equal height, at most `side_cells`.
    2. Each band's needed columns are cut into regions of equal width, at most `side_cells`.
    3. A region is shrunk to the box of the cells that are needed in it.

    Rows, or columns, that lie apart by no more than two halos are one piece: to compute what is between
    costs less than two further halos.

    Parameters
    ----------
    needed : (n_rows, n_columns)
    side_cells : largest side of a region
    halo_cells : computed around each region
    step_cells : regions begin and end at multiples of it, the last beyond the lattice where that is none

    Returns
    -------
    regions of each band, from left to right; every needed cell is in one of them
    """
    if step_cells == 1:
        return _plan_bands(needed, side_cells, halo_cells)
    n_rows, n_columns = (-(-length // step_cells) for length in needed.shape)
    padded = np.zeros((n_rows * step_cells, n_columns * step_cells), dtype=bool)
    padded[: needed.shape[0], : needed.shape[1]] = needed
    coarse = np.asarray(padded.reshape(n_rows, step_cells, n_columns, step_cells).any(axis=(1, 3)))
    planned = _plan_bands(coarse, max(side_cells // step_cells, 1), halo_cells // step_cells)
    return [[Region(*(edge * step_cells for edge in astuple(region))) for region in band] for band in planned]


def _plan_bands(needed: Bool, side_cells: int, halo_cells: int) -> list[list[Region]]:
    """Cut the needed cells into regions, for steps of one cell; see `plan_bands`."""
    bands = []
    for top, bottom in _pieces(np.asarray(needed.any(axis=1)), side_cells, halo_cells):
        band = []
        for left, right in _pieces(np.asarray(needed[top:bottom].any(axis=0)), side_cells, halo_cells):
            rows, columns = np.nonzero(needed[top:bottom, left:right])
            if rows.size:
                first, last = top + int(rows.min()), top + int(rows.max()) + 1
                band.append(Region(first, last, left + int(columns.min()), left + int(columns.max()) + 1))
        if band:  # its rows may lie between two pieces
            bands.append(band)
    return bands


def _pieces(needed: Bool, side_cells: int, halo_cells: int) -> list[tuple[int, int]]:
    """Cut the needed cells of one axis into pieces of nearly equal length: first and past the last."""
    places = np.flatnonzero(needed)
    if not places.size:
        return []
    gaps = np.flatnonzero(np.diff(places) > 2 * halo_cells + 1)
    pieces = []
    for first, last in zip(places[np.r_[0, gaps + 1]], places[np.r_[gaps, -1]] + 1, strict=True):
        n_pieces = -(-(last - first) // side_cells)
        edges = np.linspace(first, last, n_pieces + 1).round().astype(int).tolist()
        pieces += list(pairwise(edges))
    return pieces


def cells_under(centers: F64, side: float, shape: tuple[int, int]) -> Bool:
    """Mark the cells that squares around some points touch.

    Parameters
    ----------
    centers : (n, 2), x and y in units of cells
    side : of the squares, in cells
    shape : rows and columns of the lattice

    Returns
    -------
    (n_rows, n_columns)
    """
    limit = np.asarray([shape[1], shape[0]])
    low = np.clip(np.floor(centers - side / 2).astype(np.int64), 0, limit)
    high = np.clip(np.ceil(centers + side / 2).astype(np.int64), 0, limit)
    # Each square adds one to all cells after its corner, less those after its other corners.
    steps = np.zeros((shape[0] + 1, shape[1] + 1), dtype=np.int32)
    for x, y, sign in (
        (low[:, 0], low[:, 1], 1),
        (high[:, 0], low[:, 1], -1),
        (low[:, 0], high[:, 1], -1),
        (high[:, 0], high[:, 1], 1),
    ):
        np.add.at(steps, (y, x), sign)
    return np.asarray(steps.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0)
