"""The pixels of regions, read in blocks by several threads; what regions share is read once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import numpy as np

from stinfer.contract import U8
from stinfer.slide import PixelSource

# Side of the blocks that regions are read in.
BLOCK_PX = 256
# Blocks that wait for the next region that needs them, 50 MB at most: two rows of blocks over 2 cm of tissue.
# What is more is read again.
_MAX_HELD = 256

Block = tuple[int, int]
# Corner and size, x and y, in pixels of the map.
Box = tuple[tuple[int, int], tuple[int, int]]


class RegionPixels:
    """Boxes of a map's pixels, each to be read once.

    Resampling rounds, and a pixel would come out a grey level lighter or darker with the box it is read in:
    as part of a block that always begins at the same place, it is always the same.

    Parameters
    ----------
    slide : what is read
    um_per_px : scale of the map's pixels
    offset_px : how far, x and y, everything is read to the left of its place and above it
    boxes : all that will be read
    """

    def __init__(
        self, slide: PixelSource, um_per_px: float, offset_px: tuple[float, float], boxes: Sequence[Box]
    ) -> None:
        self._slide = slide
        self._extent_l0 = (BLOCK_PX * um_per_px / slide.mpp[0], BLOCK_PX * um_per_px / slide.mpp[1])
        self._origin_l0 = (-offset_px[0] * um_per_px / slide.mpp[0], -offset_px[1] * um_per_px / slide.mpp[1])
        self._lock = threading.Lock()
        self._uses = Counter(block for box in boxes for block in _blocks_under(box))
        self._held: dict[Block, Future[U8]] = {}

    def read(self, box: Box) -> U8:
        """Read one of the boxes; threads may do so at the same time.

        Returns
        -------
        (height, width, 3) RGB
        """
        (left, top), (width, height) = box
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        for block in _blocks_under(box):
            x, y = block[0] * BLOCK_PX - left, block[1] * BLOCK_PX - top
            rows, columns = slice(max(y, 0), y + BLOCK_PX), slice(max(x, 0), x + BLOCK_PX)
            target = pixels[rows, columns]
            first_row, first_column = rows.start - y, columns.start - x
            target[:] = self._block(block)[
                first_row : first_row + target.shape[0], first_column : first_column + target.shape[1]
            ]
        return pixels

    def _block(self, block: Block) -> U8:
        with self._lock:
            self._uses[block] -= 1
            found = self._held.get(block)
            if found is not None:
                if not self._uses[block]:
                    del self._held[block]
            elif self._uses[block] and len(self._held) < _MAX_HELD:
                ours = self._held[block] = Future[U8]()
            else:
                ours = Future[U8]()
        if found is not None:
            return found.result()
        # Others may wait for it already.
        try:
            ours.set_result(self._read(block))
        except BaseException as error:
            ours.set_exception(error)
            raise
        return ours.result()

    def _read(self, block: Block) -> U8:
        x, y = (
            origin + number * length
            for origin, number, length in zip(self._origin_l0, block, self._extent_l0, strict=True)
        )
        return self._slide.read((x, y), self._extent_l0, (BLOCK_PX, BLOCK_PX))


def _blocks_under(box: Box) -> Iterator[Block]:
    """Give the blocks that a box touches, row by row."""
    (left, top), (width, height) = box
    for row in range(top // BLOCK_PX, -(-(top + height) // BLOCK_PX)):
        for column in range(left // BLOCK_PX, -(-(left + width) // BLOCK_PX)):
            yield column, row
