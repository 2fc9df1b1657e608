"""A slide's feature map as a file: predict again, elsewhere or other genes, without the slide.

It is an HDF5 file that is also an AnnData object: a row of `X` per cell of tissue. The layout is
`reference_bank/FORMAT.md`; nothing in it is trusted before its hash is checked.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stinfer import h5ad
from stinfer.bank import DAMAGE, Bank
from stinfer.contract import MAP_FORMAT_VERSION, MPP_MAX_UM, MPP_MIN_UM, AnyArray, Bool
from stinfer.errors import (
    MapAlteredError,
    MapError,
    MapForeignError,
    MapFormatError,
    MapTooSmallError,
    MapVersionError,
    first_line,
)
from stinfer.feature_map import Band, Progress
from stinfer.files import is_file
from stinfer.integrity import array_header, hash_arrays, hash_json
from stinfer.lattice import Lattice, lay_lattice
from stinfer.map_header import MapRecipe, MapSubject, map_settings
from stinfer.tissue import TissueMask

# Rows of the lattice that are read at once.
_BAND_ROWS = 48
# Rows of cells that are hashed at once.
_ROWS_PER_BLOCK = 4096
_MAX_CHANNELS = 2**16
_IMAGE_LIMIT_BYTES = 64 * 2**20
_SHA256_DIGITS = 64


_RECIPE_WORDS = {
    "models_sha256": "models' SHA-256",
    "um_per_px": "µm per pixel",
    "orientations": "number of orientations",
    "reductions": "reduction",
    "stain_sha256": "stain's SHA-256",
    "projection_sha256": "projections' SHA-256",
    "backbones": "backbones",
}


def is_map(path: Path) -> bool:
    """Say whether a file is a saved map, whole or not."""
    if not is_file(path) or not h5py.is_hdf5(path):
        return False
    try:
        with h5py.File(path, "r") as file:
            return bool(h5ad.read_scalars(file["uns/stinfer"]).get("kind") == "map")
    except DAMAGE:
        return path.name.endswith(".map.h5")


def read_slide_identity(path: Path) -> tuple[str, str]:
    """Return the name and the SHA-256 of a map's slide, of a file that `is_map`; not yet checked.

    Raises
    ------
    MapFormatError
        It does not say.
    """
    try:
        with h5py.File(path, "r") as file:
            scalars = h5ad.read_scalars(file["uns/stinfer"])
            return str(scalars["slide_name"]), str(scalars["slide_sha256"])
    except DAMAGE as error:
        cause = f"it is cut short, damaged or no map ({first_line(error)})"
        raise MapFormatError(path, cause) from error


class MapFile:
    """An open map, checked.

    Parameters
    ----------
    path : the file

    Attributes
    ----------
    subject : MapSubject
        The slide.
    recipe : MapRecipe
        What its cells were made with.
    lattice : Lattice
        What they lie on.
    tissue : ndarray
        (n_rows, n_columns), part of each cell that is tissue.

    Raises
    ------
    MapFormatError, MapVersionError
        There is no map there that this program reads.
    MapAlteredError
        A part is not what was written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with h5py.File(path, "r") as file:
                h5ad.refuse_links(file)
                self._read(file)
        except MapError:
            raise
        except DAMAGE as error:
            cause = f"it is cut short, damaged or no map ({first_line(error)})"
            raise MapFormatError(path, cause) from error

    @property
    def size_l0(self) -> tuple[int, int]:
        """Width and height of the slide, level-0 px."""
        return self.subject.size_l0

    @property
    def mpp(self) -> tuple[float, float]:
        """µm per level-0 pixel of the slide, x and y."""
        return self.subject.mpp

    def refuse_foreign(self, bank: Bank) -> None:
        """Check that the cells were made as the bank's references.

        Raises
        ------
        MapForeignError
            They were not.
        """
        mine, theirs = asdict(self.recipe), asdict(MapRecipe.of(bank))
        if bank.settings.pooling != "map":
            cause = "the bank encodes patches, not maps"
            raise MapForeignError(self.path, bank.path, cause)
        for name, words in _RECIPE_WORDS.items():
            if mine[name] != theirs[name]:
                cause = f"its {words} is {_short(mine[name])}, the bank's {_short(theirs[name])}"
                raise MapForeignError(self.path, bank.path, cause)

    def refuse_other_cells(self, cell_um: float, n_channels: int) -> None:
        """Check that the cells are such as the bank's model makes, whatever the file says of its recipe.

        Raises
        ------
        MapFormatError
            They have another size or number of channels.
        """
        found = (self.lattice.cell_um, self._n_channels)
        if found != (cell_um, n_channels):
            cause = (
                f"its cells have {found[0]:g} µm and {found[1]} channels, its model makes them of "
                f"{cell_um:g} µm and {n_channels} channels"
            )
            raise MapFormatError(self.path, cause)

    def iter_bands(self, needed: Bool, progress: Progress | None) -> Generator[Band, None, None]:
        """Read the needed cells; see `stinfer.feature_map.CellSource`.

        Raises
        ------
        MapTooSmallError
            Some of them are not in the file.
        """
        held = np.zeros(needed.shape, dtype=bool)
        held[self._rows, self._columns] = True
        n_missing = int((needed & ~held).sum())
        if n_missing:
            raise MapTooSmallError(self.path, n_missing)
        tops = [top for top in range(0, len(needed), _BAND_ROWS) if needed[top : top + _BAND_ROWS].any()]
        if progress is not None:
            progress(0, len(tops), "bands")
        with h5py.File(self.path, "r") as file:
            for done, top in enumerate(tops, start=1):
                n_rows = min(_BAND_ROWS, len(needed) - top)
                first, last = np.searchsorted(self._rows, [top, top + n_rows])
                features = np.zeros((n_rows, needed.shape[1], file["X"].shape[1]), dtype=np.float32)
                features[self._rows[first:last] - top, self._columns[first:last]] = file["X"][first:last]
                yield Band(top, features)
                if progress is not None:
                    progress(done, len(tops), "bands")

    def _read(self, file: h5py.File) -> None:
        uns = file["uns/stinfer"]
        s = h5ad.read_scalars(uns)
        if s.get("kind") != "map":
            cause = "it is an HDF5 file, but no map"
            raise MapFormatError(self.path, cause)
        if s["format_version"] != MAP_FORMAT_VERSION:
            raise MapVersionError(self.path, int(s["format_version"]), MAP_FORMAT_VERSION)
        self.lattice = _read_lattice(s)
        self.recipe = MapRecipe.read(s)
        origin = h5ad.read_scalars(uns["tissue_origin"]) if "tissue_origin" in uns else {}
        mask = TissueMask(
            h5ad.read_array(uns, "tissue_mask", limit_bytes=_IMAGE_LIMIT_BYTES),
            (float(s["tissue_l0_per_px_x"]), float(s["tissue_l0_per_px_y"])),
            float(s["tissue_chroma_threshold"]),
            n_pen_px=int(origin.get("n_pen_px", 0)),
            given_name=str(origin.get("file", "")),
            given_sha256=str(origin.get("sha256", "")),
        )
        self.subject = MapSubject(
            name=str(s["slide_name"]),
            sha256=str(s["slide_sha256"]),
            size_l0=(int(s["width_px"]), int(s["height_px"])),
            mpp=(float(s["mpp_x_um"]), float(s["mpp_y_um"])),
            mpp_source=str(s["mpp_source"]),
            hires=h5ad.read_array(uns, "hires", limit_bytes=_IMAGE_LIMIT_BYTES),
            lowres=h5ad.read_array(uns, "lowres", limit_bytes=_IMAGE_LIMIT_BYTES),
            tissue=mask,
        )
        rows, columns, tissue = (
            h5ad.read_array(file["obs"], name) for name in ("array_row", "array_col", "tissue_fraction")
        )
        images = hash_arrays(self.subject.hires, self.subject.lowres, mask.mask)
        found = {
            "settings": hash_json(map_settings(self.lattice, self.subject, self.recipe)),
            "cells": _hash_rows(file["X"]),
            "places": hash_arrays(rows, columns, tissue),
            "images": images,
        }
        written = h5ad.read_scalars(uns["hashes"])
        for part, digest in found.items():
            if written.get(part) != digest:
                cause = f"SHA-256 {digest[:12]}…, written was {str(written.get(part))[:12]}…"
                raise MapAlteredError(self.path, part, cause)
        self._n_channels = int(file["X"].shape[1])
        self._check(file["X"], rows, columns, tissue)
        self._rows, self._columns = rows.astype(np.int64), columns.astype(np.int64)
        self.tissue = np.zeros((self.lattice.n_rows, self.lattice.n_columns), dtype=np.float32)
        self.tissue[self._rows, self._columns] = tissue

    def _check(self, cells: h5py.Dataset, rows: AnyArray, columns: AnyArray, tissue: AnyArray) -> None:
        """Refuse parts that do not fit together, whatever their hashes say."""
        if not rows.shape == columns.shape == tissue.shape == (len(cells),):
            raise MapFormatError(self.path, "its cells do not fit their places")
        if not (rows.dtype == columns.dtype == np.int32 and tissue.dtype == np.float32):
            raise MapFormatError(self.path, "its numbers are not of the format's types")
        subject, lattice = self.subject, self.lattice
        mask = subject.tissue.mask
        order = rows.astype(np.int64) * lattice.n_columns + columns
        checks = {
            "it has no cells": len(rows) > 0,
            "its cells lie outside the slide or are not in order": (
                0 <= rows.min(initial=0) <= rows.max(initial=0) < lattice.n_rows
                and 0 <= columns.min(initial=0) <= columns.max(initial=0) < lattice.n_columns
                and bool((np.diff(order) > 0).all())
            ),
            "its tissue is not of 0 to 1": bool(((tissue >= 0) & (tissue <= 1)).all()),
            "its images are no pictures": all(
                image.ndim == 3 and image.shape[2] == 3 and image.size > 0 and image.dtype == np.uint8
                for image in (subject.hires, subject.lowres)
            ),
            "its tissue mask is no mask of its slide": (
                mask.ndim == 2
                and mask.dtype == np.bool_
                and mask.size > 0
                and subject.tissue.l0_per_px
                == (subject.size_l0[0] / mask.shape[1], subject.size_l0[1] / mask.shape[0])
            ),
            "its tissue mask has no scale": all(0 < scale < np.inf for scale in subject.tissue.l0_per_px),
        }
        for cause, holds in checks.items():
            if not holds:
                raise MapFormatError(self.path, cause)


