"""Visium sections that are AnnData already, as `scanpy.read_visium` makes them.

Files are read by anndata itself, which knows every form that its versions have written.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from stinfer.contract import F64, AnyArray, Bool
from stinfer.errors import ExtraMissingError, first_line
from stinfer_export.datasets.counts import Counts
from stinfer_export.datasets.feature_matrix import GENE_EXPRESSION, FeatureMatrix, take_genes
from stinfer_export.datasets.section import Platform, Section
from stinfer_export.datasets.visium_image import settle_image
from stinfer_export.datasets.visium_scale import ScaleFactors, fit_mpp, scalefactors_from
from stinfer_export.errors import DatasetError

NAME = "anndata"
_VISIUM_FIX = "give what scanpy.read_visium or squidpy.read.visium reads of one section"
_COUNTS_FIX = "keep the raw counts of Space Ranger in X, layers['counts'] or raw"
_N_SHOWN = 3


class AnnDataSection:
    """An AnnData file of one section, read but for its image.

    Parameters
    ----------
    path : the `.h5ad` file

    Attributes
    ----------
    scale : ScaleFactors
        Those of Space Ranger, from `uns["spatial"]`.

    Raises
    ------
    DatasetError
        It is no AnnData file, or says nothing of places or scale.
    ExtraMissingError
        anndata is not installed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        anndata = import_anndata()
        if not path.is_file():
            cause = "there is no such file"
            raise DatasetError(path, cause, "check the path")
        try:
            self._data = anndata.read_h5ad(path)
        except (
            OSError,
            KeyError,
            ValueError,
            TypeError,
            AttributeError,
        ) as error:
            cause = f"it is cut short, damaged or no AnnData file ({first_line(error)})"
            raise DatasetError(path, cause, "copy it again from its source") from error
        self.scale: ScaleFactors = _read_scale(path, self._data)

    @property
    def platform(self) -> Platform:
        """What measured it."""
        return Platform(NAME, self.scale.pitch_um, self.scale.spot_diameter_um)

    def read_section(self, image: Path) -> Section:
        """Return its spots on tissue, with raw counts.

        Parameters
        ----------
        image : the image that Space Ranger was given, or one of its two pictures

        Raises
        ------
        DatasetError
            It holds no raw counts, or no places of a Visium lattice, or the image is another section's.
        SlideError
            The image cannot be read.
        """
        path, data = self._path, self._data
        centers = _read_places(path, data)
        array = np.stack([_column(path, data, "array_col"), _column(path, data, "array_row")], axis=1)
        in_tissue: Bool = (
            _column(path, data, "in_tissue") != 0
            if "in_tissue" in data.obs
            else np.ones(len(centers), np.bool_)
        )
        mpp = fit_mpp(path, array, centers, self.scale)
        matrix, source = _read_counts(path, data)
        genes = take_genes(matrix)
        kept = np.flatnonzero(in_tissue)
        if not len(kept):
            cause = "none of its spots is on tissue"
            raise DatasetError(path, cause, _VISIUM_FIX)
        found = settle_image(image, centers[kept], mpp, self.scale)
        notices = [f"raw counts are read from {source}"]
        if len(kept) < len(centers):
            notices.append(f"{len(centers) - len(kept)} spots are not on tissue; dropped")
        return Section(
            name=path.stem,
            patient=path.stem,
            image_path=image,
            mpp=found.mpp,
            spots=tuple(matrix.barcodes[i] for i in kept),
            centers_l0=centers[kept] * found.factor,
            array=array[kept],
            genes=genes.genes,
            counts=genes.counts.take_spots(kept),
            n_places_only=0,
            n_counts_only=0,
            gene_ids=genes.ids,
            notices=(*notices, *genes.notices, *found.notices),
        )


def import_anndata() -> ModuleType:
    """Return the package anndata, loaded on first use.

    Raises
    ------
    ExtraMissingError
        It is not installed.
    """
    try:
        import anndata
    except ImportError as error:
        purpose = "reading AnnData files"
        raise ExtraMissingError(package="anndata", extra="anndata", purpose=purpose) from error
    module: ModuleType = anndata
    return module


