"""Levels of a pyramid: which is read, where its pixels lie, and which are left out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from stinfer.errors import SlideUnreadableError
from stinfer.slide import open_slide
from stinfer.slide_box import nearest_level, read_box
from stinfer.slide_source import Level, TurnedSource, level_scale, same_aspect

RNG = np.random.default_rng(3)


class Stored:
    """A source in memory; every pixel of a level is a mean of level 0, cut or filled up at the border."""

    def __init__(self, pixels, levels):
        self.levels = levels
        self._pixels = pixels

    def read_level(self, level, x, y, width, height):
        image = Image.fromarray(self._pixels[level][y : y + height, x : x + width])
        return image, (float(x), float(y))

    def close(self):
        """Nothing is open."""


def reduced(pixels, factor, rounding):
    """Average squares of level-0 px; the last row and column that are not whole are dropped or filled up."""
    height, width = (rounding(length / factor) for length in pixels.shape[:2])
    fit = [max(n * factor - length, 0) for n, length in zip((height, width), pixels.shape[:2], strict=True)]
    padded = np.pad(pixels, ((0, fit[0]), (0, fit[1]), (0, 0)), mode="edge")[
        : height * factor, : width * factor
    ]
    means = padded.reshape(height, factor, width, factor, 3).mean(axis=(1, 3))
    return np.rint(means).astype(np.uint8)


def write_pyramid(path, levels, **options):
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("imagecodecs")
    with tifffile.TiffWriter(path) as file:
        for number, level in enumerate(levels):
            kind = {"photometric": "rgb", "tile": (64, 64), "metadata": None, "subfiletype": int(number > 0)}
            file.write(level, **kind, **options)
    return path


def marks(size, places, radius=14.0):
    """Dark round dots on white, soft, so that their middle can be measured to a part of a pixel."""
    y, x = np.mgrid[: size[1], : size[0]] + 0.5
    pixels = np.full((size[1], size[0]), 255.0)
    for at_x, at_y in places:
        pixels -= 220 * np.exp(-((x - at_x) ** 2 + (y - at_y) ** 2) / (2 * (radius / 2) ** 2))
    return np.repeat(np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)[..., None], 3, axis=2)


def middle(box, corner, step):
    """Where a dot is in level-0 px: the mean of its dark pixels' places, by darkness."""
    dark = 255.0 - box[..., 0]
    y, x = np.mgrid[: box.shape[0], : box.shape[1]] + 0.5
    return (
        corner[0] + step * (x * dark).sum() / dark.sum(),
        corner[1] + step * (y * dark).sum() / dark.sum(),
    )


# --- geometry -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((150, 125), (2, 2)),
        ((75, 62), (4, 4)),  # 250 / 4 = 62.5, rounded down
        ((75, 63), (4, 4)),
        ((37, 31), (8, 8)),
        ((38, 32), (8, 8)),
        ((100, 83), (3, 3)),
        ((120, 100), (2.5, 2.5)),  # no whole number explains it
        ((1, 1), (300, 300)),
        ((300, 125), None),
        ((75, 50), None),
        ((62, 75), None),
    ],
)
def test_the_scale_of_a_level_of_300_by_250_px(size, expected):
    assert level_scale((300, 250), size) == expected


def test_a_long_slides_short_side_does_not_spoil_the_scale_of_its_long_one():
    # The mean of both quotients, 142, would put the end of the long side 6600 px beside its place.
    assert level_scale((60_000, 1000), (468, 7)) == (128.0, 128.0)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ((500, 300), True),
        ((5, 3), True),
        ((1, 1), True),
        ((1000, 605), True),
        ((1000, 611), False),
        ((7, 4), True),
        ((500, 310), False),
    ],
)
def test_proportions_of_a_picture_of_1000_by_600(other, expected):
    assert same_aspect((1000, 600), other) is expected


def test_a_whole_factor_is_found_for_any_size_and_rounding():
    hypothesis = pytest.importorskip("hypothesis")
    st = pytest.importorskip("hypothesis.strategies")
    side = st.integers(200, 200_000)

    @hypothesis.settings(deadline=None, derandomize=True, database=None, max_examples=300)
    @hypothesis.given(side, side, st.integers(1, 64), st.sampled_from([math.floor, math.ceil, round]))
    def holds(width, height, factor, rounding):
        size = (rounding(width / factor), rounding(height / factor))
        hypothesis.assume(min(size) >= 1 and max(size) > 2 * factor)
        assert level_scale((width, height), size) == (factor, factor)

    holds()


def test_the_coarsest_level_that_is_fine_enough_on_both_axes():
    levels = [Level((800, 800), (1, 1)), Level((400, 400), (2, 2)), Level((200, 100), (4, 8))]
    found = [nearest_level(levels, step) for step in ((1, 1), (2, 2), (1.99, 9), (4, 7), (4, 8), (9, 9))]
    assert found == [0, 1, 1, 1, 2, 2]


