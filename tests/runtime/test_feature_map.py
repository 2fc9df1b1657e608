"""Cells of a slide: the exact mean colour of what they cover, wherever they lie and however they are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stinfer.bank import Bank
from stinfer.contract import F32, U8, MapTraits, ModelCard
from stinfer.encoder import Encoder
from stinfer.encoder_stack import EncoderStack, Member
from stinfer.errors import SettingError
from stinfer.feature_map import SlideCells, kept_px
from stinfer.flat_source import FlatSource
from stinfer.lattice import cells_under, lay_lattice
from stinfer.slide import Slide

DATA = Path(__file__).parents[1] / "data"
# Its cells are the mean R, G and B of 4 x 4 pixels.
MODEL = Bank.open(DATA / "board_map.h5").models()[0]
CELL_PX = 4


@pytest.fixture(scope="module")
def encoders() -> EncoderStack:
    return stack(Encoder(MODEL, "m.onnx", pooling="map", device="cpu", threads=1))


def stack(encoder: Encoder | FakeEncoder, projection: F32 | None = None) -> EncoderStack:
    return EncoderStack([Member(encoder, projection=projection)], "map")


def slide_of(pixels: U8, mpp: tuple[float, float]) -> Slide:
    return Slide(Path("slide.svs"), FlatSource(Image.fromarray(pixels)), mpp, "test", "pillow")


def noise(height: int, width: int, seed: int = 0) -> U8:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def cells_of(source: SlideCells, needed: np.ndarray | None = None) -> F32:
    """All cells of a map; what no band gives is not a number."""
    shape = (source.lattice.n_rows, source.lattice.n_columns)
    needed = np.ones(shape, dtype=bool) if needed is None else needed
    found: np.ndarray | None = None
    for band in source.iter_bands(needed, None):
        if found is None:
            found = np.full((*shape, band.features.shape[2]), np.nan, dtype=np.float32)
        rows = slice(band.first_row, band.first_row + len(band.features))
        assert np.isnan(found[rows]).all()  # no row comes twice
        found[rows] = band.features
    assert found is not None
    return found


def block_means(pixels: U8, side: int) -> F32:
    """Mean colour of squares; what lies beyond the slide is white."""
    height, width = (-(-length // side) * side for length in pixels.shape[:2])
    padded = np.full((height, width, 3), 255.0)
    padded[: pixels.shape[0], : pixels.shape[1]] = pixels
    blocks = padded.reshape(height // side, side, width // side, side, 3)
    return blocks.mean(axis=(1, 3)).astype(np.float32)


@dataclass
class FakeEncoder:
    """Cells made by numpy: the mean of a square `shift` from the cell's own, or of 3 x 3 such squares."""

    shift: tuple[int, int] = (0, 0)
    blurs: bool = False
    halo_cells: int = 0
    offset_px: tuple[float, float] = (0.0, 0.0)
    n_workers: int = 1
    on_gpu: bool = False

    def __post_init__(self) -> None:
        traits = MapTraits(self.halo_cells, self.offset_px)
        self.card = ModelCard("fake", 8, 3, 3, CELL_PX, "", "fp32", (), traits, "")
        self.shapes: list[tuple[int, ...]] = []

    def features(self, pixels: U8) -> F32:
        self.shapes.append(pixels.shape)
        moved = np.roll(pixels[0], (-self.shift[1], -self.shift[0]), axis=(0, 1))
        cells = block_means(moved, CELL_PX)
        if self.blurs:
            around = np.pad(cells, ((1, 1), (1, 1), (0, 0)))  # of zeros, as a network pads
            rows, columns = cells.shape[:2]
            cells = sum(around[y : y + rows, x : x + columns] for y in range(3) for x in range(3)) / 9
        return np.ascontiguousarray(cells.transpose(2, 0, 1)[np.newaxis], dtype=np.float32)


# --- values ---------------------------------------------------------------------------------------


def test_a_cell_is_the_mean_colour_of_what_it_covers(encoders: EncoderStack) -> None:
    pixels = noise(70, 101)
    # At the slide's own scale nothing is resampled; the last row and column reach beyond the slide.
    source = SlideCells(slide_of(pixels, (0.5, 0.5)), encoders, 0.5)
    assert source.lattice == lay_lattice((101, 70), (0.5, 0.5), 2.0)
    found = cells_of(source)
    assert found.shape == (18, 26, 3)
    np.testing.assert_allclose(found, block_means(pixels, CELL_PX), rtol=1e-5)


