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
# Glass of real scanners is at most this coloured; where the brightest is more, there is no glass.
GLASS_CHROMA = 0.12
# Optical density over glass, summed over the channels: eosin smeared around a section stays below.
DENSITY_FLOOR = 0.12
# Fat is tissue: cells of up to this width, empty but for their membranes, are filled.
GAP_UM = 100.0
# What is narrower than this is dust or a fibre, not tissue.
SPECK_UM = 50.0


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

    def cells(self, shape: tuple[int, int], cell_l0: tuple[float, float]) -> F32:
        """Measure the part of each cell of a lattice that is tissue, exactly.

        Parameters
        ----------
        shape : rows and columns of the lattice, which begins at the slide's corner
        cell_l0 : width and height of a cell, level-0 px

        Returns
        -------
        (n_rows, n_columns), 0 to 1; what lies beyond the slide counts as glass
        """
        shares = [
            _shares(n_cells, cell / scale, n_px)
            for n_cells, cell, scale, n_px in zip(
                shape, cell_l0[::-1], self.l0_per_px[::-1], self.mask.shape, strict=True
            )
        ]
        covered = shares[0] @ self.mask.astype(np.float32) @ shares[1].T
        return np.asarray(np.clip(covered, 0.0, 1.0), dtype=np.float32)

    def area_mm2(self, mpp: tuple[float, float]) -> float:
        """Return the tissue's area in mm²."""
        pixel_um2 = self.l0_per_px[0] * mpp[0] * self.l0_per_px[1] * mpp[1]
        return float(self.mask.sum()) * pixel_um2 / 1e6


def find_tissue(slide: Slide) -> TissueMask:
    """Find the tissue on a thumbnail of the slide.

    1. Read the slide at about 8 µm per pixel.
    2. Chroma of a pixel: its largest minus its smallest channel. Glass is grey, stain is not.
    3. Threshold it by Otsu's method, never below `CHROMA_FLOOR`, so that an empty slide stays empty.
       A pixel must also be denser than the slide's glass by `DENSITY_FLOOR`. Where even the brightest
       colour is not that of glass, the slide has none, and what is coloured at all is tissue.
    4. Close gaps of up to 100 µm, such as fat cells; then open, which removes specks below 50 µm.

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
    glass = brightest_color(thumbnail)
    if np.ptp(glass) / 255 > GLASS_CHROMA:
        # Tissue from edge to edge: there are no two classes to tell apart.
        glass, threshold = np.full(3, 255.0), CHROMA_FLOOR
    else:
        threshold = max(otsu_threshold(chroma), CHROMA_FLOOR)
    um_per_px = (l0_per_px[0] * slide.mpp[0], l0_per_px[1] * slide.mpp[1])
    gap_px, speck_px = (_radius_px(size_um, um_per_px) for size_um in (GAP_UM, SPECK_UM))
    stained = (chroma > threshold) & (density_over_glass(thumbnail, glass) > DENSITY_FLOOR)
    mask = _eroded(_dilated(stained, gap_px), gap_px)
    return TissueMask(_dilated(_eroded(mask, speck_px), speck_px), l0_per_px, threshold)


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


def brightest_color(pixels: U8) -> F64:
    """Return each channel's 99th percentile: the colour of glass, if the slide has any.

    Parameters
    ----------
    pixels : (height, width, 3) uint8 RGB

    Returns
    -------
    (3,) RGB, 0 to 255
    """
    return np.asarray(np.percentile(pixels.reshape(-1, 3), 99, axis=0), dtype=np.float64)


def density_over_glass(pixels: U8, glass: F64) -> F32:
    """Return how much darker each pixel is than glass.

    Parameters
    ----------
    pixels : (height, width, 3) uint8 RGB
    glass : (3,) RGB, 0 to 255

    Returns
    -------
    (height, width), optical density (decadic), sum of the three channels; negative where brighter
    """
    density = np.log10((glass + 1.0) / (pixels + np.float32(1.0)))
    return np.asarray(density.sum(axis=2), dtype=np.float32)


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


def _shares(n_cells: int, cell_px: float, n_px: int) -> F32:
    """Return the part of each cell that each pixel covers along one axis, (n_cells, n_px)."""
    edges = np.clip(np.arange(n_cells + 1) * cell_px, 0.0, n_px)
    pixels = np.arange(n_px)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.asarray(np.maximum(covered, 0.0) / cell_px, dtype=np.float32)


def _integral(values: F64) -> F64:
    padded = np.zeros((values.shape[0] + 1, values.shape[1] + 1), dtype=np.float64)
    padded[1:, 1:] = values.cumsum(axis=0).cumsum(axis=1)
    return padded


def _radius_px(size_um: float, um_per_px: tuple[float, float]) -> tuple[int, int]:
    return round(size_um / um_per_px[0] / 2), round(size_um / um_per_px[1] / 2)


def _dilated(mask: Bool, radius_px: tuple[int, int]) -> Bool:
    """Set every pixel with a set pixel in the box of 2 radius + 1 pixels, x and y, around it."""
    return np.asarray(_box_sum(mask, radius_px) > 0)


def _eroded(mask: Bool, radius_px: tuple[int, int]) -> Bool:
    """Keep the pixels whose whole box is set; beyond the border the mask goes on as it is."""
    return np.asarray(_box_sum(~mask, radius_px) == 0)


def _box_sum(mask: Bool, radius_px: tuple[int, int]) -> F64:
    """Count the set pixels in the box around each pixel, cut at the border."""
    total = _integral(mask.astype(np.float64))
    height, width = mask.shape
    y, x = np.arange(height), np.arange(width)
    reach_x, reach_y = radius_px
    y0, y1 = np.maximum(y - reach_y, 0)[:, None], np.minimum(y + reach_y + 1, height)[:, None]
    x0, x1 = np.maximum(x - reach_x, 0)[None, :], np.minimum(x + reach_x + 1, width)[None, :]
    return np.asarray(total[y1, x1] - total[y0, x1] - total[y1, x0] + total[y0, x0], dtype=np.float64)
