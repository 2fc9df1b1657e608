"""Texture of the stains: gradients and bands, squared, multiplied and averaged over cells.

ONNX Runtime convolves fastest where one channel comes in and a multiple of 16 goes out, and then multiplies
and averages in the same layout. So of every box of 4 x 4 px, a filter's responses at its 16 pixels lie in
16 channels of one place: one convolution with a stride of 4 px gives them, by 16 copies of the filter, each
moved. Their mean over a box is then a mean over channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stinfer.contract import F64
from stinfer_export.stain_texture_embedding import TEXTURE_STAINS, named
from stinfer_export.stain_texture_graph import Averages, GraphBuilder

# Side of the boxes in which local coherence is taken, in pixels of the level.
BOX_PX = 4
# How far beyond a pixel the filters reach.
MARGIN_PX = 2

_BINOMIAL = np.array([1, 4, 6, 4, 1]) / 16
_SCHARR_SMOOTH = np.array([0, 3, 10, 3, 0]) / 16
_DIFFERENCE = np.array([0, -1, 0, 1, 0]) / 2
_POINT = np.array([0, 0, 1, 0, 0])

_GRADIENT_X = np.outer(_SCHARR_SMOOTH, _DIFFERENCE)
_GRADIENT_Y = _GRADIENT_X.T
_BAND = np.outer(_POINT, _POINT) - np.outer(_BINOMIAL, _BINOMIAL)

_MEAN_OF_BOX = np.full(BOX_PX**2, 1 / BOX_PX**2)
# Of mean squares of gradients along x, along y and of both together: the gradient tensor, xx, yy and xy, then
# xx - yy and 2 xy; rows of zeros fill what ONNX Runtime keeps in its fast layout.
_TENSOR_FROM_SQUARES: F64 = np.array(
    [[1, 0, 0], [0, 1, 0], [-0.5, -0.5, 0.5], [1, -1, 0], [-1, -1, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
)
_TENSOR = ("xx", "yy", "xy")
_ANISOTROPIC = slice(3, 5)


def add_texture(graph: GraphBuilder, planes: Sequence[str], level: int, cell_px: int) -> list[Averages]:
    """Add the filters of one level and the means of their products.

    Parameters
    ----------
    graph : where to add
    planes : of each texture stain (n, 1, height + 4, width + 4): the level, with its margin
    level : for names
    cell_px : side of a cell, in pixels of the level

    Returns
    -------
    gradient tensor and its anisotropy in small boxes, energy of the band and of its dark half of each texture
    stain, and the scalar product of both stains' gradients
    """
    n_boxes = cell_px // BOX_PX
    gradients = [
        graph.convolve(plane, _in_boxes(_GRADIENT_X, _GRADIENT_Y, _GRADIENT_X + _GRADIENT_Y), stride=BOX_PX)
        for plane in planes
    ]
    tensor = _gradient_tensor(graph, gradients, level)
    anisotropy = graph.node("Sqrt", graph.mix(graph.square(tensor), _of_each_stain(_ANISOTROPIC).sum(axis=1)))
    of_tensor = np.concatenate(list(_of_each_stain(slice(0, len(_TENSOR)))))
    # The response to both gradients together, last, is not part of their scalar product.
    of_product = np.concatenate([_MEAN_OF_BOX, _MEAN_OF_BOX, np.zeros(BOX_PX**2)])[np.newaxis]
    averages = [
        Averages.of(
            tuple(f"{name}{level}_{stain}" for stain in TEXTURE_STAINS for name in _TENSOR),
            graph.average(tensor, n_boxes),
            of_tensor,
        ),
        Averages.of(named(f"anisotropy{level}", TEXTURE_STAINS), graph.average(anisotropy, n_boxes)),
        Averages.of((f"aligned{level}",), graph.average(graph.node("Mul", *gradients), n_boxes), of_product),
    ]
    for stain, plane in zip(TEXTURE_STAINS, planes, strict=True):
        band = graph.convolve(plane, _in_boxes(_BAND), stride=BOX_PX)
        # Only where there is more stain than around, as in nuclei.
        blob = graph.node("Relu", band)
        averages += [
            Averages.of(
                (f"{name}{level}_{stain}",),
                graph.average(graph.square(response), n_boxes),
                _MEAN_OF_BOX[np.newaxis],
            )
            for name, response in (("band", band), ("blob", blob))
        ]
    return averages


def _gradient_tensor(graph: GraphBuilder, gradients: Sequence[str], level: int) -> str:
    """Means over boxes of the products of gradients: `_TENSOR_FROM_SQUARES` of each stain, (n, 16, ...)."""
    # ``2 x y = (x + y)² - x² - y²``: so squares suffice, and one product of whole tensors.
    rows = np.kron(_TENSOR_FROM_SQUARES, _MEAN_OF_BOX)
    parts = []
    for i, gradient in enumerate(gradients):
        matrix = np.zeros((len(gradients), *rows.shape))
        matrix[i] = rows
        parts.append(graph.mix(graph.square(gradient), matrix.reshape(-1, rows.shape[1])))
    # ONNX Runtime adds and multiplies in its fast layout where it knows that shapes are the same.
    for tensor in (*gradients, *parts):
        n_channels = rows.shape[1] if tensor in gradients else len(gradients) * len(rows)
        graph.declare(tensor, ["n", n_channels, f"rows{level}", f"columns{level}"])
    return graph.node("Add", *parts)


def _of_each_stain(rows: slice) -> F64:
    """Pick rows of `_TENSOR_FROM_SQUARES` of each stain: (n_stains, n_rows, n_stains * 8)."""
    n_rows = len(_TENSOR_FROM_SQUARES)
    return np.eye(len(TEXTURE_STAINS) * n_rows).reshape(len(TEXTURE_STAINS), n_rows, -1)[:, rows]


def _in_boxes(*filters: F64) -> F64:
    """Copy 5 x 5 filters to the 16 places of a box: (len(filters) * 16, 1, side, side), side up to 8."""
    side_px = BOX_PX + 2 * MARGIN_PX
    kernels = np.zeros((len(filters), BOX_PX, BOX_PX, side_px, side_px))
    for y, x in np.ndindex(BOX_PX, BOX_PX):
        for kernel, one in zip(kernels, filters, strict=True):
            kernel[y, x, y : y + len(one), x : x + len(one)] = one
    # What no filter looks at costs as much as what they do.
    used_px = int(np.flatnonzero(kernels.any(axis=(0, 1, 2, 3))).max()) + 1
    return kernels[..., :used_px, :used_px].reshape(-1, 1, used_px, used_px)
