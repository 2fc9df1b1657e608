"""Boxes of a slide, resampled from one of its levels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from stinfer.contract import U8
from stinfer.slide_source import Level, Source
from stinfer.stage_clock import StageClock, timed

# Pixels of a level that are decoded at once; a larger box is read in bands.
_BAND_LIMIT_PX = 16_000_000
# Pillow's bilinear filter widens with the reduction: a triangle over two output pixels. Unlike a
# box it has no jumps as the phase between source and output pixels changes.
_FILTER = Image.Resampling.BILINEAR
_FILTER_SUPPORT = 1.0
# A level a hair coarser than wanted counts as equal: scales are quotients of rounded sizes.
_COARSER = 1.01


def nearest_level(levels: Sequence[Level], step: tuple[float, float]) -> int:
    """Return the coarsest level that is not coarser than `step` level-0 pixels per pixel, x and y."""
    best = 0
    for candidate, level in enumerate(levels):
        fits = all(scale <= wanted * _COARSER for scale, wanted in zip(level.scale, step, strict=True))
        if fits and level.scale >= levels[best].scale:
            best = candidate
    return best


def read_box(
    source: Source,
    level: int,
    corner_l0: tuple[float, float],
    extent: tuple[float, float],
    size_px: tuple[int, int],
    clock: StageClock | None = None,
) -> U8:
    """Read a box from a level, resampled to a given size, in bands where it is large.

    Parameters
    ----------
    source : the slide's pixels
    level : to read from
    corner_l0 : x and y of the box's upper left corner, may lie outside the image
    extent : width and height of the box, level-0 px
    size_px : width and height of the result
    clock : told how long decoding takes

    Returns
    -------
    (size_px[1], size_px[0], 3) uint8 RGB; white where the box leaves the image

    Raises
    ------
    SlideUnreadableError
        The file is damaged there.
    """
    scale = source.levels[level].scale
    step_y = extent[1] / size_px[1]
    row_px = extent[0] * step_y / (scale[0] * scale[1])
    band_px = max(int(_BAND_LIMIT_PX / row_px), 1)
    bands = []
    for top in range(0, size_px[1], band_px):
        n_rows = min(band_px, size_px[1] - top)
        corner = (corner_l0[0], corner_l0[1] + top * step_y)
        size = (size_px[0], n_rows)
        bands.append(_read_band(source, level, corner, (extent[0], n_rows * step_y), size, clock))
    return bands[0] if len(bands) == 1 else np.concatenate(bands)


def _read_band(
    source: Source,
    level: int,
    corner_l0: tuple[float, float],
    extent: tuple[float, float],
    size_px: tuple[int, int],
    clock: StageClock | None,
) -> U8:
    frame = source.levels[level]
    # The box in pixels of the level.
    x, y = (
        (corner - origin) / scale
        for corner, origin, scale in zip(corner_l0, frame.origin, frame.scale, strict=True)
    )
    width, height = (length / scale for length, scale in zip(extent, frame.scale, strict=True))
    left, right = _span(x, width, size_px[0])
    top, bottom = _span(y, height, size_px[1])
    x0, x1 = max(left, 0), min(right, frame.size[0])
    y0, y1 = max(top, 0), min(bottom, frame.size[1])
    if x0 >= x1 or y0 >= y1:
        return np.full((size_px[1], size_px[0], 3), 255, dtype=np.uint8)
    with timed(clock, "read"):
        region, begins = source.read_level(level, x0, y0, x1 - x0, y1 - y0)
    # Where a library could not begin at x0, y0, all pixels lie a little beside their place.
    x -= begins[0] - x0
    y -= begins[1] - y0
    if (x0, y0, x1, y1) != (left, top, right, bottom):
        canvas = Image.new("RGB", (right - left, bottom - top), "#ffffff")
        canvas.paste(region, (x0 - left, y0 - top))
        region = canvas
    box = (x - left, y - top, x - left + width, y - top + height)
    return np.asarray(region.resize(size_px, _FILTER, box=box), dtype=np.uint8)


def _span(start: float, length: float, n_px: int) -> tuple[int, int]:
    """Whole level pixels that the resampling of [start, start + length) to `n_px` touches."""
    margin = math.ceil(_FILTER_SUPPORT * max(length / n_px, 1.0)) + 1
    return math.floor(start) - margin, math.ceil(start + length) + margin
