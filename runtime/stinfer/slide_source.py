"""What a slide reads from: one file's pixels, level by level, whichever library decodes them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

# Sides of two levels differ by this much more than rounding to whole pixels explains: not one picture.
_ASPECT_TOLERANCE = 0.01
# A picture of more pixels, level 0, is no slide: 600,000 px a side.
LARGEST_PX = 360_000_000_000
# Pixels of one tile or strip, which is decoded whole.
TILE_LIMIT_PX = 64_000_000
# Pixels of an image that is decoded whole.
FLAT_LIMIT_PX = 500_000_000


@dataclass(frozen=True)
class Level:
    """A level of a pyramid.

    Parameters
    ----------
    size : width and height, in its own pixels
    scale : level-0 px per pixel of the level, x and y
    origin : level-0 px where its first pixel begins, x and y
    """

    size: tuple[int, int]
    scale: tuple[float, float]
    origin: tuple[float, float] = (0.0, 0.0)


class Source(Protocol):
    """Pixels of one file.

    Attributes
    ----------
    levels : tuple of Level
        The largest first; the first has a scale of 1.
    """

    levels: tuple[Level, ...]

    def read_level(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> tuple[Image.Image, tuple[float, float]]:
        """Read RGB pixels of a level; the box lies inside the level.

        Returns
        -------
        pixels : of the box
        corner : where they begin, in pixels of the level: (x, y), or less than a pixel beside it, where the
            library reads from whole level-0 pixels only

        Raises
        ------
        SlideUnreadableError
            The file is damaged there.
        """

    def close(self) -> None:
        """Close the file."""


@dataclass(frozen=True)
class Opened:
    """A file that a library has opened.

    Parameters
    ----------
    source : its pixels
    mpp : µm per level-0 pixel, x and y, as the file says; None where it does not
    said_by : where in the file, for messages and the record
    reader : the library that decodes it, for the record
    magnification : of the objective, as the file says; None where it does not
    remarks : what was converted, guessed or left out, in words
    """

    source: Source
    mpp: tuple[float, float] | None
    said_by: str
    reader: str
    magnification: float | None = None
    remarks: tuple[str, ...] = ()


def level_scale(size_l0: tuple[int, int], size: tuple[int, int]) -> tuple[float, float] | None:
    """Work out a level's scale from sizes that were rounded to whole pixels.

    Programs that make pyramids divide by a whole number and round, so the quotient of the sizes is a little
    off: 250 px by 4 are 62, not 62.5, and every pixel is still 4 wide. Where a whole number explains both
    sides it is taken, else each side's own quotient.

    Parameters
    ----------
    size_l0 : width and height of level 0
    size : of the level

    Returns
    -------
    level-0 px per pixel, x and y; None where the sides' proportion is that of another picture
    """
    longer = 0 if size[0] >= size[1] else 1
    factor = round(size_l0[longer] / size[longer])
    if factor >= 1 and all(abs(full / factor - part) < 1 for full, part in zip(size_l0, size, strict=True)):
        return float(factor), float(factor)
    if not same_aspect(size_l0, size):
        return None
    return size_l0[0] / size[0], size_l0[1] / size[1]


def same_aspect(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Say whether two pictures have the same proportion of sides, as far as whole pixels can tell."""
    lowest, highest = 0.0, math.inf
    for full, part in zip(size, other, strict=True):
        lowest = max(lowest, full / (part + 1))
        highest = min(highest, full / (part - 1) if part > 1 else math.inf)
    return lowest <= highest * (1 + _ASPECT_TOLERANCE)


class TurnedSource:
    """A source whose file says that it lies on its side, or is mirrored.

    Parameters
    ----------
    source : as stored
    orientation : 2 to 8, as in TIFF and EXIF
    """

    def __init__(self, source: Source, orientation: int) -> None:
        self._source = source
        self._orientation = orientation
        full = source.levels[0].size
        self.levels = tuple(self._turn_level(level, full) for level in source.levels)

    def read_level(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> tuple[Image.Image, tuple[float, float]]:
        """Read the box where it is stored, and turn it."""
        stored = self._source.levels[level].size
        size = (height, width) if swaps_axes(self._orientation) else (width, height)
        # The box's corners in the turned picture: where it begins is its upper left one, stored.
        corner = _unturn((x, y), (width, height), stored, self._orientation)
        image, found = self._source.read_level(level, round(corner[0]), round(corner[1]), *size)
        begins = _turn(found, size, stored, self._orientation)
        return image.transpose(_TRANSPOSE[self._orientation]), begins

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    def _turn_level(self, level: Level, full: tuple[int, int]) -> Level:
        covered = (level.size[0] * level.scale[0], level.size[1] * level.scale[1])
        origin = _turn(level.origin, covered, full, self._orientation)
        if swaps_axes(self._orientation):
            return Level(level.size[::-1], level.scale[::-1], origin)
        return Level(level.size, level.scale, origin)


def swaps_axes(orientation: int) -> bool:
    """Say whether rows and columns change places."""
    return orientation >= 5


_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Of the stored picture's x and y: whether it runs backwards in the upright one.
_BACKWARDS = {
    2: (True, False),
    3: (True, True),
    4: (False, True),
    5: (False, False),
    6: (False, True),
    7: (True, True),
    8: (True, False),
}


def _turn(
    corner: tuple[float, float], size: tuple[float, float], stored: tuple[int, int], orientation: int
) -> tuple[float, float]:
    """Find the upright corner of a box that is stored at `corner`, of `size`, in a picture of `stored`."""
    x, y = (
        full - at - length if backwards else at
        for at, length, full, backwards in zip(corner, size, stored, _BACKWARDS[orientation], strict=True)
    )
    return (y, x) if swaps_axes(orientation) else (x, y)


def _unturn(
    corner: tuple[float, float], size: tuple[float, float], stored: tuple[int, int], orientation: int
) -> tuple[float, float]:
    """Find where a box of the upright picture is stored."""
    if swaps_axes(orientation):
        corner, size = corner[::-1], size[::-1]
    x, y = (
        full - at - length if backwards else at
        for at, length, full, backwards in zip(corner, size, stored, _BACKWARDS[orientation], strict=True)
    )
    return x, y
