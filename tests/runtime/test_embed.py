"""From cells to embeddings: which cells a place needs, how they are weighed, that others do not matter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stinfer.bank import Bank
from stinfer.contract import F32, F64
from stinfer.embed import FieldOfView, iter_map_embeddings, iter_patch_embeddings, open_encoders
from stinfer.encoder import Encoder
from stinfer.encoder_stack import EncoderStack, Member
from stinfer.feature_map import Band, Progress, plan_windows
from stinfer.lattice import Lattice
from stinfer.slide import open_slide

DATA = Path(__file__).parents[1] / "data"


class Cells:
    """A map that is there already, given in bands of two rows; those that nobody needs are left out."""

    def __init__(self, features: F32) -> None:
        self.features = features
        self.lattice = Lattice(10.0, *features.shape[:2])

    def iter_bands(self, needed: np.ndarray, progress: Progress | None) -> Iterator[Band]:
        del progress
        for first in range(0, len(needed), 2):
            rows = slice(first, first + 2)
            if needed[rows].any():
                # What was not asked for may hold anything.
                yield Band(first, np.where(needed[rows][..., None], self.features[rows], np.float32(1e9)))


@pytest.fixture(scope="module")
def encoders() -> EncoderStack:
    return open_encoders(Bank.open(DATA / "board_map.h5"), device="cpu", threads=1)


def embed(
    encoders: EncoderStack,
    features: F32,
    tissue: F32,
    centers: F64,
    sides: tuple[float, ...],
    shape: str = "square",
) -> F32:
    plan = plan_windows(centers, sides, shape, tissue)
    found: list[np.ndarray | None] = [None] * len(centers)
    for places, values in iter_map_embeddings(Cells(features), plan, plan.needed, encoders, None):
        for place, value in zip(places, values, strict=True):
            assert found[place] is None
            found[place] = value
    return np.stack(found)


def random_map(seed: int = 0) -> tuple[F32, F32]:
    random = np.random.default_rng(seed)
    features = random.normal(size=(24, 31, 3)).astype(np.float32)
    tissue = random.random((24, 31), dtype=np.float32)
    tissue[random.random(tissue.shape) < 0.4] = 0.0
    tissue[:, :9] = 0.0  # glass
    return features, tissue


# --- which windows are averaged with no regard to tissue ------------------------------------------


def test_a_place_with_a_twentieth_of_tissue_goes_by_tissue_and_one_with_less_by_area() -> None:
    tissue = np.zeros((8, 20), dtype=np.float32)
    tissue[2, 2], tissue[2, 7], tissue[2, 12] = 0.81, 0.79, 1.0
    # Windows of 4 x 4 cells: 0.81 / 16 is 5.1 %, 0.79 / 16 is 4.9 %, none, and half of a cell in a window
    # of which a quarter lies on the lattice: 1 / 8 of what there is.
    centers = np.array([[3.0, 3.0], [8.0, 3.0], [17.0, 3.0]])
    plan = plan_windows(centers, (4.0, 8.0), "square", tissue)
    assert plan.by_area.tolist() == [False, True, True]


def test_the_share_of_tissue_is_that_of_what_lies_on_the_slide() -> None:
    tissue = np.zeros((8, 8), dtype=np.float32)
    tissue[0, 0] = 0.21
    # Three quarters of a window on the corner lie off the lattice: 0.21 / 4 cells are 5.25 %.
    assert plan_windows(np.array([[0.0, 0.0]]), (4.0,), "square", tissue).by_area.tolist() == [False]
    tissue[0, 0] = 0.19
    assert plan_windows(np.array([[0.0, 0.0]]), (4.0,), "square", tissue).by_area.tolist() == [True]


def test_the_smallest_window_decides() -> None:
    tissue = np.zeros((10, 10), dtype=np.float32)
    tissue[:, 7:] = 1.0
    centers = np.array([[4.0, 5.0]])
    assert plan_windows(centers, (4.0, 8.0), "square", tissue).by_area.tolist() == [True]
    assert plan_windows(centers, (8.0,), "square", tissue).by_area.tolist() == [False]


def test_needed_is_tissue_under_the_largest_window_or_all_of_it() -> None:
    tissue = np.zeros((6, 12), dtype=np.float32)
    tissue[2, 1:4] = 1.0
    plan = plan_windows(np.array([[2.5, 2.5], [9.0, 4.0]]), (1.0, 3.0), "square", tissue)
    expected = np.zeros((6, 12), dtype=bool)
    expected[2, 1:4] = True  # of the first place, tissue alone
    expected[2:6, 7:11] = True  # of the second all that its square from (7.5, 2.5) to (10.5, 5.5) touches
    np.testing.assert_array_equal(plan.needed, expected)


# --- embeddings -----------------------------------------------------------------------------------


def test_embeddings_by_hand(encoders: EncoderStack) -> None:
    features = np.zeros((4, 8, 3), dtype=np.float32)
    features[..., 0] = np.arange(8)  # the column
    features[..., 1] = np.arange(4)[:, None]  # the row
    features[..., 2] = 5.0
    tissue = np.zeros((4, 8), dtype=np.float32)
    tissue[0, 0], tissue[1, 1] = 1.0, 0.5
    found = embed(encoders, features, tissue, np.array([[1.0, 1.0], [6.0, 2.0]]), (2.0, 4.0))
    # The first: cell (0, 0) with weight 1 and (1, 1) with a half, in both windows; the second all 4 of its
    # smaller window, columns 5 and 6, rows 1 and 2, and all 16 of the larger, columns 4 to 7.
    third = 1 / 3
    by_hand = [[third, third, 5, third, third, 5], [5.5, 1.5, 5, 5.5, 1.5, 5]]
    np.testing.assert_allclose(found, by_hand, rtol=1e-6)


@pytest.mark.parametrize("shape", ["square", "disc"])
def test_an_embedding_does_not_change_when_other_places_come_or_go(
    encoders: EncoderStack, shape: str
) -> None:
    features, tissue = random_map()
    random = np.random.default_rng(1)
    centers = random.uniform(0, 1, (60, 2)) * [31, 24]
    together = embed(encoders, features, tissue, centers, (2.5, 7.0), shape)
    assert 0 < plan_windows(centers, (2.5, 7.0), shape, tissue).by_area.sum() < 60
    for chosen in ([0], [17, 3], list(range(0, 60, 2)), list(range(59, -1, -1))):
        some = embed(encoders, features, tissue, centers[chosen], (2.5, 7.0), shape)
        np.testing.assert_allclose(some, together[chosen], rtol=1e-5, atol=1e-6)


def test_what_lies_outside_of_its_windows_or_off_tissue_is_of_no_effect(encoders: EncoderStack) -> None:
    features, tissue = random_map()
    center = np.array([[20.3, 11.8]])
    plan = plan_windows(center, (3.0, 8.0), "square", tissue)
    changed = np.where(plan.needed[..., None], features, np.float32(-77))
    found = [embed(encoders, values, tissue, center, (3.0, 8.0)) for values in (features, changed)]
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("shape", ["square", "disc"])
def test_projecting_cells_then_averaging_is_averaging_then_projecting(
    encoders: EncoderStack, shape: str
) -> None:
    features, tissue = random_map()
    projection = np.random.default_rng(2).normal(size=(3, 2)).astype(np.float32)
    centers = np.random.default_rng(3).uniform(0, 1, (40, 2)) * [31, 24]
    means = embed(encoders, features, tissue, centers, (2.5, 7.0), shape)
    after = np.concatenate([means[:, :3] @ projection, means[:, 3:] @ projection], axis=1)
    projected = EncoderStack([Member(encoders.members[0].encoder, projection=projection)], "map")
    before = embed(projected, features @ projection, tissue, centers, (2.5, 7.0), shape)
    assert after.shape == before.shape == (40, 4)
    np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-5)


def test_every_member_gets_the_same_field_of_view_in_its_own_size() -> None:
    models = (*Bank.open(DATA / "board_map.h5").models(), (DATA / "leaning_cells.onnx").read_bytes())
    mean, leaning = (Encoder(model, "m.onnx", device="cpu", threads=1) for model in models)
    stack = EncoderStack([Member(mean), Member(leaning, orientations=4)], "patch")
    view = FieldOfView("patch", (150.0,), "square", 150 / 8)
    centers = np.random.default_rng(4).uniform(100, 260, (7, 2))
    with open_slide(DATA / "board.png", 5.0) as slide:
        found = list(iter_patch_embeddings(slide, centers, stack, view, 3, None))
        # 150 µm are 30 px of 5 µm, seen as 8 and 12 px.
        patches = {
            side: np.stack([slide.read((x - 15, y - 15), (30, 30), (side, side)) for x, y in centers])
            for side in (8, 12)
        }
    assert [places.tolist() for places, _ in found] == [[0, 1, 2], [3, 4, 5], [6]]
    values = np.concatenate([embeddings for _, embeddings in found])
    np.testing.assert_allclose(values[:, :3], patches[8].mean(axis=(1, 2)), rtol=1e-5)
    views = [patches[12][:, ::y, ::x] for y in (1, -1) for x in (1, -1)]
    turned = np.mean([leaning.embed(np.ascontiguousarray(view)) for view in views], axis=0)
    np.testing.assert_allclose(values[:, 3:], turned, rtol=1e-5)


def test_windows_in_µm_become_windows_of_cells() -> None:
    view = FieldOfView("map", (154.0, 308.0), "disc", 0.6875)
    plan = view.plan(np.array([[3.0, 3.0]]), 22.0, np.ones((6, 6), dtype=np.float32))
    assert (plan.sides, plan.shape) == ((7.0, 14.0), "disc")


def test_a_head_makes_the_embedding_of_every_window() -> None:
    encoder = Encoder((DATA / "max_color.onnx").read_bytes(), "m.onnx", pooling="map", device="cpu")
    encoders = EncoderStack([Member(encoder)], "map")
    features = np.zeros((4, 4, 3), dtype=np.float32)
    features[:2] = [10, 0, 40]
    features[2:] = [50, 0, 20]
    tissue = np.ones((4, 4), dtype=np.float32)
    found = embed(encoders, features, tissue, np.array([[2.0, 1.0], [2.0, 3.0], [2.0, 2.0]]), (2.0, 4.0))
    # The largest channel of the mean, (30, 0, 30) over all; a mean of largest channels would be 45. The
    # larger windows of the first two reach over the edge: 2 rows of one and 1 of the other.
    mixed = [(2 * 40 + 20) / 3, (2 * 50 + 10) / 3]
    np.testing.assert_allclose(found, [[40, mixed[0]], [50, mixed[1]], [30, 30]], rtol=1e-6)


def test_windows_follow_each_other_and_in_each_the_members(encoders: EncoderStack) -> None:
    headed = Encoder((DATA / "max_color.onnx").read_bytes(), "m.onnx", pooling="map", device="cpu")
    two = EncoderStack([Member(headed), *encoders.members], "map")
    features = np.zeros((4, 4, 6), dtype=np.float32)
    features[:2] = [10, 0, 40, 1, 2, 3]
    features[2:] = [50, 0, 20, 3, 2, 1]
    tissue = np.ones((4, 4), dtype=np.float32)
    found = embed(two, features, tissue, np.array([[2.0, 1.0], [2.0, 2.0]]), (2.0, 4.0))
    # The first: rows 0 and 1; then those and row 2, the window's fourth lying beyond the slide.
    first = [40, 1, 2, 3, (2 * 40 + 20) / 3, 5 / 3, 2, 7 / 3]
    np.testing.assert_allclose(found, [first, [30, 2, 2, 2, 30, 2, 2, 2]], rtol=1e-6)