ORIENTATIONS = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_any_box_of_a_turned_source_is_that_of_the_turned_picture(orientation):
    hypothesis = pytest.importorskip("hypothesis")
    st = pytest.importorskip("hypothesis.strategies")
    pixels = RNG.integers(0, 256, (23, 31, 3), dtype=np.uint8)
    source = TurnedSource(Stored([pixels], (Level((31, 23), (1.0, 1.0)),)), orientation)
    upright = ORIENTATIONS[orientation](pixels)
    height, width = upright.shape[:2]
    assert source.levels[0].size == (width, height)

    @hypothesis.settings(deadline=None, derandomize=True, database=None, max_examples=80)
    @hypothesis.given(st.data())
    def holds(data):
        x0 = data.draw(st.integers(0, width - 1))
        y0 = data.draw(st.integers(0, height - 1))
        x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
        image, corner = source.read_level(0, x0, y0, x1 - x0, y1 - y0)
        assert corner == (x0, y0)
        assert np.array_equal(np.asarray(image), upright[y0:y1, x0:x1])

    holds()


# --- places ---------------------------------------------------------------------------------------

# Odd sizes, none of them a multiple of the factors.
SIZE = (1003, 747)
PLACES = [(60.3, 71.8), (501.0, 377.5), (933.7, 70.2), (64.1, 667.9), (930.4, 672.6)]


@pytest.mark.parametrize("rounding", [math.floor, math.ceil])
@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_marks_are_where_they_are_at_every_level_to_a_tenth_of_a_pixel(tmp_path, factor, rounding):
    full = marks(SIZE, PLACES)
    path = write_pyramid(tmp_path / "a.tif", [full, reduced(full, factor, rounding)], compression="deflate")
    with open_slide(path, 1.0) as slide:
        assert slide.reader == "openslide"
        assert len(slide._source.levels) == 2
        for place in PLACES:
            corner = (place[0] - 10 * factor + 0.37, place[1] - 10 * factor - 0.23)
            found = middle(slide.read(corner, (20 * factor,) * 2, (20, 20)), corner, factor)
            assert found == pytest.approx(place, abs=0.1 * factor)


@pytest.mark.parametrize("orientation", [1, *ORIENTATIONS])
@pytest.mark.parametrize("rounding", [math.floor, math.ceil])
def test_marks_of_a_turned_pyramid_are_upright_and_in_their_places(tmp_path, orientation, rounding):
    factor = 4
    full = marks(SIZE, PLACES)
    path = write_pyramid(
        tmp_path / "a.tif",
        [full, reduced(full, factor, rounding)],
        compression="lzma",
        extratags=[(274, 3, 1, orientation, True)],
    )
    upright = {1: lambda a: a, **ORIENTATIONS}[orientation]
    with open_slide(path, 1.0) as slide:
        expected = upright(full)
        assert slide.size_l0 == expected.shape[1::-1]
        assert np.array_equal(slide.read((0.0, 0.0), slide.size_l0, slide.size_l0), expected)
        for x, y in PLACES:
            flipped = {
                1: (x, y),
                2: (SIZE[0] - x, y),
                3: (SIZE[0] - x, SIZE[1] - y),
                4: (x, SIZE[1] - y),
                5: (y, x),
                6: (SIZE[1] - y, x),
                7: (SIZE[1] - y, SIZE[0] - x),
                8: (y, SIZE[0] - x),
            }[orientation]
            corner = (flipped[0] - 40.4, flipped[1] - 39.7)
            found = middle(slide.read(corner, (80.0, 80.0), (20, 20)), corner, factor)
            assert found == pytest.approx(flipped, abs=0.1 * factor)


def test_a_turned_pyramid_swaps_the_scale_of_x_and_y(tmp_path):
    full = marks((200, 100), [(50, 50)])
    tags = {"resolution": (10_000, 20_000), "resolutionunit": "CENTIMETER"}
    for orientation, mpp in ((3, (1.0, 0.5)), (6, (0.5, 1.0))):
        path = tmp_path / f"{orientation}.tif"
        write_pyramid(path, [full], extratags=[(274, 3, 1, orientation, True)], **tags)
        with open_slide(path) as slide:
            assert slide.mpp == pytest.approx(mpp)
            assert slide.mpp_source == "resolution tag"


# --- pixels ---------------------------------------------------------------------------------------


