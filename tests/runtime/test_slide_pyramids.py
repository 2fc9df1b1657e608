from __future__ import annotations

import struct
import sys
import zlib

import numpy as np
import openslide
import pytest
from PIL import Image

from stinfer.errors import (
    ScaleImpossibleError,
    ScaleUnknownError,
    SlideUnreadableError,
)
from stinfer.slide import open_slide

NOISE = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
# One pixel per µm.
DPI = 25_400


def read_all(path, mpp=None):
    with open_slide(path, mpp) as slide:
        width, height = slide.size_l0
        return slide.read((0.0, 0.0), (width, height), (width, height))


TURNED = {
    1: NOISE,
    2: NOISE[:, ::-1],
    3: NOISE[::-1, ::-1],
    4: NOISE[::-1],
    5: NOISE.swapaxes(0, 1),
    6: np.rot90(NOISE, -1),
    7: NOISE[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90(NOISE, 1),
}


def write_tiled_tiff(path, levels, tile=16, px_per_cm=None, orientation=None):
    """Write RGB levels as a lossless TIFF pyramid, which OpenSlide reads as `generic-tiff`."""
    out = bytearray(b"II*\0\0\0\0\0")
    link = 4  # where the offset of the next directory is to be written
    for number, pixels in enumerate(levels):
        height, width = pixels.shape[:2]
        padded = np.pad(pixels, ((0, -height % tile), (0, -width % tile), (0, 0)))
        offsets, sizes = [], []
        for y in range(0, padded.shape[0], tile):
            for x in range(0, padded.shape[1], tile):
                offsets.append(len(out))
                data = zlib.compress(padded[y : y + tile, x : x + tile].tobytes())
                sizes.append(len(data))
                out += data

        def place(data, out=out):
            out += b"\0" * (len(out) % 2)
            out += data
            return len(out) - len(data)

        def longs(values, place=place):
            return values[0] if len(values) == 1 else place(struct.pack(f"<{len(values)}I", *values))

        entries = [
            (254, 4, 1, 1 if number else 0),
            (256, 4, 1, width),
            (257, 4, 1, height),
            (258, 3, 3, place(struct.pack("<3H", 8, 8, 8))),
            (259, 3, 1, 8),  # deflate
            (262, 3, 1, 2),
            (277, 3, 1, 3),
            (284, 3, 1, 1),
            (322, 3, 1, tile),
            (323, 3, 1, tile),
            (324, 4, len(offsets), longs(offsets)),
            (325, 4, len(offsets), longs(sizes)),
        ]
        if orientation is not None:
            entries.append((274, 3, 1, orientation))
        if px_per_cm is not None:
            entries += [(tag, 5, 1, place(struct.pack("<2I", px_per_cm, 1))) for tag in (282, 283)]
            entries.append((296, 3, 1, 3))
        start = place(struct.pack("<H", len(entries)))
        for tag, kind, count, value in sorted(entries):
            # Little-endian: a short stands in the first two of the four bytes.
            out += struct.pack("<HHII", tag, kind, count, value)
        struct.pack_into("<I", out, link, start)
        link = len(out)
        out += b"\0\0\0\0"
    path.write_bytes(out)
    return path


# --- pyramids -------------------------------------------------------------------------------------


# Near enough to be one picture.
COLORS = ((200, 100, 100), (180, 120, 100), (180, 100, 120))


@pytest.fixture
def colour_pyramid(tmp_path):
    colours = COLORS
    levels = [
        np.full((256 >> i, 256 >> i, 3), c, dtype=np.uint8) for i, c in zip((0, 1, 2), colours, strict=True)
    ]
    with open_slide(write_tiled_tiff(tmp_path / "a.tiff", levels, px_per_cm=20_000)) as slide:
        yield slide


def test_a_pyramid_says_its_scale(colour_pyramid):
    assert colour_pyramid.mpp == pytest.approx((0.5, 0.5))
    assert colour_pyramid.mpp_source == "resolution tag"
    assert colour_pyramid.size_l0 == (256, 256)


@pytest.mark.parametrize(
    ("step", "level"), [(0.5, 0), (1, 0), (1.9, 0), (1.99, 1), (2, 1), (3.9, 1), (4, 2), (7.5, 2)]
)
def test_the_level_read_is_the_coarsest_that_is_fine_enough(colour_pyramid, step, level):
    found = colour_pyramid.read((64.0, 64.0), (16 * step, 16 * step), (16, 16))
    assert np.unique(found.reshape(-1, 3), axis=0).tolist() == [list(COLORS[level])]


def test_the_finer_axis_decides_the_level(colour_pyramid):
    found = colour_pyramid.read((64.0, 64.0), (64, 32), (16, 16))
    assert np.unique(found.reshape(-1, 3), axis=0).tolist() == [list(COLORS[1])]


@pytest.mark.parametrize("extent", [64, 128, 250])
def test_beyond_the_border_of_a_level_is_white(colour_pyramid, extent):
    found = colour_pyramid.read((-float(extent), -float(extent)), (2 * extent, 2 * extent), (32, 32))
    assert (found[:15] == 255).all()
    assert (found[:, :15] == 255).all()
    assert (found[17:, 17:].sum(axis=2) == 400).all()


def test_every_level_shows_the_same_place(tmp_path):
    # Red is the column, green the row: a pixel says where it was read.
    full = np.zeros((256, 256, 3))
    full[..., 0], full[..., 1] = np.arange(256), np.arange(256)[:, None]
    levels = [full.reshape(256 // f, f, 256 // f, f, 3).mean(axis=(1, 3)) for f in (1, 2, 4, 8)]
    path = write_tiled_tiff(tmp_path / "a.tiff", [np.floor(level).astype(np.uint8) for level in levels])
    rng = np.random.default_rng(9)
    with open_slide(path, 1.0) as slide:
        for step in (1.0, 1.5, 2.0, 3.1, 4.0, 6.0, 8.0, 10.0):
            for _ in range(5):
                x, y = rng.uniform(20, 230 - 12 * step, 2)
                found = slide.read((x, y), (12 * step, 12 * step), (12, 12))
                offsets = (np.arange(12) + 0.5) * step - 0.5
                # Half a grey value was lost by rounding each level down, another half here.
                assert np.abs(found[..., 0] - (x + offsets)[None, :]).max() <= 1.1
                assert np.abs(found[..., 1] - (y + offsets)[:, None]).max() <= 1.1


def test_pixels_of_a_pyramid_equal_those_of_the_flat_image(tmp_path):
    Image.fromarray(NOISE).save(tmp_path / "flat.png")
    write_tiled_tiff(tmp_path / "tiled.tiff", [NOISE])
    with open_slide(tmp_path / "flat.png", 1.0) as flat, open_slide(tmp_path / "tiled.tiff", 1.0) as tiled:
        for corner, extent in (((0, 0), 20), ((3.3, 4.7), 9.1), ((-4.2, 8), 30), ((25, 15), 7)):
            expected = flat.read(corner, (extent, extent), (11, 11))
            assert np.array_equal(tiled.read(corner, (extent, extent), (11, 11)), expected)


@pytest.mark.parametrize("orientation", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("installed", [True, False])
def test_a_turned_pyramid_is_read_upright(tmp_path, monkeypatch, orientation, installed):
    # OpenSlide turns every tile in its place, which scrambles the slide without a word.
    path = write_tiled_tiff(tmp_path / "a.tiff", [NOISE], orientation=orientation)
    if not installed:
        monkeypatch.setitem(sys.modules, "tifffile", None)
    assert np.array_equal(read_all(path, 1.0), TURNED[orientation])


# --- real slides ----------------------------------------------------------------------------------


def test_aperio_scale_and_pixels(shared):
    path = shared / "slides" / "cmu-1-small-region.svs"
    with open_slide(path) as slide, openslide.OpenSlide(path) as handle:
        assert slide.mpp == (0.499, 0.499)
        assert slide.size_l0 == (2220, 2967)
        for x, y in ((300, 500), (0, 0), (1996, 2743)):
            expected = np.asarray(handle.read_region((x, y), 0, (224, 224)).convert("RGB"))
            assert np.array_equal(slide.read((x, y), (224, 224), (224, 224)), expected)


def test_aperio_without_scale(shared):
    path = shared / "slides" / "tcga-cr-7395-01a-01-ts1.svs"
    with pytest.raises(ScaleUnknownError, match="tcga-cr"):
        open_slide(path)
    with open_slide(path, 0.25) as slide, openslide.OpenSlide(path) as handle:
        assert slide.size_l0 == (4443, 3567)
        expected = np.asarray(handle.read_region((1000, 800), 0, (64, 64)).convert("RGB"))
        assert np.array_equal(slide.read((1000, 800), (64, 64), (64, 64)), expected)


@pytest.mark.parametrize("name", ["boxes.tiff", "small_HE_levels.tiff"])
def test_a_pyramid_with_the_resolution_of_screens(shared, name):
    path = shared / "slides" / name
    with pytest.raises(ScaleImpossibleError, match=r"gives 352\.\d+ µm per pixel"):
        open_slide(path)
    with Image.open(path) as image, open_slide(path, 0.5) as slide:
        first = np.asarray(image.convert("RGB"))
        image.seek(1)
        second = np.asarray(image.convert("RGB"))
        assert slide.size_l0 == (300, 250)
        assert np.array_equal(slide.read((0, 0), (300, 250), (300, 250)), first)
        assert np.array_equal(slide.read((0, 0), (300, 250), (150, 125)), second)
        # The coarsest level, or level 0 reduced: the same mean colour.
        coarse = slide.read((0, 0), (300, 250), (30, 25)).reshape(-1, 3).mean(axis=0)
        np.testing.assert_allclose(coarse, first.reshape(-1, 3).mean(axis=0), atol=4)


def test_a_flat_tiff_that_openslide_refuses(shared):
    path = shared / "slides" / "subsampled.tif"
    with Image.open(path) as image:
        assert np.array_equal(read_all(path, 0.5), np.asarray(image.convert("RGB")))
    with pytest.raises(ScaleUnknownError):
        open_slide(path)


def test_a_slide_with_a_damaged_tile_opens_and_says_what_cannot_be_read(shared):
    path = shared / "slides" / "unreadable.svs"
    with open_slide(path) as slide:
        assert slide.mpp == (0.499, 0.499)
        with pytest.raises(SlideUnreadableError) as caught:
            slide.read((0, 0), (16, 16), (16, 16))
    assert str(path) in caught.value.what


def test_a_slide_that_is_none(shared):
    path = shared / "slides" / "broken.svs"
    with pytest.raises(SlideUnreadableError) as caught:
        open_slide(path, 0.5)
    assert str(path) in caught.value.what
