"""Where a TIFF file's JPEG tiles lie, and files that lie about it."""

from __future__ import annotations

import importlib.util
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from stinfer.tiff_tiles import read_tile_grids

_SPEC = importlib.util.spec_from_file_location("jpeg_tiff", Path(__file__).parent / "jpeg_tiff.py")
jpeg_tiff = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(jpeg_tiff)
JpegTiff = jpeg_tiff.JpegTiff

BOARD = jpeg_tiff.picture(400, 300)


def write_board(path, *, order="<", big=False, **options):
    tiff = JpegTiff(order, big=big)
    tiff.image(BOARD, **options)
    return tiff.write(path)


def grids_of(path, data):
    path.write_bytes(data)
    with path.open("rb") as file:
        return read_tile_grids(file)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_where_tiles_lie_in_any_byte_order(tmp_path, order, big):
    # OpenSlide does not open big-endian files that are no BigTIFF.
    tiff = JpegTiff(order, big=big)
    tiff.image(BOARD, tile=(256, 256), tables=True)
    tiff.image(BOARD[:75, :100], tile=(256, 256), tables=True, reduced=True)
    data = bytes(tiff.data)
    grids = grids_of(tmp_path / "a.tif", data)
    assert [(grid.size, grid.tile, grid.across, len(grid.offsets)) for grid in grids] == [
        ((400, 300), (256, 256), 2, 4),
        ((100, 75), (256, 256), 1, 1),
    ]
    for grid in grids:
        assert grid.is_ycbcr
        assert grid.tables[:4] == b"\xff\xd8\xff\xdb"
        for offset, length in zip(grid.offsets.tolist(), grid.n_bytes.tolist(), strict=True):
            assert data[offset : offset + 2] == b"\xff\xd8"
            assert data[offset + length - 2 : offset + length] == b"\xff\xd9"


@pytest.mark.parametrize(
    "more",
    [
        {258: (3, [8, 8])},
        {284: (3, [2])},
        {266: (3, [2])},
        {324: (4, [8] * 34)},
        {347: (7, b"\xff\xd8\xff\xdd\0\4\0\1\xff\xd9")},
    ],
    ids=str,
)
def test_an_odd_image_is_not_taken_over(tmp_path, more):
    tiff = JpegTiff()
    tiff.image(BOARD, more=more)
    with tiff.write(tmp_path / "a.tif").open("rb") as file:
        assert read_tile_grids(file) == []


# --- hostile directories --------------------------------------------------------------------------


@pytest.mark.parametrize("big", [False, True])
def test_no_length_of_a_file_makes_it_fail(tmp_path, big):
    path = write_board(tmp_path / "a.tif", big=big, tile=(256, 256))
    whole = path.read_bytes()
    assert len(grids_of(path, whole)) == 1
    for length in [*range(64), *range(len(whole) - 400, len(whole))]:
        assert grids_of(path, whole[:length]) == []


@pytest.mark.parametrize("big", [False, True])
def test_no_byte_of_a_directory_makes_it_fail_or_take_much(tmp_path, big):
    path = write_board(tmp_path / "a.tif", big=big, tile=(256, 256))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    tracemalloc.start()
    try:
        for at in [*range(16), *range(len(whole) - 300, len(whole))]:
            for value in (0, 255, int(rng.integers(256))):
                data = bytearray(whole)
                data[at] = value
                for grid in grids_of(path, data):
                    assert (
                        len(grid.offsets)
                        == len(grid.n_bytes)
                        == grid.across * -(-grid.size[1] // grid.tile[1])
                    )
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_a_circle_of_directories_ends(tmp_path):
    tiff = JpegTiff()
    tiff.image(BOARD)
    first = struct.unpack_from("<I", tiff.data, 4)[0]
    struct.pack_into("<I", tiff.data, len(tiff.data) - 4, first)
    assert grids_of(tmp_path / "a.tif", tiff.data) == []


def test_a_file_that_claims_billions_of_tiles_is_left_alone(tmp_path):
    tiff = JpegTiff(big=True)
    tiff.image(BOARD, more={256: (4, [2**31]), 257: (4, [2**31]), 322: (3, [16]), 323: (3, [16])})
    assert grids_of(tmp_path / "a.tif", tiff.data) == []
