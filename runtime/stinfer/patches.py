"""Patches: the squares of tissue that the backbone sees, in batches."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from stinfer.contract import F64, U8
from stinfer.geometry import extent_l0
from stinfer.slide import PixelSource


def iter_patches(
    slide: PixelSource, centers_l0: F64, fov_um: float, size_px: int, batch_size: int
) -> Generator[U8, None, None]:
    """Cut a square of `fov_um` around each center, in the order given.

    Parameters
    ----------
    slide : what is read
    centers_l0 : (n, 2), level-0 px
    fov_um : side of the square on the tissue
    size_px : side of the patch
    batch_size : patches per batch; the last may be smaller

    Yields
    ------
    (n_batch, size_px, size_px, 3) uint8 RGB; white beyond the image
    """
    width, height = extent_l0(fov_um, slide.mpp)
    for start in range(0, len(centers_l0), batch_size):
        chunk = centers_l0[start : start + batch_size]
        batch = np.empty((len(chunk), size_px, size_px, 3), dtype=np.uint8)
        for i, (x, y) in enumerate(chunk):
            corner = (float(x) - width / 2, float(y) - height / 2)
            batch[i] = slide.read(corner, (width, height), (size_px, size_px))
        yield batch
