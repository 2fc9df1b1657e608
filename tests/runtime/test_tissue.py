from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from stinfer.errors import NoTissueError
from stinfer.places import places_on_grid
from stinfer.slide import open_slide
from stinfer.spots import read_spots
from stinfer.tissue import CHROMA_FLOOR, TissueMask, chroma_of, find_tissue, otsu_threshold

GLASS = (245, 245, 243)
EOSIN = (215, 130, 175)


@pytest.fixture
def slide_of(tmp_path):
    def write_and_open(pixels, mpp):
        path = tmp_path / "slide.png"
        Image.fromarray(pixels).save(path, compress_level=1)
        return open_slide(path, mpp)

    return write_and_open


def glass(width, height):
    noise = np.random.default_rng(0).integers(-2, 3, (height, width, 3))
    return (np.array(GLASS) + noise).astype(np.uint8)


def disc(pixels, x, y, radius, color=EOSIN):
    yy, xx = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    pixels[(xx + 0.5 - x) ** 2 + (yy + 0.5 - y) ** 2 < radius**2] = color
    return pixels


@pytest.mark.parametrize("mpp", [2.0, 4.0, 10.0])
def test_a_disc_of_tissue_has_its_area_and_its_place(slide_of, mpp):
    pixels = disc(glass(1200, 800), 700, 300, 200)
    with slide_of(pixels, mpp) as slide:
        tissue = find_tissue(slide)
    assert tissue.area_mm2(slide.mpp) == pytest.approx(math.pi * (0.2 * mpp) ** 2, rel=0.02)
    y, x = np.nonzero(tissue.mask)
    center = ((x + 0.5).mean() * tissue.l0_per_px[0], (y + 0.5).mean() * tissue.l0_per_px[1])
    assert center == pytest.approx((700, 300), abs=2)


def test_two_pieces_of_different_stain_are_both_found(slide_of):
    pixels = disc(disc(glass(1000, 500), 250, 250, 150, (120, 60, 160)), 750, 250, 150, (235, 190, 210))
    with slide_of(pixels, 4.0) as slide:
        tissue = find_tissue(slide)
        inside = tissue.fraction(np.array([[250.0, 250.0], [750.0, 250.0], [500.0, 30.0]]), (100.0, 100.0))
    assert inside.tolist() == [1.0, 1.0, 0.0]


def test_an_empty_slide_has_no_tissue(slide_of):
    with slide_of(glass(600, 400), 4.0) as slide:
        tissue = find_tissue(slide)
        assert tissue.area_mm2(slide.mpp) == 0.0
        assert tissue.threshold == CHROMA_FLOOR
        with pytest.raises(NoTissueError, match="nothing is more coloured than glass"):
            places_on_grid(slide, tissue, 100.0, 4.0)


def test_black_is_no_tissue(slide_of):
    # A pen mark or the edge of the slide: dark, but grey.
    pixels = glass(600, 400)
    pixels[100:300, 100:300] = 20
    with slide_of(pixels, 4.0) as slide:
        assert find_tissue(slide).area_mm2(slide.mpp) == 0.0


def test_dust_is_left_out_and_a_small_hole_is_filled(slide_of):
    pixels = disc(glass(1000, 600), 600, 300, 220)
    pixels[40:44, 40:44] = EOSIN  # 16 µm of dust
    pixels[296:300, 596:600] = GLASS  # a hole of 16 µm
    pixels[220:270, 560:610] = GLASS  # a hole of 200 µm
    with slide_of(pixels, 4.0) as slide:
        centers = np.array([[42.0, 42.0], [598.0, 298.0], [585.0, 245.0]])
        assert find_tissue(slide).fraction(centers, (8.0, 8.0)).tolist() == [0.0, 1.0, 0.0]


