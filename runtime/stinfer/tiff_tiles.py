"""Where a TIFF file keeps the JPEG tiles of its images: enough to read them without a library.

Pillow's reader of directories, which `tiff_header` asks for the first image's tags, loads every tag and makes
a Python number of every offset: for a slide of a million tiles that is a second and a hundred megabytes. This
one takes what it needs, as arrays, and no more than the file can hold. It reads a plain file whole or not at
all: what is odd is left to OpenSlide.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from stinfer.contract import I64
from stinfer.tiff_header import RGB, YCBCR

_MAX_DIRECTORIES, _MAX_ENTRIES = 256, 1024
# Of all images together: 16 bytes each; a slide of 300,000 px a side has 1.8 million of 256 px.
_MAX_TILES = 2**21
# Smaller tiles cost more to look up than OpenSlide's blending, larger ones would fill the cache.
_MIN_TILE_PX, _MAX_TILE_PX = 2**12, 2**22
# Some hundred bytes are usual.
_MAX_TABLES = 2**16
_TYPES = {1: "u1", 3: "u2", 4: "u4", 7: "u1", 16: "u8"}
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_SAMPLES, _PLANES, _TILE_WIDTH, _TILE_HEIGHT, _OFFSETS, _BYTE_COUNTS = 277, 284, 322, 323, 324, 325
_TABLES, _DEPTH = 347, 32997
_JPEG = 7
# Markers of a JPEG: start, end, tables of codes and of quantization, frames of 8 bits by Huffman codes, scan.
_SOI, _EOI, _DHT, _DQT, _SOF, _SOS = 0xD8, 0xD9, 0xC4, 0xDB, (0xC0, 0xC1), 0xDA
# What else may stand before a scan: when codes restart, notes of programs, comments.
_HARMLESS = frozenset({0xDD, *range(0xE0, 0xF0), 0xFE})


@dataclass(frozen=True)
class TileGrid:
    """The JPEG tiles of an image.

    Parameters
    ----------
    size : of the image, width and height, px
    tile : of its tiles, px
    offsets : (n_tiles,) where in the file they begin, row by row
    n_bytes : (n_tiles,); 0 for a tile that was never written
    tables : what precedes every tile, a JPEG without a picture; empty if there is none
    is_ycbcr : whether the samples are YCbCr; else RGB, whatever the JPEG says of itself
    """

    size: tuple[int, int]
    tile: tuple[int, int]
    offsets: I64
    n_bytes: I64
    tables: bytes
    is_ycbcr: bool

    @property
    def across(self) -> int:
        """Tiles in a row."""
        return -(-self.size[0] // self.tile[0])


def read_tile_grids(file: BinaryIO) -> list[TileGrid]:
    """List the images of a TIFF file that are 8-bit colour in JPEG tiles, in the file's order.

    Returns
    -------
    none where the file is not all as it should be, or cannot be read
    """
    grids: list[TileGrid] = []
    try:
        for directory in _directories(file):
            grid = _grid(directory, _MAX_TILES - sum(len(known.offsets) for known in grids))
            if grid is not None:
                grids.append(grid)
        return grids
    except (OSError, ValueError, KeyError, IndexError, OverflowError, struct.error):
        return []


def whole_jpeg(grid: TileGrid, data: bytes) -> bytes | None:
    """Join a tile and its tables; None unless that is a plain JPEG of the tile's size.

    A decoder is given only what says that it has this size: Pillow does not compare it with its picture's.
    """
    stream = grid.tables[:-2] + data[2:] if grid.tables else data
    if not data.startswith(b"\xff\xd8"):
        return None
    has_frame = False
    for marker, body in _segments(stream):
        if marker in _SOF and not has_frame:
            # Bits, height, width, components, and three bytes of each.
            if len(body) != 15 or struct.unpack(">BHHB", body[:6]) != (8, grid.tile[1], grid.tile[0], 3):
                return None
            has_frame = True
        elif marker == _SOS:
            return stream if has_frame and body[:1] == b"\3" else None
        elif marker not in (_DHT, _DQT) and marker not in _HARMLESS:
            return None
    return None


class _Directory:
    """Tags of one image: type, count and where the value is."""

    def __init__(self, file: BinaryIO, order: str, n_bytes: int) -> None:
        self._file, self._order, self._n_bytes = file, order, n_bytes
        self._entries: dict[int, tuple[int, int, int]] = {}

    def add(self, tag: int, kind: int, count: int, at: int) -> None:
        """Note a tag, the first of its number."""
        self._entries.setdefault(tag, (kind, count, at))

    def values(self, tag: int, most: int) -> I64:
        """Read a tag's numbers; none if it lacks, or if there are more than `most` or than the file holds."""
        kind, count, at = self._entries.get(tag, (1, 0, 0))
        dtype = np.dtype(self._order + _TYPES[kind])
        if count > most or at + count * dtype.itemsize > self._n_bytes:
            raise ValueError(tag)
        self._file.seek(at)
        found = np.frombuffer(self._file.read(count * dtype.itemsize), dtype=dtype).astype(np.int64)
        if len(found) != count or found.min(initial=0) < 0:
            raise ValueError(tag)
        return found

    def number(self, tag: int, default: int | None = None) -> int:
        """Read a tag of one number."""
        found = self.values(tag, 1)
        if len(found) == 0 and default is not None:
            return default
        return int(found[0])

    def __contains__(self, tag: int) -> bool:
        return tag in self._entries


