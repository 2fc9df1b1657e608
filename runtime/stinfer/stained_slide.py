"""A slide whose stains are brought to those of the bank as it is read."""

from __future__ import annotations

import numpy as np

from stinfer.contract import F64, U8
from stinfer.geometry import extent_l0
from stinfer.record import Notices
from stinfer.slide import PixelSource
from stinfer.stain import Stain, StainTransfer, measure_stain
from stinfer.tissue import TissueMask

# The stains are measured on squares of tissue, evenly over the slide.
_N_SQUARES = 48
_SQUARE_UM = 200.0
_SQUARE_PX = 200


class StainedSlide:
    """An open slide, read in other stains.

    Parameters
    ----------
    slide : what is read
    transfer : from its own stains
    """

    def __init__(self, slide: PixelSource, transfer: StainTransfer) -> None:
        self.size_l0 = slide.size_l0
        self.mpp = slide.mpp
        self._slide = slide
        self._transfer = transfer

    def read(
        self, corner_l0: tuple[float, float], extent: tuple[float, float], size_px: tuple[int, int]
    ) -> U8:
        """Read a box; see `stinfer.slide.Slide.read`."""
        return self._transfer.apply(self._slide.read(corner_l0, extent, size_px))


def slide_stain(slide: PixelSource, tissue: TissueMask) -> Stain | None:
    """Measure a slide's stains on 48 squares of 200 µm, at 1 µm per pixel, evenly over its tissue.

    Parameters
    ----------
    slide : what is read
    tissue : where its tissue is

    Returns
    -------
    None where the two stains cannot be told
    """
    rows, columns = np.nonzero(tissue.mask)
    if not len(rows):
        return None
    chosen = np.unique(np.linspace(0, len(rows) - 1, _N_SQUARES).round().astype(np.int64))
    centers: F64 = (np.stack([columns, rows], axis=1)[chosen] + 0.5) * np.asarray(tissue.l0_per_px)
    width, height = extent_l0(_SQUARE_UM, slide.mpp)
    squares = [
        slide.read((x - width / 2, y - height / 2), (width, height), (_SQUARE_PX, _SQUARE_PX))
        for x, y in centers.tolist()
    ]
    pixels = np.concatenate(squares)
    return measure_stain(pixels, np.ones(pixels.shape[:2], dtype=bool))


def in_stain_of(
    wanted: Stain | None, slide: PixelSource, tissue: TissueMask, name: str, notices: Notices
) -> PixelSource:
    """Return a slide in the stains of the bank.

    Parameters
    ----------
    wanted : stains of the bank; None to leave the slide as it is
    slide : what is read
    tissue : where its tissue is
    name : of the slide, for the notice
    notices : told where its stains cannot be told, and are left as they are
    """
    if wanted is None:
        return slide
    found = slide_stain(slide, tissue)
    if found is None:
        notices.add(f"{name}: hematoxylin and eosin cannot be told apart; its stains are left as they are")
        return slide
    return StainedSlide(slide, StainTransfer(found, wanted))
