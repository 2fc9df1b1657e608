"""Lay out a tissue section in µm: its outline, its regions, its voids and the run of its fibers.

A section is a square of `SIDE_UM` on a grid of `GRID_UM`. The image (`render`) and the expression (`counts`)
are both derived from it, which is what makes the one predictable from the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stinfer.contract import F32, F64, Bool
from stinfer_export.demo.fields import signed_distance_um, smooth_field

SIDE_UM = 2400.0
GRID_UM = 3.0
REGIONS = ("tumor", "stroma", "lymphocyte", "fat")

_CELLS = round(SIDE_UM / GRID_UM)
# Shares of the tissue's area; stroma is what remains.
_TUMOR_SHARE, _LYMPHOCYTE_SHARE, _FAT_SHARE = 0.40, 0.12, 0.13
_ADIPOCYTE_PITCH_UM = 58.0
_ADIPOCYTE_WALL_UM = 1.7
_ADIPOCYTE_ROUNDING_UM = 5.0
_FAR_UM = 25.0


@dataclass(frozen=True)
class Tissue:
    """One section.

    Parameters
    ----------
    composition : (4, height, width), share of each of `REGIONS` in a cell of the grid, sums to 1
    inside : (height, width), within the outline of the tissue
    solid_um : (height, width), about the distance to the nearest void (glass, lumen, cleft, vacuole), µm,
        negative in it, cut at 25
    across_um, along_um : (height, width), coordinates across and along the fibers, µm
    """

    composition: F32
    inside: Bool
    solid_um: F32
    across_um: F32
    along_um: F32


def grow_tissue(rng: np.random.Generator) -> Tissue:
    """Draw a section at random.

    Parameters
    ----------
    rng : source of everything random in the layout

    Returns
    -------
    A section of which about three quarters are tissue.
    """
    outline_um = _outline(rng)
    inside = outline_um > 0
    # Nests are lobes of a coarse field, cut by septa of a finer one.
    nests = _field(rng, 100.0) + 0.6 * _field(rng, 34.0)
    tumor_um = _region(nests, inside, _TUMOR_SHARE / (1 - _FAT_SHARE - _LYMPHOCYTE_SHARE))
    lymphocyte_um = _region(_field(rng, 60.0), inside, _LYMPHOCYTE_SHARE / (1 - _FAT_SHARE))
    fat_um = _region(_field(rng, 120.0) + 0.25 * _field(rng, 30.0), inside, _FAT_SHARE)

    # Fat displaces lymphocytes, these displace tumor, and stroma fills what is left.
    composition = np.empty((len(REGIONS), _CELLS, _CELLS), np.float32)
    composition[3] = _soft(fat_um, 3.0)
    composition[2] = _soft(lymphocyte_um, 14.0) * (1 - composition[3])
    composition[0] = _soft(tumor_um, 5.0) * (1 - composition[3] - composition[2])
    composition[1] = np.maximum(1 - composition[0] - composition[2] - composition[3], 0)

    solid_um = np.minimum(outline_um, np.maximum(_adipocyte_walls(rng), -fat_um))
    solid_um = np.minimum(solid_um, _clefts(rng, tumor_um, composition))
    across_um, along_um = _fibers(rng, tumor_um)
    return Tissue(composition, inside, np.clip(solid_um, -_FAR_UM, _FAR_UM), across_um, along_um)


def composition_at(tissue: Tissue, centers_um: F64, radius_um: float) -> tuple[F64, F64]:
    """Average the composition over discs.

    Parameters
    ----------
    tissue : the section
    centers_um : (n_spots, 2), x and y in µm from the section's upper left corner
    radius_um : of the discs

    Returns
    -------
    composition : (n_spots, 4), share of each of `REGIONS` in the disc's tissue, sums to 1; 0 without tissue
    coverage : (n_spots,), share of the disc that is tissue, 0 to 1
    """
    reach = int(radius_um / GRID_UM) + 1
    step_y, step_x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    near = np.hypot(step_x, step_y) * GRID_UM <= radius_um
    nearest = np.floor(centers_um / GRID_UM).astype(np.int64)
    columns = np.clip(nearest[:, :1] + step_x[near], 0, _CELLS - 1)
    rows = np.clip(nearest[:, 1:] + step_y[near], 0, _CELLS - 1)
    is_tissue = tissue.inside[rows, columns]
    total = (tissue.composition[:, rows, columns] * is_tissue).sum(axis=2, dtype=np.float64).T
    n_tissue = is_tissue.sum(axis=1)
    return total / np.maximum(n_tissue, 1)[:, None], n_tissue / near.sum()


def _field(rng: np.random.Generator, sigma_um: float) -> F32:
    return smooth_field(rng, (_CELLS, _CELLS), (sigma_um / GRID_UM, sigma_um / GRID_UM))


def _region(field: F32, inside: Bool, share: float) -> F32:
    """Cut a field so that it is positive in a given share of the tissue (µm)."""
    return signed_distance_um(field, float(np.quantile(field[inside], 1 - share)), GRID_UM)


def _soft(distance_um: F32, width_um: float) -> F32:
    """Go from 0 to 1 over a border of a given width."""
    return np.asarray(np.clip(distance_um / width_um + 0.5, 0, 1), np.float32)


def _centers_um() -> tuple[F32, F32]:
    axis = (np.arange(_CELLS, dtype=np.float32) + 0.5) * np.float32(GRID_UM)
    return axis[None, :], axis[:, None]


def _outline(rng: np.random.Generator) -> F32:
    """Distance to the edge (µm, positive inside) of a rounded square with lobes and a ragged border."""
    x, y = (axis - SIDE_UM / 2 for axis in _centers_um())
    angle = np.arctan2(y, x)
    # The 4-norm fills the square better than a circle: some 100 spots fit.
    radius = (x**4 + y**4) ** 0.25
    edge = np.full_like(radius, 1060.0)
    for order, size_um in ((1, 25.0), (2, 35.0), (3, 30.0), (5, 12.0)):
        edge += size_um * rng.uniform(0.3, 1.0) * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    edge += 14.0 * _field(rng, 40.0) + 4.0 * _field(rng, 8.0)
    return np.asarray(np.minimum(edge, SIDE_UM / 2 - 40.0) - radius, np.float32)


def _adipocyte_walls(rng: np.random.Generator) -> F32:
    """Distance into the walls between fat cells (µm, negative in their vacuoles).

    The cells are a Voronoi diagram of jittered seeds.
    """
    x, y = _centers_um()
    n_seeds = int(SIDE_UM / _ADIPOCYTE_PITCH_UM) + 4
    jitter = rng.uniform(-0.32, 0.32, (2, n_seeds, n_seeds))
    # Odd rows are shifted by half a pitch: a honeycomb before the jitter.
    shift = 0.5 * (np.arange(n_seeds) % 2)
    seeds_x, seeds_y = jitter.astype(np.float32) * _ADIPOCYTE_PITCH_UM
    seeds_x += (np.arange(n_seeds)[None, :] + shift[:, None]) * _ADIPOCYTE_PITCH_UM
    seeds_y += (np.arange(n_seeds)[:, None] + 0.5) * _ADIPOCYTE_PITCH_UM
    row = (y / _ADIPOCYTE_PITCH_UM).astype(np.int64)
    column = np.floor(x / _ADIPOCYTE_PITCH_UM + 0.5 - shift[row]).astype(np.int64)
    nearest = np.full((_CELLS, _CELLS), np.inf, np.float32)
    second, third = nearest.copy(), nearest.copy()
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            place = np.clip(row + down, 0, n_seeds - 1), np.clip(column + right, 0, n_seeds - 1)
            distance = np.hypot(seeds_x[place] - x, seeds_y[place] - y)
            third = np.minimum(third, np.maximum(second, distance))
            second = np.minimum(second, np.maximum(nearest, distance))
            nearest = np.minimum(nearest, distance)
    # Half the difference of two distances is about the distance to the border between two cells. A smooth
    # minimum over the two nearest borders rounds the vacuoles' corners.
    scale_um = 2 * _ADIPOCYTE_ROUNDING_UM
    closeness = np.exp((nearest - second) / scale_um) + np.exp((nearest - third) / scale_um)
    border_um = -_ADIPOCYTE_ROUNDING_UM * np.log(closeness)
    return np.asarray(_ADIPOCYTE_WALL_UM + 0.5 * _field(rng, 25.0) - border_um, np.float32)


def _clefts(rng: np.random.Generator, tumor_um: F32, composition: F32) -> F32:
    """Distance to the nearest lumen within a nest or cleft beside one (µm, negative in them)."""
    lumen = _field(rng, 13.0)
    lumen_um = -signed_distance_um(lumen, 1.75, GRID_UM)
    lumen_um += _FAR_UM * (1 - np.clip(1.5 * composition[0] - 0.4, 0, 1))
    # Nests shrink from the stroma around them in the processing: a gap, here and there.
    gap_um = np.abs(tumor_um + 7.0) - 2.2 * np.clip(_field(rng, 60.0), 0, 2)
    gap_um += _FAR_UM * (composition[2] + composition[3])
    return np.asarray(np.minimum(lumen_um, gap_um), np.float32)


def _fibers(rng: np.random.Generator, tumor_um: F32) -> tuple[F32, F32]:
    """Coordinates across and along the fibers (µm): a wavy frame that bends around the nests."""
    x, y = _centers_um()
    angle = rng.uniform(0, np.pi)
    across = y * np.cos(angle) - x * np.sin(angle) + 130.0 * _field(rng, 190.0) + 7.0 * _field(rng, 35.0)
    along = x * np.cos(angle) + y * np.sin(angle) + 90.0 * _field(rng, 190.0)
    across += 0.6 * tumor_um
    return across.astype(np.float32), along.astype(np.float32)
