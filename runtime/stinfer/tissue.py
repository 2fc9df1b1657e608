"""Where on a slide there is tissue."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stinfer.contract import F32, F64, U8, Bool
from stinfer.slide import Slide

THUMBNAIL_UM_PER_PX = 8.0
THUMBNAIL_LONGEST_PX = 4096
# Chroma of white glass under real scanners stays below; pale eosin lies above.
CHROMA_FLOOR = 0.04
# A speck smaller than this many µm across is dust, not tissue.
SMOOTHING_UM = 48.0
MINIMUM_FRACTION = 0.5


@dataclass(frozen=True)
class TissueMask:
    """A coarse mask over the whole slide.

    Parameters
    ----------
    mask : (height, width), true on tissue
    l0_per_px : level-0 pixels per mask pixel, x and y
    threshold : chroma above which a pixel is tissue, 0 to 1
    """

    mask: Bool
    l0_per_px: tuple[float, float]
    threshold: float

    def fraction(self, centers_l0: F64, extent_l0: tuple[float, float]) -> F32:
        """Measure the part of each box that is tissue.

        Parameters
        ----------
        centers_l0 : (n, 2)
        extent_l0 : width and height of the boxes

        Returns
        -------
        (n,), 0 to 1; what lies beyond the slide counts as glass
        """
        total = _integral(self.mask.astype(np.float64))
        height, width = self.mask.shape
        scale = np.asarray(self.l0_per_px)
        half = np.maximum(np.asarray(extent_l0) / scale / 2, 0.5)
        low = np.rint(centers_l0 / scale - half).astype(np.int64)
        high = np.maximum(np.rint(centers_l0 / scale + half).astype(np.int64), low + 1)
        area = (high - low).prod(axis=1)
        x0, x1 = np.clip(low[:, 0], 0, width), np.clip(high[:, 0], 0, width)
        y0, y1 = np.clip(low[:, 1], 0, height), np.clip(high[:, 1], 0, height)
        inside = total[y1, x1] - total[y0, x1] - total[y1, x0] + total[y0, x0]
        return np.asarray(inside / area, dtype=np.float32)

    def area_mm2(self, mpp: tuple[float, float]) -> float:
        """Return the tissue's area in mm²."""
        pixel_um2 = self.l0_per_px[0] * mpp[0] * self.l0_per_px[1] * mpp[1]
        return float(self.mask.sum()) * pixel_um2 / 1e6


def find_tissue(slide: Slide) -> TissueMask:
    """Find the tissue on a thumbnail of the slide.

    1. Read the slide at about 8 µm per pixel.
    2. Chroma of a pixel: its largest minus its smallest channel. Glass is grey, stain is not.
    3. Threshold by Otsu's method, never below `CHROMA_FLOOR`, so that an empty slide stays empty.
    4. A pixel is tissue where most of the 48 µm around it is above the threshold.

    References
    ----------
    N. Otsu, "A threshold selection method from gray-level histograms", IEEE SMC 9 (1979) 62-66.
    """
    width, height = slide.size_l0
    longest_um = max(width * slide.mpp[0], height * slide.mpp[1])
    longest_px = min(max(round(longest_um / THUMBNAIL_UM_PER_PX), 1), THUMBNAIL_LONGEST_PX)
    thumbnail = slide.thumbnail(longest_px)
    l0_per_px = (width / thumbnail.shape[1], height / thumbnail.shape[0])
    chroma = chroma_of(thumbnail)
    threshold = max(otsu_threshold(chroma), CHROMA_FLOOR)
    radius_px = max(round(SMOOTHING_UM / (l0_per_px[0] * slide.mpp[0]) / 2), 1)
    mask = _box_mean((chroma > threshold).astype(np.float64), radius_px) > MINIMUM_FRACTION
    return TissueMask(mask, l0_per_px, threshold)


def chroma_of(pixels: U8) -> F32:
    """Return how coloured each pixel is.

    Parameters
    ----------
    pixels : (height, width, 3) uint8 RGB

    Returns
    -------
    (height, width), 0 (grey) to 1
    """
    spread = pixels.max(axis=2).astype(np.float32) - pixels.min(axis=2).astype(np.float32)
    return np.asarray(spread / np.float32(255), dtype=np.float32)


def otsu_threshold(values: F32) -> float:
    """Find the threshold that best separates two classes of values.

    Parameters
    ----------
    values : any shape, 0 to 1

    Returns
    -------
    upper edge of the lower class in a histogram of 256 bins, 0 to 1
    """
    counts, _ = np.histogram(values, bins=256, range=(0.0, 1.0))
    share = counts / max(counts.sum(), 1)
    below = np.cumsum(share)
    first_moment = np.cumsum(share * np.arange(256))
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (first_moment[-1] * below - first_moment) ** 2 / (below * (1.0 - below))
    return float(np.argmax(np.nan_to_num(between, nan=0.0, posinf=0.0)) + 1) / 256.0


def _integral(values: F64) -> F64:
    padded = np.zeros((values.shape[0] + 1, values.shape[1] + 1), dtype=np.float64)
    padded[1:, 1:] = values.cumsum(axis=0).cumsum(axis=1)
    return padded


def _box_mean(values: F64, radius_px: int) -> F64:
    """Average over a square of 2 radius + 1 pixels, cut at the border."""
    total = _integral(values)
    height, width = values.shape
    y, x = np.arange(height), np.arange(width)
    y0, y1 = np.maximum(y - radius_px, 0)[:, None], np.minimum(y + radius_px + 1, height)[:, None]
    x0, x1 = np.maximum(x - radius_px, 0)[None, :], np.minimum(x + radius_px + 1, width)[None, :]
    inside = total[y1, x1] - total[y0, x1] - total[y1, x0] + total[y0, x0]
    return np.asarray(inside / ((y1 - y0) * (x1 - x0)), dtype=np.float64)
