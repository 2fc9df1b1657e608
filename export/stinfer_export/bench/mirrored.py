"""Slides of any area, made of one section: a part of its tissue, or it and its mirror images side by side."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from stinfer.contract import I64, U8
from stinfer.files import written_beside
from stinfer.slide import Slide, open_slide
from stinfer.tiff_extra import import_tifffile
from stinfer.tissue import find_tissue
from stinfer_export.bench.subjects import BenchSlide

_TILE_PX = 256
# Of the levels beside the first; sides are whole multiples of the last.
_REDUCTIONS = (1, 4, 16)
_QUALITY = 90
# Glass left around the tissue, as a part of its sides: what is tissue is told from it.
_MARGIN = 1 / 16


def mirrored_slide(section: BenchSlide, n_copies: float, folder: Path) -> BenchSlide:
    """Return a pyramid that shows a section's tissue so many times; it is written once, and kept.

    Parameters
    ----------
    section : a slide that fits in memory
    n_copies : of its area; less than 1 for an upright strip through its middle
    folder : to write into

    Raises
    ------
    ExtraMissingError
        tifffile is not installed.
    """
    path = folder / f"{section.path.stem}_x{n_copies:.2f}.tif"
    with open_slide(section.path, section.mpp) as slide:
        mpp = slide.mpp
        if not path.exists():
            left, top, right, bottom = _tissue_box(slide)
            size = (right - left, bottom - top)
            pixels = slide.read((float(left), float(top)), (float(size[0]), float(size[1])), size)
            with written_beside(path) as partial:
                _write(partial, pixels, n_copies)
    return BenchSlide(path, mpp[0])


def _tissue_box(slide: Slide) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the tissue with some glass around, level-0 px."""
    tissue = find_tissue(slide)
    edges = []
    for axis, length, scale in zip((0, 1), slide.size_l0, tissue.l0_per_px, strict=True):
        places = np.flatnonzero(tissue.mask.any(axis=axis))
        first, last = places[0] * scale, (places[-1] + 1) * scale
        margin = _MARGIN * (last - first)
        edges.append((max(round(first - margin), 0), min(round(last + margin), length)))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def mirrored(pixels: U8, size: tuple[int, int], top: int, left: int) -> U8:
    """Cut a box from a picture that goes on beyond its edges as its mirror images.

    Parameters
    ----------
    pixels : (height, width, 3)
    size : rows and columns
    top, left : where it begins, from the picture's corner

    Returns
    -------
    (*size, 3)
    """
    rows, columns = (
        _mirrored(np.arange(first, first + n), length)
        for first, n, length in zip((top, left), size, pixels.shape[:2], strict=True)
    )
    return np.asarray(pixels[rows[:, np.newaxis], columns])


def _mirrored(places: I64, length: int) -> I64:
    turn = places % (2 * length)
    return np.where(turn < length, turn, 2 * length - 1 - turn)


def _write(path: Path, pixels: U8, n_copies: float) -> None:
    """Write the pyramid; JPEG in tiles, as scanners do."""
    tifffile = import_tifffile("making the slide to measure", codecs=False)
    # Whole pixels of the coarsest level, so that a level's mirror image is the mirror image's level.
    step = _REDUCTIONS[-1]
    height, width = (side // step * step for side in pixels.shape[:2])
    pixels = pixels[:height, :width]
    factors = (math.sqrt(n_copies), math.sqrt(n_copies)) if n_copies > 1 else (1.0, n_copies)
    size = [round(side * factor / step) * step for side, factor in zip((height, width), factors, strict=True)]
    left = max(width - size[1], 0) // (2 * step) * step
    with tifffile.TiffWriter(path) as file:
        for reduction in _REDUCTIONS:
            level = np.asarray(Image.fromarray(pixels).reduce(reduction)) if reduction > 1 else pixels
            rows, columns = (side // reduction for side in size)
            file.write(
                _tiles(level, (rows, columns), left // reduction),
                shape=(rows, columns, 3),
                dtype=np.uint8,
                tile=(_TILE_PX, _TILE_PX),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                subfiletype=int(reduction > 1),
                software=False,
                metadata=None,
            )


def _tiles(pixels: U8, size: tuple[int, int], first: int) -> Iterator[bytes]:
    """Encode the tiles of a level from a column on, row by row; those at its edges go on beyond them."""
    for top in range(0, size[0], _TILE_PX):
        for left in range(first, first + size[1], _TILE_PX):
            tile = mirrored(pixels, (_TILE_PX, _TILE_PX), top, left)
            encoded = io.BytesIO()
            Image.fromarray(tile).save(encoded, "JPEG", quality=_QUALITY, subsampling="4:2:0")
            yield encoded.getvalue()
