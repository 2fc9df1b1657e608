"""The lattice under a map, and which of its cells are encoded: by hand and against brute force."""

from __future__ import annotations

import itertools
from dataclasses import astuple

import numpy as np
import pytest

from stinfer.geometry import grid_centers
from stinfer.lattice import Lattice, Region, cells_under, lay_lattice, plan_bands


@pytest.mark.parametrize(
    ("size_l0", "mpp", "cell_um", "expected"),
    [
        ((1000, 600), (0.5, 0.5), 50.0, (6, 10)),  # 500 x 300 µm
        ((1001, 600), (0.5, 0.5), 50.0, (6, 11)),  # half a µm more
        ((1000, 600), (0.5, 0.25), 50.0, (3, 10)),  # 500 x 150 µm
        ((1000, 600), (0.25, 0.5), 50.0, (6, 5)),
        ((10, 10), (0.5, 0.5), 55.0, (1, 1)),  # a slide smaller than a cell
        ((3, 7), (0.1, 0.1), 0.1, (7, 3)),  # 3 * 0.1 / 0.1 is a little above 3
        ((49 * 32, 32), (154 / 224, 154 / 224), 22.0, (1, 49)),  # 32 px of 154 / 224 µm are 22 µm
    ],
)
def test_cells_cover_the_slide_and_no_more(
    size_l0: tuple[int, int], mpp: tuple[float, float], cell_um: float, expected: tuple[int, int]
) -> None:
    lattice = lay_lattice(size_l0, mpp, cell_um)
    assert (lattice.n_rows, lattice.n_columns) == expected
    assert lattice.cell_um == cell_um


def test_exact_multiples_have_no_further_cell_whatever_the_scale() -> None:
    for stride in (8, 16, 32):
        for mpp in (0.2531, 0.4619, 0.5, 154 / 224, 1.0 / 3):
            for n in (1, 2, 3, 7, 49, 1000, 30_001):
                lattice = lay_lattice((n * stride, stride), (mpp, mpp), stride * mpp)
                assert (lattice.n_rows, lattice.n_columns) == (1, n)


def test_points_in_units_of_cells_by_hand() -> None:
    lattice = Lattice(20.0, 10, 10)
    points = np.array([[0.0, 0.0], [40.0, 40.0], [30.0, 100.0]])
    # A pixel is 0.5 x 0.25 µm: 40 of them are a cell across, 80 a cell down.
    np.testing.assert_array_equal(lattice.to_cells(points, (0.5, 0.25)), [[0, 0], [1, 0.5], [0.75, 1.25]])


@pytest.mark.parametrize("size_l0", [(1000, 600), (1049, 651), (1050, 650), (1099, 601), (300, 3000)])
@pytest.mark.parametrize("mpp", [(0.5, 0.5), (0.2531, 0.2498)])
def test_each_point_of_a_grid_lies_in_the_middle_of_a_cell_of_its_own(
    size_l0: tuple[int, int], mpp: tuple[float, float]
) -> None:
    centers = grid_centers(size_l0, mpp, 55.0)
    lattice = lay_lattice(size_l0, mpp, 55.0)
    in_cells = lattice.to_cells(centers, mpp)
    np.testing.assert_allclose(in_cells % 1, 0.5, atol=1e-9)
    columns, rows = np.floor(in_cells).astype(int).T
    assert (rows.min(), columns.min()) == (0, 0)
    assert lattice.n_rows - 2 <= rows.max() < lattice.n_rows
    assert lattice.n_columns - 2 <= columns.max() < lattice.n_columns
    assert len({*zip(rows.tolist(), columns.tolist(), strict=True)}) == len(centers)


def test_points_on_the_edge_of_a_cell_belong_to_the_next() -> None:
    points = np.array([[0.0, 0.0], [109.9, 0.0], [110.0, 219.9], [110.0, 220.0]])
    in_cells = lay_lattice((1000, 1000), (0.5, 0.25), 55.0).to_cells(points, (0.5, 0.25))
    assert np.floor(in_cells).tolist() == [[0, 0], [0, 0], [1, 0], [1, 1]]


# --- bands ----------------------------------------------------------------------------------------


def boxes(needed: np.ndarray, side: int, halo: int) -> list[list[tuple[int, int, int, int]]]:
    return [
        [(r.first_row, r.last_row, r.first_column, r.last_column) for r in band]
        for band in plan_bands(needed, side, halo)
    ]


def test_regions_by_hand() -> None:
    needed = np.zeros((9, 16), dtype=bool)
    needed[0:2, 1:3] = True
    needed[1, 15] = True
    needed[6, 3:8] = True
    # Without a halo, whatever lies apart is a piece of its own; five columns are cut into 3 and 2.
    assert boxes(needed, 3, 0) == [[(0, 2, 1, 3), (1, 2, 15, 16)], [(6, 7, 3, 6), (6, 7, 6, 8)]]
    # With a halo of 2 the four empty rows are one piece with those around them, the seven columns are not.
    assert boxes(needed, 7, 2) == [[(0, 7, 1, 8), (1, 2, 15, 16)]]


def test_a_long_piece_is_cut_into_equal_parts() -> None:
    needed = np.ones((1, 100), dtype=bool)
    assert boxes(needed, 49, 0) == [[(0, 1, 0, 33), (0, 1, 33, 67), (0, 1, 67, 100)]]