def _directories(file: BinaryIO) -> list[_Directory]:
    n_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    order = {b"II": "<", b"MM": ">"}[file.read(2)]
    is_big = {42: False, 43: True}[_unpack(file, order + "H")[0]]
    if is_big and _unpack(file, order + "HH") != (8, 0):
        raise ValueError(order)
    # Formats of: an address, how many entries there are, an entry up to its value.
    address, number, entry = (order + part for part in (("Q", "Q", "HHQ") if is_big else ("I", "H", "HHI")))
    at = _unpack(file, address)[0]
    found: list[_Directory] = []
    seen = set()
    while at:
        if at in seen or len(found) == _MAX_DIRECTORIES:
            raise ValueError(at)
        seen.add(at)
        file.seek(at)
        n_entries = _unpack(file, number)[0]
        if n_entries > _MAX_ENTRIES:
            raise ValueError(at)
        directory = _Directory(file, order, n_bytes)
        for _ in range(n_entries):
            tag, kind, count = _unpack(file, entry)
            where = file.tell()
            value = _unpack(file, address)[0]
            if kind in _TYPES:
                fits = count * np.dtype(_TYPES[kind]).itemsize <= struct.calcsize(address)
                directory.add(tag, kind, count, where if fits else value)
        found.append(directory)
        at = _unpack(file, address)[0]
    return found


def _unpack(file: BinaryIO, form: str) -> tuple[int, ...]:
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _grid(directory: _Directory, max_tiles: int) -> TileGrid | None:
    """Describe an image's tiles; None of an image of another kind."""
    if _OFFSETS not in directory or directory.number(_COMPRESSION, 1) != _JPEG:
        return None
    photometric = directory.number(_PHOTOMETRIC)
    kind = (
        photometric in (RGB, YCBCR),
        directory.values(_BITS, 64).tolist() == [8, 8, 8],
        directory.number(_SAMPLES, 1) == 3,
        directory.number(_PLANES, 1) == 1,
        directory.number(_FILL_ORDER, 1) == 1,
        directory.number(_DEPTH, 1) == 1,
    )
    size = (directory.number(_WIDTH), directory.number(_HEIGHT))
    tile = (directory.number(_TILE_WIDTH), directory.number(_TILE_HEIGHT))
    if not all(kind) or min(*size, *tile) < 1 or not _MIN_TILE_PX <= tile[0] * tile[1] <= _MAX_TILE_PX:
        return None
    n_tiles = -(-size[0] // tile[0]) * -(-size[1] // tile[1])
    offsets, n_bytes = (directory.values(tag, max_tiles) for tag in (_OFFSETS, _BYTE_COUNTS))
    tables = directory.values(_TABLES, _MAX_TABLES).astype(np.uint8).tobytes()
    if not len(offsets) == len(n_bytes) == n_tiles or not _are_tables(tables):
        return None
    return TileGrid(size, tile, offsets, n_bytes, tables, photometric == YCBCR)


def _are_tables(stream: bytes) -> bool:
    """Say whether a JPEG holds tables alone; anything more would be forgotten where a tile begins."""
    if not stream:
        return True
    return stream.endswith(b"\xff\xd9") and {marker for marker, _ in _segments(stream)} <= {_DHT, _DQT, _EOI}


def _segments(stream: bytes) -> list[tuple[int, bytes]]:
    """List markers and what belongs to them, up to a scan or the end; a marker of 0 where none is found."""
    found = [] if stream[:2] == bytes((0xFF, _SOI)) else [(0, b"")]
    at = 2
    while not found or found[-1][0] not in (0, _SOS, _EOI):
        head = stream[at : at + 4]
        if head[:2] == bytes((0xFF, _EOI)):
            found.append((_EOI, b""))
            continue
        if len(head) < 4 or head[0] != 0xFF:
            found.append((0, b""))
            continue
        end = at + 2 + max(struct.unpack(">H", head[2:])[0], 2)
        found.append((head[1], stream[at + 4 : end]))
        at = end
    return found
