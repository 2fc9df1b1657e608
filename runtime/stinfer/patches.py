"""Patches: the squares of tissue that the backbone sees."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from stinfer.contract import F64, U8
from stinfer.geometry import extent_l0
from stinfer.slide import PixelSource


def iter_patches(
    slide: PixelSource, centers_l0: F64, fov_um: float, size_px: int, batch_size: int
) -> Generator[U8, None, None]:
    """Cut patches in batches, in the order given; the last may be smaller. See `cut_patches`."""
    for first in range(0, len(centers_l0), batch_size):
        yield cut_patches(slide, centers_l0[first : first + batch_size], fov_um, size_px)


def cut_patches(slide: PixelSource, centers_l0: F64, fov_um: float, size_px: int) -> U8:
    """Cut a square of `fov_um` around each center.

    Parameters
    ----------
    slide : what is read
    centers_l0 : (n, 2), level-0 px
    fov_um : side of the square on the tissue
    size_px : side of the patch

    Returns
    -------
    (n, size_px, size_px, 3) uint8 RGB; white beyond the image
    """
    width, height = extent_l0(fov_um, slide.mpp)
    patches = np.empty((len(centers_l0), size_px, size_px, 3), dtype=np.uint8)
    for patch, (x, y) in zip(patches, centers_l0.tolist(), strict=True):
        patch[...] = slide.read((x - width / 2, y - height / 2), (width, height), (size_px, size_px))
    return patches
