"""Means over windows: numbers to check by hand, brute force, and any cut of the map into bands."""

from __future__ import annotations

import numpy as np
import pytest

from stinfer.contract import F32, F64, I64, WindowShape
from stinfer.windows import BATCH_PLACES, WindowPooler, disc_coverage, interval_overlap

SIDES = (1.5, 4.0, 9.3)


def pool(
    features: F32,
    weights: F32,
    centers: F64,
    sides: tuple[float, ...] = SIDES,
    shape: WindowShape = "square",
    cuts: tuple[int, ...] = (),
    skipped: tuple[int, ...] = (),
) -> F32:
    """Means of all places; `cuts` begin bands, of which those numbered in `skipped` are not fed."""
    n_rows, n_columns = weights.shape
    pooler = WindowPooler(centers, sides, shape, n_columns, n_rows)
    means = np.full((len(centers), len(sides), features.shape[2]), np.nan, dtype=np.float32)
    seen = np.zeros(len(centers), dtype=np.int64)
    starts = (0, *cuts)
    for number, (start, stop) in enumerate(zip(starts, (*cuts, n_rows), strict=True)):
        if number not in skipped:
            for places, values in pooler.feed(start, features[start:stop], weights[start:stop]):
                means[places] = values
                seen[places] += 1
    for places, values in pooler.finish():
        means[places] = values
        seen[places] += 1
    np.testing.assert_array_equal(seen, 1)
    return means


def brute_squares(features: F32, weights: F32, center: F64, side: float) -> F64:
    low, high = center - side / 2, center + side / 2
    total, weight = np.zeros(features.shape[2]), 0.0
    for row in range(weights.shape[0]):
        for column in range(weights.shape[1]):
            width = max(min(high[0], column + 1) - max(low[0], column), 0.0)
            height = max(min(high[1], row + 1) - max(low[1], row), 0.0)
            share = width * height * float(weights[row, column])
            total += share * features[row, column].astype(np.float64)
            weight += share
    return total / weight if weight else total


def sampled_disc(center: tuple[float, float], radius: float, n_cells: int, n_samples: int) -> F64:
    at = (np.arange(n_cells * n_samples) + 0.5) / n_samples
    inside = (at - center[0]) ** 2 + (at[:, None] - center[1]) ** 2 < radius**2
    cells: F64 = inside.reshape(n_cells, n_samples, n_cells, n_samples).mean(axis=(1, 3))
    return cells


def random_map(n_rows: int, n_columns: int, n_channels: int, seed: int = 0) -> tuple[F32, F32]:
    random = np.random.default_rng(seed)
    features = random.normal(size=(n_rows, n_columns, n_channels)).astype(np.float32)
    weights = random.random((n_rows, n_columns), dtype=np.float32)
    weights[random.random((n_rows, n_columns)) < 0.2] = 0.0
    return features, weights