def test_a_grid_point_is_where_most_of_its_square_is_tissue(slide_of):
    pixels = glass(1000, 1000)
    pixels[:, 420:] = EOSIN  # tissue from x = 1680 µm on
    with slide_of(pixels, 4.0) as slide:
        places = places_on_grid(slide, find_tissue(slide), 400.0, 4.0)
    # Columns of 100 px; the fifth, from 400 to 500 px, is 80 % tissue, the fourth has none.
    assert sorted(set(places.centers_l0[:, 0])) == [450.0, 550.0, 650.0, 750.0, 850.0, 950.0]
    assert sorted(set(places.centers_l0[:, 1])) == [50.0 + 100 * i for i in range(10)]
    assert places.names[0] == "4x0"
    assert places.columns["tissue_fraction"][0] == pytest.approx(0.8, abs=0.03)


def test_chroma_by_hand():
    pixels = np.array([[[255, 255, 255], [10, 10, 10], [255, 0, 9], [200, 100, 149]]], dtype=np.uint8)
    np.testing.assert_allclose(chroma_of(pixels), [[0, 0, 1, 100 / 255]], rtol=1e-6)


def test_otsu_of_two_values_by_hand():
    # 0.1 lies in bin 25 of 256; every threshold from its upper edge on separates alike; the lowest is taken.
    values = np.array([0.1] * 30 + [0.9] * 10, dtype=np.float32)
    assert otsu_threshold(values) == 26 / 256


def test_otsu_agrees_with_a_search_through_all_thresholds():
    rng = np.random.default_rng(7)
    for share in (0.02, 0.2, 0.5, 0.9):
        n = int(4000 * share)
        values = np.concatenate([rng.normal(0.05, 0.02, 4000 - n), rng.normal(0.45, 0.12, n)])
        bins = np.floor(np.clip(values, 0, 0.999) * 256).astype(int)
        spread = {}
        for first_above in range(1, 256):
            low, high = bins[bins < first_above], bins[bins >= first_above]
            if low.size and high.size:
                spread[first_above] = low.size * low.var() + high.size * high.var()
        best = min(spread, key=spread.__getitem__)
        assert otsu_threshold(np.clip(values, 0, 0.999).astype(np.float32)) == best / 256


def test_fraction_by_hand():
    mask = np.zeros((4, 6), dtype=bool)
    mask[:, :3] = True  # the left half
    tissue = TissueMask(mask, (10.0, 20.0), 0.1)  # over a slide of 60 x 80 px
    centers = np.array([[15, 40], [30, 40], [45, 40], [0, 40], [0, 0], [60, 40], [200, 40]], dtype=float)
    found = tissue.fraction(centers, (20.0, 40.0))
    assert found.tolist() == [1.0, 0.5, 0.0, 0.5, 0.25, 0.0, 0.0]


def test_fraction_of_boxes_smaller_than_a_mask_pixel():
    tissue = TissueMask(np.array([[True, False], [False, True]]), (10.0, 10.0), 0.1)
    centers = np.array([[5, 5], [15, 5], [5, 15], [15, 15]], dtype=float)
    assert tissue.fraction(centers, (1.0, 1.0)).tolist() == [1.0, 0.0, 0.0, 1.0]
    # Where mask pixels meet, one of them counts.
    everywhere = TissueMask(np.ones((4, 4), dtype=bool), (10.0, 10.0), 0.1)
    corners = np.array([[10, 10], [20, 20], [30, 20]], dtype=float)
    assert everywhere.fraction(corners, (1.0, 1.0)).tolist() == [1.0, 1.0, 1.0]


def test_fraction_counts_mask_pixels():
    rng = np.random.default_rng(3)
    mask = rng.random((15, 20)) < 0.4
    padded = np.pad(mask, 30)
    tissue = TissueMask(mask, (4.0, 8.0), 0.1)
    for _ in range(100):
        x, y = (int(v) for v in rng.integers(-10, 25, 2))
        width, height = (int(v) for v in rng.integers(1, 15, 2))
        center = np.array([[(x + width / 2) * 4.0, (y + height / 2) * 8.0]])
        expected = padded[30 + y : 30 + y + height, 30 + x : 30 + x + width].mean() if y > -30 else 0
        found = tissue.fraction(center, (width * 4.0, height * 8.0))
        assert found[0] == pytest.approx(expected, abs=1e-6)


def test_area_by_hand():
    mask = np.array([[True, True, False]])
    # A mask pixel is 100 x 50 px of 0.5 and 2 µm: 50 x 100 µm.
    assert TissueMask(mask, (100.0, 50.0), 0.1).area_mm2((0.5, 2.0)) == pytest.approx(2 * 0.05 * 0.1)


