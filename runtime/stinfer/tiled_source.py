"""Slides of plain JPEG tiles, decoded without OpenSlide's compositing.

OpenSlide paints every box through a blending that takes six times as long as to decode a tile, and gives
RGBA. Where a level is nothing but JPEG tiles side by side, Pillow gives the same pixels. OpenSlide stays the
reader of all else: it says what the levels are, reads levels and tiles of any other kind, and is asked once
for a pixel of each tile, for which it decodes it: Pillow tells nothing of damage within a JPEG, and it does.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from stinfer.errors import SlideUnreadableError
from stinfer.openslide_source import OpenSlideSource
from stinfer.slide_source import Level
from stinfer.tiff_tiles import TileGrid, read_tile_grids, whole_jpeg
from stinfer.tile_cache import TileCache

# Decoded tiles that are kept: those of the regions that threads read, and some of the row before.
_CACHE_BYTES = 32 * 2**20
# A box of less than this part of a tile costs OpenSlide less than to decode the tile costs Pillow.
_SMALL = 1 / 2
# Pillow's pixels of RGB.
_PIXEL_BYTES = 4
# A tile that takes more than it would uncompressed is none of ours.
_MAX_BYTES_PER_PX, _MAX_HEAD = 3, 2**16


class TiledSource:
    """A pyramid that OpenSlide reads, with levels whose tiles are read from the file itself.

    Parameters
    ----------
    source : OpenSlide's
    file : the same, open
    grids : the tiles of each level; None where OpenSlide is to read it
    """

    def __init__(self, source: OpenSlideSource, file: TileFile, grids: Sequence[TileGrid | None]) -> None:
        self.levels: tuple[Level, ...] = source.levels
        self._source, self._file, self._grids = source, file, grids
        self._cache: TileCache[Image.Image | None] = TileCache(_CACHE_BYTES, _n_bytes)
        self._whole = [np.zeros(0 if grid is None else len(grid.offsets), dtype=bool) for grid in grids]

    def read_level(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> tuple[Image.Image, tuple[float, float]]:
        """Put the box together from tiles; OpenSlide reads one that touches a tile of another kind."""
        grid = self._grids[level]
        if grid is None or width * height < _SMALL * grid.tile[0] * grid.tile[1]:
            return self._source.read_level(level, x, y, width, height)
        region = Image.new("RGB", (width, height))
        for row in range(y // grid.tile[1], -(-(y + height) // grid.tile[1])):
            for column in range(x // grid.tile[0], -(-(x + width) // grid.tile[0])):
                tile = self._tile(level, grid, column, row)
                if tile is None:
                    return self._source.read_level(level, x, y, width, height)
                region.paste(tile, (column * grid.tile[0] - x, row * grid.tile[1] - y))
        return region, (float(x), float(y))

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._source.close()

    def _tile(self, level: int, grid: TileGrid, column: int, row: int) -> Image.Image | None:
        number = row * grid.across + column

        def decode() -> Image.Image | None:
            tile = self._file.decode(grid, number)
            if tile is not None and not self._whole[level][number]:
                self._source.read_level(level, column * grid.tile[0], row * grid.tile[1], 1, 1)
                self._whole[level][number] = True
            return tile

        return self._cache.get((level, number), decode)


def with_own_tiles(path: Path, source: OpenSlideSource) -> TiledSource | None:
    """Read the tiles of a TIFF that OpenSlide has opened without it; None where it is to read every level.

    A level is taken over if its tiles are plain JPEG, OpenSlide would not interpolate between its pixels nor
    fill it up from a finer one, and both give the same pixels of its fullest tile: they may bring different
    versions of libjpeg.
    """
    try:
        file = TileFile(path)
    except OSError:
        return None
    try:
        grids = _level_grids(source, file)
    except BaseException:
        file.close()
        raise
    if not any(grids):
        file.close()
        return None
    return TiledSource(source, file, grids)


def _level_grids(source: OpenSlideSource, file: TileFile) -> list[TileGrid | None]:
    found = file.grids()
    grids: list[TileGrid | None] = []
    finer_is_whole = True
    for level, (frame, downsample) in enumerate(zip(source.levels, source.downsamples, strict=True)):
        same = [grid for grid in found if grid.size == frame.size]
        grid = same[0] if len(same) == 1 else None
        is_ours = grid is not None and finer_is_whole and downsample.is_integer()
        grids.append(grid if grid is not None and is_ours and _agree(source, file, level, grid) else None)
        finer_is_whole &= grid is not None and bool(grid.n_bytes.all()) and not source.n_left_out
    return grids


def _agree(source: OpenSlideSource, file: TileFile, level: int, grid: TileGrid) -> bool:
    number = int(grid.n_bytes.argmax())
    tile = file.decode(grid, number)
    if tile is None:
        return False
    row, column = divmod(number, grid.across)
    x, y = column * grid.tile[0], row * grid.tile[1]
    size = (min(grid.tile[0], grid.size[0] - x), min(grid.tile[1], grid.size[1] - y))
    try:
        expected, _ = source.read_level(level, x, y, *size)
    except SlideUnreadableError:
        return False
    return np.array_equal(np.asarray(tile.crop((0, 0, *size))), np.asarray(expected))


def _n_bytes(tile: Image.Image | None) -> int:
    return 0 if tile is None else tile.width * tile.height * _PIXEL_BYTES


class TileFile:
    """A TIFF file that several threads read tiles from.

    Parameters
    ----------
    path : the file

    Raises
    ------
    OSError
        It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close it."""
        self._file.close()

    def grids(self) -> list[TileGrid]:
        """List its images of JPEG tiles."""
        with self._lock:
            return read_tile_grids(self._file)

    def decode(self, grid: TileGrid, number: int) -> Image.Image | None:
        """Decode a tile; None where it is not a plain JPEG of a tile's size, all in the file."""
        n_px, n_bytes = grid.tile[0] * grid.tile[1], int(grid.n_bytes[number])
        if not 0 < n_bytes <= n_px * _MAX_BYTES_PER_PX + _MAX_HEAD:
            return None
        try:
            with self._lock:
                self._file.seek(int(grid.offsets[number]))
                data = self._file.read(n_bytes)
        except OSError:
            return None
        jpeg = whole_jpeg(grid, data) if len(data) == n_bytes else None
        if jpeg is None:
            return None
        try:
            space = "YCbCr" if grid.is_ycbcr else "RGB"
            return Image.frombytes("RGB", grid.tile, jpeg, "jpeg", "RGB", space)
        except (OSError, ValueError):
            return None
