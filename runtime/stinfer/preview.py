"""Where a run is about to predict, drawn over the slide: the tissue's outline and the places."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from stinfer.contract import F64, U8, Bool
from stinfer.files import written_beside
from stinfer.tissue import TissueMask

# Green and cyan: neither stain has them.
_OUTLINE = (0, 160, 40)
_MARK = (0, 185, 225)
# The thumbnail's sides are drawn at least this long, so that lines of a pixel do not cover a small one.
_LEAST_PX = 1000
# Marks nearer than this would cover the tissue: points are drawn instead.
_CLOSE_PX = 6.0


def draw_preview(
    path: Path,
    thumbnail: U8,
    tissue: TissueMask,
    size_l0: tuple[int, int],
    centers_l0: F64,
    mark_l0: tuple[float, float],
    *,
    square: bool,
) -> None:
    """Draw the tissue's outline and the places over a slide and write a PNG, all or nothing.

    Parameters
    ----------
    path : of the picture
    thumbnail : (height, width, 3) RGB, the whole slide
    tissue : outlined in green
    size_l0 : the slide's width and height
    centers_l0 : (n, 2), drawn in cyan; may be empty
    mark_l0 : width and height of a mark, level-0 px
    square : squares, as for a grid, rather than discs

    Raises
    ------
    OutputWriteError
        The disk is full, or the folder cannot be written.
    """
    base = Image.fromarray(thumbnail)
    if max(base.size) < _LEAST_PX:
        factor = _LEAST_PX / max(base.size)
        base = base.resize(
            (round(base.width * factor), round(base.height * factor)), Image.Resampling.BICUBIC
        )
    scale = np.asarray([base.width / size_l0[0], base.height / size_l0[1]])
    draw = ImageDraw.Draw(base)
    half = np.asarray(mark_l0) * scale / 2
    low, high = np.rint(centers_l0 * scale - half), np.rint(centers_l0 * scale + half) - 1
    if 2 * float(half.min()) < _CLOSE_PX:
        points = np.floor(centers_l0 * scale).astype(int)
        draw.point([(int(x), int(y)) for x, y in points], fill=_MARK)
    else:
        outline = draw.rectangle if square else draw.ellipse
        for (left, top), (right, bottom) in zip(low.tolist(), high.tolist(), strict=True):
            outline((left, top, max(right, left), max(bottom, top)), outline=_MARK)
    pixels = np.array(base)
    pixels[_outline(tissue.mask, base.size)] = _OUTLINE
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    with written_beside(path) as partial:
        partial.write_bytes(buffer.getvalue())


def _outline(mask: Bool, size_px: tuple[int, int]) -> Bool:
    """Mark the tissue's outermost pixels at the picture's size, two wide."""
    width, height = size_px
    rows = (np.arange(height) + 0.5) * mask.shape[0] / height
    columns = (np.arange(width) + 0.5) * mask.shape[1] / width
    shown = mask[rows.astype(int)[:, None], columns.astype(int)[None, :]]
    padded = np.pad(shown, 2)
    inner = shown.copy()
    for step in (1, 2):
        for axis in (0, 1):
            for shift in (-step, step):
                inner &= np.roll(padded, shift, axis=axis)[2:-2, 2:-2]
    return np.asarray(shown & ~inner)