def random_places(n: int, n_rows: int, n_columns: int, seed: int = 1) -> F64:
    """Fractional places, some beyond the border, some on a common y."""
    places = np.random.default_rng(seed).uniform(-1.0, 1.0, (n, 2))
    places = (places + 1) / 2 * [n_columns + 2, n_rows + 2] - 1
    places[: n // 2, 1] = np.round(places[: n // 2, 1] / 3) * 3 + 0.125
    return places


# 0 1 2 3 / 4 5 6 7 / 8 9 10 11 / 12 13 14 15
FOUR: F32 = np.arange(16, dtype=np.float32).reshape(4, 4, 1)
ONES: F32 = np.ones((4, 4), dtype=np.float32)


def test_overlap_of_an_interval_with_cells() -> None:
    overlap = interval_overlap(np.array([0.25, 2.0]), np.array([2.5, 2.5]), np.arange(4))
    np.testing.assert_array_equal(overlap, [[0.75, 1.0, 0.5, 0.0], [0.0, 0.0, 0.5, 0.0]])


def test_a_window_on_cell_borders_is_the_mean_of_its_cells() -> None:
    means = pool(FOUR, ONES, np.array([[1.0, 1.0], [2.0, 2.0]]), (2.0, 4.0))
    assert means[0, 0, 0] == (0 + 1 + 4 + 5) / 4
    assert means[1, 0, 0] == (5 + 6 + 9 + 10) / 4
    assert means[1, 1, 0] == 7.5


def test_a_window_between_cells_takes_parts_of_them() -> None:
    # x from 0.25 to 2.25 takes 0.75, 1 and 0.25 of columns 0, 1, 2; y from 1.5 to 3.5 takes 0.5, 1, 0.5.
    means = pool(FOUR, ONES, np.array([[1.25, 2.5]]), (2.0,))
    column = (0.75 * 0 + 1 * 1 + 0.25 * 2) / 2
    row = (0.5 * 1 + 1 * 2 + 0.5 * 3) / 2
    assert means[0, 0, 0] == 4 * row + column


def test_a_cell_without_weight_does_not_count_whatever_it_holds() -> None:
    weights = ONES.copy()
    weights[:, 1] = 0.0
    features = FOUR.copy()
    features[:, 1] = [[np.nan], [np.inf], [-np.inf], [1e30]]
    centers = np.array([[1.0, 1.0], [1.5, 1.0]])
    means = pool(features, weights, centers, (2.0,))
    assert means[0, 0, 0] == (0 + 4) / 2
    # Columns 0 and 2 by half each.
    assert means[1, 0, 0] == (0 + 4 + 2 + 6) / 4


def test_half_a_weight_counts_half() -> None:
    weights = ONES.copy()
    weights[0, 0] = 0.5
    # y from -0.5 to 1.5: all of row 0, half of row 1.
    mean = pool(FOUR, weights, np.array([[1.0, 0.5]]), (2.0,))[0, 0, 0]
    assert mean == np.float32((0.5 * 0 + 1 * 1 + 0.5 * 4 + 0.5 * 5) / (0.5 + 1 + 0.5 + 0.5))


@pytest.mark.parametrize("shape", ["square", "disc"])
def test_what_lies_beyond_the_lattice_does_not_count(shape: WindowShape) -> None:
    centers = np.array([[0.0, 0.0], [4.25, 4.25], [2.0, 2.0], [9.0, 9.0], [-9.0, 2.0], [2.0, -9.0]])
    means = pool(FOUR, ONES, centers, (1.0, 100.0), shape)[..., 0]
    np.testing.assert_allclose(means[:3], [[0.0, 7.5], [15.0, 7.5], [7.5, 7.5]], rtol=1e-6)
    np.testing.assert_array_equal(means[3:, 0], 0.0)
    np.testing.assert_allclose(means[3:, 1], 7.5, rtol=1e-6)


def test_a_disc_on_a_corner_covers_four_quarters() -> None:
    area = disc_coverage(np.array([2.0, 2.0]), 1.0, range(4), range(4))
    quarter = np.zeros((4, 4))
    quarter[1:3, 1:3] = np.pi / 4
    np.testing.assert_allclose(area, quarter, rtol=1e-14)
    assert pool(FOUR, ONES, np.array([[2.0, 2.0]]), (2.0,), "disc")[0, 0, 0] == 7.5


def test_a_disc_within_a_cell_covers_its_own_area() -> None:
    area = disc_coverage(np.array([1.5, 0.5]), 0.25, range(2), range(3))
    np.testing.assert_allclose(area, np.array([[0.0, np.pi / 16, 0.0], [0.0, 0.0, 0.0]]), rtol=1e-14)


@pytest.mark.parametrize("radius", [0.3, 1.0, 7.0, 14.2, 80.0])
def test_a_disc_has_its_area(radius: float) -> None:
    centers = np.random.default_rng(2).random((4, 2))
    cells = range(-int(radius) - 2, int(radius) + 4)
    area = disc_coverage(centers, radius, cells, cells)
    np.testing.assert_allclose(area.sum(axis=(1, 2)), np.pi * radius**2, rtol=0, atol=1e-10)
    assert area.min() == 0.0
    assert area.max() < 1 + 1e-9


def test_a_disc_covers_what_samples_of_it_cover() -> None:
    for center, radius in (((2.3, 1.6), 1.4), ((0.1, 3.9), 2.6), ((2.0, 2.5), 0.5)):
        exact = disc_coverage(np.array(center), radius, range(4), range(4))
        np.testing.assert_allclose(exact, sampled_disc(center, radius, 4, 1000), atol=2e-4)


def test_cells_out_of_a_discs_reach_weigh_nothing_at_all() -> None:
    area = disc_coverage(np.array([50.37, 50.71]), 31.9, range(101), range(101))
    near = np.clip([[50.37], [50.71]], np.arange(101), np.arange(1, 102))
    out = np.hypot(near[0] - 50.37, (near[1] - 50.71)[:, None]) > 31.9
    np.testing.assert_array_equal(area[out], 0.0)


def test_squares_equal_brute_force() -> None:
    features, weights = random_map(17, 23, 5)
    centers = random_places(40, 17, 23)
    means = pool(features, weights, centers, cuts=(3, 4, 11))
    for place, center in enumerate(centers):
        for window, side in enumerate(SIDES):
            expected = brute_squares(features, weights, center, side)
            np.testing.assert_allclose(means[place, window], expected, rtol=1e-6, atol=5e-7)


def test_discs_equal_brute_force() -> None:
    features, weights = random_map(17, 23, 5)
    centers = random_places(40, 17, 23)
    means = pool(features, weights, centers, shape="disc", cuts=(3, 4, 11))
    for place, center in enumerate(centers):
        for window, side in enumerate(SIDES):
            area = disc_coverage(center, side / 2, range(17), range(23)) * weights
            total = np.einsum("rc,rck->k", area, features.astype(np.float64))
            expected = total / area.sum() if area.any() else total
            np.testing.assert_allclose(means[place, window], expected, rtol=1e-6, atol=5e-7)


@pytest.mark.parametrize("shape", ["square", "disc"])
def test_windows_of_hundreds_of_cells_stay_exact(shape: WindowShape) -> None:
    random = np.random.default_rng(4)
    features = (100 + random.random((300, 310, 2))).astype(np.float32)
    weights = random.random((300, 310), dtype=np.float32)
    center, side = np.array([150.3, 140.7]), 260.6
    if shape == "square":
        rows, columns = (
            interval_overlap(center[at] - side / 2, center[at] + side / 2, np.arange(n))
            for at, n in ((1, 300), (0, 310))
        )
        area = rows[:, None] * columns * weights
    else:
        area = disc_coverage(center, side / 2, range(300), range(310)) * weights
    expected = np.einsum("rc,rck->k", area, features.astype(np.float64)) / area.sum()
    means = pool(features, weights, center[None], (side,), shape, cuts=(120,))
    np.testing.assert_allclose(means[0, 0], expected, rtol=3e-7)


@pytest.mark.parametrize("shape", ["square", "disc"])
@pytest.mark.parametrize("sides", [SIDES, (5.2,)])
def test_bands_do_not_change_a_bit(shape: WindowShape, sides: tuple[float, ...]) -> None:
    features, weights = random_map(40, 53, 7)
    places = random_places(300, 40, 53)
    whole = pool(features, weights, places, sides, shape)
    for cuts in (tuple(range(1, 40)), (1, 2, 39), (17,), (8, 16, 24, 32)):
        assert pool(features, weights, places, sides, shape, cuts).tobytes() == whole.tobytes()


@pytest.mark.parametrize("shape", ["square", "disc"])
def test_other_places_change_rounding_at_most(shape: WindowShape) -> None:
    features, weights = random_map(20, 30, 3)
    places = random_places(60, 20, 30)
    together = pool(features, weights, places, shape=shape)
    for place in range(0, 60, 7):
        alone = pool(features, weights, places[place : place + 1], shape=shape)
        np.testing.assert_allclose(alone[0], together[place], rtol=1e-6, atol=3e-7)


@pytest.mark.parametrize("shape", ["square", "disc"])
def test_rows_that_never_come_weigh_nothing(shape: WindowShape) -> None:
    features, weights = random_map(30, 12, 3)
    places = random_places(50, 30, 12)
    empty = weights.copy()
    empty[:2] = empty[7:15] = empty[25:] = 0.0
    expected = pool(features, empty, places, shape=shape)
    got = pool(features, weights, places, shape=shape, cuts=(2, 7, 15, 25), skipped=(0, 2, 4))
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=3e-7)


