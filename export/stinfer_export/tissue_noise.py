"""Paint what looks like H&E tissue to a network, out of random numbers alone; no torch.

The painters take their randomness from a generator, so that a seed gives the same pixels every time.
"""

from __future__ import annotations

import numpy as np

from stinfer.contract import F64, U8

# Mean colors of an H&E slide, RGB 0 to 255: glass, eosin (stroma), hematoxylin (nuclei).
_GLASS = np.array([240.0, 238.0, 242.0])
_EOSIN = np.array([222.0, 150.0, 188.0])
_HEMATOXYLIN = np.array([112.0, 72.0, 148.0])

_STROMA_PX = 64
_NUCLEUS_PX = 10
_GRAIN = 3.0


def tissue_patch(rng: np.random.Generator, height_px: int, width_px: int) -> U8:
    """Paint something with the colors and the smoothness of H&E tissue.

    Returns
    -------
    (height_px, width_px, 3), RGB
    """
    stroma = np.clip(2.0 * _smooth_noise(rng, height_px, width_px, _STROMA_PX) - 0.2, 0.0, 1.0)
    nuclei = np.clip(6.0 * _smooth_noise(rng, height_px, width_px, _NUCLEUS_PX) - 3.6, 0.0, 1.0)
    return _paint(rng, stroma, nuclei)


def nuclei_patch(rng: np.random.Generator, height_px: int, width_px: int) -> U8:
    """Paint tissue that is full of nuclei, as in a lymph follicle, with no glass between.

    Returns
    -------
    (height_px, width_px, 3), RGB
    """
    nuclei = np.clip(6.0 * _smooth_noise(rng, height_px, width_px, _NUCLEUS_PX) - 1.8, 0.0, 1.0)
    return _paint(rng, np.ones_like(nuclei), nuclei)


def glass_patch(rng: np.random.Generator, height_px: int, width_px: int) -> U8:
    """Paint the slide beside the tissue: bright, with a camera's grain.

    Returns
    -------
    (height_px, width_px, 3), RGB
    """
    nothing = np.zeros((height_px, width_px))
    return _paint(rng, nothing, nothing)


def _paint(rng: np.random.Generator, stroma: F64, nuclei: F64) -> U8:
    """Color how much stroma there is, and how much of it is nucleus; both (height, width), 0 to 1."""
    stroma, nuclei = stroma[..., None], nuclei[..., None]
    image = _GLASS + stroma * (_EOSIN - _GLASS)
    image += stroma * nuclei * (_HEMATOXYLIN - image)
    image += rng.normal(0.0, _GRAIN, image.shape)
    painted: U8 = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return painted


def _smooth_noise(rng: np.random.Generator, height_px: int, width_px: int, cell_px: int) -> F64:
    """Random values on a grid of `cell_px`, 0 to 1, and straight lines between them."""
    y = np.arange(height_px) / cell_px
    x = np.arange(width_px) / cell_px
    knots = rng.random((int(y[-1]) + 2, int(x[-1]) + 2))
    columns = np.stack([np.interp(x, np.arange(knots.shape[1]), row) for row in knots])
    rows = [np.interp(y, np.arange(knots.shape[0]), column) for column in columns.T]
    return np.stack(rows, axis=1)
