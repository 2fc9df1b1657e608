"""Where on a slide to predict: at the spots of a file, or on a grid over the tissue."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stinfer.contract import F64, AnyArray
from stinfer.errors import NoTissueError, SettingError
from stinfer.geometry import extent_l0, grid_centers
from stinfer.record import plain_name
from stinfer.slide import SlideLike
from stinfer.spots import read_spots
from stinfer.tissue import TissueMask

# A grid point is predicted where at least this part of its square is tissue.
MIN_TISSUE_FRACTION = 0.5
# Their neighbors and weights take 1.2 GB of disk for so many at k = 100.
MAX_PLACES = 1_000_000


@dataclass(frozen=True)
class Places:
    """Where to predict, and how to draw it.

    Parameters
    ----------
    names : n unique texts
    centers_l0 : (n, 2), level-0 px
    mark_um : width of a spot's mark in pictures
    square : whether the marks are squares that tile the tissue
    columns : numbers to carry into `obs`, each (n,)
    record : how the places were found
    """

    names: tuple[str, ...]
    centers_l0: F64
    mark_um: float
    square: bool
    columns: dict[str, AnyArray]
    record: dict[str, Any]


def places_from_file(slide: SlideLike, path: str | Path, spot_diameter_um: float) -> Places:
    """Take the places of a spots file; see `stinfer.spots.read_spots` for forms and errors."""
    spots = read_spots(path, slide.size_l0)
    record = {
        "source": spots.kind,
        "file": plain_name(Path(path).name),
        "n_spots": len(spots.names),
        "n_left_out_by_file": spots.n_unselected,
    }
    return Places(spots.names, spots.centers_l0, spot_diameter_um, square=False, columns={}, record=record)


def places_on_grid(slide: SlideLike, tissue: TissueMask, pitch_um: float, finest_um: float) -> Places:
    """Lay a grid over the slide's tissue.

    Parameters
    ----------
    slide : the slide, or its saved map
    tissue : where its tissue is
    pitch_um : distance of the grid's points
    finest_um : the smallest pitch that shows more than a larger one

    Raises
    ------
    NoTissueError
        No point of the grid lies on tissue.
    SettingError
        The pitch is too fine.
    """
    if not 0 < pitch_um < math.inf:
        what = f"a pitch of {pitch_um:g} µm is none"
        raise SettingError(what, "give a number above 0")
    # A hair finer is what rounding makes of a cell's side.
    if pitch_um < finest_um * (1 - 1e-6):
        what = f"a pitch of {pitch_um:g} µm is finer than the {finest_um:g} µm that can be told apart"
        raise SettingError(what, f"give --pitch-um {finest_um:g} or more")
    n_places = tissue.area_mm2(slide.mpp) * 1e6 / pitch_um**2
    if n_places > MAX_PLACES:
        what = f"--pitch-um {pitch_um:g} gives about {n_places:,.0f} places, more than {MAX_PLACES:,}"
        raise SettingError(what, "give a larger pitch")
    centers = grid_centers(slide.size_l0, slide.mpp, pitch_um)
    fraction = tissue.fraction(centers, extent_l0(pitch_um, slide.mpp))
    kept = fraction >= MIN_TISSUE_FRACTION
    if not kept.any():
        area = tissue.area_mm2(slide.mpp)
        detail = (
            f"{area:.2g} mm² of coloured area, and no square of {pitch_um:g} µm is mostly covered"
            if area
            else f"nothing is more coloured than glass (threshold {tissue.threshold:.3f})"
        )
        raise NoTissueError(slide.path, detail)
    centers = centers[kept]
    # Row and column on the lattice name a place, so that it is called the same on every run.
    steps = np.floor(centers * np.asarray(slide.mpp) / pitch_um).astype(np.int64)
    record = {
        "source": "grid over tissue",
        "n_spots": len(centers),
        "pitch_um": pitch_um,
        "tissue_mm2": tissue.area_mm2(slide.mpp),
        "tissue_chroma_threshold": tissue.threshold,
        "minimum_tissue_fraction": MIN_TISSUE_FRACTION,
    }
    columns = {"array_row": steps[:, 1], "array_col": steps[:, 0], "tissue_fraction": fraction[kept]}
    return Places(
        tuple(f"{x}x{y}" for x, y in steps), centers, pitch_um, square=True, columns=columns, record=record
    )
