"""Write a slide's feature map while its cells are used."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stinfer import h5ad
from stinfer.contract import F32, Bool
from stinfer.feature_map import Band, CellSource, Progress
from stinfer.integrity import array_header, hash_arrays, hash_json
from stinfer.map_header import MapRecipe, MapSubject, map_settings, tissue_origin


class MapWriter:
    """Writes cells as they pass by.

    Parameters
    ----------
    source : of the cells
    new : the file
    held : (n_rows, n_columns), cells to write
    """

    def __init__(self, source: CellSource, new: h5ad.NewFile, held: Bool) -> None:
        self.lattice = source.lattice
        self.n_written = 0
        self.digest = hashlib.sha256()
        self._source, self._new, self._held = source, new, held
        self._cells: h5py.Dataset | None = None

    def iter_bands(self, needed: Bool, progress: Progress | None) -> Generator[Band, None, None]:
        """Give the source's bands and write their cells; see `stinfer.feature_map.CellSource`."""
        with contextlib.closing(self._source.iter_bands(needed, progress)) as bands:
            for band in bands:
                self._write(band)
                yield band

    def _write(self, band: Band) -> None:
        cells = band.features[self._held[band.first_row : band.first_row + len(band.features)]]
        if self._cells is None:
            shape = (int(self._held.sum()), cells.shape[1])
            self._cells = h5ad.create_matrix(self._new.root, "X", shape, chunks=(1024, shape[1]))
            self.digest.update(array_header(np.dtype(np.float32), shape))
            channels = [f"channel_{i}" for i in range(shape[1])]
            h5ad.write_table(self._new.root, "var", channels, {})
        self._cells[self.n_written : self.n_written + len(cells)] = cells
        self.digest.update(np.ascontiguousarray(cells, dtype="<f4").view(np.uint8).data)
        self.n_written += len(cells)
        self._new.check()


@contextlib.contextmanager
def writing_map(
    path: Path, source: CellSource, held: Bool, tissue: F32, subject: MapSubject, recipe: MapRecipe
) -> Iterator[MapWriter]:
    """Write a map while its cells are used; complete when the block ends, or not there at all.

    Parameters
    ----------
    path : where to write
    source : of the cells
    held : (n_rows, n_columns), cells to hold; all must be asked of the writer
    tissue : (n_rows, n_columns), part of each cell that is tissue
    subject : the slide
    recipe : of the bank

    Raises
    ------
    OutputWriteError
        The disk is full, or the folder cannot be written.
    """
    lattice = source.lattice
    rows, columns = np.nonzero(held)
    with h5ad.new_file(path) as new:
        writer = MapWriter(source, new, held)
        yield writer
        if writer.n_written != len(rows):
            msg = f"{writer.n_written} of {len(rows)} cells were written"
            raise RuntimeError(msg)
        obs = {
            "array_row": rows.astype(np.int32),
            "array_col": columns.astype(np.int32),
            "tissue_fraction": tissue[held],
        }
        names = [f"{column}x{row}" for row, column in zip(rows.tolist(), columns.tolist(), strict=True)]
        h5ad.write_table(new.root, "obs", names, obs)
        centers_um = (np.stack([columns, rows], axis=1) + 0.5) * lattice.cell_um
        h5ad.write_array(new.root["obsm"], "spatial", centers_um / np.asarray(subject.mpp))
        uns: dict[str, Any] = {
            **map_settings(lattice, subject, recipe),
            "hires": subject.hires,
            "lowres": subject.lowres,
            "tissue_mask": subject.tissue.mask,
            "tissue_origin": tissue_origin(subject.tissue),
        }
        hashes = {
            "settings": hash_json(map_settings(lattice, subject, recipe)),
            "cells": writer.digest.hexdigest(),
            "places": hash_arrays(*obs.values()),
            "images": hash_arrays(subject.hires, subject.lowres, subject.tissue.mask),
        }
        h5ad.write_mapping(new.root["uns"], "stinfer", {**uns, "hashes": hashes})
