"""A measured section, whatever data set it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from stinfer.contract import F64
from stinfer_export.datasets.counts import Counts

# A spot of Visium, 55 µm wide, is then two pixels wide: of a coarser image not even its color can be told
# from its neighbors'.
COARSEST_MPP_UM = 27.5


class Platform(NamedTuple):
    """What measured the sections of a data set.

    Parameters
    ----------
    dataset : its name
    pitch_um, spot_diameter_um : of its spots
    """

    dataset: str
    pitch_um: float
    spot_diameter_um: float


@dataclass(frozen=True)
class Section:
    """Spots of one section that have both a place and counts.

    Parameters
    ----------
    name, patient : of the section
    image_path : its full-resolution image
    mpp : µm per pixel of that image
    spots : n names, unique in the section
    centers_l0 : (n, 2), level-0 px
    array : (n, 2), column and row on the array
    genes : n_genes unique symbols
    counts : (n, n_genes)
    n_places_only, n_counts_only : spots left out because they had only the one or the other
    gene_ids : n_genes Ensembl IDs; None where they are not known
    notices : what else the reader guessed, dropped or renamed
    """

    name: str
    patient: str
    image_path: Path
    mpp: float
    spots: tuple[str, ...]
    centers_l0: F64
    array: F64
    genes: tuple[str, ...]
    counts: Counts
    n_places_only: int
    n_counts_only: int
    gene_ids: tuple[str, ...] | None = None
    notices: tuple[str, ...] = ()
