"""What a saved map says of itself: the slide that it is of, and what its cells were made with."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from stinfer.bank import Bank
from stinfer.contract import MAP_FORMAT_VERSION, U8
from stinfer.integrity import hash_arrays
from stinfer.lattice import Lattice
from stinfer.tissue import TissueMask

_CASTS = {"str": str, "float": float}


@dataclass(frozen=True)
class MapRecipe:
    """What cells depend on beside the slide: a map is of use with banks of the same recipe.

    Parameters
    ----------
    backbones, models_sha256, orientations, reductions : as in the bank's settings, joined by plus signs
    um_per_px : as in the bank's settings
    stain_sha256 : of the bank's stain; ``none`` where it has none
    projection_sha256 : of the bank's projections; ``none`` where it has none
    """

    backbones: str
    models_sha256: str
    orientations: str
    reductions: str
    um_per_px: float
    stain_sha256: str
    projection_sha256: str

    @classmethod
    def of(cls, bank: Bank) -> MapRecipe:
        """Take it from a bank."""
        s, stain = bank.settings, bank.stain
        projections = [hash_arrays(p) if p is not None else "none" for p in bank.projections]
        return cls(
            backbones="+".join(s.backbones),
            models_sha256="+".join(s.models_sha256),
            orientations="+".join(map(str, s.orientations)),
            reductions="+".join(map(str, s.reductions)),
            um_per_px=s.um_per_px,
            stain_sha256="none" if stain is None else hash_arrays(stain.directions, stain.amounts),
            projection_sha256="+".join(projections),
        )

    @classmethod
    def read(cls, settings: dict[str, Any]) -> MapRecipe:
        """Take it from a map's settings."""
        return cls(**{field.name: _CASTS[str(field.type)](settings[field.name]) for field in fields(cls)})


@dataclass(frozen=True)
class MapSubject:
    """The slide that a map is of.

    Parameters
    ----------
    name, sha256 : of its file
    size_l0 : width and height, level-0 px
    mpp : µm per level-0 pixel, x and y
    mpp_source : where the scale comes from
    hires, lowres : (height, width, 3) uint8 RGB thumbnails
    tissue : where its tissue is
    """

    name: str
    sha256: str
    size_l0: tuple[int, int]
    mpp: tuple[float, float]
    mpp_source: str
    hires: U8
    lowres: U8
    tissue: TissueMask


def map_settings(lattice: Lattice, subject: MapSubject, recipe: MapRecipe) -> dict[str, str | int | float]:
    """Return all that a map says in single texts and numbers, which its hash of settings is of."""
    return {
        "format_version": MAP_FORMAT_VERSION,
        "kind": "map",
        **asdict(recipe),
        "cell_um": lattice.cell_um,
        "n_rows": lattice.n_rows,
        "n_columns": lattice.n_columns,
        "slide_name": subject.name,
        "slide_sha256": subject.sha256,
        "width_px": subject.size_l0[0],
        "height_px": subject.size_l0[1],
        "mpp_x_um": subject.mpp[0],
        "mpp_y_um": subject.mpp[1],
        "mpp_source": subject.mpp_source,
        "tissue_l0_per_px_x": subject.tissue.l0_per_px[0],
        "tissue_l0_per_px_y": subject.tissue.l0_per_px[1],
        "tissue_chroma_threshold": subject.tissue.threshold,
    }


def tissue_origin(tissue: TissueMask) -> dict[str, str | int]:
    """Say where the mask comes from; not of the settings, so that a map without it is still one."""
    given = {"file": tissue.given_name, "sha256": tissue.given_sha256} if tissue.given_sha256 else {}
    return {"n_pen_px": tissue.n_pen_px, **given}
