"""Place cells in a section and stamp their nuclei into an image.

Nuclei come from a small stock of stamps per kind of cell, drawn once per image: a section has some 20,000 of
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stinfer.contract import F64, I64, U8
from stinfer_export.demo.fields import smooth_field
from stinfer_export.demo.tissue import GRID_UM, REGIONS, SIDE_UM, Tissue

_N_ANGLES = 16
_N_SHAPES = 10


@dataclass(frozen=True)
class CellKind:
    """How the cells of one kind look and how densely they lie.

    Parameters
    ----------
    pitch_um : distance of neighboring cells where the kind's region is pure
    share : probability that a place holds a cell, by region in the order of `REGIONS`
    half_length_um : median half of the nucleus' long axis
    spread : of the size, as standard deviation of its logarithm
    roundness : smallest and largest ratio of the short to the long axis
    wobble : unevenness of the outline, share of the radius
    darkness : smallest and largest amount of hematoxylin, 0 to 1
    follows_fibers : whether nuclei lie along the fibers or anyhow
    """

    pitch_um: float
    share: tuple[float, float, float, float]
    half_length_um: float
    spread: float
    roundness: tuple[float, float]
    wobble: float
    darkness: tuple[float, float]
    follows_fibers: bool


KINDS = (
    # Tumor: large, of all shapes and shades.
    CellKind(10.2, (0.9, 0.0, 0.05, 0.0), 5.3, 0.20, (0.62, 0.95), 0.09, (0.55, 1.0), follows_fibers=False),
    # Fibroblasts: thin spindles along the collagen.
    CellKind(
        17.0, (0.03, 0.62, 0.10, 0.03), 7.0, 0.22, (0.18, 0.36), 0.05, (0.65, 0.95), follows_fibers=True
    ),
    # Lymphocytes: small, round, dark; some wander in the stroma.
    CellKind(
        7.9, (0.008, 0.035, 0.85, 0.003), 3.1, 0.09, (0.85, 1.0), 0.04, (0.85, 1.0), follows_fibers=False
    ),
)


@dataclass(frozen=True)
class Cells:
    """The cells of one kind.

    Parameters
    ----------
    kind : what they are
    centers_um : (n_cells, 2), x and y in µm
    angle : (n_cells,), of the long axis, radians
    """

    kind: CellKind
    centers_um: F64
    angle: F64


def place_cells(tissue: Tissue, rng: np.random.Generator) -> list[Cells]:
    """Strew cells over a section, as dense as each region has them.

    Parameters
    ----------
    tissue : the section
    rng : source of the places

    Returns
    -------
    One entry per kind, in the order of `KINDS`.
    """
    slope_y, slope_x = np.gradient(tissue.across_um)
    # Fibers run where the coordinate across them does not change.
    fiber_angle = np.arctan2(-slope_x, slope_y)
    placed = []
    for kind in KINDS:
        centers_um = _jittered_grid(kind.pitch_um, rng)
        column, row = np.floor(centers_um / GRID_UM).astype(np.int64).T
        probability = np.zeros(len(centers_um))
        for region in range(len(REGIONS)):
            probability += kind.share[region] * tissue.composition[region, row, column]
        is_kept = (rng.random(len(centers_um)) < probability) & (tissue.solid_um[row, column] > 0)
        n_cells = int(is_kept.sum())
        if kind.follows_fibers:
            angle = fiber_angle[row, column][is_kept] + rng.normal(0, 0.2, n_cells)
        else:
            angle = rng.uniform(0, np.pi, n_cells)
        placed.append(Cells(kind, centers_um[is_kept], angle))
    return placed


def stamp_nuclei(cells: Sequence[Cells], um_per_px: float, size_px: int, rng: np.random.Generator) -> U8:
    """Draw all nuclei, the darker one on top where two overlap.

    Parameters
    ----------
    cells : from `place_cells`
    um_per_px : scale of the image
    size_px : side of the image
    rng : source of the nuclei's shapes

    Returns
    -------
    (size_px, size_px), hematoxylin of nuclei, 0 to 255
    """
    layer: U8 = np.zeros((size_px, size_px), np.uint8)
    for group in cells:
        stamps = [
            [_stamp(group.kind, np.pi * step / _N_ANGLES, um_per_px, rng) for _ in range(_N_SHAPES)]
            for step in range(_N_ANGLES)
        ]
        angles = np.round(group.angle / np.pi * _N_ANGLES).astype(np.int64) % _N_ANGLES
        shapes = rng.integers(_N_SHAPES, size=len(angles))
        corners: I64 = np.floor(group.centers_um / um_per_px).astype(np.int64)
        for angle, shape, (x, y) in zip(angles.tolist(), shapes.tolist(), corners.tolist(), strict=True):
            stamp = stamps[angle][shape]
            left, top = x - stamp.shape[1] // 2, y - stamp.shape[0] // 2
            if left < 0 or top < 0:
                continue  # glass surrounds the tissue, so this is rare
            view = layer[top : top + stamp.shape[0], left : left + stamp.shape[1]]
            np.maximum(view, stamp[: view.shape[0], : view.shape[1]], out=view)
    return layer


def _jittered_grid(pitch_um: float, rng: np.random.Generator) -> F64:
    """Points of a honeycomb, each moved a little: (n, 2), x and y in µm, within the section."""
    n_points = int(SIDE_UM / pitch_um)
    row, column = np.mgrid[0:n_points, 0:n_points].reshape(2, -1)
    grid = np.stack([column + 0.5 * (row % 2) + 0.25, row + 0.5], axis=1)
    points = (grid + rng.uniform(-0.33, 0.33, grid.shape)) * pitch_um
    return np.clip(points, 0, SIDE_UM - GRID_UM)


def _stamp(kind: CellKind, angle: float, um_per_px: float, rng: np.random.Generator) -> U8:
    """Draw one nucleus, 0 to 255: a soft uneven ellipse with mottled chromatin and a darker rim."""
    half_long = kind.half_length_um * np.exp(rng.normal(0, kind.spread)) / um_per_px
    half_short = half_long * rng.uniform(*kind.roundness)
    side = 2 * int(half_long * (1 + 2 * kind.wobble) + 2) + 1
    y, x = np.mgrid[0:side, 0:side] - side // 2 + rng.uniform(-0.5, 0.5, (2, 1, 1))
    along = (x * np.cos(angle) + y * np.sin(angle)) / half_long
    across = (y * np.cos(angle) - x * np.sin(angle)) / half_short
    polar = np.arctan2(across, along)
    edge = np.ones_like(polar)
    for order in (2, 3, 4):
        edge += kind.wobble * rng.normal(0, 0.7) * np.cos(order * polar + rng.uniform(0, 2 * np.pi))
    depth_px = (edge - np.hypot(along, across)) * half_short
    # An edge of 1.2 µm: the optics' blur.
    coverage = np.clip(depth_px * um_per_px / 1.2 + 0.5, 0, 1)
    chromatin = smooth_field(rng, (side, side), (0.75 / um_per_px, 0.75 / um_per_px))
    rim = np.exp(-((depth_px * um_per_px / 0.9) ** 2))
    tone = rng.uniform(*kind.darkness) * (0.82 + 0.11 * chromatin + 0.12 * rim)
    return np.asarray(255 * np.clip(coverage * tone, 0, 1), np.uint8)
