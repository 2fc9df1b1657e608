"""A measured section, whatever data set it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stinfer.contract import F64, I64


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
    counts : (n, n_genes), not negative
    n_places_only, n_counts_only : spots left out because they had only the one or the other
    """

    name: str
    patient: str
    image_path: Path
    mpp: float
    spots: tuple[str, ...]
    centers_l0: F64
    array: F64
    genes: tuple[str, ...]
    counts: I64
    n_places_only: int
    n_counts_only: int
