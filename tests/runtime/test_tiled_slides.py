"""Tiles that are read without OpenSlide: the same pixels, bit for bit, and the same errors."""

from __future__ import annotations

import importlib.util
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest

from stinfer.errors import SlideUnreadableError
from stinfer.openslide_source import OpenSlideSource
from stinfer.slide import open_slide
from stinfer.slide_readers import open_source
from stinfer.tiff_tiles import read_tile_grids, whole_jpeg
from stinfer.tiled_source import TileFile, with_own_tiles

_SPEC = importlib.util.spec_from_file_location("jpeg_tiff", Path(__file__).parent / "jpeg_tiff.py")
jpeg_tiff = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(jpeg_tiff)
APERIO, RGB, YCBCR, JpegTiff = jpeg_tiff.APERIO, jpeg_tiff.RGB, jpeg_tiff.YCBCR, jpeg_tiff.JpegTiff

BOTH, ALONE = "openslide+pillow", "openslide"
BOARD = jpeg_tiff.picture(400, 300)


def halves(pixels, factor):
    """Average squares of pixels."""
    height, width = (side // factor * factor for side in pixels.shape[:2])
    cut = pixels[:height, :width].reshape(height // factor, factor, width // factor, factor, 3)
    return cut.mean(axis=(1, 3)).astype(np.uint8)


def pyramid(path, *, factors=(2, 4), order="<", big=False, description="", **options):
    """Write the board and smaller copies of it."""
    tiff = JpegTiff(order, big=big)
    tiff.image(BOARD, description=description, **options)
    for factor in factors:
        tiff.image(halves(BOARD, factor), reduced=True, **options)
    return tiff.write(path)


def openslide_pixels(path, level, box):
    """Read a box with OpenSlide alone; its error where it has one."""
    with openslide.OpenSlide(path) as handle:
        try:
            return np.asarray(OpenSlideSource(path, handle).read_level(level, *box)[0])
        except SlideUnreadableError as error:
            return str(error)


def own_pixels(source, level, box):
    try:
        return np.asarray(source.read_level(level, *box)[0])
    except SlideUnreadableError as error:
        return str(error)


@pytest.fixture
def asked(monkeypatch):
    """Sizes of the boxes that OpenSlide was asked for."""
    sizes = []
    read = OpenSlideSource.read_level

    def note(self, level, x, y, width, height):
        sizes.append((level, width, height))
        return read(self, level, x, y, width, height)

    monkeypatch.setattr(OpenSlideSource, "read_level", note)
    return sizes


def compare(path, boxes=7):
    """Compare every level, whole and in boxes, with what OpenSlide gives; return the reader."""
    opened = open_source(path)
    rng = np.random.default_rng(5)
    try:
        for level, frame in enumerate(opened.source.levels):
            width, height = frame.size
            wanted = [(0, 0, width, height)]
            for _ in range(boxes):
                x, y = int(rng.integers(0, width - 1)), int(rng.integers(0, height - 1))
                wanted.append(
                    (x, y, int(rng.integers(1, width - x + 1)), int(rng.integers(1, height - y + 1)))
                )
            for box in wanted:
                expected = openslide_pixels(path, level, box)
                assert np.array_equal(own_pixels(opened.source, level, box), expected)
    finally:
        opened.source.close()
    return opened.reader


# --- the same pixels ------------------------------------------------------------------------------


@pytest.mark.parametrize("description", ["", APERIO])
@pytest.mark.parametrize("tables", [False, True])
@pytest.mark.parametrize(
    "colours",
    [
        {"photometric": RGB},
        {"photometric": YCBCR, "sampling": "4:4:4"},
        {"photometric": YCBCR, "sampling": "4:2:2"},
        {"photometric": YCBCR, "sampling": "4:2:0"},
    ],
)
def test_tiles_have_the_pixels_that_openslide_gives(tmp_path, asked, colours, tables, description):
    path = pyramid(tmp_path / "a.tif", tables=tables, description=description, **colours)
    assert compare(path) == BOTH
    asked.clear()
    with open_slide(path, 0.5) as slide:
        asked.clear()
        slide.read((10.0, 10.0), (300.0, 200.0), (300, 200))
    assert set(asked) <= {(0, 1, 1)}  # a pixel of a tile, for its damage


@pytest.mark.parametrize(
    "options",
    [
        {"restart": 3},
        {"restart": 3, "tables": True},
        {"tile": (240, 240)},
        {"tile": (32, 176)},
        {"big": True},
        {"order": ">", "big": True, "tables": True},
        {"tile": (512, 512)},
    ],
    ids=str,
)
def test_layouts_of_files_and_tiles(tmp_path, options):
    assert compare(pyramid(tmp_path / "a.tif", **options)) == BOTH


def test_the_colours_are_those_that_the_file_says_not_the_tile(tmp_path):
    # Aperio keeps RGB in tiles that look like YCbCr; libjpeg would believe them.
    path = pyramid(tmp_path / "a.tif", photometric=RGB, tables=True, description=APERIO)
    with open_slide(path) as slide:
        found = slide.read((0.0, 0.0), (400.0, 300.0), (400, 300))
    assert np.abs(found.astype(int) - BOARD).mean() < 4


def test_a_real_aperio_slide(shared):
    assert compare(shared / "slides" / "cmu-1-small-region.svs") == BOTH


def test_nothing_optional_is_needed(tmp_path, monkeypatch):
    for package in ("tifffile", "imagecodecs"):
        monkeypatch.setitem(sys.modules, package, None)
    with open_slide(pyramid(tmp_path / "a.tif"), 0.5) as slide:
        assert slide.reader == BOTH


# --- what is left to OpenSlide --------------------------------------------------------------------


def test_a_level_between_whose_pixels_openslide_interpolates(tmp_path, asked):
    # 300 by 3 and 4 times less: 400 px are 133 and 100.
    path = pyramid(tmp_path / "a.tif", factors=(3, 4))
    assert compare(path) == BOTH
    opened = open_source(path)
    asked.clear()
    for level in range(3):
        opened.source.read_level(level, 0, 0, 90, 70)
    opened.source.close()
    assert [size for size in asked if size[1:] != (1, 1)] == [(1, 90, 70)]


@pytest.mark.parametrize("description", ["", APERIO])
def test_tiles_that_were_never_written(tmp_path, description):
    tiff = JpegTiff()
    tiff.image(BOARD, description=description, missing=(0, 9))
    tiff.image(halves(BOARD, 2), reduced=True, missing=(3,))
    tiff.image(halves(BOARD, 4), reduced=True)
    assert compare(tiff.write(tmp_path / "a.tif"), boxes=20) == BOTH


def test_levels_beside_one_with_gaps_stay_with_openslide(tmp_path, asked):
    # It fills a level's gaps, and what lies over them in the next, from the finer one.
    tiff = JpegTiff()
    tiff.image(BOARD, description=APERIO, missing=(9,))
    tiff.image(halves(BOARD, 2), reduced=True)
    opened = open_source(tiff.write(tmp_path / "a.tif"))
    asked.clear()
    opened.source.read_level(1, 0, 0, 200, 150)
    opened.source.close()
    assert asked == [(1, 200, 150)]


def test_two_images_of_one_size_are_not_told_apart(tmp_path):
    tiff = JpegTiff()
    tiff.image(BOARD)
    tiff.image(halves(BOARD, 2), reduced=True)
    tiff.image(255 - BOARD)
    path = tiff.write(tmp_path / "a.tif")
    with openslide.OpenSlide(path) as handle:
        tiled = with_own_tiles(path, OpenSlideSource(path, handle))
        assert tiled is None
    assert compare(path) == ALONE


def test_a_decoder_of_other_pixels_is_not_used(tmp_path, monkeypatch):
    decode = TileFile.decode

    def one_grey_lighter(self, grid, number):
        return decode(self, grid, number).point(lambda value: min(value + 1, 255))

    path = pyramid(tmp_path / "a.tif")
    monkeypatch.setattr(TileFile, "decode", one_grey_lighter)
    assert compare(path) == ALONE


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tables", [False, True])
def test_damaged_tiles_end_as_they_do_with_openslide(tmp_path, tables):
    path = pyramid(tmp_path / "a.tif", factors=(), tables=tables)
    with path.open("rb") as file:
        (grid,) = read_tile_grids(file)
    whole = path.read_bytes()
    rng = np.random.default_rng(11)
    outcomes = []
    for n in range(6):
        data = bytearray(whole)
        for offset, length in zip(grid.offsets.tolist(), grid.n_bytes.tolist(), strict=True):
            first = offset + int(rng.integers(0, length))
            n_bytes = min(int(rng.choice([1, 1, 1, 8, 60])), offset + length - first)
            data[first : first + n_bytes] = rng.integers(0, 256, n_bytes, dtype=np.uint8).tobytes()
        damaged = tmp_path / f"{n}.tif"
        damaged.write_bytes(data)
        with openslide.OpenSlide(damaged) as handle:
            source = OpenSlideSource(damaged, handle)
            with damaged.open("rb") as file:
                (grid,) = read_tile_grids(file)
            tiled = with_own_tiles(damaged, source)
            if tiled is None:  # the tile that is compared first is damaged
                continue
            for row in range(5):
                for column in range(6):
                    box = (column * 64, row * 64, 64, min(64, 300 - row * 64))
                    expected = openslide_pixels(damaged, 0, box)
                    found = own_pixels(tiled, 0, box)
                    assert np.array_equal(found, expected)
                    outcomes.append(isinstance(expected, str))
            tiled.close()
    assert 20 < sum(outcomes) < len(outcomes) - 20


@pytest.mark.parametrize("size", [(64, 65), (65, 64), (9999, 9999)])
def test_a_tile_that_says_it_has_another_size_is_not_decoded(tmp_path, size):
    path = pyramid(tmp_path / "a.tif", factors=())
    data = bytearray(path.read_bytes())
    with path.open("rb") as file:
        (grid,) = read_tile_grids(file)
    first = int(grid.offsets[0])
    tile = bytes(data[first : first + int(grid.n_bytes[0])])
    at = tile.index(b"\xff\xc0") + 5
    altered = tile[:at] + struct.pack(">HH", size[1], size[0]) + tile[at + 4 :]
    assert whole_jpeg(grid, tile) is not None
    assert whole_jpeg(grid, altered) is None
    data[first : first + len(tile)] = altered
    path.write_bytes(data)
    with open_slide(path, 0.5) as slide, pytest.raises(SlideUnreadableError):
        slide.read((0.0, 0.0), (60.0, 60.0), (60, 60))


def test_a_file_cut_short_is_told_where_it_is_read(tmp_path):
    tiff = JpegTiff()
    tiff.image(BOARD)
    end = len(tiff.data)
    # The last tile is said to lie at the file's end.
    with tiff.write(tmp_path / "a.tif").open("rb") as file:
        (grid,) = read_tile_grids(file)
    last = int(grid.offsets[-1])
    where = bytes(tiff.data).index(struct.pack("<I", last))
    struct.pack_into("<I", tiff.data, where, end - 20)
    with open_slide(tiff.write(tmp_path / "a.tif"), 0.5) as slide:
        slide.read((0.0, 0.0), (60.0, 60.0), (60, 60))
        with pytest.raises(SlideUnreadableError):
            slide.read((330.0, 260.0), (60.0, 40.0), (60, 40))


# --- threads --------------------------------------------------------------------------------------


def test_threads_decode_each_tile_once(tmp_path, monkeypatch):
    decoded = []
    decode = TileFile.decode

    def note(self, grid, number):
        decoded.append(number)
        return decode(self, grid, number)

    path = pyramid(tmp_path / "a.tif", factors=())
    opened = open_source(path)
    monkeypatch.setattr(TileFile, "decode", note)
    boxes = [(x, y, 150, 120) for y in range(0, 180, 30) for x in range(0, 251, 25)] * 3
    expected = openslide_pixels(path, 0, (0, 0, 400, 300))
    try:
        with ThreadPoolExecutor(8) as pool:
            for (x, y, width, height), found in zip(
                boxes, pool.map(lambda box: own_pixels(opened.source, 0, box), boxes), strict=True
            ):
                assert np.array_equal(found, expected[y : y + height, x : x + width])
    finally:
        opened.source.close()
    # Seven in a row; boxes end at x 400 and y 270, in the fifth row.
    assert sorted(decoded) == list(range(35))