def _read_scale(path: Path, data: Any) -> ScaleFactors:
    libraries = data.uns.get("spatial")
    if not isinstance(libraries, dict) or not libraries:
        cause = "it has no uns['spatial'] with the scale factors of its section"
        raise DatasetError(path, cause, _VISIUM_FIX)
    if len(libraries) > 1:
        cause = f"it holds {len(libraries)} sections: {', '.join(sorted(libraries)[:_N_SHOWN])}"
        raise DatasetError(path, cause, "write each to a file of its own")
    factors = next(iter(libraries.values())).get("scalefactors")
    if not isinstance(factors, dict):
        cause = "its uns['spatial'] has no scalefactors"
        raise DatasetError(path, cause, _VISIUM_FIX)
    return scalefactors_from(path, factors)


def _read_places(path: Path, data: Any) -> F64:
    if "spatial" not in data.obsm:
        cause = "it has no obsm['spatial'], so nobody knows where its spots lie"
        raise DatasetError(path, cause, _VISIUM_FIX)
    try:
        centers = np.asarray(data.obsm["spatial"], dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise DatasetError(path, f"its obsm['spatial'] holds no numbers ({error})", _VISIUM_FIX) from error
    if centers.ndim != 2 or centers.shape[1] != 2 or not np.isfinite(centers).all():
        cause = (
            f"its obsm['spatial'] is of shape {centers.shape} or not finite, expected x and y of every spot"
        )
        raise DatasetError(path, cause, _VISIUM_FIX)
    return centers


def _column(path: Path, data: Any, name: str) -> F64:
    if name not in data.obs:
        cause = f"it has no obs['{name}'], without which its µm per pixel cannot be fitted"
        raise DatasetError(path, cause, _VISIUM_FIX)
    try:
        values = np.asarray(data.obs[name], dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise DatasetError(path, f"its obs['{name}'] holds no numbers ({error})", _VISIUM_FIX) from error
    if not np.isfinite(values).all():
        cause = f"its obs['{name}'] holds values that are not finite"
        raise DatasetError(path, cause, _VISIUM_FIX)
    return values


def _read_counts(path: Path, data: Any) -> tuple[FeatureMatrix, str]:
    """Return the first table of raw counts, with all its genes, and where it stood."""
    tables = {}
    if "counts" in data.layers:
        tables["layers['counts']"] = (data.layers["counts"], data.var)
    if data.X is not None:
        tables["X"] = (data.X, data.var)
    if data.raw is not None:
        tables["raw"] = (data.raw.X, data.raw.var)
    refusals = []
    for source, (table, var) in tables.items():
        rows, columns, values = _entries(table)
        try:
            counts = Counts.from_entries(rows, columns, values, table.shape)
        except ValueError as error:
            refusals.append(f"{source} {error}")
            continue
        n = len(var)
        matrix = FeatureMatrix(
            path=path,
            barcodes=tuple(map(str, data.obs_names)),
            ids=_texts(var, "gene_ids", [""] * n),
            symbols=tuple(map(str, var.index)),
            types=_texts(var, "feature_types", [GENE_EXPRESSION] * n),
            counts=counts,
        )
        return matrix, source
    cause = f"it holds no raw counts: {'; '.join(refusals) or 'it has neither X, counts nor raw'}"
    raise DatasetError(path, cause, _COUNTS_FIX)


def _entries(table: Any) -> tuple[AnyArray, AnyArray, AnyArray]:
    """Return rows, columns and values of a matrix, dense or of any sparse kind."""
    if hasattr(table, "tocoo"):
        stored = table.tocoo()
        return stored.row.astype(np.int64), stored.col.astype(np.int64), stored.data
    dense = np.asarray(table)
    # Not a number is not 0 either, and so it is found.
    rows, columns = np.nonzero(dense)
    return rows, columns, dense[rows, columns]


def _texts(var: Any, name: str, default: list[str]) -> tuple[str, ...]:
    return tuple(map(str, var[name])) if name in var else tuple(default)
