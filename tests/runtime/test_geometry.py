from __future__ import annotations

import numpy as np
import pytest

from stinfer.geometry import extent_l0, grid_centers, outside_fraction, outside_px


def test_extent_is_the_length_over_the_scale_of_each_axis():
    assert extent_l0(154.0, (0.5, 0.25)) == (308.0, 616.0)


def test_grid_coordinates_where_x_and_y_have_different_scales():
    # 1000 px x 0.5 µm = 500 µm: 5 columns, 200 px apart. 300 px x 1 µm: 3 rows, 100 px apart.
    grid = grid_centers((1000, 300), (0.5, 1.0), 100.0)
    columns, rows = [100.0, 300.0, 500.0, 700.0, 900.0], [50.0, 150.0, 250.0]
    assert grid.tolist() == [[x, y] for y in rows for x in columns]


@pytest.mark.parametrize(
    ("length_px", "expected"),
    [
        (199, [100.0]),
        (300, [100.0]),  # the second point would lie on the edge, which is outside: [0, 300)
        (301, [100.0, 300.0]),
        (400, [100.0, 300.0]),
        (101, [100.0]),
        (100, []),  # no room for half a pitch
    ],
)
def test_grid_holds_the_points_that_lie_inside(length_px, expected):
    grid = grid_centers((length_px, 200), (0.5, 0.5), 100.0)
    assert grid.tolist() == [[x, 100.0] for x in expected]


def test_a_larger_slide_keeps_the_lattice_of_a_smaller_one():
    small = grid_centers((1000, 1000), (0.69, 0.69), 22.0)
    large = grid_centers((1500, 1200), (0.69, 0.69), 22.0)
    assert {tuple(p) for p in small} < {tuple(p) for p in large}


def test_grid_is_all_of_the_lattice_inside_the_slide():
    hypothesis = pytest.importorskip("hypothesis")
    st = pytest.importorskip("hypothesis.strategies")
    side = st.integers(1, 3000)
    scale = st.floats(0.05, 20.0)

    @hypothesis.settings(deadline=None, derandomize=True, database=None, max_examples=150)
    @hypothesis.given(size=st.tuples(side, side), mpp=st.tuples(scale, scale), part=st.floats(0.02, 3.0))
    def holds(size, mpp, part):
        pitch_um = part * max(size[0] * mpp[0], size[1] * mpp[1])
        steps = [pitch_um / m for m in mpp]
        # Where a point is within rounding of the edge, either answer is right.
        for length, step in zip(size, steps, strict=True):
            place = length / step - 0.5
            hypothesis.assume(abs(place - round(place)) > 1e-6)
        expected = []
        for length, step in zip(size, steps, strict=True):
            axis = []
            while (len(axis) + 0.5) * step < length:
                axis.append((len(axis) + 0.5) * step)
            expected.append(axis)
        grid = grid_centers(size, mpp, pitch_um)
        np.testing.assert_allclose(
            grid, np.array([[x, y] for y in expected[1] for x in expected[0]]).reshape(-1, 2), rtol=1e-12
        )

    holds()


def test_outside_px_by_hand():
    points = np.array(
        [[0, 0], [100, 50], [50, 25], [-3, 10], [104.5, 10], [10, 57], [-2, 55], [101, -4]], float
    )
    assert outside_px(points, (100, 50)).tolist() == [0, 0, 0, 3, 4.5, 7, 5, 4]


def test_outside_px_of_no_points():
    assert outside_px(np.empty((0, 2)), (100, 50)).tolist() == []


@pytest.mark.parametrize(
    ("center", "extent", "expected"),
    [
        ((50, 25), (20, 20), 0.0),
        ((10, 10), (20, 20), 0.0),  # touches the corner
        ((0, 25), (20, 20), 0.5),
        ((100, 50), (20, 20), 0.75),
        ((5, 25), (20, 20), 0.25),
        ((95, 5), (20, 20), 1 - 0.75 * 0.75),
        ((0, 25), (40, 10), 0.5),  # not square
        ((50, 25), (200, 100), 0.75),  # larger than the image on both axes
        ((-10, 25), (20, 20), 1.0),  # touches from outside
        ((500, -500), (20, 20), 1.0),  # far away on both axes: two negative overlaps are not a positive
    ],
)
def test_outside_fraction_by_hand(center, extent, expected):
    found = outside_fraction(np.array([center], float), extent, (100, 50))
    assert found.tolist() == pytest.approx([expected], abs=1e-12)


def test_a_patch_on_the_image_is_exactly_zero_outside():
    # 0.69 µm/px: extents and corners that binary fractions do not hold.
    extent = extent_l0(154.0, (0.69, 0.69))
    x = np.linspace(extent[0] / 2, 9274 - extent[0] / 2, 999)
    found = outside_fraction(np.stack([x, x], axis=1), extent, (9274, 9274))
    assert np.count_nonzero(found) == 0


def test_outside_fraction_counts_pixels():
    rng = np.random.default_rng(4)
    for _ in range(200):
        size = rng.integers(1, 30, 2)
        corner = rng.integers(-40, 40, 2)
        extent = rng.integers(1, 40, 2)
        xs = corner[0] + np.arange(extent[0])
        ys = corner[1] + np.arange(extent[1])
        inside = np.sum((xs >= 0) & (xs < size[0])) * np.sum((ys >= 0) & (ys < size[1]))
        center = (corner + extent / 2)[None, :]
        found = outside_fraction(center, tuple(extent.tolist()), tuple(size.tolist()))
        assert found[0] == pytest.approx(1 - inside / extent.prod(), abs=1e-9)
