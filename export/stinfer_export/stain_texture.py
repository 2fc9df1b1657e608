"""The encoder that needs no weights: stain and texture statistics of an H&E image, as an ONNX graph.

``features`` holds, per cell of 32 x 32 px, the means of quantities that every pixel has: stain
densities, their squares and products, soft histogram bins, products of filter responses. Means of means
are means: averaging any window of cells gives the statistics of that window. Only then come the steps
that are not linear (variance, correlation, logarithm, ratio), in `stain_texture_embedding`. ``embedding``
is that for the whole image.

One pixel is meant to be about 0.69 µm (154 µm of tissue on 224 px): the four texture levels then look at
structures of roughly 1.5, 3, 6 and 12 µm, from chromatin to groups of nuclei.

Every entry of ``embedding`` is the same for an image, its mirror image and its quarter turns, where the
sides are multiples of 32 px. Where they are not, pixels right of and below the last whole cell count
only as neighbors of others.

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
from stinfer_export.stain_texture_graph import Block, GraphBuilder, anisotropy, join, product_of_two

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

# Side of the boxes in which local coherence is taken, in pixels of the level.
BOX_PX = 4

_BINOMIAL = np.array([1, 4, 6, 4, 1]) / 16
_SCHARR_SMOOTH = np.array([0, 3, 10, 3, 0]) / 16
_DIFFERENCE = np.array([0, -1, 0, 1, 0]) / 2
_POINT = np.array([0, 0, 1, 0, 0])
_MARGIN_PX = 2


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
    means = graph.node("ReduceMean", features.tensor, axes=[2, 3], keepdims=0)
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
    blocks: list[Block] = []
    level_input, stain_from_input = _optical_density(graph, pixels), STAIN_FROM_OD
    for level in range(N_TEXTURE_LEVELS):
        cell_px = STRIDE_PX >> level
        stains, gradient_x, gradient_y, band = _filter(graph, level_input, stain_from_input)
        if level == 0:
            squares = graph.average(graph.square(stains), cell_px)
            blocks += [Block(named("square0", STAINS), squares), _histograms(graph, stains, cell_px)]
        else:
            blocks += _second_moments(graph, stains, level, cell_px)
        if level == 1:
            # Of single pixels, hue is mostly noise; here it also costs a quarter.
            blocks += _hue(graph, stains, cell_px)
        blocks += _texture(graph, gradient_x, gradient_y, band, level, cell_px)
        level_input, stain_from_input = graph.average(stains, 2), np.eye(len(STAINS))
    cell_px = STRIDE_PX >> (N_LEVELS - 1)
    blocks += _second_moments(graph, level_input, N_LEVELS - 1, cell_px)
    # The same at every level, and cheapest at the last.
    blocks.append(Block(named("mean", STAINS), graph.average(level_input, cell_px)))
    return join(graph, blocks)


def _optical_density(graph: GraphBuilder, pixels: str) -> str:
    """Natural-log optical density, (n, 3, height, width): 0 (white) to 3.46 (black)."""
    intensity = graph.node("Cast", graph.node("Transpose", pixels, perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
    clamped = graph.node("Max", intensity, graph.floats(MIN_INTENSITY))
    return graph.node("Log", graph.node("Div", graph.floats(255.0), clamped))


def _filter(graph: GraphBuilder, level_input: str, stain_from_input: F64) -> list[str]:
    """Stain densities, and x gradients, y gradients and bands of the texture stains.

    One dense convolution separates the stains and filters them: for so few channels ONNX Runtime does that
    faster than separable or depthwise convolutions.
    """
    gradient_x = np.outer(_SCHARR_SMOOTH, _DIFFERENCE)
    point = np.outer(_POINT, _POINT)
    band = point - np.outer(_BINOMIAL, _BINOMIAL)
    texture_from_input = stain_from_input[: len(TEXTURE_STAINS)]
    parts = (
        (stain_from_input, point),
        (texture_from_input, gradient_x),
        (texture_from_input, gradient_x.T),
        (texture_from_input, band),
    )
    kernels = np.concatenate([np.einsum("oi,yx->oiyx", matrix, kernel) for matrix, kernel in parts])
    responses = graph.convolve(graph.reflect(level_input, _MARGIN_PX), kernels)
    return graph.split(responses, [len(matrix) for matrix, _ in parts])


def _histograms(graph: GraphBuilder, stains: str, cell_px: int) -> Block:
    """Soft histograms of hematoxylin and of mean density: shares of a cell's pixels, summing to 1 in each.

    A bin is the piecewise linear hat that is 1 at its center and 0 at its neighbors' centers; the first
    and last stay 1 outward. Hats are differences of slopes of ``relu(x - center)``, and averaging is
    linear: so the rectified values are averaged, and only their averages differenced. Both histograms
    are one convolution, since ONNX Runtime stays in its fast layout for 16 channels and not for 8.
    """
    density = CHROMA_FROM_OD[0] @ STAIN_VECTORS.T
    tables = (
        ("hematoxylin_bin", np.eye(len(STAINS))[0], HEMATOXYLIN_BINS),
        ("density_bin", density, DENSITY_BINS),
    )
    rows = np.array([row for _, row, centers in tables for _ in centers])
    thresholds = np.array([center for _, _, centers in tables for center in centers])
    rectified = graph.average(graph.node("Relu", graph.mix(stains, rows, -thresholds)), cell_px)
    n_bins = len(thresholds)
    hats, offsets = np.zeros((n_bins, n_bins)), np.zeros(n_bins)
    start = 0
    for _, _, centers in tables:
        part = slice(start, start + len(centers))
        # Row i rises from 0 at center i to 1 at center i + 1; the first hat is 1 less the first rise.
        rises = -np.diff(np.eye(len(centers)), axis=0) / np.diff(centers)[:, np.newaxis]
        hats[part, part] = -np.diff(np.pad(rises, ((1, 1), (0, 0))), axis=0)
        offsets[start] = 1.0
        start = part.stop
    names = tuple(f"{name}_{i}" for name, _, centers in tables for i in range(len(centers)))
    return Block(names, graph.mix(rectified, hats, offsets))


def _second_moments(graph: GraphBuilder, stains: str, level: int, cell_px: int) -> list[Block]:
    """Squares of each stain and hematoxylin times eosin, at a level: of means over small boxes."""
    texture_stains, _ = graph.split(stains, [len(TEXTURE_STAINS), len(STAINS) - len(TEXTURE_STAINS)])
    return [
        Block(named(f"square{level}", STAINS), graph.average(graph.square(stains), cell_px)),
        Block((f"product{level}",), graph.average(product_of_two(graph, texture_stains), cell_px)),
    ]


def _hue(graph: GraphBuilder, stains: str, cell_px: int) -> list[Block]:
    """First two moments in the hue plane of HSD."""
    density, chroma = graph.split(graph.mix(stains, CHROMA_FROM_OD @ STAIN_VECTORS.T), [1, 2])
    hue = graph.node("Div", chroma, graph.node("Add", density, graph.floats(DENSITY_FLOOR)))
    return [
        Block(("hue_mean_x", "hue_mean_y"), graph.average(hue, cell_px)),
        Block(("hue_square_x", "hue_square_y"), graph.average(graph.square(hue), cell_px)),
    ]


def _texture(
    graph: GraphBuilder, gradient_x: str, gradient_y: str, band: str, level: int, cell_px: int
) -> list[Block]:
    """Gradient tensor, its anisotropy in small boxes, energy of the band and of its dark half, alignment."""
    boxes = {
        "xx": graph.average(graph.square(gradient_x), BOX_PX),
        "yy": graph.average(graph.square(gradient_y), BOX_PX),
        "xy": graph.average(graph.node("Mul", gradient_x, gradient_y), BOX_PX),
        "band": graph.average(graph.square(band), BOX_PX),
        # Only where there is more stain than around, as in nuclei.
        "blob": graph.average(graph.square(graph.node("Relu", band)), BOX_PX),
    }
    boxes["anisotropy"] = anisotropy(graph, boxes["xx"], boxes["yy"], boxes["xy"])
    blocks = [
        Block(named(f"{name}{level}", TEXTURE_STAINS), graph.average(tensor, cell_px // BOX_PX))
        for name, tensor in boxes.items()
    ]
    # Scalar product of the gradients of hematoxylin and eosin.
    aligned = graph.node("Add", product_of_two(graph, gradient_x), product_of_two(graph, gradient_y))
    return [*blocks, Block((f"aligned{level}",), graph.average(aligned, cell_px))]
