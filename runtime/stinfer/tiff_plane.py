"""One page of a TIFF, read box by box: only the tiles or strips that a box touches are decoded."""

from __future__ import annotations

import struct
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stinfer.contract import AnyArray
from stinfer.errors import SlideTooLargeError, SlideUnreadableError, first_line
from stinfer.slide_source import FLAT_LIMIT_PX, TILE_LIMIT_PX
from stinfer.tile_cache import TileCache

# What tifffile and its codecs raise for damaged data; there is no common base.
DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
# Decoded tiles and strips that are kept, since neighboring boxes share them.
_CACHE_BYTES = 64 * 2**20
# Rows of an uncompressed image that are read at once.
_RAW_ROWS = 64
_SEPARATE_PLANES = 2
_JPEG = frozenset({6, 7, 33007, 34892})


class SharedFile:
    """What the pages of a file share: decoded tiles and strips, and whose turn it is to read from it."""

    def __init__(self) -> None:
        self.tiles: TileCache[AnyArray | None] = TileCache(_CACHE_BYTES, _n_bytes)
        self.lock = threading.Lock()


class TiffPlane:
    """A page of a TIFF.

    Parameters
    ----------
    path : the file, for messages
    page : tifffile's
    shared : with the file's other pages

    Attributes
    ----------
    size : tuple of int
        Width and height, px.
    n_samples : int
        Per pixel.
    blank : int
        What samples are where a tile was never written.

    Raises
    ------
    SlideUnreadableError
        The page contradicts itself, or is not all in the file.
    SlideTooLargeError
        One strip holds more than is decoded at once.
    """

    def __init__(self, path: Path, page: Any, shared: SharedFile) -> None:
        self._path, self._page, self._shared = path, page, shared
        self.size = (int(page.imagewidth), int(page.imagelength))
        self.n_samples = int(page.samplesperpixel)
        self.blank = 0
        self._separate = self.n_samples > 1 and page.planarconfig == _SEPARATE_PLANES
        self._raw = (
            not page.is_tiled
            and page.compression == 1
            and page.predictor == 1
            and page.fillorder == 1
            and page.bitspersample in (8, 16)
        )
        if min(self.size) < 1 or page.imagedepth != 1:
            raise SlideUnreadableError(path, f"it has an image of {self.size[0]} x {self.size[1]} px")
        if page.is_tiled:
            self._tile = (int(page.tilewidth), int(page.tilelength))
            if min(self._tile) < 1 or self._tile[0] * self._tile[1] > TILE_LIMIT_PX:
                cause = f"its tiles have {self._tile[0]} x {self._tile[1]} px"
                raise SlideUnreadableError(path, cause)
        else:
            self._tile = (self.size[0], max(int(page.rowsperstrip), 1))
            if not self._raw and self._tile[0] * self._tile[1] > FLAT_LIMIT_PX:
                raise SlideTooLargeError(path, *self.size, FLAT_LIMIT_PX)
        self._across, self._down = (-(-self.size[i] // self._tile[i]) for i in (0, 1))
        n_tiles = self._across * self._down * (self.n_samples if self._separate else 1)
        if min(len(page.dataoffsets), len(page.databytecounts)) < n_tiles:
            cause = f"it lists {len(page.dataoffsets)} of the {n_tiles} tiles that its size needs"
            raise SlideUnreadableError(path, cause)

    def read(self, x: int, y: int, width: int, height: int) -> AnyArray:
        """Read a box that lies inside the page; threads may do so at the same time.

        Returns
        -------
        (height, width, n_samples) of the page's own type

        Raises
        ------
        SlideUnreadableError
            A tile is damaged.
        """
        out = np.full((height, width, self.n_samples), self.blank, dtype=self._page.dtype)
        if self._raw:
            self._read_raw(out, x, y)
            return out
        for row in range(y // self._tile[1], -(-(y + height) // self._tile[1])):
            for column in range(x // self._tile[0], -(-(x + width) // self._tile[0])):
                self._paste(out, x, y, column, row)
        return out

    def _paste(self, out: AnyArray, x: int, y: int, column: int, row: int) -> None:
        """Copy what a tile, of all planes, has of the box that begins at x, y."""
        left, top = column * self._tile[0], row * self._tile[1]
        for sample in range(self.n_samples if self._separate else 1):
            number = (sample * self._down + row) * self._across + column
            key = (int(self._page.offset), number)
            tile = self._shared.tiles.get(key, partial(self._decode, number))
            if tile is None:
                continue
            x0, x1 = max(left, x), min(left + tile.shape[1], x + out.shape[1], self.size[0])
            y0, y1 = max(top, y), min(top + tile.shape[0], y + out.shape[0], self.size[1])
            if x0 >= x1 or y0 >= y1:
                continue
            part = tile[y0 - top : y1 - top, x0 - left : x1 - left]
            samples = slice(sample, sample + 1) if self._separate else slice(None)
            out[y0 - y : y1 - y, x0 - x : x1 - x, samples] = part

    def _decode(self, number: int) -> AnyArray | None:
        """Decode a tile or strip, (height, width, samples); None where it was never written."""
        offset, n_bytes = int(self._page.dataoffsets[number]), int(self._page.databytecounts[number])
        if n_bytes == 0:
            return None
        data = self._bytes(offset, n_bytes)
        self._refuse_bomb(data)
        tables = {"jpegtables": self._page.jpegtables} if self._page.compression in _JPEG else {}
        try:
            tile: AnyArray = np.asarray(self._page.decode(data, number, **tables)[0])
            return tile.reshape(tile.shape[-3:])
        except DAMAGE as error:
            raise SlideUnreadableError(self._path, f"a tile is damaged ({first_line(error)})") from error

    def _bytes(self, offset: int, n_bytes: int) -> bytes:
        file = self._page.parent.filehandle
        try:
            with self._shared.lock:
                file.seek(offset)
                data: bytes = file.read(n_bytes) if offset + n_bytes <= file.size else b""
        except DAMAGE as error:
            raise SlideUnreadableError(self._path, first_line(error)) from error
        if len(data) != n_bytes:
            raise SlideUnreadableError(self._path, "the file is cut short: a tile lies beyond its end")
        return data

    def _read_raw(self, out: AnyArray, x: int, y: int) -> None:
        """Read rows of uncompressed strips, however high a strip is."""
        dtype = np.dtype(self._page.dtype).newbyteorder(self._page.parent.byteorder)
        per_pixel = 1 if self._separate else self.n_samples
        row_bytes = self.size[0] * per_pixel * dtype.itemsize
        for sample in range(self.n_samples if self._separate else 1):
            samples = slice(sample, sample + 1) if self._separate else slice(None)
            row = y
            while row < y + len(out):
                strip, within = divmod(row, self._tile[1])
                n_rows = min(_RAW_ROWS, self._tile[1] - within, y + len(out) - row)
                offset = int(self._page.dataoffsets[sample * self._down + strip]) + within * row_bytes
                rows = np.frombuffer(self._bytes(offset, n_rows * row_bytes), dtype=dtype)
                rows = rows.reshape(n_rows, self.size[0], per_pixel)
                out[row - y : row - y + n_rows, :, samples] = rows[:, x : x + out.shape[1]]
                row += n_rows

    def _refuse_bomb(self, data: bytes) -> None:
        """Refuse a tile whose own header says that it is far larger than the page's tiles."""
        size = _coded_size(data)
        limit = max(self._tile[0] * self._tile[1] * 4, 2**20)
        if size is not None and size[0] * size[1] > limit:
            cause = f"a tile of {self._tile[0]} x {self._tile[1]} px says that it has {size[0]} x {size[1]}"
            raise SlideUnreadableError(self._path, cause)


def _n_bytes(tile: AnyArray | None) -> int:
    return 0 if tile is None else tile.nbytes


def _coded_size(data: bytes) -> tuple[int, int] | None:
    """Read width and height from the head of a JPEG or a JPEG 2000 codestream; None of anything else."""
    if data[:4] == b"\xff\x4f\xff\x51" and len(data) >= 16:
        width, height = struct.unpack(">II", data[8:16])
        return int(width), int(height)
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], struct.unpack(">H", data[at + 2 : at + 4])[0]
        # Start of frame, but for tables of codes and of arithmetic conditioning.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return int(width), int(height)
        at += 2 + max(length, 2)
    return None
