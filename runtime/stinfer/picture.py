"""A gene's map over the slide, drawn with Pillow alone."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stinfer.contract import F32, F64, U8
from stinfer.files import written_beside

_MARGIN_PX = 24
_TITLE_PX = 64
_BAR_PX = 150
_BACKGROUND = (255, 255, 255)
_INK = (32, 32, 32)
_OPACITY = 0.75
_SUPERSAMPLING = 2
# Viridis at 0, 1/8 ... 1: matplotlib's map, perceptually uniform and readable when colour-blind.
_VIRIDIS = np.array(
    [
        (68, 1, 84),
        (71, 45, 123),
        (59, 82, 139),
        (44, 114, 142),
        (33, 145, 140),
        (40, 174, 128),
        (94, 201, 98),
        (173, 220, 48),
        (253, 231, 37),
    ],
    dtype=np.float64,
)


@dataclass(frozen=True)
class GeneMap:
    """What a picture shows.

    Parameters
    ----------
    gene : its title
    unit : of the values, for the colour bar
    values : (n_spots,)
    spatial : (n_spots, 2), level-0 px
    mark_l0 : width and height of a spot's mark
    square : squares, as for a grid, rather than discs
    thumbnail : (height, width, 3) uint8 RGB
    scale : thumbnail pixels per level-0 pixel
    um_per_px : of the thumbnail, for the scale bar
    """

    gene: str
    unit: str
    values: F32
    spatial: F64
    mark_l0: tuple[float, float]
    square: bool
    thumbnail: U8
    scale: float
    um_per_px: float


def draw_gene_map(path: Path, shown: GeneMap) -> None:
    """Draw a gene's values at their places and write a PNG, all or nothing.

    Raises
    ------
    OutputWriteError
        The disk is full, or the folder cannot be written.
    """
    height, width = shown.thumbnail.shape[:2]
    size = (width + 2 * _MARGIN_PX + _BAR_PX, height + 2 * _MARGIN_PX + _TITLE_PX)
    sheet = Image.new("RGB", size, _BACKGROUND)
    sheet.paste(_draw_marks(shown), (_MARGIN_PX, _TITLE_PX))
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN_PX, _MARGIN_PX // 2), shown.gene, font=_font(30), fill=_INK)
    bar_corner = (width + 2 * _MARGIN_PX, _TITLE_PX)
    _draw_color_bar(sheet, draw, bar_corner, min(height, 420), shown)
    scale_corner = (_MARGIN_PX, height + _TITLE_PX + _MARGIN_PX // 3)
    _draw_scale_bar(draw, scale_corner, width, shown.um_per_px)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    with written_beside(path) as partial:
        partial.write_bytes(buffer.getvalue())


def viridis(fraction: F64) -> U8:
    """Map numbers to colours.

    Parameters
    ----------
    fraction : any shape, 0 to 1

    Returns
    -------
    the same shape and (…, 3) uint8 RGB
    """
    stops = np.linspace(0.0, 1.0, len(_VIRIDIS))
    channels = [np.interp(fraction, stops, _VIRIDIS[:, c]) for c in range(3)]
    return np.asarray(np.rint(np.stack(channels, axis=-1)), dtype=np.uint8)


def _draw_marks(shown: GeneMap) -> Image.Image:
    low, high = _limits(shown.values)
    colors = viridis((shown.values.astype(np.float64) - low) / (high - low))
    # Marks are drawn at twice the size and reduced, so that their edges are smooth.
    factor = _SUPERSAMPLING
    grey = Image.fromarray(shown.thumbnail).convert("L").convert("RGB")
    base = grey.resize((grey.width * factor, grey.height * factor), Image.Resampling.BILINEAR)
    layer = base.copy()
    draw = ImageDraw.Draw(layer)
    half_x, half_y = (side * shown.scale * factor / 2 for side in shown.mark_l0)
    # Where neighboring squares meet, half a pixel must round alike for both.
    nudge = 1e-6
    for (x, y), color in zip(shown.spatial * (shown.scale * factor), colors, strict=True):
        # Neighboring squares share an edge: rounding both sides alike leaves neither gap nor overlap.
        left, top = round(x - half_x + nudge), round(y - half_y + nudge)
        right, bottom = round(x + half_x + nudge) - 1, round(y + half_y + nudge) - 1
        box = (left, top, max(right, left), max(bottom, top))
        fill = (int(color[0]), int(color[1]), int(color[2]))
        if shown.square:
            draw.rectangle(box, fill=fill)
        else:
            draw.ellipse(box, fill=fill)
    blended = Image.blend(base, layer, _OPACITY)
    return blended.resize(grey.size, Image.Resampling.BOX)


def _limits(values: F32) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low, low + 1.0)


def _draw_color_bar(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], length: int, shown: GeneMap
) -> None:
    low, high = _limits(shown.values)
    x, y = corner
    ramp = viridis(np.linspace(1.0, 0.0, length))[:, None, :].repeat(22, axis=1)
    sheet.paste(Image.fromarray(ramp), (x, y))
    font = _font(16)
    for fraction in (0.0, 0.25, 0.5, 0.75, 1.0):
        tick_y = y + round((1.0 - fraction) * (length - 1))
        draw.line((x + 22, tick_y, x + 28, tick_y), fill=_INK)
        draw.text((x + 33, tick_y), f"{low + fraction * (high - low):.2f}", font=font, fill=_INK, anchor="lm")
    draw.text((x, y + length + 10), shown.unit, font=font, fill=_INK)


def _draw_scale_bar(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], width_px: int, um_per_px: float
) -> None:
    """Draw a bar of 1, 2 or 5 times a power of ten µm, at most a quarter of the picture."""
    longest_um = width_px * um_per_px / 4
    power = 10.0 ** np.floor(np.log10(longest_um))
    length_um = max((step * power for step in (1, 2, 5) if step * power <= longest_um), default=power)
    x, y = corner
    right = x + round(length_um / um_per_px)
    draw.rectangle((x, y + 6, right, y + 10), fill=_INK)
    # In mm throughout: Pillow's built-in font has no µ.
    label = f"{length_um / 1000:g} mm"
    draw.text((right + 8, y + 8), label, font=_font(16), fill=_INK, anchor="lm")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