def test_a_place_comes_with_the_band_that_completes_it_and_rows_go() -> None:
    features, weights = np.ones((100, 4, 2), dtype=np.float32), np.ones((100, 4), dtype=np.float32)
    # Windows of 6 cells reach down to 8, 20.5, 20 and 103.
    pooler = WindowPooler(np.array([[2, 5], [1, 17.5], [2, 17], [2, 100]]), (2.0, 6.0), "square", 4, 100)
    came: dict[int, list[int]] = {}
    held = []
    for first in range(0, 90, 10):
        batches = list(pooler.feed(first, features[first : first + 10], weights[first : first + 10]))
        came[first] = [int(place) for places, _ in batches for place in places]
        held.append(len(pooler._held_rows))
    assert came.pop(0) == [0]
    assert came.pop(10) == [2]
    assert came.pop(20) == [1]
    assert not any(came.values())
    # Rows 14 to 19 wait for the place at 17.5; the last place needs none above 97.
    assert held == [0, 6, 0, 0, 0, 0, 0, 0, 0]
    assert [places.tolist() for places, _ in pooler.finish()] == [[3]]


def test_a_batch_that_is_not_taken_comes_later() -> None:
    pooler = WindowPooler(np.array([[1.0, 1.0], [2.0, 3.0]]), (2.0,), "square", 4, 4)
    pooler.feed(0, FOUR[:3], ONES[:3])
    batches = list(pooler.feed(3, FOUR[3:], ONES[3:]))
    assert [places.tolist() for places, _ in batches] == [[0, 1]]
    np.testing.assert_array_equal(batches[0][1][:, 0, 0], [2.5, (9 + 10 + 13 + 14) / 4])


