"""The feature map of a slide: its tissue encoded once, in large regions, band by band.

Regions are read at the bank's µm per pixel with a halo of cells around them that the backbone needs to
see and that is then cut off: how the slide was cut into regions changes a cell by less than 1 % of the
cells' typical norm, the tolerance of the halo.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Generator
from dataclasses import astuple, dataclass
from functools import partial
from typing import Protocol

import numpy as np

from stinfer.ahead import in_parallel
from stinfer.checkpoint import Checkpoint
from stinfer.contract import F32, F64, Bool, WindowShape
from stinfer.encoder_stack import EncoderStack
from stinfer.geometry import extent_l0
from stinfer.lattice import Lattice, Region, cells_under, lay_lattice, plan_bands
from stinfer.region_pixels import BLOCK_PX, Box, RegionPixels
from stinfer.slide import PixelSource
from stinfer.stage_clock import StageClock, timed
from stinfer.tissue import TissueMask
from stinfer.windows import WindowPooler

# Largest side of a region with its halo: larger ones compute less halo for what they keep, smaller ones need
# less memory; this one takes 0.3 GB with resnet18.
ENCODED_PX = 1792
# A smaller region does where the halo is at most this part of what is kept, but none below the least side:
# what more of a halo costs is saved at the tissue's edges, which small regions follow.
_HALO_SHARE, _LEAST_PX = 1 / 6, 832
# Where less of a place's smallest window is tissue, all of its windows counts: there is too little to go by.
MIN_WINDOW_TISSUE = 0.05

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Band:
    """Some rows of the map.

    Parameters
    ----------
    first_row : of the lattice
    features : (n_rows, n_columns, channels); what stands where a cell was not needed is of no meaning
    """

    first_row: int
    features: F32


class CellSource(Protocol):
    """Where cells come from: a slide that is encoded, or a file that holds its map.

    Attributes
    ----------
    lattice : Lattice
        What the cells lie on.
    """

    lattice: Lattice

    def iter_bands(self, needed: Bool, progress: Progress | None) -> Generator[Band, None, None]:
        """Give the needed cells, (n_rows, n_columns), in bands from top to bottom."""


def kept_px(halo_px: int) -> int:
    """Return the side of what is kept of a region.

    Parameters
    ----------
    halo_px : that is cut off on every side

    Returns
    -------
    side in px, not yet of whole cells: with its halo at most `ENCODED_PX`, and no more than it takes for the
    halo to be a sixth of it in area
    """
    enough_px = math.ceil(2 * halo_px / (math.sqrt(1 + _HALO_SHARE) - 1))
    return min(ENCODED_PX - 2 * halo_px, max(_LEAST_PX - 2 * halo_px, enough_px))


class SlideCells:
    """The cells of a slide, encoded as they are asked for.

    Parameters
    ----------
    slide : what is read
    encoders : backbones of maps
    um_per_px : scale at which the backbones see the tissue
    region_px : largest side of a region without its halo; by default see `kept_px`
    checkpoint : keeps the regions that are done; None to keep none
    clock : told how long encoding takes
    """

    def __init__(
        self,
        slide: PixelSource,
        encoders: EncoderStack,
        um_per_px: float,
        *,
        region_px: int | None = None,
        checkpoint: Checkpoint | None = None,
        clock: StageClock | None = None,
    ) -> None:
        self.lattice = lay_lattice(slide.size_l0, slide.mpp, encoders.cell_um(um_per_px))
        self._slide = slide
        self._encoders = encoders
        self._um_per_px = um_per_px
        self._checkpoint = checkpoint
        self._clock = clock
        if region_px is None:
            region_px = kept_px(encoders.halo_cells * encoders.stride)
        self._region_cells = max(region_px // encoders.stride, 1)

    def iter_bands(self, needed: Bool, progress: Progress | None) -> Generator[Band, None, None]:
        """Encode the needed cells; regions that hold none are never read.

        Each core reads and encodes regions of its own, while the cells of others are used.
        """
        bands = plan_bands(needed, self._region_cells, self._encoders.halo_cells, self._encoders.step_cells)
        regions = [region for band in bands for region in band]
        total, done = len(regions), 0
        if progress is not None:
            progress(0, total, "regions")
        with contextlib.closing(self._cells(regions)) as found:
            for band in bands:
                first = min(region.first_row for region in band)
                last = min(max(region.last_row for region in band), self.lattice.n_rows)
                features: F32 | None = None
                for region in band:
                    cells = next(found)
                    if features is None:
                        shape = (last - first, self.lattice.n_columns, cells.shape[2])
                        features = np.zeros(shape, dtype=np.float32)
                    columns = slice(region.first_column, min(region.last_column, self.lattice.n_columns))
                    rows = slice(region.first_row - first, min(region.last_row, last) - first)
                    features[rows, columns] = cells[: rows.stop - rows.start, : columns.stop - columns.start]
                    done += 1
                    if progress is not None:
                        progress(done, total, "regions")
                if features is not None:
                    yield Band(first, features)

    def encoded_px(self, needed: Bool) -> tuple[tuple[int, int], ...]:
        """Return height and width, halo included, of every region that is encoded for some cells.

        Parameters
        ----------
        needed : (n_rows, n_columns)
        """
        bands = plan_bands(needed, self._region_cells, self._encoders.halo_cells, self._encoders.step_cells)
        sizes = (self._box(region, region.shape)[1] for band in bands for region in band)
        return tuple((height, width) for width, height in sizes)

    def _cells(self, regions: list[Region]) -> Generator[F32, None, None]:
        """Give each region's cells, (n_rows, n_columns, channels): those that are kept, then the others."""
        if not regions:
            return
        shapes = [region.shape for region in regions]
        # The first is encoded as large as any: what memory it leaves then serves all others, piece by piece.
        largest = (max(rows for rows, _ in shapes), max(columns for _, columns in shapes))
        sizes = [largest, *shapes[1:]]

        def encode_from(first: int) -> Generator[F32, None, None]:
            return self._encode_all(regions[first:], sizes[first:], largest, warm_up=first > 0)

        if self._checkpoint is None:
            yield from encode_from(0)
            return
        plan = {
            "regions": [astuple(region) for region in regions],
            "encoded": sizes,
            "block_px": BLOCK_PX,
        }
        kept_shapes = [(*shape, self._encoders.n_channels) for shape in shapes]
        yield from self._checkpoint.steps(plan, kept_shapes, "regions", encode_from)

    def _encode_all(
        self, regions: list[Region], sizes: list[tuple[int, int]], largest: tuple[int, int], *, warm_up: bool
    ) -> Generator[F32, None, None]:
        """Encode regions, as many at a time as the encoders can, while the next is read.

        Parameters
        ----------
        regions : to encode
        sizes : rows and columns, from a region's first on, that are encoded for it; what is more is cut off
        largest : rows and columns of the largest of the slide
        warm_up : encode nothing, as large as that, before; where another run has encoded the first region:
            memory is then taken as in that run
        """
        _, (width, height) = self._box(regions[0], largest)
        if warm_up:
            self._encoders.cells(np.full((height, width, 3), 255, dtype=np.uint8))
        boxes = [self._box(*region) for region in zip(regions, sizes, strict=True)]
        pixels = RegionPixels(self._slide, self._um_per_px, self._encoders.offset_px, boxes)
        n_workers = self._encoders.n_workers
        may_encode = threading.Semaphore(n_workers)

        def encode(region: Region, box: Box) -> F32:
            n_rows, n_columns = region.shape
            read = pixels.read(box)
            if self._encoders.on_gpu:
                # cuDNN prepares anew for every size, which takes ten times as long as to encode.
                filled = np.full((height, width, 3), 255, dtype=np.uint8)
                filled[: read.shape[0], : read.shape[1]] = read
                read = filled
            with may_encode, timed(self._clock, "encode"):
                return np.ascontiguousarray(self._encoders.cells(read)[:n_rows, :n_columns])

        tasks = (partial(encode, *region) for region in zip(regions, boxes, strict=True))
        # One more than may encode, so that none waits for a slow disk.
        return in_parallel(tasks, n_workers + 1)

    def _box(self, region: Region, shape: tuple[int, int]) -> Box:
        """Return what is read to encode so many cells."""
        halo, stride = self._encoders.halo_cells, self._encoders.stride
        return (
            ((region.first_column - halo) * stride, (region.first_row - halo) * stride),
            ((shape[1] + 2 * halo) * stride, (shape[0] + 2 * halo) * stride),
        )


