"""Arithmetic of places: µm, level-0 pixels, grids and overhang. Imports numpy alone.

Points are (x, y) in level-0 pixels, as real numbers: pixel i covers [i, i + 1). Sizes are (width,
height); scales (`mpp`) are µm per level-0 pixel in x and y, which need not be equal.
"""

from __future__ import annotations

import numpy as np

from stinfer.contract import F64

_ROUNDING = 1e-9


def extent_l0(side_um: float, mpp: tuple[float, float]) -> tuple[float, float]:
    """Return the width and height, in level-0 pixels, of a square of `side_um`."""
    return side_um / mpp[0], side_um / mpp[1]


def grid_centers(size_l0: tuple[int, int], mpp: tuple[float, float], pitch_um: float) -> F64:
    """Lay a square lattice over the slide.

    The first point lies half a pitch from the slide's upper left corner, so a place has the same
    lattice on every run. Points run along x first.

    Parameters
    ----------
    size_l0 : slide's width and height
    mpp : µm per level-0 pixel, x and y
    pitch_um : distance of neighboring points

    Returns
    -------
    (n, 2), level-0 px, all inside the slide
    """
    axes = []
    for length_l0, scale in zip(size_l0, mpp, strict=True):
        n = max(int(np.floor(length_l0 * scale / pitch_um + 0.5)), 1)
        centers = (np.arange(n, dtype=np.float64) + 0.5) * (pitch_um / scale)
        axes.append(centers[centers < length_l0])
    x, y = np.meshgrid(axes[0], axes[1])
    return np.stack([x.ravel(), y.ravel()], axis=1)


def outside_px(points_l0: F64, size_l0: tuple[int, int]) -> F64:
    """Measure how far points lie outside the image.

    Parameters
    ----------
    points_l0 : (n, 2)
    size_l0 : width and height

    Returns
    -------
    (n,), level-0 px; 0 for a point inside or on the edge; the larger of the two axes
    """
    size = np.asarray(size_l0, dtype=np.float64)
    excess = np.maximum(-points_l0, points_l0 - size)
    return np.asarray(np.maximum(excess, 0.0).max(axis=1, initial=0.0), dtype=np.float64)


def outside_fraction(centers_l0: F64, extent: tuple[float, float], size_l0: tuple[int, int]) -> F64:
    """Measure the part of each patch's area that is not on the image.

    Parameters
    ----------
    centers_l0 : (n, 2)
    extent : patch width and height, level-0 px
    size_l0 : image width and height

    Returns
    -------
    (n,), 0 to 1
    """
    half = np.asarray(extent, dtype=np.float64) / 2
    size = np.asarray(size_l0, dtype=np.float64)
    inside = np.minimum(centers_l0 + half, size) - np.maximum(centers_l0 - half, 0.0)
    share = np.clip(inside, 0.0, None) / (2 * half)
    outside = 1.0 - share[:, 0] * share[:, 1]
    # A patch wholly on the image comes out as a rounding error, not as 0.
    return np.where(outside < _ROUNDING, 0.0, outside)