def test_batches_are_bounded_and_hold_every_place_once() -> None:
    x, y = np.meshgrid(np.linspace(0, 9, 1500), [1.0, 2.5, 2.5000001])
    centers = np.stack([x, y], axis=-1).reshape(-1, 2)
    features, weights = random_map(4, 9, 1)
    pooler = WindowPooler(centers, (1.0,), "square", 9, 4)
    batches: list[I64] = [places for places, _ in pooler.feed(0, features, weights)]
    assert max(len(places) for places in batches) <= BATCH_PLACES
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(4500))
    assert list(pooler.finish()) == []


def test_no_places_need_nothing() -> None:
    pooler = WindowPooler(np.empty((0, 2)), (2.0,), "disc", 4, 4)
    assert list(pooler.feed(0, FOUR, ONES)) == []
    assert list(pooler.finish()) == []


def test_what_is_not_a_map_in_order_is_refused() -> None:
    pooler = WindowPooler(np.array([[1.0, 1.0]]), (2.0,), "square", 4, 4)
    with pytest.raises(ValueError, match="no band was fed"):
        pooler.finish()
    with pytest.raises(ValueError, match="cells has features"):
        pooler.feed(0, FOUR[:, :3], ONES[:, :3])
    list(pooler.feed(0, FOUR[:2], ONES[:2]))
    with pytest.raises(ValueError, match="rows 1 to 3 do not lie between 2 and 4"):
        pooler.feed(1, FOUR[1:3], ONES[1:3])
    with pytest.raises(ValueError, match="rows 2 to 6 do not lie between 2 and 4"):
        pooler.feed(2, FOUR, ONES)
    for sides in ((), (1.0, 0.0), (float("nan"),)):
        with pytest.raises(ValueError, match="sides above 0"):
            WindowPooler(np.zeros((1, 2)), sides, "square", 4, 4)
    with pytest.raises(ValueError, match="finite centres"):
        WindowPooler(np.array([[0.0, np.inf]]), (1.0,), "square", 4, 4)


@pytest.mark.parametrize("shape", ["square", "disc"])
def test_a_window_beyond_the_lattice_weighs_nothing(shape):
    centers = np.array([[2.0, -9.0], [2.0, 2.0], [40.0, 2.0], [2.0, 30.0]])
    pooler = WindowPooler(centers, (2.0,), shape, n_columns=5, n_rows=5)
    ones = np.ones((5, 5), dtype=np.float32)
    means = np.empty((4, 1, 1))
    for places, found in (*pooler.feed(0, ones[..., np.newaxis], ones), *pooler.finish()):
        means[places] = found
    np.testing.assert_allclose(means[:, 0, 0], [0, 1, 0, 0], atol=1e-6)