def _short(value: object) -> str:
    parts = str(value).split("+")
    return "+".join(f"{part[:12]}…" if len(part) == _SHA256_DIGITS else part for part in parts)


def _read_lattice(settings: dict[str, Any]) -> Lattice:
    """Read the lattice and check that it is the slide's, before anything of its size is made."""
    size_l0 = (int(settings["width_px"]), int(settings["height_px"]))
    mpp = (float(settings["mpp_x_um"]), float(settings["mpp_y_um"]))
    lattice = Lattice(float(settings["cell_um"]), int(settings["n_rows"]), int(settings["n_columns"]))
    if min(lattice.n_rows, lattice.n_columns) < 1 or not 0 < lattice.cell_um < math.inf:
        msg = f"a lattice of {lattice.n_rows} x {lattice.n_columns} cells of {lattice.cell_um} µm"
        raise ValueError(msg)
    if not all(MPP_MIN_UM <= value <= MPP_MAX_UM for value in mpp) or min(size_l0) < 1:
        msg = f"a slide of {size_l0} px and {mpp} µm per pixel"
        raise ValueError(msg)
    if lay_lattice(size_l0, mpp, lattice.cell_um) != lattice:
        msg = "its lattice is not that of its slide"
        raise ValueError(msg)
    return lattice


def _hash_rows(cells: h5py.Dataset) -> str:
    """Hash a matrix block by block; its values must be finite."""
    if cells.ndim != 2 or cells.dtype != np.float32 or not 0 < cells.shape[1] <= _MAX_CHANNELS:
        msg = f"X is {cells.dtype} {cells.shape}, expected a float32 matrix"
        raise ValueError(msg)
    h5ad.refuse_outsized(cells)
    digest = hashlib.sha256(array_header(cells.dtype, cells.shape))
    for first in range(0, len(cells), _ROWS_PER_BLOCK):
        block = cells[first : first + _ROWS_PER_BLOCK]
        if not np.isfinite(block).all():
            msg = "X holds values that are not finite"
            raise ValueError(msg)
        digest.update(np.ascontiguousarray(block, dtype="<f4").view(np.uint8).data)
    return digest.hexdigest()