def test_stripes_of_whole_cells_keep_their_colour_at_every_scale(encoders: EncoderStack) -> None:
    """Stripes of 24 µm are 3 cells of 8 µm; resampling mixes the pixels at a stripe's edges alone."""
    colors = np.array([[250, 10, 60], [20, 200, 90], [130, 40, 170]], dtype=np.uint8)
    for mpp in ((0.5, 0.5), (0.5, 0.25), (4.0, 2.0)):
        column = (np.arange(round(240 / mpp[0])) + 0.5) * mpp[0]
        row_colors = colors[(column // 24).astype(int) % 3]
        pixels = np.broadcast_to(row_colors, (round(160 / mpp[1]), *row_colors.shape)).copy()
        found = cells_of(SlideCells(slide_of(pixels, mpp), encoders, 2.0))
        assert found.shape == (20, 30, 3)
        for stripe in range(10):
            np.testing.assert_allclose(found[2:-2, 3 * stripe + 1], np.tile(colors[stripe % 3], (16, 1)))


@pytest.mark.parametrize("mpp", [(0.5, 0.5), (0.5, 0.25), (0.25, 0.5), (0.31, 0.47)])
@pytest.mark.parametrize("um_per_px", [0.5, 0.6875])
def test_a_stripe_is_found_where_it_is(
    encoders: EncoderStack, mpp: tuple[float, float], um_per_px: float
) -> None:
    """The middle of what is dark in the map is the stripe's, to a quarter of a cell, in µm of the slide."""
    size_um, cell_um = 240.0, CELL_PX * um_per_px
    width, height = (round(size_um / scale) for scale in mpp)
    for middle_um in (61.0, 100.3, 177.77):
        for axis in (0, 1):
            pixels = np.full((height, width, 3), 255, dtype=np.uint8)
            n = (width, height)[axis]
            stripe = np.abs((np.arange(n) + 0.5) * mpp[axis] - middle_um) < 6.0
            pixels[(slice(None), stripe) if axis == 0 else stripe] = 0
            found = cells_of(SlideCells(slide_of(pixels, mpp), encoders, um_per_px, region_px=64))
            dark = (255 - found[:, :, 0]).sum(axis=axis)  # over rows for x, over columns for y
            # The last row and column reach beyond the slide, where it is white.
            located_um = ((np.arange(len(dark)) + 0.5) * dark).sum() / dark.sum() * cell_um
            assert located_um == pytest.approx(middle_um, abs=cell_um / 4)


def test_memory_that_is_given_back_changes_no_bit(encoders: EncoderStack) -> None:
    pixels = noise(256, 512, seed=6)
    before = encoders.cells(pixels)
    encoders.release_memory()
    assert encoders.cells(pixels).tobytes() == before.tobytes()


# --- regions --------------------------------------------------------------------------------------


def test_the_size_of_regions_does_not_change_the_map_at_the_slides_scale(encoders: EncoderStack) -> None:
    pixels = noise(1500, 2500)
    slide = slide_of(pixels, (0.5, 0.5))
    for region_px in (512, 1024, 2048):
        found = cells_of(SlideCells(slide, encoders, 0.5, region_px=region_px))
        np.testing.assert_allclose(found, block_means(pixels, CELL_PX), rtol=1e-5)


def test_the_size_of_regions_does_not_change_a_resampled_map(encoders: EncoderStack) -> None:
    slide = slide_of(noise(1500, 2500, seed=1), (0.4, 0.3))
    maps = [cells_of(SlideCells(slide, encoders, 0.5, region_px=px)) for px in (512, 1024, 2048)]
    for other in maps[1:]:
        # Resampling rounds, but every pixel is always part of the same block: all that is left is the
        # order in which a cell's 16 are summed.
        np.testing.assert_allclose(other, maps[0], rtol=1e-5)


@pytest.mark.parametrize("mpp", [(0.5, 0.5), (0.4, 0.3)])
def test_where_regions_begin_does_not_change_the_map(
    encoders: EncoderStack, mpp: tuple[float, float]
) -> None:
    slide = slide_of(noise(300, 400, seed=2), mpp)
    source = SlideCells(slide, encoders, 0.5, region_px=100)
    whole = cells_of(source)
    random = np.random.default_rng(3)
    for first_row, first_column in [(0, 1), (3, 0), (7, 11), (20, 33)]:
        needed = np.zeros(whole.shape[:2], dtype=bool)
        needed[first_row:, first_column:] = random.random(needed[first_row:, first_column:].shape) < 0.1
        needed[first_row, first_column] = True
        found = cells_of(source, needed)
        np.testing.assert_allclose(found[needed], whole[needed], rtol=1e-5)


@pytest.mark.parametrize("region_px", [12, 40, 4000])
def test_a_halo_makes_cells_independent_of_the_regions(region_px: int) -> None:
    pixels = noise(97, 150)
    encoder = FakeEncoder(blurs=True, halo_cells=1)
    source = SlideCells(slide_of(pixels, (0.5, 0.5)), stack(encoder), 0.5, region_px=region_px)
    # By hand: the mean of 3 x 3 squares, white beyond the slide.
    around = np.pad(block_means(pixels, CELL_PX), ((1, 1), (1, 1), (0, 0)), constant_values=255.0)
    rows, columns = source.lattice.n_rows, source.lattice.n_columns
    expected = sum(around[y : y + rows, x : x + columns] for y in range(3) for x in range(3)) / 9
    np.testing.assert_allclose(cells_of(source), expected, rtol=1e-5)
    largest = min(region_px // CELL_PX, columns) + 2
    assert max(shape[2] for shape in encoder.shapes) == largest * CELL_PX


def test_without_its_halo_the_same_backbone_shows_the_seams() -> None:
    """So the test above can fail."""
    slide = slide_of(noise(97, 150), (0.5, 0.5))
    maps = [
        cells_of(SlideCells(slide, stack(FakeEncoder(blurs=True)), 0.5, region_px=region_px))
        for region_px in (12, 4000)
    ]
    assert np.abs(maps[0] - maps[1]).max() > 20


@pytest.mark.parametrize("shift", [(1, 0), (0, -2), (3, -3), (-4, 4)])
def test_what_a_cell_sees_beside_itself_is_put_right_by_the_offset(shift: tuple[int, int]) -> None:
    pixels = noise(97, 150)
    traits = {"halo_cells": 1, "offset_px": (float(shift[0]), float(shift[1]))}
    source = SlideCells(slide_of(pixels, (0.5, 0.5)), stack(FakeEncoder(shift, **traits)), 0.5, region_px=40)
    np.testing.assert_allclose(cells_of(source), block_means(pixels, CELL_PX), rtol=1e-5)
    unaware = SlideCells(slide_of(pixels, (0.5, 0.5)), stack(FakeEncoder(shift, halo_cells=1)), 0.5)
    assert np.abs(cells_of(unaware) - block_means(pixels, CELL_PX)).max() > 20


# --- what is read ---------------------------------------------------------------------------------


def test_what_no_place_needs_is_never_read(encoders: EncoderStack, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = slide_of(noise(800, 1000), (0.5, 0.5))
    boxes = []
    real = slide.read

    def spy(corner: tuple[float, float], extent: tuple[float, float], size_px: tuple[int, int]) -> U8:
        boxes.append((*corner, corner[0] + extent[0], corner[1] + extent[1]))
        return real(corner, extent, size_px)

    monkeypatch.setattr(slide, "read", spy)
    source = SlideCells(slide, encoders, 0.5, region_px=80)
    needed = np.zeros((200, 250), dtype=bool)
    needed[:10, :10] = needed[150:155, 200:230] = True
    seen: list[tuple[int, int, str]] = []
    found = list(source.iter_bands(needed, lambda *done: seen.append(done)))
    # Regions are read in blocks of 256 px. The first, of 40 x 40 px, lies in the first block; the others,
    # of 60 x 20 px at (800, 600) and (860, 600), both in the fourth of the third row: it is read once.
    assert sorted(boxes) == [(0, 0, 256, 256), (768, 512, 1024, 768)]
    assert seen == [(0, 3, "regions"), (1, 3, "regions"), (2, 3, "regions"), (3, 3, "regions")]
    assert [(band.first_row, len(band.features)) for band in found] == [(0, 10), (150, 5)]
    assert not found[1].features[:, :200].any()


def test_on_cuda_all_regions_are_encoded_in_one_size(
    encoders: EncoderStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = slide_of(noise(100, 120), (1.0, 1.0))
    needed = np.zeros((25, 30), dtype=bool)
    needed[2:12, 3:21] = needed[18:22, 5:8] = True
    sizes: list[tuple[int, ...]] = []
    cells = EncoderStack.cells
    monkeypatch.setattr(
        EncoderStack, "cells", lambda self, pixels: sizes.append(pixels.shape) or cells(self, pixels)
    )
    expected = cells_of(SlideCells(slide, encoders, 1.0, region_px=32), needed)
    # Ten rows of 18 cells, cut into pieces of 5 by 6, and four of three.
    assert set(sizes) == {(20, 24, 3), (16, 12, 3)}
    sizes.clear()
    monkeypatch.setattr(EncoderStack, "on_gpu", True)

    found = cells_of(SlideCells(slide, encoders, 1.0, region_px=32), needed)

    np.testing.assert_array_equal(found[needed], expected[needed])
    assert set(sizes) == {(20, 24, 3)}


def test_where_nothing_is_needed_nothing_is_read_or_given(
    encoders: EncoderStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = slide_of(noise(80, 80), (0.5, 0.5))
    monkeypatch.setattr(slide, "read", None)
    assert list(SlideCells(slide, encoders, 0.5).iter_bands(np.zeros((20, 20), bool), None)) == []


def test_a_region_has_the_size_with_its_halo_that_memory_allows() -> None:
    encoder = FakeEncoder(halo_cells=3)
    cells_of(SlideCells(slide_of(noise(2100, 2100), (0.5, 0.5)), stack(encoder), 0.5))
    assert max(max(shape[1:3]) for shape in encoder.shapes) <= 2048


def test_cells_are_projected_as_they_come() -> None:
    slide = slide_of(noise(60, 90), (0.5, 0.5))
    encoder = Encoder(MODEL, "m.onnx", pooling="map", device="cpu", threads=1)
    projection = np.array([[1, 0.5], [0, -1], [2, 0.25]], dtype=np.float32)
    found = cells_of(SlideCells(slide, stack(encoder, projection), 0.5))
    assert found.dtype == np.float32
    np.testing.assert_allclose(
        found, cells_of(SlideCells(slide, stack(encoder), 0.5)) @ projection, rtol=1e-5
    )


def test_a_backbone_without_a_map_is_refused_with_its_reason() -> None:
    encoder = Encoder(Bank.open(DATA / "board.h5").models()[0], "m.onnx", device="cpu")
    with pytest.raises(SettingError) as caught:
        stack(encoder)
    assert caught.value.what == (
        "mean_color cannot encode a slide as a map: its model file does not say how: export it again"
    )


def test_a_needed_cell_lies_under_a_window(encoders: EncoderStack) -> None:
    """Cells under a square are enough to average it: the rest of the slide may be anything."""
    pixels = noise(120, 160)
    centers = np.array([[12.3, 9.9], [30.0, 20.0]])
    needed = cells_under(centers, 5.0, (30, 40))
    other = 255 - pixels
    seen = np.repeat(np.repeat(needed, CELL_PX, axis=0), CELL_PX, axis=1)
    other[seen] = pixels[seen]
    maps = [cells_of(SlideCells(slide_of(p, (0.5, 0.5)), encoders, 0.5), needed) for p in (pixels, other)]
    np.testing.assert_array_equal(maps[0][needed], maps[1][needed])


@pytest.mark.parametrize(
    ("halo_px", "side_px"),
    [
        (0, 832),
        # (1 + 64 / kept)² = 7 / 6 where 798.6 are kept.
        (32, 799),
        # A sixth would take 4,792; 1,792 are encoded at most.
        (192, 1792 - 384),
    ],
)
def test_regions_are_as_small_as_their_halo_allows(halo_px: int, side_px: int) -> None:
    assert kept_px(halo_px) == side_px
