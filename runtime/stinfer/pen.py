"""Pen marks on the glass: colours that hematoxylin and eosin do not make. Imports numpy alone.

Both stains absorb green the most: hematoxylin nearly as much red and half as much blue, eosin hardly any of
either. So what absorbs red far more than green is blue ink, what absorbs green the least is green ink, what
absorbs blue as green and hardly any red is red ink, and what lets nothing through is black ink.
"""

from __future__ import annotations

import numpy as np

from stinfer.contract import F32, Bool

# Densities (decadic, over glass) and their quotients. On measured H&E at 8 µm per pixel, 99.9 % of the tissue
# absorbs red at most 1.25 times as much as green, and blue at most 0.85 times.
_BLUE, _BLUE_DENSITY = 1.4, 0.15
# Navy is nearer to hematoxylin, but dense, and absorbs less blue than the densest of its nuclei do.
_NAVY, _NAVY_DENSITY, _NAVY_BLUE = 1.05, 0.6, 0.45
_GREEN, _GREEN_DENSITY = 0.85, 0.15
_RED_DENSITY, _RED_BLUE, _RED_RED = 0.8, 0.7, 0.2
_BLACK_DENSITY = 0.65


def pen_colored(density: F32) -> Bool:
    """Mark the pixels that have the colour of ink.

    Parameters
    ----------
    density : (height, width, 3), optical density of R, G and B over glass

    Returns
    -------
    (height, width)
    """
    red, green, blue = np.ascontiguousarray(np.moveaxis(density, 2, 0))
    is_blue = (red > _BLUE_DENSITY) & (red > _BLUE * green)
    is_navy = (red > _NAVY_DENSITY) & (red > _NAVY * green) & (blue < _NAVY_BLUE * red)
    least = np.minimum(red, blue)
    is_green = (least > _GREEN_DENSITY) & (green < _GREEN * least)
    is_red = (green > _RED_DENSITY) & (blue > _RED_BLUE * green) & (red < _RED_RED * green)
    is_black = np.minimum(least, green) > _BLACK_DENSITY
    return np.asarray(is_blue | is_navy | is_green | is_red | is_black)