def texture(size):
    """Tissue-like: colours that vary on all scales from 2 px on."""
    height, width = size
    total = np.zeros((height, width, 3))
    for period in (4, 9, 20, 50, 130):
        small = RNG.normal(0, 18, (height // period + 2, width // period + 2, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(small[..., channel]).resize((width, height), Image.Resampling.BICUBIC)
            total[..., channel] += np.asarray(layer)
    return np.clip(total + np.array([170, 120, 170]), 0, 255).astype(np.uint8)


def test_the_same_patch_agrees_whichever_level_it_must_come_from(tmp_path):
    """To 4 grey levels on average, where they vary by 20 or more, and with a correlation of 0.98."""
    full = texture((1024, 1100))
    levels = [full, *(reduced(full, factor, math.floor) for factor in (2, 4, 8))]
    patches = []
    for n_levels in range(1, 5):
        path = write_pyramid(tmp_path / f"{n_levels}.tif", levels[:n_levels], compression="deflate")
        with open_slide(path, 1.0) as slide:
            # Only what the file holds: level 0 is reduced eightfold, or level 3 is read as it is.
            boxes = [(130.3, 77.9), (512.0, 256.0), (401.5, 300.25)]
            patches.append([slide.read(corner, (512.0, 512.0), (64, 64)).astype(float) for corner in boxes])
    for finest, *others in zip(*patches, strict=True):
        assert finest.std() > 20
        for other in others:
            assert np.abs(other - finest).mean() < 4
            assert np.corrcoef(other.ravel(), finest.ravel())[0, 1] > 0.98


def test_a_library_that_reads_beside_a_place_is_put_right():
    """As OpenSlide, which begins at whole level-0 px: a quarter of a pixel of the level is a shift."""

    class Beside(Stored):
        def read_level(self, level, x, y, width, height):
            padded = np.pad(self._pixels[level], ((0, 1), (0, 1), (0, 0)), mode="edge").astype(float)
            box = padded[y : y + height + 1, x : x + width + 1]
            shifted = 0.75 * box[:, :-1] + 0.25 * box[:, 1:]
            return Image.fromarray(np.rint(shifted[:-1]).astype(np.uint8)), (x + 0.25, float(y))

    ramp = np.zeros((40, 200, 3), dtype=np.uint8)
    ramp[:] = np.arange(200)[None, :, None]
    level = Level((200, 40), (1.0, 1.0))
    for corner in (20.0, 33.4, 90.75):
        exact = read_box(Stored([ramp], (level,)), 0, (corner, 5.0), (60.0, 20.0), (30, 10))
        found = read_box(Beside([ramp], (level,)), 0, (corner, 5.0), (60.0, 20.0), (30, 10))
        assert np.abs(found.astype(int) - exact).max() <= 1


# --- levels that are none -------------------------------------------------------------------------


def test_a_copy_of_another_shape_is_left_out_and_that_is_said(tmp_path):
    full = texture((512, 512))
    levels = [full, reduced(full, 2, math.floor), reduced(full, 4, math.floor)[:100]]
    with open_slide(write_pyramid(tmp_path / "a.tif", levels), 1.0) as slide:
        assert [level.size for level in slide._source.levels] == [(512, 512), (256, 256)]
        assert slide.remarks == ("1 smaller copies in the slide's file have another shape and are not used",)


@pytest.mark.parametrize("compression", ["deflate", "lzma"])
def test_a_copy_of_another_picture_is_left_out_and_that_is_said(tmp_path, compression):
    full, other = texture((512, 512)), texture((512, 512))
    levels = [full, reduced(other, 2, math.floor), reduced(full, 4, math.floor)]
    path = write_pyramid(tmp_path / "a.tif", levels, compression=compression)
    with open_slide(path, 1.0) as slide:
        assert [level.size for level in slide._source.levels] == [(512, 512), (128, 128)]
        assert "1 smaller copies in the slide's file show another picture and are not used" in slide.remarks


def test_copies_made_by_leaving_out_pixels_are_copies(tmp_path):
    full = texture((512, 512))
    levels = [full, full[::2, ::2], full[::4, ::4]]
    with open_slide(write_pyramid(tmp_path / "a.tif", levels), 1.0) as slide:
        assert len(slide._source.levels) == 3


def test_glass_says_nothing_against_a_copy(tmp_path):
    levels = [np.full((512 >> i, 512 >> i, 3), 255 - i, dtype=np.uint8) for i in range(3)]
    with open_slide(write_pyramid(tmp_path / "a.tif", levels), 1.0) as slide:
        assert len(slide._source.levels) == 3


def test_what_is_whole_can_be_read_after_what_is_damaged(tmp_path):
    full = texture((512, 512))
    path = write_pyramid(tmp_path / "a.tif", [full, reduced(full, 2, math.floor)], compression="deflate")
    tifffile = pytest.importorskip("tifffile")
    with tifffile.TiffFile(path) as file:
        # The middle tile of level 0, which is looked at when levels are compared.
        page = file.pages[0]
        at, length = page.dataoffsets[8 * 4 + 4], page.databytecounts[8 * 4 + 4]
    content = bytearray(path.read_bytes())
    content[at : at + length] = b"\0" * length
    path.write_bytes(content)
    with open_slide(path, 1.0) as slide:
        for _ in range(2):
            with pytest.raises(SlideUnreadableError, match="a part of it is damaged"):
                slide.read((250.0, 250.0), (40.0, 40.0), (40, 40))
            assert np.array_equal(slide.read((64.0, 64.0), (64.0, 64.0), (64, 64)), full[64:128, 64:128])
