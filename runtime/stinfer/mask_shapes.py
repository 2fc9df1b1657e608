"""Shapes in a mask: growing, shrinking, pieces and holes. Imports numpy alone."""

from __future__ import annotations

import numpy as np

from stinfer.contract import F64, I32, I64, Bool


def integral(values: F64) -> F64:
    """Sum all values above and left of each corner, (height + 1, width + 1)."""
    padded = np.zeros((values.shape[0] + 1, values.shape[1] + 1), dtype=np.float64)
    padded[1:, 1:] = values.cumsum(axis=0).cumsum(axis=1)
    return padded


def dilated(mask: Bool, radius_px: tuple[int, int]) -> Bool:
    """Set every pixel with a set pixel in the box of 2 radius + 1 pixels, x and y, around it."""
    return np.asarray(_box_sum(mask, radius_px) > 0)


def eroded(mask: Bool, radius_px: tuple[int, int]) -> Bool:
    """Keep the pixels whose whole box is set; beyond the border the mask goes on as it is."""
    return np.asarray(_box_sum(~mask, radius_px) == 0)


def without_small_pieces(mask: Bool, least_px: float) -> Bool:
    """Clear the pieces of fewer pixels; pixels that share a side are of one piece."""
    labels, sizes = _pieces(mask)
    return np.asarray(sizes[labels] >= max(least_px, 1))


def without_small_holes(mask: Bool, least_px: float) -> Bool:
    """Fill the holes of fewer pixels; what reaches the border is none."""
    labels, sizes = _pieces(~mask)
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    is_hole = (sizes > 0) & (sizes < least_px)
    is_hole[border] = False
    return np.asarray(mask | is_hole[labels])


def _pieces(mask: Bool) -> tuple[I64, I64]:
    """Label the pieces of a mask with numbers.

    Returns
    -------
    labels : (height, width), 0 where the mask is not set
    sizes : pixels of each label; 0 of label 0
    """
    # Runs of set pixels, row by row: the first pixel and the one past the last, in a padded row.
    height, width = mask.shape
    steps = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(steps == 1)
    ends = np.nonzero(steps == -1)[1]
    parents = list(range(len(rows)))

    def root(run: int) -> int:
        while parents[run] != run:
            parents[run] = parents[parents[run]]
            run = parents[run]
        return run

    firsts = np.searchsorted(rows, np.arange(height + 1)).tolist()
    begin, end = starts.tolist(), ends.tolist()
    for row in range(1, height):
        above, here = firsts[row - 1], firsts[row]
        while above < firsts[row] and here < firsts[row + 1]:
            if begin[above] < end[here] and begin[here] < end[above]:
                upper, lower = root(above), root(here)
                parents[max(upper, lower)] = min(upper, lower)
            # The run that ends first can touch no further one.
            if end[above] <= end[here]:
                above += 1
            else:
                here += 1
    roots = np.asarray([root(run) for run in range(len(rows))], dtype=np.int64)
    numbers = np.unique(roots, return_inverse=True)[1].astype(np.int64) + 1
    marks = np.zeros((height, width + 1), dtype=np.int64)
    np.add.at(marks, (rows, starts), numbers)
    np.add.at(marks, (rows, ends), -numbers)
    labels = marks.cumsum(axis=1)[:, :width]
    sizes = np.bincount(labels.ravel(), minlength=1).astype(np.int64)
    sizes[0] = 0
    return labels, sizes


def _box_sum(mask: Bool, radius_px: tuple[int, int]) -> I32:
    """Count the set pixels in the box around each pixel, cut at the border."""
    height, width = mask.shape
    reach_x, reach_y = radius_px
    # Nothing lies beyond the border; the difference of two running sums is what lies between them.
    down = np.pad(mask, ((reach_y + 1, reach_y), (0, 0))).cumsum(axis=0, dtype=np.int32)
    in_column = down[2 * reach_y + 1 :] - down[:height]
    along = np.pad(in_column, ((0, 0), (reach_x + 1, reach_x))).cumsum(axis=1, dtype=np.int32)
    return np.asarray(along[:, 2 * reach_x + 1 :] - along[:, :width])
