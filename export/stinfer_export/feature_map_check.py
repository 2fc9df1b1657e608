"""Measure whether, and how, a backbone's `features` of regions can be joined into one map of a slide.

Nothing is derived from the layers: the ONNX file is run on painted tissue. A cell of a convolutional
network sees further than its own pixels, and what it sees need not be centered on them; in a network
with squeeze-excitation or attention every cell sees the whole image, and there is no map of regions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from stinfer.contract import (
    F32,
    F64,
    MAX_OFFSET_PX,
    MODEL_FEATURES,
    MODEL_INPUT,
    U8,
    MapTraits,
    ModelCard,
)
from stinfer.errors import first_line
from stinfer.machine import cores_allowed
from stinfer.onnx_runtime import ORT_ERRORS, ort
from stinfer_export.errors import ParityError
from stinfer_export.tissue_noise import glass_patch, nuclei_patch, tissue_patch

TOLERANCE = 1e-2
"""Largest difference of a cell that is none, over the root mean square of the cells' norms."""

HALOS_TRIED = (6, 12)
"""Halos are looked for up to the first, which is cheap, and only then up to the second."""

# A model need not accept smaller images.
_MIN_SIDE_PX = 32

# Of the square that several images share: its cells beyond the largest halo; and of the context, on each
# side of it.
_BLOCK_CELLS = 2
_CONTEXT_CELLS = 2

# Of the images that the offset is measured on: how many, each also mirrored; cells along the change; parts
# of a cell that are changed in turn; gray levels.
_N_BANDS = 3
_BAND_CELLS = 3
_PARTS_PER_CELL = 4
_CHANGE = 12

# From (height, width, 3) pixels to (rows, columns, channels).
Encode = Callable[[U8], F32]


def measure_map(model: bytes, card: ModelCard) -> ModelCard:
    """Measure what must be known to join regions, and write it into the card.

    1. The halo: the smallest number of cells that must be computed around a region for its cells to be
       those of a larger image, whatever lies there.
    2. The offset: the middle of what a cell sees, from the middle of its own pixels.

    Parameters
    ----------
    model : ONNX file
    card : what is known of it so far

    Returns
    -------
    The card with `map_traits`, their `head` empty; or with None and the reason in `map_refusal`

    Raises
    ------
    ParityError
        ONNX Runtime does not load or run the model.
    """
    if card.stride == 0:
        return _refused(card, "it has no map of cells")
    encode = _open_features(model, card)
    for largest in HALOS_TRIED:
        differences = halo_differences(encode, card.stride, largest)
        if not np.isfinite(differences).all():
            return _refused(card, "its features are zero or not finite on painted tissue")
        enough = np.flatnonzero(differences <= TOLERANCE)
        if len(enough):
            break
    else:
        # Not "whole image" alone: a very deep network may merely see far.
        reason = (
            f"its features depend on the whole image, or on more than {HALOS_TRIED[-1]} cells around (the "
            f"same pixels in two contexts differ by {differences[-1]:.0%}), as with squeeze-excitation or "
            "attention"
        )
        return _refused(card, reason)
    halo_cells = int(enough[0])
    offset_px = measure_offset(encode, card.stride, halo_cells)
    if offset_px is None:
        return _refused(card, "its features do not depend on the pixels near them")
    if max(map(abs, offset_px)) > MAX_OFFSET_PX:
        x, y = offset_px
        reason = f"its cells see what is {x:g} x {y:g} px away from them, more than {MAX_OFFSET_PX}"
        return _refused(card, reason)
    return replace(card, map_traits=MapTraits(halo_cells, offset_px), map_refusal="")


def describe_map(card: ModelCard) -> str:
    """Say in a line what a card says of maps."""
    if card.map_traits is None:
        return f"map: no, because {card.map_refusal}; patch mode only"
    halo_cells, (x, y) = card.map_traits.halo_cells, card.map_traits.offset_px
    return f"map: halo {halo_cells} {'cell' if halo_cells == 1 else 'cells'}, offset {x:g} x {y:g} px"


