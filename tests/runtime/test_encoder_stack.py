"""Backbones side by side: turned, at two scales and projected, against the same done by hand to the slide."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from stinfer.bank import Bank
from stinfer.contract import F32, U8, MapTraits, ModelCard, Pooling
from stinfer.encoder import Encoder
from stinfer.encoder_stack import EncoderStack, Member
from stinfer.errors import ModelFormatError, SettingError
from stinfer.feature_map import SlideCells
from stinfer.flat_source import FlatSource
from stinfer.slide import Slide

DATA = Path(__file__).parents[1] / "data"
CELL_PX = 4
# Sides of what a cell of `leaning_cells` sees, and where it begins from the cell's own corner, put right by
# the offset: its middle, (4, -1) from that corner, goes to the cell's, (2, 2).
SEEN_PX = {"x": (8, -2), "y": (10, -3)}


def opened(model: bytes, pooling: Pooling = "map") -> Encoder:
    return Encoder(model, "m.onnx", pooling=pooling, device="cpu", threads=1)


@pytest.fixture(scope="module")
def leaning() -> Encoder:
    return opened((DATA / "leaning_cells.onnx").read_bytes())


@pytest.fixture(scope="module")
def leaning_patch() -> Encoder:
    return opened((DATA / "leaning_cells.onnx").read_bytes(), "patch")


@pytest.fixture(scope="module")
def mean() -> Encoder:
    return opened(Bank.open(DATA / "board_map.h5").models()[0])


@pytest.fixture(scope="module")
def mean_patch() -> Encoder:
    return opened(Bank.open(DATA / "board_map.h5").models()[0], "patch")


@pytest.fixture(scope="module")
def headed() -> Encoder:
    return opened((DATA / "max_color.onnx").read_bytes())


def noise(height: int, width: int, seed: int = 0) -> U8:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def map_of(pixels: U8, members: Sequence[Member], region_px: int | None = None) -> F32:
    """Encode all cells of a slide that is read at its own scale."""
    slide = Slide(Path("slide.svs"), FlatSource(Image.fromarray(pixels)), (0.5, 0.5), "test", "pillow")
    source = SlideCells(slide, EncoderStack(members, "map"), 0.5, region_px=region_px)
    needed = np.ones((source.lattice.n_rows, source.lattice.n_columns), dtype=bool)
    return np.concatenate([band.features for band in source.iter_bands(needed, None)])


def leaning_by_hand(pixels: U8) -> F32:
    """Weigh green by its column and red by its row in what each cell sees; white beyond the slide."""
    (width, left), (height, top) = SEEN_PX["x"], SEEN_PX["y"]
    n_rows, n_columns = (-(-side // CELL_PX) for side in pixels.shape[:2])
    padded = np.full((CELL_PX * n_rows + 32, CELL_PX * n_columns + 32, 3), 255.0)
    padded[16 : 16 + pixels.shape[0], 16 : 16 + pixels.shape[1]] = pixels
    cells = np.empty((n_rows, n_columns, 2))
    for row, column in itertools.product(range(n_rows), range(n_columns)):
        y, x = 16 + CELL_PX * row + top, 16 + CELL_PX * column + left
        seen = padded[y : y + height, x : x + width]
        cells[row, column, 0] = np.average(seen[..., 1].mean(axis=0), weights=np.arange(1, width + 1))
        cells[row, column, 1] = np.average(seen[..., 0].mean(axis=1), weights=np.arange(1, height + 1))
    return cells.astype(np.float32)


def means_by_hand(pixels: U8) -> F32:
    height, width = pixels.shape[:2]
    return pixels.reshape(height // CELL_PX, CELL_PX, width // CELL_PX, CELL_PX, 3).mean(axis=(1, 3))


def turned_slides(pixels: U8, n: int) -> list[F32]:
    """Turn the slide in every way there is, encode each, and turn the maps back."""
    found = []
    for quarter, mirrored in itertools.product(range(4), (False, True)):
        if n == 4 and quarter % 2:
            continue  # those that exchange the axes
        turned = np.rot90(np.fliplr(pixels) if mirrored else pixels, quarter)
        cells = np.rot90(leaning_by_hand(turned), -quarter)
        found.append(np.fliplr(cells) if mirrored else cells)
    return found


def half_scale(pixels: U8) -> U8:
    """Average 2 x 2 pixels, halves up."""
    height, width = pixels.shape[:2]
    total = pixels.reshape(height // 2, 2, width // 2, 2, 3).astype(int).sum(axis=(1, 3))
    return ((total + 2) // 4).astype(np.uint8)


def doubled(cells: F32) -> F32:
    return np.repeat(np.repeat(cells, 2, axis=0), 2, axis=1)


# --- orientations ---------------------------------------------------------------------------------


def test_one_orientation_is_the_slide_as_it_is(leaning: Encoder) -> None:
    pixels = noise(56, 76)
    stack = EncoderStack([Member(leaning)], "map")
    # Read where it sees best, so that its own halo is all.
    assert (stack.offset_px, stack.halo_cells) == ((2.0, -3.0), 2)
    np.testing.assert_allclose(map_of(pixels, [Member(leaning)]), leaning_by_hand(pixels), rtol=1e-5)


@pytest.mark.parametrize("region_px", [8, 20, 4000])
@pytest.mark.parametrize("n", [4, 8])
def test_orientations_are_the_mean_of_turned_slides(leaning: Encoder, n: int, region_px: int) -> None:
    pixels = noise(56, 76)
    stack = EncoderStack([Member(leaning, orientations=n)], "map")
    # What is seen lies up to 3 px to any side: a cell more than the two of the halo.
    assert (stack.offset_px, stack.halo_cells) == ((0.0, 0.0), 3)
    turned = turned_slides(pixels, n)
    assert len(turned) == n
    # Every view counts: with any one of them left out the mean is another.
    assert min(np.abs(one - np.mean(turned, axis=0)).max() for one in turned) > 20
    found = map_of(pixels, [Member(leaning, orientations=n)], region_px)
    np.testing.assert_allclose(found, np.mean(turned, axis=0), rtol=1e-5)


def test_a_slide_of_odd_sides_is_white_beyond_its_edge_in_every_orientation(leaning: Encoder) -> None:
    pixels = noise(53, 74)
    whole = np.full((56, 76, 3), 255, dtype=np.uint8)
    whole[:53, :74] = pixels
    found = map_of(pixels, [Member(leaning, orientations=8)], 20)
    np.testing.assert_allclose(found, np.mean(turned_slides(whole, 8), axis=0), rtol=1e-5)


def test_a_patch_is_seen_in_every_orientation(leaning_patch: Encoder) -> None:
    patches = noise(24, 12).reshape(2, 12, 12, 3)
    turned = [patches, patches[:, ::-1], patches[:, :, ::-1], patches[:, ::-1, ::-1]]
    for n in (4, 8):
        views = turned if n == 4 else [*turned, *(view.transpose(0, 2, 1, 3) for view in turned)]
        expected = np.mean([leaning_patch.embed(np.ascontiguousarray(view)) for view in views], axis=0)
        found = EncoderStack([Member(leaning_patch, orientations=n)], "patch").embed([patches])
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert np.abs(found - leaning_patch.embed(patches)).max() > 0.1


# --- scales ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("region_px", [8, 20, 36, 4000])
@pytest.mark.parametrize("n", [1, 8])
def test_a_reduced_member_gives_the_cells_of_a_picture_of_half_the_scale(
    leaning: Encoder, n: int, region_px: int
) -> None:
    # 15 x 19 cells: the last coarse ones reach beyond the lattice.
    pixels = noise(60, 76)
    whole = np.full((64, 80, 3), 255, dtype=np.uint8)
    whole[:60, :76] = pixels
    coarse = half_scale(whole)
    expected = leaning_by_hand(coarse) if n == 1 else np.mean(turned_slides(coarse, n), axis=0)
    found = map_of(pixels, [Member(leaning, orientations=n, reduction=2)], region_px)
    np.testing.assert_allclose(found, doubled(expected)[:15, :19], rtol=1e-5)


def test_a_reduced_members_regions_begin_at_its_own_cells(leaning: Encoder) -> None:
    pixels = noise(64, 80)
    members = [Member(leaning, reduction=2)]
    slide = Slide(Path("slide.svs"), FlatSource(Image.fromarray(pixels)), (0.5, 0.5), "test", "pillow")
    stack = EncoderStack(members, "map")
    # Its own halo of 2 is 4 cells of the map; at (2, -3) it is read, and (4, -6) px from there it sees.
    assert (stack.step_cells, stack.halo_cells, stack.offset_px) == (2, 6, (2.0, -3.0))
    needed = np.zeros((16, 20), dtype=bool)
    needed[5, 7] = needed[13, 15] = True
    found = {}
    for band in SlideCells(slide, stack, 0.5, region_px=8).iter_bands(needed, None):
        for row in range(len(band.features)):
            found[band.first_row + row] = band.features[row]
    expected = doubled(leaning_by_hand(half_scale(pixels)))
    np.testing.assert_allclose(found[5][7], expected[5, 7], rtol=1e-5)
    np.testing.assert_allclose(found[13][15], expected[13, 15], rtol=1e-5)


def test_halves_are_rounded_up(mean: Encoder) -> None:
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[0, 0] = (1, 2, 3)  # of which a square of 2 x 2 has a quarter: 0.25, 0.5 and 0.75
    # One px of 16 that is not 0.
    expected = np.broadcast_to(np.array([0, 1, 1]) / 16, (2, 2, 3))
    np.testing.assert_allclose(map_of(pixels, [Member(mean, reduction=2)]), expected)


# --- side by side ---------------------------------------------------------------------------------


@pytest.mark.parametrize("region_px", [8, 36, 4000])
def test_members_lie_side_by_side_each_where_it_sees(leaning: Encoder, mean: Encoder, region_px: int) -> None:
    pixels = noise(64, 80)
    one, other = leaning_by_hand(pixels), means_by_hand(pixels)
    found = map_of(pixels, [Member(leaning), Member(mean)], region_px)
    np.testing.assert_allclose(found, np.concatenate([one, other], axis=2), rtol=1e-5)
    # The other first: it is read there, and the leaning one beside it.
    found = map_of(pixels, [Member(mean), Member(leaning)], region_px)
    np.testing.assert_allclose(found, np.concatenate([other, one], axis=2), rtol=1e-5)


@pytest.mark.parametrize("region_px", [12, 4000])
def test_three_members_of_other_orientations_and_scales(
    leaning: Encoder, mean: Encoder, region_px: int
) -> None:
    pixels = noise(64, 80)
    members = [Member(mean), Member(leaning, orientations=4), Member(leaning, reduction=2)]
    stack = EncoderStack(members, "map")
    assert (stack.n_channels, stack.widths, stack.step_cells) == (7, (3, 2, 2), 2)
    assert stack.name == "mean_cells+leaning_cells+leaning_cells"
    parts = [
        means_by_hand(pixels),
        np.mean(turned_slides(pixels, 4), axis=0),
        doubled(leaning_by_hand(half_scale(pixels))),
    ]
    np.testing.assert_allclose(map_of(pixels, members, region_px), np.concatenate(parts, axis=2), rtol=1e-5)


def test_patches_of_each_members_own_size_become_one_embedding(
    leaning_patch: Encoder, mean_patch: Encoder
) -> None:
    large, small = noise(12, 12)[np.newaxis], noise(8, 8)[np.newaxis]
    stack = EncoderStack([Member(leaning_patch), Member(mean_patch)], "patch")
    assert stack.widths == (2, 3)
    found = stack.embed([large, small])
    np.testing.assert_allclose(found[:, :2], leaning_patch.embed(large))
    np.testing.assert_allclose(found[0, 2:], small[0].mean(axis=(0, 1)), rtol=1e-6)


def test_each_member_turns_its_own_part_of_the_means(mean: Encoder, headed: Encoder) -> None:
    projection = np.array([[1, 0], [0, 2], [0, 0]], dtype=np.float32)
    stack = EncoderStack([Member(headed), Member(mean), Member(mean, projection=projection)], "map")
    # The head's largest of 3 channels; all 3; 2 that are projected already.
    assert (stack.n_channels, stack.widths) == (8, (1, 3, 2))
    means = np.array([[1, 9, 2, 30, 10, 20, 7, 8], [5, 4, 6, 1, 2, 3, 0, -1]], dtype=np.float32)
    expected = [[9, 30, 10, 20, 7, 8], [6, 1, 2, 3, 0, -1]]
    np.testing.assert_array_equal(stack.from_means(means), expected)


# --- projection -----------------------------------------------------------------------------------


def test_cells_and_patches_are_projected(leaning: Encoder, leaning_patch: Encoder) -> None:
    pixels = noise(64, 80)
    projection = np.array([[1, 0.5, -1], [0, 2, 1]], dtype=np.float32)
    member = Member(leaning, orientations=4, projection=projection)
    of_patches = replace(member, encoder=leaning_patch)
    assert EncoderStack([member], "map").widths == EncoderStack([of_patches], "patch").widths == (3,)
    expected = np.mean(turned_slides(pixels, 4), axis=0) @ projection
    np.testing.assert_allclose(map_of(pixels, [member], 20), expected, rtol=1e-4, atol=1e-3)
    patches = noise(12, 12)[np.newaxis]
    whole = EncoderStack([Member(leaning_patch, orientations=4)], "patch").embed([patches])
    found = EncoderStack([of_patches], "patch").embed([patches])
    np.testing.assert_allclose(found, whole @ projection, rtol=1e-5)


def test_a_projection_that_overflows_is_told(mean: Encoder) -> None:
    projection = np.full((3, 1), 3e38, dtype=np.float32)
    with pytest.raises(ModelFormatError, match="its projected map is not finite"):
        map_of(noise(8, 8), [Member(mean, projection=projection)])


# --- refusals -------------------------------------------------------------------------------------


def card_only(backbone: str, stride: int) -> SimpleNamespace:
    traits = MapTraits(0, (0.0, 0.0))
    return SimpleNamespace(card=ModelCard(backbone, 8, 3, 3, stride, "", "fp32", (), traits, ""))


def test_backbones_of_other_strides_do_not_lie_on_one_map() -> None:
    members = [Member(card_only("fine", 16)), Member(card_only("coarse", 32))]
    with pytest.raises(SettingError) as caught:
        EncoderStack(members, "map")
    assert caught.value.what == "coarse has cells of 32 px, and fine of 16: they do not lie on one map"
    assert EncoderStack(members, "patch").widths == (3, 3)


def test_a_projection_before_a_head_is_refused(mean: Encoder, headed: Encoder) -> None:
    projected = Member(headed, projection=np.ones((3, 2), dtype=np.float32))
    with pytest.raises(SettingError, match="projection before pooling is not possible with max_color"):
        EncoderStack([Member(mean), projected], "map")


def test_a_backbone_without_a_map_is_refused_beside_one_that_has_it(mean: Encoder) -> None:
    patches = opened(Bank.open(DATA / "board.h5").models()[0])
    for members in ([Member(patches)], [Member(mean), Member(patches)]):
        with pytest.raises(SettingError, match="mean_color cannot encode a slide as a map: its model file"):
            EncoderStack(members, "map")
