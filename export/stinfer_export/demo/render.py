"""Stain a section with hematoxylin and eosin and photograph it.

Colors are composed in optical density, where stains add up: ``OD = c_H v_H + c_E v_E`` and
``RGB = glass * 10 ** -OD``. Eosin is half way between two published vectors: the older one
alone gives magenta.

References
----------
A. C. Ruifrok and D. A. Johnston, Quantification of histochemical staining by color deconvolution,
Anal. Quant. Cytol. Histol. 23 (2001): the vector of hematoxylin, and one of eosin.

M. Macenko et al., A method for normalizing histology slides for quantitative analysis, ISBI (2009): the
other of eosin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from stinfer.contract import F32, F64, U8
from stinfer_export.demo.fields import smooth_field
from stinfer_export.demo.nuclei import Cells, stamp_nuclei
from stinfer_export.demo.tissue import GRID_UM, Tissue

HEMATOXYLIN = (0.65, 0.70, 0.29)
EOSIN = (0.14, 0.90, 0.33)

# Stain outside of nuclei, by region in the order of `REGIONS`.
_HEMATOXYLIN_BY_REGION = (0.150, 0.055, 0.130, 0.060)
_EOSIN_BY_REGION = (0.125, 0.190, 0.085, 0.170)
_NUCLEAR_HEMATOXYLIN = 0.95
# Collagen is the region whose eosin lies in fibers; cytoplasm is only mottled.
_FIBER_CONTRAST_BY_REGION = (0.10, 0.32, 0.12, 0.10)

_STRIP_PX = 128
_GRAIN_PX = (4 * _STRIP_PX, 1024)
_TABLE_CELLS = 1024
_TABLE_UM = (0.6, 3.0)


@dataclass(frozen=True)
class Staining:
    """How one section was stained and lit.

    Parameters
    ----------
    hematoxylin, eosin : (3,), optical density of one unit of stain in red, green and blue
    glass : (3,), gray levels of bare glass
    """

    hematoxylin: F64
    eosin: F64
    glass: F64


def draw_staining(rng: np.random.Generator) -> Staining:
    """Draw a section's staining: strengths, hues and light vary as between real sections.

    Parameters
    ----------
    rng : source of the variation
    """
    strengths = np.exp(rng.normal(0, 0.16, 2))
    vectors = []
    for stain, strength in zip((HEMATOXYLIN, EOSIN), strengths, strict=True):
        turned = np.clip(np.array(stain) + rng.normal(0, 0.03, 3), 0.02, None)
        vectors.append(strength * turned / np.linalg.norm(turned))
    # Bare glass, under a warm lamp and with a trace of stain, is faintly pink.
    glass = np.array([241.0, 235.0, 241.0]) + rng.uniform(-5, 5) + rng.uniform(-2.5, 2.5, 3)
    return Staining(vectors[0], vectors[1], glass)


def render(
    tissue: Tissue, cells: Sequence[Cells], staining: Staining, um_per_px: float, rng: np.random.Generator
) -> U8:
    """Render a section.

    Parameters
    ----------
    tissue : its layout
    cells : from `place_cells`
    staining : from `draw_staining`
    um_per_px : scale; the section's side is a whole number of pixels
    rng : source of textures and of the camera's noise

    Returns
    -------
    (size_px, size_px, 3), RGB, 0 to 255
    """
    size_px = round(tissue.inside.shape[0] * GRID_UM / um_per_px)
    nuclei = stamp_nuclei(cells, um_per_px, size_px, rng)
    maps = _coarse_maps(tissue, rng)
    fiber_table = _fiber_table(rng)
    grain = _grain(rng, um_per_px, size_px)
    image: U8 = np.empty((size_px, size_px, 3), np.uint8)
    # Strip by strip: a dozen float maps of the whole image would take a gigabyte.
    for top in range(0, size_px, _STRIP_PX):
        rows = slice(top, min(top + _STRIP_PX, size_px))
        strip = _enlarged(maps, rows, size_px)
        fiber = fiber_table[_table_index(strip.across_um, strip.along_um)]
        grain_here = grain[top % len(grain) :][: rows.stop - rows.start]
        # A void keeps a trace of stain: mucus, fluid and what lies out of focus.
        solid = np.clip(strip.solid_um / 1.6 + 0.5, 0, 1)
        matter = solid * (1 + strip.fiber_contrast * fiber + 0.16 * grain_here)
        np.maximum(matter, 0.12 * solid, out=matter)
        nucleus = nuclei[rows] * np.float32(1 / 255)
        eosin = strip.eosin * matter * (1 - 0.6 * nucleus)
        hematoxylin = strip.hematoxylin * matter + np.float32(_NUCLEAR_HEMATOXYLIN) * nucleus
        noise = rng.standard_normal(eosin.shape, np.float32)
        for channel in range(3):
            density = hematoxylin * np.float32(staining.hematoxylin[channel] * np.log(10))
            density += eosin * np.float32(staining.eosin[channel] * np.log(10))
            light = np.exp(-density)
            light *= np.float32(staining.glass[channel])
            light += noise
            image[rows, :, channel] = np.clip(light, 0, 255, out=light)
    return image


class _Maps(NamedTuple):
    """What a strip is made of, float32, a value per pixel."""

    solid_um: F32
    across_um: F32
    along_um: F32
    hematoxylin: F32
    eosin: F32
    fiber_contrast: F32


def _coarse_maps(tissue: Tissue, rng: np.random.Generator) -> list[Image.Image]:
    """Work out the stain each place takes up; the images are those of `_Maps`, a pixel per cell."""
    shape = tissue.inside.shape
    uneven = np.exp(0.22 * smooth_field(rng, (shape[0], shape[1]), (55.0 / GRID_UM,) * 2))

    def by_region(values: tuple[float, ...]) -> F32:
        return np.tensordot(np.array(values, np.float32), tissue.composition, axes=1).astype(np.float32)

    maps = _Maps(
        tissue.solid_um,
        tissue.across_um,
        tissue.along_um,
        by_region(_HEMATOXYLIN_BY_REGION) * uneven,
        by_region(_EOSIN_BY_REGION) * uneven,
        by_region(_FIBER_CONTRAST_BY_REGION),
    )
    return [Image.fromarray(one) for one in maps]


def _enlarged(maps: list[Image.Image], rows: slice, size_px: int) -> _Maps:
    """Interpolate some rows of pixels."""
    n_cells = maps[0].width
    scale = n_cells / size_px
    box = (0.0, rows.start * scale, float(n_cells), rows.stop * scale)
    size = (size_px, rows.stop - rows.start)
    return _Maps(*(np.asarray(one.resize(size, Image.Resampling.BICUBIC, box=box)) for one in maps))


def _grain(rng: np.random.Generator, um_per_px: float, size_px: int) -> F32:
    """Draw the mottle of cytoplasm: periodic, so that it repeats itself down the image without a seam.

    Returns
    -------
    (a whole number of strips, size_px), mean 0, standard deviation about 0.7
    """
    fine, coarse = (smooth_field(rng, _GRAIN_PX, (blur_um / um_per_px,) * 2) for blur_um in (0.8, 3.0))
    n_repeats = -(-size_px // _GRAIN_PX[1])
    return np.tile(0.5 * (fine + coarse), (1, n_repeats))[:, :size_px]


def _fiber_table(rng: np.random.Generator) -> F32:
    """Noise that is long along the fibers and short across them: periodic, flattened (across, along)."""
    across_um, along_um = _TABLE_UM
    table = np.zeros((_TABLE_CELLS, _TABLE_CELLS), np.float32)
    for weight, thickness_um, length_um in ((0.55, 0.9, 28.0), (0.65, 3.2, 70.0), (0.55, 9.0, 130.0)):
        sigma = (thickness_um / across_um, length_um / along_um)
        table += weight * smooth_field(rng, table.shape, sigma)
    return table.ravel()


def _table_index(across_um: F32, along_um: F32) -> npt.NDArray[np.int32]:
    """Places in the flat table; it repeats itself."""
    row = (across_um * np.float32(1 / _TABLE_UM[0])).astype(np.int32) & (_TABLE_CELLS - 1)
    column = (along_um * np.float32(1 / _TABLE_UM[1])).astype(np.int32) & (_TABLE_CELLS - 1)
    return np.asarray(row * np.int32(_TABLE_CELLS) + column)
