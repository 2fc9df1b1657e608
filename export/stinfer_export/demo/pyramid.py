"""Write a pyramidal TIFF that OpenSlide opens: JPEG tiles, one directory per level, µm per pixel in its tags.

The TIFF libraries for Python that write JPEG tiles bring a codec of their own; Pillow compresses the tiles
here, and what TIFF adds around them is little.

References
----------
TIFF Revision 6.0, Adobe (1992): directories, sections 2 and 15 (tiles), 21 (YCbCr). TIFF Technical Note 2
(1995): JPEG compression as tag value 7.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from stinfer.contract import U8

_TILE_PX = 256
# A level is halved as long as the half is no smaller than this.
_SMALLEST_LEVEL_PX = 600
_UM_PER_CM = 10_000

_SHORT, _LONG, _RATIONAL = 3, 4, 5
_FORMAT = {_SHORT: "H", _LONG: "I", _RATIONAL: "I"}
_REDUCED_IMAGE = 1
_COMPRESSION_JPEG = 7
_PHOTOMETRIC_YCBCR = 6
_CHUNKY = 1
_RESOLUTION_PER_CM = 3

_Tag = tuple[int, int, Sequence[int]]


def write_pyramid(path: Path, pixels: U8, um_per_px: float, *, quality: int) -> None:
    """Write a slide, each level half the size of the one before.

    Parameters
    ----------
    path : of the TIFF
    pixels : (height, width, 3), RGB, 0 to 255
    um_per_px : scale of `pixels`
    quality : of JPEG, 1 to 95
    """
    with path.open("wb") as file:
        # Little endian, version, and where the first directory is: not known yet.
        file.write(struct.pack("<2sHI", b"II", 42, 0))
        link = 4
        level, scale_um, is_first = pixels, um_per_px, True
        while True:
            offsets, sizes = [], []
            for tile in _jpeg_tiles(level, quality):
                offsets.append(file.tell())
                sizes.append(len(tile))
                file.write(tile)
            subfile = 0 if is_first else _REDUCED_IMAGE
            link = _write_directory(file, link, _level_tags(level, scale_um, subfile, offsets, sizes))
            if min(level.shape[:2]) < 2 * _SMALLEST_LEVEL_PX:
                return
            level, scale_um, is_first = _halve(level), 2 * scale_um, False


def _level_tags(
    level: U8, um_per_px: float, subfile: int, offsets: Sequence[int], sizes: Sequence[int]
) -> list[_Tag]:
    """List what a level's directory says, by rising tag number."""
    resolution = (round(1000 * _UM_PER_CM / um_per_px), 1000)
    return [
        (254, _LONG, [subfile]),
        (256, _LONG, [level.shape[1]]),
        (257, _LONG, [level.shape[0]]),
        (258, _SHORT, [8, 8, 8]),
        (259, _SHORT, [_COMPRESSION_JPEG]),
        (262, _SHORT, [_PHOTOMETRIC_YCBCR]),
        (277, _SHORT, [3]),
        (282, _RATIONAL, resolution),
        (283, _RATIONAL, resolution),
        (284, _SHORT, [_CHUNKY]),
        (296, _SHORT, [_RESOLUTION_PER_CM]),
        (322, _LONG, [_TILE_PX]),
        (323, _LONG, [_TILE_PX]),
        (324, _LONG, offsets),
        (325, _LONG, sizes),
        (530, _SHORT, [2, 2]),
    ]


def _write_directory(file: BinaryIO, link: int, tags: Sequence[_Tag]) -> int:
    """Append a directory and enter it where the one before, or the header, points to the next.

    Parameters
    ----------
    file : positioned at its end
    link : where to enter the directory's place
    tags : number, type and values, by rising number

    Returns
    -------
    Where to enter the place of the directory after this one.
    """
    file.write(b"\0" * (file.tell() % 2))  # directories begin at even places
    start = file.tell()
    next_link = start + 2 + 12 * len(tags)
    entries, values = b"", b""
    for number, kind, content in tags:
        packed = struct.pack(f"<{len(content)}{_FORMAT[kind]}", *content)
        count = len(content) // 2 if kind == _RATIONAL else len(content)
        if len(packed) > 4:
            # What does not fit into the entry lies behind the directory.
            place = next_link + 4 + len(values)
            values += packed + b"\0" * (len(packed) % 2)
            packed = struct.pack("<I", place)
        entries += struct.pack("<HHI4s", number, kind, count, packed)
    file.write(struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0) + values)
    file.seek(link)
    file.write(struct.pack("<I", start))
    file.seek(0, io.SEEK_END)
    return next_link


def _jpeg_tiles(level: U8, quality: int) -> Iterator[bytes]:
    """Compress tile after tile, row by row; the last ones are filled up with their edge."""
    height, width = level.shape[:2]
    for top in range(0, height, _TILE_PX):
        for left in range(0, width, _TILE_PX):
            tile = level[top : top + _TILE_PX, left : left + _TILE_PX]
            missing = ((0, _TILE_PX - tile.shape[0]), (0, _TILE_PX - tile.shape[1]), (0, 0))
            encoded = io.BytesIO()
            filled = Image.fromarray(np.pad(tile, missing, mode="edge"))
            # The subsampling is that of tag 530.
            filled.save(encoded, "JPEG", quality=quality, subsampling="4:2:0")
            yield encoded.getvalue()


def _halve(level: U8) -> U8:
    """Average 2 x 2 pixels; an odd last row or column is dropped."""
    height, width = level.shape[0] // 2 * 2, level.shape[1] // 2 * 2
    wide = level[:height, :width].astype(np.uint16)
    total = wide[0::2, 0::2] + wide[1::2, 0::2] + wide[0::2, 1::2] + wide[1::2, 1::2]
    return ((total + 2) // 4).astype(np.uint8)