def halo_differences(encode: Encode, stride: int, largest: int) -> F64:
    """Compare cells of the same pixels in several contexts, near to the context and far from it.

    A square of tissue is encoded amid more of that tissue, amid nuclei, amid glass, and alone.

    Parameters
    ----------
    encode : computes the features of an image
    stride : pixels per cell
    largest : halo up to which to compare, in cells

    Returns
    -------
    (largest + 1,): the worst difference of a cell, of those with at least 0, 1, ... cells of the square
    around them, over the root mean square of the cells' norms; not finite where all cells are 0
    """
    square_cells = max(_BLOCK_CELLS, -(-_MIN_SIDE_PX // stride)) + 2 * largest
    side_px = (square_cells + 2 * _CONTEXT_CELLS) * stride
    square = (slice(_CONTEXT_CELLS, _CONTEXT_CELLS + square_cells),) * 2
    pixels = (slice(_CONTEXT_CELLS * stride, side_px - _CONTEXT_CELLS * stride),) * 2
    rng = np.random.default_rng(0)
    images = [paint(rng, side_px, side_px) for paint in (tissue_patch, nuclei_patch, glass_patch)]
    for image in images[1:]:
        image[pixels] = images[0][pixels]
    amid = [encode(image)[square].astype(np.float64) for image in images]
    alone = encode(images[0][pixels]).astype(np.float64)
    differences = [alone - amid[0], *(one - other for one, other in itertools.combinations(amid, 2))]
    difference = np.max([np.linalg.norm(cells, axis=2) for cells in differences], axis=0)
    norm = np.sqrt(np.mean(np.sum(amid[0] ** 2, axis=2)))
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = difference / norm
    blocks = [slice(halo, square_cells - halo) for halo in range(largest + 1)]
    return np.array([relative[block, block].max() for block in blocks])


def measure_offset(encode: Encode, stride: int, halo_cells: int) -> tuple[float, float] | None:
    """Find the middle of what a cell sees, from the middle of its own pixels.

    It is the mean place of a change of pixels, weighted with the energy of a cell's answer: the squared
    norm of the difference of its features.

    Parameters
    ----------
    encode, stride : as for `halo_differences`
    halo_cells : how far a cell sees

    Returns
    -------
    x and y in pixels, to half a pixel; None where no cell answers
    """
    x = _measure_offset_x(encode, stride, halo_cells)
    y = _measure_offset_x(lambda image: encode(image.swapaxes(0, 1)).swapaxes(0, 1), stride, halo_cells)
    return None if x is None or y is None else (x, y)


def _measure_offset_x(encode: Encode, stride: int, halo_cells: int) -> float | None:
    """Make some columns of the cell in the middle lighter or darker, and see which cells answer.

    A cell answers to columns three cells to its right as the cell three to the left of the middle answers
    to columns of the middle: changing one cell, part by part, tells of every distance.
    """
    n_cells = max(2 * halo_cells + 1, -(-_MIN_SIDE_PX // stride) | 1)
    across_px = max(_BAND_CELLS * stride, _MIN_SIDE_PX)
    part_px = max(1, stride // _PARTS_PER_CELL)
    first_px = n_cells // 2 * stride
    cell_middles_px = (np.arange(n_cells) + 0.5) * stride
    moment = energy = 0.0
    for seed in range(_N_BANDS):
        band = tissue_patch(np.random.default_rng(seed), across_px, n_cells * stride)
        change = _CHANGE if seed % 2 else -_CHANGE
        # Mirrored too: what the picture adds to the offset cancels, what the network adds does not.
        for image in (band, band[:, ::-1]):
            unchanged = encode(image).astype(np.float64)
            for start_px in range(first_px, first_px + stride, part_px):
                changed = image.astype(np.int16)
                changed[:, start_px : start_px + part_px] += change
                answer = encode(np.clip(changed, 0, 255).astype(np.uint8)) - unchanged
                energy_of_cell = np.sum(answer**2, axis=(0, 2))
                moment += float(energy_of_cell @ (start_px + part_px / 2 - cell_middles_px))
                energy += float(energy_of_cell.sum())
    # Adding 0 makes 0 of -0.
    return round(2 * moment / energy) / 2 + 0.0 if energy > 0 else None


def _refused(card: ModelCard, reason: str) -> ModelCard:
    return replace(card, map_traits=None, map_refusal=reason)


def _open_features(model: bytes, card: ModelCard) -> Encode:
    """Load what computes `features`, and only that."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = cores_allowed()
    try:
        session = ort.InferenceSession(_trunk(model), options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        cause = f"ONNX Runtime does not load it ({first_line(error)})"
        raise ParityError(card.backbone, cause) from error

    def encode(image: U8) -> F32:
        pixels = np.ascontiguousarray(image[np.newaxis])
        try:
            (features,) = session.run([MODEL_FEATURES], {MODEL_INPUT: pixels})
        except ORT_ERRORS as error:
            height_px, width_px, _ = image.shape
            cause = f"ONNX Runtime fails on an image of {height_px} x {width_px} px ({first_line(error)})"
            raise ParityError(card.backbone, cause) from error
        cells: F32 = features[0].transpose(1, 2, 0)
        return cells

    return encode


def _trunk(model: bytes) -> bytes:
    """Leave out what only other outputs need.

    ONNX Runtime would load and run it, even where nobody asks for those outputs, and even where the graph
    does not name them: of a VGG that is nine tenths of the file, and a quarter of the arithmetic.
    """
    trunk = onnx.load_from_string(model)
    makers = {name: node for node in trunk.graph.node for name in node.output}
    needed: set[str] = set()
    pending = [MODEL_FEATURES]
    while pending:
        name = pending.pop()
        if name not in needed:
            needed.add(name)
            pending += _inputs(makers[name]) if name in makers else []
    _keep(trunk.graph.node, lambda node: not needed.isdisjoint(node.output))
    _keep(trunk.graph.initializer, lambda item: item.name in needed)
    _keep(trunk.graph.output, lambda item: item.name in needed)
    found: bytes = trunk.SerializeToString()
    return found


def _keep(items: Any, is_needed: Callable[[Any], bool]) -> None:
    """Delete the others from a repeated field."""
    for index in reversed(range(len(items))):
        if not is_needed(items[index]):
            del items[index]


def _inputs(node: onnx.NodeProto) -> list[str]:
    """List what a node reads, also from within: a branch sees the tensors around it."""
    branches = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return [*node.input, *(name for branch in branches for inner in branch.node for name in _inputs(inner))]
