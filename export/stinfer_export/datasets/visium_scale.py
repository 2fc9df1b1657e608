"""The scale of a Visium section: µm per pixel, fitted on its lattice of spots, whose pitch is known.

`spot_diameter_fullres` is a nominal diameter (of one output 64.8 µm, of another 70.0 µm, never the spots'
55 µm) and serves to notice that files do not belong together, no more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stinfer.contract import F64
from stinfer_export.errors import DatasetError

PITCH_UM = 100.0
SPOT_DIAMETER_UM = 55.0
# Neighbors in a row are two columns apart, and rows √3/2 of the pitch.
_HEXAGON = np.sqrt(3.0)
_NOMINAL_DIAMETER_UM = (50.0, 80.0)
# The fit is far better than this; a lattice of another kind far worse.
_TOLERANCE = 0.02
_LARGEST_RESIDUAL = 0.1
_N_ROUNDS = 30
_LARGEST_FACTOR = 1e9
_FILE = "scalefactors_json.json"
_FIX = "give the complete output of Space Ranger: positions and scale factors of one and the same section"


@dataclass(frozen=True)
class ScaleFactors:
    """What `scalefactors_json.json` says.

    Parameters
    ----------
    path : where it was read
    spot_diameter_fullres : nominal, px
    hires, lowres : px of Space Ranger's two pictures per px of the full-resolution image; None where not told
    bin_size_um : side of a bin of Visium HD; None for spots
    microns_per_pixel : what Space Ranger 3 and later say of the full-resolution image; None where not told
    """

    path: Path
    spot_diameter_fullres: float
    hires: float | None
    lowres: float | None
    bin_size_um: float | None
    microns_per_pixel: float | None

    @property
    def pitch_um(self) -> float:
        """Distance of neighboring spots or bins."""
        return PITCH_UM if self.bin_size_um is None else self.bin_size_um

    @property
    def spot_diameter_um(self) -> float:
        """Width of a spot or bin."""
        return SPOT_DIAMETER_UM if self.bin_size_um is None else self.bin_size_um


def read_scalefactors(spatial: Path) -> ScaleFactors:
    """Read the scale factors in the folder `spatial`.

    Raises
    ------
    DatasetError
        They are not there, or are no positive numbers.
    """
    path = spatial / _FILE
    if not path.is_file():
        raise DatasetError(spatial, f"it has no {_FILE}", _FIX)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(path, f"it cannot be read as JSON ({error})", _FIX) from error
    if not isinstance(values, dict):
        cause = "it is no table of names and numbers"
        raise DatasetError(path, cause, _FIX)
    return scalefactors_from(path, values)


def scalefactors_from(path: Path, values: Mapping[str, Any]) -> ScaleFactors:
    """Check scale factors, from Space Ranger's file or from AnnData.

    Raises
    ------
    DatasetError
        One is missing, or no positive number.
    """
    found: dict[str, float | None] = {}
    for name in (
        "spot_diameter_fullres",
        "tissue_hires_scalef",
        "tissue_lowres_scalef",
        "bin_size_um",
        "microns_per_pixel",
    ):
        value = values.get(name)
        if value is None:
            found[name] = None
            continue
        is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        if not is_number or not 0 < value < _LARGEST_FACTOR:
            raise DatasetError(path, f"its {name} is {value!r}, expected a number above 0", _FIX)
        found[name] = float(value)
    diameter = found["spot_diameter_fullres"]
    if diameter is None:
        cause = "it has no spot_diameter_fullres"
        raise DatasetError(path, cause, _FIX)
    return ScaleFactors(
        path,
        diameter,
        found["tissue_hires_scalef"],
        found["tissue_lowres_scalef"],
        found["bin_size_um"],
        found["microns_per_pixel"],
    )


def fit_mpp(path: Path, array: F64, centers: F64, scale: ScaleFactors) -> float:
    """Fit pixels against places on the array, and return µm per pixel of the full-resolution image.

    An image may be turned or mirrored against the array; the two vectors of the lattice are fitted as they
    lie. The fit minimises distances, not their squares, so that misplaced spots do not move it.

    Parameters
    ----------
    path : of the positions, for errors
    array : (n, 2), column and row
    centers : (n, 2), x and y, px
    scale : of the same section

    Raises
    ------
    DatasetError
        The places are no such lattice: columns are exchanged, or the files belong to different sections.
    """
    along_column, along_row, residual = _fit_lattice(path, array, centers)
    if scale.bin_size_um is None:
        pitch_px, expected, kind = 2 * float(np.hypot(*along_column)), _HEXAGON, "Visium's hexagons"
    else:
        pitch_px, expected, kind = float(np.hypot(*along_column)), 1.0, "bins"
    if not pitch_px > 0 or residual > _LARGEST_RESIDUAL * pitch_px:
        cause = (
            f"its places do not lie on a lattice (half of them {residual:.3g} px or more from it, at a pitch "
            f"of {pitch_px:.3g} px)"
        )
        raise DatasetError(path, cause, "its columns may be in another order than Space Ranger's; " + _FIX)
    ratio = float(np.hypot(*along_row) / np.hypot(*along_column))
    if abs(ratio / expected - 1) > _TOLERANCE:
        if abs(ratio * expected - 1) <= _TOLERANCE:
            cause = "array_row and array_col are exchanged: its rows lie as far apart as its columns should"
        else:
            cause = f"a row is {ratio:.3g} times as wide as a column, but {expected:.3g} times in {kind}"
        raise DatasetError(path, cause, "its columns must be in Space Ranger's order, or named; " + _FIX)
    mirrored = along_column[0] * along_row[1] < along_column[1] * along_row[0]
    if mirrored and abs(along_column[1]) > abs(along_column[0]):
        cause = "pxl_row_in_fullres and pxl_col_in_fullres are exchanged: x grows from row to row"
        raise DatasetError(path, cause, "its columns must be in Space Ranger's order, or named; " + _FIX)
    mpp = scale.pitch_um / pitch_px
    diameter_um = scale.spot_diameter_fullres * mpp
    low, high = _NOMINAL_DIAMETER_UM
    if scale.bin_size_um is not None:
        low, high = ((1 + sign * _TOLERANCE) * scale.bin_size_um for sign in (-1, 1))
    if not low <= diameter_um <= high:
        cause = (
            f"its spot_diameter_fullres of {scale.spot_diameter_fullres:.4g} px is {diameter_um:.4g} µm at "
            f"the fitted {mpp:.4g} µm per px, expected {low:.4g} to {high:.4g}"
        )
        raise DatasetError(scale.path, cause, _FIX)
    if scale.microns_per_pixel is not None and abs(scale.microns_per_pixel / mpp - 1) > _TOLERANCE:
        cause = (
            f"its microns_per_pixel is {scale.microns_per_pixel:.4g}, but the lattice of the positions "
            f"gives {mpp:.4g}"
        )
        raise DatasetError(scale.path, cause, _FIX)
    return mpp


def _fit_lattice(path: Path, array: F64, centers: F64) -> tuple[F64, F64, float]:
    """Return the vector from column to column, from row to row, and the median distance from the lattice."""
    design = np.column_stack([array - array.mean(axis=0), np.ones(len(array))])
    if np.linalg.matrix_rank(design) < 3:
        cause = "its places lie on one line of the array, so its µm per pixel cannot be fitted"
        raise DatasetError(path, cause, _FIX)
    weights = np.ones(len(array))
    for _ in range(_N_ROUNDS):
        root = np.sqrt(weights)[:, None]
        found, *_ = np.linalg.lstsq(design * root, centers * root, rcond=None)
        distance = np.hypot(*(centers - design @ found).T)
        # Weighted by 1/distance, squares of distances become distances; a hundredth of a pixel is exact.
        weights = 1 / np.maximum(distance, 0.01)
    return found[0], found[1], float(np.median(distance))
