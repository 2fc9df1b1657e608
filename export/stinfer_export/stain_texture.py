"""The encoder that needs no weights: stain and texture statistics of an H&E image, as an ONNX graph.

``features`` holds, per cell of 32 x 32 px, the means of quantities that every pixel has: stain
densities, their squares and products, soft histogram bins, products of filter responses. Means of means
are means: averaging any window of cells gives the statistics of that window. Only then come the steps
that are not linear (variance, correlation, logarithm, ratio), in `stain_texture_embedding`. ``embedding``
is that for the whole image.

One pixel is meant to be about 0.69 µm (154 µm of tissue on 224 px): the four texture levels then look at
structures of roughly 1.5, 3, 6 and 12 µm, from chromatin to groups of nuclei.

Every entry of ``embedding`` is the same for an image, its mirror image and its quarter turns, where the
sides are multiples of 32 px. Where they are not, pixels right of and below the last whole cell are left out.

What needs single pixels is computed by rows of cells, one row of all images after the other: so little at a
time that it stays in a processor's cache.

References
----------
A. C. Ruifrok, D. A. Johnston, "Quantification of histochemical staining by color deconvolution",
Analytical and Quantitative Cytology and Histology 23 (2001) 291-299: `STAIN_VECTORS`.

J. A. W. M. van der Laak et al., "Hue-saturation-density (HSD) model for stain recognition in digital
images from transmitted light microscopy", Cytometry 39 (2000) 275-284: `CHROMA_FROM_OD`.

P. J. Burt, E. H. Adelson, "The Laplacian pyramid as a compact image code", IEEE Transactions on
Communications 31 (1983) 532-540: bands, as what a binomial blur takes away.

H. Scharr, "Optimal operators in digital image processing", thesis, Heidelberg (2000): gradients.

J. Bigün, G. H. Granlund, "Optimal orientation detection of linear symmetry", Proc. ICCV (1987) 433-438:
gradient tensor and coherence.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, checker, helper

from stinfer.contract import F64, MODEL_EMBEDDING, MODEL_FEATURES, MODEL_INPUT, MapTraits, ModelCard
from stinfer.files import written_beside
from stinfer_export.registry import STAIN_TEXTURE
from stinfer_export.stain_texture_embedding import (
    N_LEVELS,
    N_TEXTURE_LEVELS,
    STAINS,
    TEXTURE_STAINS,
    add_embedding,
    build_head,
    named,
)
from stinfer_export.stain_texture_filters import MARGIN_PX, add_texture
from stinfer_export.stain_texture_graph import (
    Averages,
    Block,
    GraphBuilder,
    join,
    side_by_side,
)

STRIDE_PX = 32
INPUT_SIZE_PX = 224
# Filters reach 16 px beyond a cell, to every side alike; `feature_map_check` measures the same.
HALO_CELLS = 1
OFFSET_PX = (0.0, 0.0)

# Optical density per unit of hematoxylin, eosin and residual (DAB in the paper), rows; columns R, G, B.
STAIN_VECTORS: F64 = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
STAIN_FROM_OD: F64 = np.linalg.inv(STAIN_VECTORS).T
# Rows: mean density, red excess, green-blue difference. The last two, divided by the first, are the hue
# plane of HSD, which does not depend on how thick or how strongly stained the section is.
CHROMA_FROM_OD: F64 = np.array([[1 / 3, 1 / 3, 1 / 3], [2 / 3, -1 / 3, -1 / 3], [0, 3**-0.5, -(3**-0.5)]])

# Darker pixels (ink, folds, pen) count as this dark: no stain is, and amounts of stain would be arbitrary.
MIN_INTENSITY = 8
# Centers of the soft histogram bins, in optical density (natural logarithm).
HEMATOXYLIN_BINS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4)
DENSITY_BINS = (0.05, 0.15, 0.3, 0.5, 0.75, 1.0, 1.4, 2.0)
# Added to the density that hue is divided by, so that the hue of empty glass is 0 and not noise.
DENSITY_FLOOR = 0.1

# Threads share in the look-ups by rows of the table's copies; any number of pixels of a strip divides by it.
_TABLE_ROWS = 4
# A row of cells with the margin above and below it.
_STRIP_PX = STRIDE_PX + 2 * MARGIN_PX


def write_stain_texture(path: Path) -> ModelCard:
    """Write the encoder to a file, whole or not at all; always the same bytes.

    Parameters
    ----------
    path : where to; an existing file is replaced

    Returns
    -------
    what the file says about itself
    """
    model = build_graph()
    with written_beside(path) as partial:
        partial.write_bytes(model.SerializeToString(deterministic=True))
    return ModelCard.from_props({prop.key: prop.value for prop in model.metadata_props})


def build_graph() -> ModelProto:
    """Build the encoder, ``pixels`` to ``features`` and ``embedding``, checked and with its card.

    Images must be at least 32 px high and wide. What smaller ones give is undefined, and no error.

    Returns
    -------
    the interface of `stinfer.contract`; map sides are image sides // 32
    """
    graph = GraphBuilder()
    features = add_features(graph, MODEL_INPUT)
    means = graph.node("Flatten", graph.node("GlobalAveragePool", features.tensor), axis=1)
    embedding = add_embedding(graph, Block(features.names, means))
    graph.name_output(features.tensor, MODEL_FEATURES)
    graph.name_output(embedding.tensor, MODEL_EMBEDDING)
    card = ModelCard(
        backbone=STAIN_TEXTURE,
        input_size_px=INPUT_SIZE_PX,
        dim=len(embedding.names),
        channels=len(features.names),
        stride=STRIDE_PX,
        checkpoint_sha256="",
        precision="fp32",
        map_traits=MapTraits(HALO_CELLS, OFFSET_PX, build_head(features.names)),
        map_refusal="",
    )
    model = graph.to_model(
        STAIN_TEXTURE,
        [helper.make_tensor_value_info(MODEL_INPUT, TensorProto.UINT8, ["n", "height", "width", 3])],
        [
            helper.make_tensor_value_info(MODEL_EMBEDDING, TensorProto.FLOAT, ["n", card.dim]),
            helper.make_tensor_value_info(
                MODEL_FEATURES, TensorProto.FLOAT, ["n", card.channels, "map_height", "map_width"]
            ),
        ],
    )
    helper.set_model_props(model, card.to_props())
    checker.check_model(model, full_check=True)
    return model


def add_features(graph: GraphBuilder, pixels: str) -> Block:
    """Add the part that looks at pixels.

    Parameters
    ----------
    graph : where to add
    pixels : (n, height, width, 3) uint8, RGB; sides of at least 32 px

    Returns
    -------
    (n, channels, height // 32, width // 32) float32, means over cells
    """
    body = GraphBuilder("strip_")
    item = helper.make_tensor_value_info("strip", TensorProto.UINT8, ["n", _STRIP_PX, "strip_width", 3])
    averages, levels = _add_strip(body, item.name)
    means, *levels = graph.scan(_strips(graph, pixels), body, item, [averages.tensor, *levels])
    # (rows of cells, n, channels, 1, columns)
    means = graph.node("Squeeze", graph.node("Transpose", means, perm=[1, 2, 0, 3, 4]), graph.ints([3]))
    blocks = [replace(averages, tensor=means).mixed(graph)]
    for level, strips in enumerate(levels, start=1):
        image = graph.reflect(_join_rows(graph, strips), [0, 0, MARGIN_PX, MARGIN_PX])
        planes = graph.split(image, [1] * len(TEXTURE_STAINS))
        blocks.append(side_by_side(graph, add_texture(graph, planes, level, STRIDE_PX >> level)).mixed(graph))
    return join(graph, blocks)


def _strips(graph: GraphBuilder, pixels: str) -> str:
    """Cut into rows of cells, each with a margin all around: (rows, n, 36, width + 4, 3) uint8."""
    sides = graph.node("Shape", pixels, start=1, end=3)
    stride = graph.ints([STRIDE_PX])
    whole = graph.node("Mul", graph.node("Div", sides, stride), stride)
    cells = graph.node("Slice", pixels, graph.ints([0, 0]), whole, graph.ints([1, 2]))
    wide = graph.reflect(cells, [0, 0, MARGIN_PX, 0])
    height = graph.node("Gather", whole, graph.ints(0))
    last = graph.node("Sub", height, graph.ints(1))
    # The tops of the cells; then every line of every strip.
    tops = graph.node("Range", graph.ints(0), height, graph.ints(STRIDE_PX))
    lines = graph.node(
        "Add",
        graph.node("Unsqueeze", tops, graph.ints([1])),
        graph.ints(range(-MARGIN_PX, STRIDE_PX + MARGIN_PX)),
    )
    # Mirrored at the first and the last line.
    from_last = graph.node("Abs", graph.node("Sub", last, graph.node("Abs", lines)))
    strips = graph.node("Gather", wide, graph.node("Sub", last, from_last), axis=1)
    return graph.node("Transpose", strips, perm=[1, 0, 2, 3, 4])


def _join_rows(graph: GraphBuilder, strips: str) -> str:
    """Put (rows, n, channels, height, width) below each other: (n, channels, rows * height, width)."""
    width = graph.node("Shape", strips, start=4)
    shape = graph.node("Concat", graph.ints([0, 0, -1]), width, axis=0)
    return graph.node("Reshape", graph.node("Transpose", strips, perm=[1, 2, 0, 3, 4]), shape)


def _add_strip(graph: GraphBuilder, pixels: str) -> tuple[Averages, list[str]]:
    """Add what one row of cells needs: texture of single pixels, and what looks at no neighbors.

    Parameters
    ----------
    graph : where to add
    pixels : (n, 36, width + 4, 3) uint8, RGB

    Returns
    -------
    averages : (n, means, 1, width // 32)
    levels : 1 to 3, of the texture stains: (n, 2, 32 >> level, width >> level) each
    """
    with_margin = _stains(graph, pixels)
    stains = graph.cut(with_margin, [2, 3], [MARGIN_PX, MARGIN_PX], [MARGIN_PX + STRIDE_PX, -MARGIN_PX])
    planes = [graph.cut(with_margin, [1], [i], [i + 1]) for i in range(len(TEXTURE_STAINS))]
    parts = [
        Averages.of(named("square0", STAINS), _cell_means(graph, graph.square(stains), STRIDE_PX)),
        *add_texture(graph, planes, 0, STRIDE_PX),
    ]
    levels = []
    for level in range(1, N_LEVELS):
        cell_px = STRIDE_PX >> level
        stains = graph.average(stains, 2)
        texture_stains, _ = graph.split(stains, [len(TEXTURE_STAINS), len(STAINS) - len(TEXTURE_STAINS)])
        hematoxylin, eosin = graph.split(texture_stains, [1, 1])
        product = graph.node("Mul", hematoxylin, eosin)
        parts += [
            Averages.of(named(f"square{level}", STAINS), _cell_means(graph, graph.square(stains), cell_px)),
            Averages.of((f"product{level}",), _cell_means(graph, product, cell_px)),
        ]
        if level == 1:
            # Of single pixels, color is mostly noise; here it also costs a quarter.
            density, hue = _density_and_hue(graph, stains, cell_px)
            parts += [
                _histogram(graph, "hematoxylin_bin", hematoxylin, HEMATOXYLIN_BINS, cell_px),
                _histogram(graph, "density_bin", density, DENSITY_BINS, cell_px),
                *hue,
            ]
        if level < N_TEXTURE_LEVELS:
            levels.append(texture_stains)
    # The same at every level, and cheapest at the last.
    parts.append(Averages.of(named("mean", STAINS), _cell_means(graph, stains, cell_px)))
    return side_by_side(graph, parts), levels


def _stains(graph: GraphBuilder, pixels: str) -> str:
    """Stain densities, (n, 3, 36, width), of natural-log optical densities, 0 (white) to 3.46 (black)."""
    # There are 256 intensities: to look a density up is faster than to compute it, and the same everywhere.
    densities = np.log(255 / np.maximum(np.arange(256), MIN_INTENSITY))
    table = graph.floats(np.tile(densities, (_TABLE_ROWS, 1)))
    intensity = graph.node("Transpose", graph.node("Cast", pixels, to=TensorProto.INT32), perm=[0, 3, 1, 2])
    density = graph.node("GatherElements", table, graph.reshape(intensity, [_TABLE_ROWS, -1]), axis=1)
    density = graph.node("Reshape", density, graph.node("Shape", intensity))
    return _combine(graph, density, STAIN_FROM_OD, _STRIP_PX)


def _combine(graph: GraphBuilder, tensor: str, matrix: F64, height_px: int) -> str:
    """Combine the channels of (n, 3, height, width) linearly; faster than a convolution of so few."""
    flat = graph.reshape(tensor, [0, matrix.shape[1], -1])
    return graph.reshape(graph.node("MatMul", graph.floats(matrix), flat), [0, len(matrix), height_px, -1])


def _cell_means(graph: GraphBuilder, tensor: str, cell_px: int) -> str:
    """Average a strip's cells, (n, channels, 1, columns): rows before columns is faster than at once."""
    rows = graph.node("AveragePool", tensor, kernel_shape=[cell_px, 1], strides=[cell_px, 1])
    return graph.node("AveragePool", rows, kernel_shape=[1, cell_px], strides=[1, cell_px])


def _histogram(
    graph: GraphBuilder, name: str, values: str, centers: tuple[float, ...], cell_px: int
) -> Averages:
    """Soft histogram of (n, 1, cell_px, width): shares of a cell's pixels, summing to 1.

    A bin is the piecewise linear hat that is 1 at its center and 0 at its neighbors' centers; the first
    and last stay 1 outward. Hats are differences of slopes of ``relu(x - center)``, and averaging is
    linear: so the rectified values are averaged, and only their averages differenced. Two pixels of a line
    at once make 16 channels, which ONNX Runtime needs for its fast layout.
    """
    n_bins = len(centers)
    kernels = np.tile(np.eye(2).reshape(2, 1, 1, 2), (n_bins, 1, 1, 1))
    rectified = graph.node(
        "Relu",
        graph.node(
            "Conv", values, graph.floats(kernels), graph.floats(-np.repeat(centers, 2)), strides=[1, 2]
        ),
    )
    sides = [cell_px, cell_px // 2]
    means = graph.node("AveragePool", rectified, kernel_shape=sides, strides=sides)
    # Row i rises from 0 at center i to 1 at center i + 1; the first hat is 1 less the first rise.
    rises: F64 = -np.diff(np.eye(n_bins), axis=0) / np.diff(centers)[:, np.newaxis]
    hats: F64 = -np.diff(np.pad(rises, ((1, 1), (0, 0))), axis=0)
    names = tuple(f"{name}_{i}" for i in range(n_bins))
    return Averages.of(names, means, hats.repeat(2, axis=1) / 2, np.eye(n_bins)[0])


def _density_and_hue(graph: GraphBuilder, stains: str, cell_px: int) -> tuple[str, list[Averages]]:
    """Mean optical density of a strip, and the first two moments in the hue plane of HSD."""
    combined = _combine(graph, stains, CHROMA_FROM_OD @ STAIN_VECTORS.T, cell_px)
    density, chroma = graph.split(combined, [1, 2])
    hue = graph.node("Div", chroma, graph.node("Add", density, graph.floats(DENSITY_FLOOR)))
    return density, [
        Averages.of(("hue_mean_x", "hue_mean_y"), _cell_means(graph, hue, cell_px)),
        Averages.of(("hue_square_x", "hue_square_y"), _cell_means(graph, graph.square(hue), cell_px)),
    ]