@pytest.mark.parametrize("halo", [0, 2, 16])
@pytest.mark.parametrize("side", [1, 2, 5, 16, 1000])
@pytest.mark.parametrize("share", [0.0, 0.002, 0.01, 0.3, 1.0])
def test_every_needed_cell_is_in_one_region_and_none_is_larger_than_asked(
    side: int, share: float, halo: int
) -> None:
    needed = np.random.default_rng(0).random((33, 47)) < share
    covered = np.zeros(needed.shape, dtype=int)
    for band in boxes(needed, side, halo):
        assert band
        for first_row, last_row, first_column, last_column in band:
            covered[first_row:last_row, first_column:last_column] += 1
            inside = needed[first_row:last_row, first_column:last_column]
            assert max(inside.shape) <= side
            # No row or column at the edge of a region is without a needed cell.
            for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
                assert edge.any()
    assert covered.max(initial=0) <= 1
    assert (covered[needed] == 1).all()


def test_a_band_without_needed_cells_is_left_out() -> None:
    """Its rows lie between two halos, and so in one piece with those around them."""
    needed = np.zeros((96, 4), dtype=bool)
    needed[:32] = needed[64:] = True
    assert boxes(needed, 32, 16) == [[(0, 32, 0, 4)], [(64, 96, 0, 4)]]


def test_bands_and_regions_follow_each_other_without_overlap() -> None:
    end = 0
    for band in boxes(np.random.default_rng(1).random((40, 40)) < 0.05, 6, 1):
        assert min(first for first, *_ in band) >= end
        end = max(last for _, last, *_ in band)
        columns = [(first, last) for *_, first, last in band]
        assert columns == sorted(columns)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(columns))


# --- cells under squares --------------------------------------------------------------------------


def test_regions_of_steps_by_hand() -> None:
    needed = np.zeros((9, 12), dtype=bool)
    needed[3, 5] = needed[8, 1] = needed[8, 11] = True
    # In steps of 2: (1, 2), (4, 0) and (4, 5) of 5 x 6; a side of 5 cells is 2 steps, a halo of 2 is 1. The
    # last row of steps ends at cell 10, beyond the lattice's 9.
    found = plan_bands(needed, 5, 2, step_cells=2)
    assert found == [[Region(2, 4, 4, 6)], [Region(8, 10, 0, 2), Region(8, 10, 10, 12)]]
    # Two steps of no need between them cost less than two halos of a step, and three do not.
    needed = np.zeros((12, 2), dtype=bool)
    needed[0, 0] = needed[7, 0] = True
    assert plan_bands(needed, 100, 2, step_cells=2) == [[Region(0, 8, 0, 2)]]
    needed[8, 0], needed[7, 0] = True, False
    assert plan_bands(needed, 100, 2, step_cells=2) == [[Region(0, 2, 0, 2)], [Region(8, 10, 0, 2)]]


@pytest.mark.parametrize("shape", [(40, 60), (41, 59), (1, 1), (2, 3)])
@pytest.mark.parametrize("side", [1, 2, 7, 12, 100])
@pytest.mark.parametrize("step", [2, 3])
def test_regions_begin_and_end_at_steps_and_hold_every_needed_cell_once(
    shape: tuple[int, int], side: int, step: int
) -> None:
    random = np.random.default_rng(side)
    for share in (0.002, 0.05, 0.6, 1.0):
        needed = random.random(shape) < share
        times = np.zeros([length + step for length in shape], dtype=int)
        last_row = 0
        for band in plan_bands(needed, side, 2 * step, step):
            edges = np.array([astuple(region) for region in band])
            assert (edges % step == 0).all()
            assert max(max(region.shape) for region in band) <= max(side // step, 1) * step
            # Bands follow each other, as the map is written from top to bottom.
            assert edges[:, 0].min() >= last_row
            last_row = edges[:, 1].max()
            for region in band:
                times[region.first_row : region.last_row, region.first_column : region.last_column] += 1
        assert times.max(initial=0) <= 1
        assert (times[: shape[0], : shape[1]][needed] == 1).all()
        # None reaches farther beyond the lattice than to the next step.
        assert not times[-(-shape[0] // step) * step :].any()
        assert not times[:, -(-shape[1] // step) * step :].any()


def test_a_step_of_one_cell_is_no_step() -> None:
    needed = np.random.default_rng(5).random((30, 40)) < 0.05
    assert plan_bands(needed, 7, 1, 1) == plan_bands(needed, 7, 1)


def brute_cells(centers: np.ndarray, side: float, shape: tuple[int, int]) -> np.ndarray:
    found = np.zeros(shape, dtype=bool)
    for x, y in centers:
        for row in range(shape[0]):
            for column in range(shape[1]):
                across = column < x + side / 2 and column + 1 > x - side / 2
                found[row, column] |= across and row < y + side / 2 and row + 1 > y - side / 2
    return found


def test_cells_under_a_square_by_hand() -> None:
    found = cells_under(np.array([[2.0, 1.5]]), 2.0, (4, 5))
    # x from 1 to 3 touches columns 1 and 2 alone, y from 0.5 to 2.5 rows 0, 1 and 2.
    expected = np.zeros((4, 5), dtype=bool)
    expected[0:3, 1:3] = True
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("side", [0.3, 1.0, 2.5, 7.0, 40.0])
@pytest.mark.parametrize("n", [1, 7, 60])
def test_cells_under_squares_equal_brute_force(side: float, n: int) -> None:
    random = np.random.default_rng(n)
    # Some lie beyond the lattice, some on whole and half cells.
    centers = random.uniform(-6, 22, (n, 2))
    centers[::3] = np.round(centers[::3] * 2) / 2
    np.testing.assert_array_equal(cells_under(centers, side, (13, 17)), brute_cells(centers, side, (13, 17)))


def test_no_points_need_no_cells() -> None:
    assert not cells_under(np.empty((0, 2)), 3.0, (4, 5)).any()
