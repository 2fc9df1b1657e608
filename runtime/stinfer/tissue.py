"""Where on a slide there is tissue."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stinfer.contract import F32, F64, U8, Bool
from stinfer.mask_shapes import dilated, eroded, integral, without_small_holes, without_small_pieces
from stinfer.pen import pen_colored
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
# A smaller piece of tissue holds no spot, unless it is much of a small picture.
LEAST_PIECE_UM2, LEAST_PIECE_SHARE = 20_000.0, 0.1
# A smaller hole is a part of the tissue.
LEAST_HOLE_UM2 = 10_000.0
# A stroke of a pen is wider than this and larger than a dot of 0.67 mm; its edges are blurred.
PEN_WIDTH_UM = 50.0
LEAST_PEN_UM2 = 350_000.0
PEN_EDGE_UM = 50.0


@dataclass(frozen=True)
class TissueMask:
    """A coarse mask over the whole slide.

    Parameters
    ----------
    mask : (height, width), true on tissue
    l0_per_px : level-0 pixels per mask pixel, x and y
    threshold : chroma above which a pixel is tissue, 0 to 1; 0 of a mask that was given
    n_pen_px : mask pixels that are left out since they are a pen's
    given_name, given_sha256 : of the file that the mask was given as; empty where it was found
    """

    mask: Bool
    l0_per_px: tuple[float, float]
    threshold: float
    n_pen_px: int = 0
    given_name: str = ""
    given_sha256: str = ""

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
        total = integral(self.mask.astype(np.float64))
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
        return float(self.mask.sum()) * self._pixel_mm2(mpp)

    def pen_mm2(self, mpp: tuple[float, float]) -> float:
        """Return the area in mm² that is left out since a pen was there."""
        return self.n_pen_px * self._pixel_mm2(mpp)

    def _pixel_mm2(self, mpp: tuple[float, float]) -> float:
        return self.l0_per_px[0] * mpp[0] * self.l0_per_px[1] * mpp[1] / 1e6


def find_tissue(slide: Slide) -> TissueMask:
    """Find the tissue on a thumbnail of the slide.

    1. Read the slide at about 8 µm per pixel.
    2. Chroma of a pixel: its largest minus its smallest channel. Glass is grey, stain is not.
    3. Find the strokes of pens by their colour; see `stinfer.pen`. They are no tissue, nor does anything
       below see them.
    4. Threshold chroma by Otsu's method, never below `CHROMA_FLOOR`, so that an empty slide stays empty.
       A pixel must also be denser than the slide's glass by `DENSITY_FLOOR`. Where even the brightest
       colour is not that of glass, the slide has none, and what is coloured at all is tissue.
    5. Close gaps of up to 100 µm, such as fat cells; then open, which removes specks below 50 µm.
    6. Fill small holes and remove small pieces.

    References
    ----------
    N. Otsu, "A threshold selection method from gray-level histograms", IEEE SMC 9 (1979) 62-66.
    """
    width, height = slide.size_l0
    longest_um = max(width * slide.mpp[0], height * slide.mpp[1])
    longest_px = min(max(round(longest_um / THUMBNAIL_UM_PER_PX), 1), THUMBNAIL_LONGEST_PX)
    thumbnail = slide.thumbnail(longest_px)
    l0_per_px = (width / thumbnail.shape[1], height / thumbnail.shape[0])
    um_per_px = (l0_per_px[0] * slide.mpp[0], l0_per_px[1] * slide.mpp[1])
    chroma = chroma_of(thumbnail)
    glass = brightest_color(thumbnail)
    has_glass = bool(np.ptp(glass) / 255 <= GLASS_CHROMA)
    if not has_glass:
        glass = np.full(3, 255.0)
    density = density_over_glass(thumbnail, glass)
    pen = _pen_strokes(density, um_per_px)
    # Without glass, tissue reaches from edge to edge: there are no two classes to tell apart.
    threshold = max(otsu_threshold(chroma[~pen]), CHROMA_FLOOR) if has_glass else CHROMA_FLOOR
    is_colored = (chroma > threshold) & (density[..., 0] + density[..., 1] + density[..., 2] > DENSITY_FLOOR)
    stained = is_colored & ~pen
    gap_px, speck_px = (_radius_px(size_um, um_per_px) for size_um in (GAP_UM, SPECK_UM))
    mask = eroded(dilated(stained, gap_px), gap_px) & ~pen
    mask = dilated(eroded(mask, speck_px), speck_px) & ~pen
    pixel_um2 = um_per_px[0] * um_per_px[1]
    mask = without_small_holes(mask, LEAST_HOLE_UM2 / pixel_um2) & ~pen
    mask = without_small_pieces(mask, min(LEAST_PIECE_UM2 / pixel_um2, LEAST_PIECE_SHARE * mask.size))
    return TissueMask(mask, l0_per_px, threshold, n_pen_px=int((is_colored & pen).sum()))


def _pen_strokes(density: F32, um_per_px: tuple[float, float]) -> Bool:
    """Find strokes of pens: ink's colour, as wide and large as a stroke, and its blurred edges."""
    width_px, edge_px = (_radius_px(size_um, um_per_px) for size_um in (PEN_WIDTH_UM, 2 * PEN_EDGE_UM))
    strokes = dilated(eroded(pen_colored(density), width_px), width_px)
    strokes = without_small_pieces(strokes, LEAST_PEN_UM2 / (um_per_px[0] * um_per_px[1]))
    return dilated(strokes, edge_px) if strokes.any() else strokes


def chroma_of(pixels: U8) -> F32:
    """Return how coloured each pixel is.

    Parameters
    ----------
    pixels : (height, width, 3) uint8 RGB

    Returns
    -------
    (height, width), 0 (grey) to 1
    """
    # Channel by channel: numpy reduces an axis of three ten times as slowly.
    red, green, blue = (pixels[..., channel] for channel in range(3))
    largest, smallest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    return np.asarray((largest - smallest).astype(np.float32) / np.float32(255))


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
    (height, width, 3), optical density (decadic) of each channel; negative where brighter
    """
    values = np.arange(256, dtype=np.float32)
    of_value = np.log10((glass[:, np.newaxis] + 1.0) / (values + np.float32(1.0))).astype(np.float32)
    return np.stack([of_value[channel][pixels[..., channel]] for channel in range(3)], axis=2)


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


def _radius_px(size_um: float, um_per_px: tuple[float, float]) -> tuple[int, int]:
    return round(size_um / um_per_px[0] / 2), round(size_um / um_per_px[1] / 2)