@dataclass(frozen=True)
class WindowPlan:
    """The windows of some places on a lattice.

    Parameters
    ----------
    centers : (n, 2), x and y in units of cells
    sides : of the windows, in cells, ascending
    shape : ``square`` or ``disc``
    tissue : (n_rows, n_columns), part of each cell that is tissue
    by_area : (n,), places whose windows are averaged with no regard to tissue, since there is hardly any
    needed : (n_rows, n_columns), cells that any place's embedding depends on
    """

    centers: F64
    sides: tuple[float, ...]
    shape: WindowShape
    tissue: F32
    by_area: Bool
    needed: Bool


def plan_windows(centers: F64, sides: tuple[float, ...], shape: WindowShape, tissue: F32) -> WindowPlan:
    """Find what a set of places needs of a map.

    What a place needs, and how it is weighed, never depends on the other places.

    Parameters
    ----------
    centers, sides, shape, tissue : see `WindowPlan`
    """
    n_rows, n_columns = tissue.shape
    share = np.zeros(len(centers), dtype=np.float32)
    pooler = WindowPooler(centers, sides[:1], shape, n_rows=n_rows, n_columns=n_columns)
    everywhere = np.ones_like(tissue)
    for pooled in (pooler.feed(0, tissue[:, :, np.newaxis], everywhere), pooler.finish()):
        for places, means in pooled:
            share[places] = means[:, 0, 0]
    by_area = share < MIN_WINDOW_TISSUE
    needed = cells_under(centers[~by_area], sides[-1], tissue.shape) & (tissue > 0)
    needed |= cells_under(centers[by_area], sides[-1], tissue.shape)
    return WindowPlan(centers, sides, shape, tissue, by_area, needed)


def tissue_on(lattice: Lattice, tissue: TissueMask, mpp: tuple[float, float]) -> F32:
    """Return the part of each cell of a lattice that is tissue, (n_rows, n_columns)."""
    return tissue.cells((lattice.n_rows, lattice.n_columns), extent_l0(lattice.cell_um, mpp))
