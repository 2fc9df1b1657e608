"""What must hold of places whatever the slide: grids, lattices, boxes and the way there and back."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stinfer.geometry import extent_l0, grid_centers, outside_fraction, outside_px
from stinfer.lattice import cells_under, lay_lattice
from stinfer.tissue import TissueMask

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")

given = hypothesis.given
settings = hypothesis.settings(deadline=None, derandomize=True, database=None, max_examples=200)

side_px = st.integers(1, 200_000)
sizes = st.tuples(side_px, side_px)
scale_um = st.floats(0.05, 20.0)
scales = st.tuples(scale_um, scale_um)
place = st.floats(-300_000.0, 300_000.0)
lengths = st.floats(0.5, 50_000.0)


@settings
@given(st.floats(0.01, 1e5), scales)
def test_an_extent_is_the_length_again_in_um(side_um, mpp):
    width, height = extent_l0(side_um, mpp)
    assert (width * mpp[0], height * mpp[1]) == pytest.approx((side_um, side_um), rel=1e-12)


@settings
@given(sizes, scales, st.floats(0.05, 3.0))
def test_points_of_a_grid_are_inside_and_a_pitch_apart(size, mpp, part):
    pitch_um = part * max(size[0] * mpp[0], size[1] * mpp[1])
    hypothesis.assume(size[0] * mpp[0] * size[1] * mpp[1] / pitch_um**2 < 1e5)
    grid = grid_centers(size, mpp, pitch_um)
    assert outside_px(grid, size).sum() == 0
    assert (grid < np.asarray(size)).all()
    # In units of the pitch, all points lie on halves: their places on the lattice name them.
    steps = grid * np.asarray(mpp) / pitch_um - 0.5
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-6)
    assert len({tuple(step) for step in np.rint(steps).astype(int).tolist()}) == len(grid)


@settings
@given(sizes, scales, st.floats(0.5, 2000.0), st.lists(st.tuples(place, place), min_size=1, max_size=20))
def test_to_cells_and_back_is_where_it_was(size, mpp, cell_um, points):
    hypothesis.assume(size[0] * mpp[0] * size[1] * mpp[1] / cell_um**2 < 2**25)
    lattice = lay_lattice(size, mpp, cell_um)
    points_l0 = np.asarray(points)
    back = lattice.to_cells(points_l0, mpp) * np.asarray(extent_l0(cell_um, mpp))
    np.testing.assert_allclose(back, points_l0, rtol=1e-12, atol=1e-6)


@settings
@given(sizes, scales, st.floats(0.5, 2000.0))
def test_a_lattice_covers_the_slide_and_no_cell_more(size, mpp, cell_um):
    hypothesis.assume(size[0] * mpp[0] * size[1] * mpp[1] / cell_um**2 < 2**25)
    lattice = lay_lattice(size, mpp, cell_um)
    for n_cells, length_px, scale in zip((lattice.n_columns, lattice.n_rows), size, mpp, strict=True):
        length_um = length_px * scale
        assert n_cells * cell_um >= length_um - 1e-5 * cell_um
        assert n_cells == 1 or (n_cells - 1) * cell_um < length_um


@settings
@given(sizes, st.lists(st.tuples(place, place), min_size=1, max_size=20))
def test_a_point_is_as_far_outside_as_it_must_move(size, points):
    points_l0 = np.asarray(points)
    inside = np.clip(points_l0, 0, np.asarray(size, dtype=float))
    np.testing.assert_allclose(
        outside_px(points_l0, size), np.abs(points_l0 - inside).max(axis=1), rtol=1e-12, atol=1e-9
    )


@settings
@given(sizes, place, place, lengths, lengths)
def test_what_is_outside_is_the_same_seen_in_a_mirror_and_on_its_side(size, x, y, width, height):
    def outside(center, extent, image):
        return float(outside_fraction(np.asarray([center]), extent, image)[0])

    found = outside((x, y), (width, height), size)
    assert 0.0 <= found <= 1.0
    assert outside((size[0] - x, y), (width, height), size) == pytest.approx(found, abs=1e-6)
    assert outside((y, x), (height, width), size[::-1]) == pytest.approx(found, abs=1e-9)
    # Level-0 px may be counted in twos.
    doubled = outside((2 * x, 2 * y), (2 * width, 2 * height), (2 * size[0], 2 * size[1]))
    assert doubled == pytest.approx(found, abs=1e-9)
    is_within = width / 2 <= x <= size[0] - width / 2 and height / 2 <= y <= size[1] - height / 2
    if is_within:
        assert found == 0.0


@settings
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.lists(st.tuples(st.floats(-10, 50), st.floats(-10, 50)), min_size=1, max_size=5),
    st.floats(0.1, 30),
)
def test_the_cells_under_a_square_are_those_it_overlaps(n_rows, n_columns, centers, side):
    found = cells_under(np.asarray(centers), side, (n_rows, n_columns))
    expected = np.zeros((n_rows, n_columns), dtype=bool)
    for x, y in centers:
        left, right = math.floor(x - side / 2), math.ceil(x + side / 2)
        top, bottom = math.floor(y - side / 2), math.ceil(y + side / 2)
        expected[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
    assert np.array_equal(found, expected)


@settings
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), scales, st.floats(0.3, 6.0))
def test_cells_hold_all_of_the_tissue_once(seed, height, width, l0_per_px, cell_px):
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    tissue = TissueMask(mask, l0_per_px, 0.1)
    cell_l0 = (cell_px * l0_per_px[0], cell_px * l0_per_px[1])
    shape = (math.ceil(height / cell_px), math.ceil(width / cell_px))
    assert tissue.cells(shape, cell_l0).sum() * cell_px**2 == pytest.approx(
        float(mask.sum()), rel=1e-4, abs=1e-4
    )
    # Boxes of one mask pixel around its middle are that pixel.
    centers = (np.argwhere(np.ones_like(mask))[:, ::-1] + 0.5) * np.asarray(l0_per_px)
    assert tissue.fraction(centers, l0_per_px).tolist() == mask.ravel().astype(float).tolist()