def test_real_spots_lie_on_the_tissue_that_is_found(shared):
    # Its authors selected these spots as those under tissue.
    image = shared / "her2st" / "ST-imgs" / "C" / "C5" / "5714_HE_BT_E1.jpg"
    mpp = 200 / 290
    with open_slide(image, mpp) as slide:
        spots = read_spots(shared / "her2st" / "ST-spotfiles" / "C5_selection.tsv", slide.size_l0)
        tissue = find_tissue(slide)
    on_tissue = tissue.fraction(spots.centers_l0, (100 / mpp, 100 / mpp)) >= 0.5
    assert on_tissue.mean() > 0.93
    # 183 spots of 0.2 mm x 0.2 mm, and little beyond them.
    assert tissue.area_mm2(slide.mpp) == pytest.approx(183 * 0.04, rel=0.35)


@pytest.mark.parametrize("color", [(180, 100, 150), (210, 150, 200)])
def test_a_frame_of_tissue_from_edge_to_edge_is_all_tissue(tmp_path, color):
    """There is no glass in it, and Otsu's method would call half of it glass."""
    pixels = np.empty((600, 800, 3), dtype=np.uint8)
    pixels[:] = color
    # Stained a little stronger from left to right.
    pixels[:, :, 1] -= (np.arange(800) // 20).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png", 0.5) as slide:
        assert find_tissue(slide).mask.all()


def test_the_tissue_of_each_cell_by_hand():
    # Mask pixels of 10 x 20 px: the left column and the lower right pixel are tissue.
    tissue = TissueMask(np.array([[True, False], [True, True]]), (10.0, 20.0), 0.1)
    # Cells of 4 x 16 px. Across, column 2 is half tissue in the first row; down, row 1 is a quarter of
    # the upper pixels, row 2 goes on for 8 px of 16 beyond the slide.
    found = tissue.cells((3, 6), (4.0, 16.0))
    upper = [1, 1, 0.5, 0, 0, 0]
    lower = [1, 1, 1, 1, 1, 0]  # the sixth cell, from 20 px on, is beyond the slide
    mixed = [0.25 * a + 0.75 * b for a, b in zip(upper, lower, strict=True)]
    np.testing.assert_allclose(found, [upper, mixed, [0.5 * b for b in lower]], atol=1e-7)
    assert found.dtype == np.float32


def test_a_cell_that_is_half_off_the_slide_is_half_glass():
    everywhere = TissueMask(np.ones((3, 3), dtype=bool), (10.0, 10.0), 0.1)
    found = everywhere.cells((2, 3), (20.0, 20.0))
    np.testing.assert_allclose(found, [[1, 0.5, 0], [0.5, 0.25, 0]], atol=1e-7)


@pytest.mark.parametrize(
    ("shape", "cell_l0"), [((9, 7), (3.7, 9.1)), ((40, 50), (0.6, 2.0)), ((1, 1), (500, 500))]
)
def test_the_tissue_of_cells_equals_a_sum_over_pixels(shape, cell_l0):
    mask = np.random.default_rng(5).random((11, 8)) < 0.5
    found = TissueMask(mask, (3.3, 7.0), 0.1).cells(shape, cell_l0)

    def overlap(first, cell, pixel, scale):
        return max(min((first + 1) * cell, (pixel + 1) * scale) - max(first * cell, pixel * scale), 0.0)

    expected = np.zeros(shape)
    for row, column in np.ndindex(shape):
        for y, x in zip(*np.nonzero(mask), strict=True):
            area = overlap(column, cell_l0[0], x, 3.3) * overlap(row, cell_l0[1], y, 7.0)
            expected[row, column] += area / (cell_l0[0] * cell_l0[1])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # None of the tissue is lost or counted twice, where the cells reach over the whole slide.
    if shape[0] * cell_l0[1] >= 77 and shape[1] * cell_l0[0] >= 26.4:
        assert found.sum() * cell_l0[0] * cell_l0[1] == pytest.approx(mask.sum() * 3.3 * 7.0, rel=1e-5)
