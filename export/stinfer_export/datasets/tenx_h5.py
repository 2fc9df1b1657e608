"""`filtered_feature_bc_matrix.h5` of Cell Ranger 3 and Space Ranger 1 to 4.

References
----------
https://www.10xgenomics.com/support/software/space-ranger/latest/analysis/outputs/hdf5-feature-barcode-matrix
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from stinfer import h5ad
from stinfer.bank import DAMAGE
from stinfer.contract import AnyArray
from stinfer.errors import StInferError, first_line
from stinfer_export.datasets.counts import Counts
from stinfer_export.datasets.feature_matrix import FeatureMatrix
from stinfer_export.errors import DatasetError

# Deflate makes data smaller by this much at the most: a file that declares more does not hold it.
_LARGEST_EXPANSION = 1032
_FIX = "copy the file again from its source; it must be filtered_feature_bc_matrix.h5 of Space Ranger"


def read_tenx_h5(path: Path) -> FeatureMatrix:
    """Read a matrix; barcodes and features in the order of the file.

    Raises
    ------
    DatasetError
        It is no such file, is damaged, or holds no raw counts.
    """
    try:
        with h5py.File(path, "r") as file:
            h5ad.refuse_links(file)
            if "matrix" not in file or "features" not in file["matrix"]:
                cause = "it is an HDF5 file, but holds no matrix with features"
                raise DatasetError(path, cause, _FIX)
            matrix = file["matrix"]
            limit_bytes = path.stat().st_size * _LARGEST_EXPANSION
            n_features, n_barcodes = (int(n) for n in h5ad.read_array(matrix, "shape"))
            features = matrix["features"]
            texts = {
                name: _read_texts(group, name, limit_bytes)
                for group, name in (
                    (matrix, "barcodes"),
                    (features, "id"),
                    (features, "name"),
                    (features, "feature_type"),
                )
            }
            starts = h5ad.read_array(matrix, "indptr", limit_bytes=limit_bytes).astype(np.int64)
            columns = h5ad.read_array(matrix, "indices", limit_bytes=limit_bytes).astype(np.int64)
            values = h5ad.read_array(matrix, "data", limit_bytes=limit_bytes)
        lengths = {"barcodes": n_barcodes, "id": n_features, "name": n_features, "feature_type": n_features}
        for name, expected in lengths.items():
            if len(texts[name]) != expected:
                cause = f"its {name} are {len(texts[name])}, but its matrix has {expected}"
                raise DatasetError(path, cause, _FIX)
        # Columns of the file are barcodes, and so rows of ours.
        n_stored = np.diff(starts)
        if (
            len(starts) != n_barcodes + 1
            or starts[0] != 0
            or (n_stored < 0).any()
            or starts[-1] != len(values)
        ):
            cause = "its matrix is no valid table of compressed columns"
            raise DatasetError(path, cause, _FIX)
        rows = np.repeat(np.arange(n_barcodes), n_stored)
        counts = _in_order(path, rows, columns, values, (n_barcodes, n_features))
    except StInferError:
        raise
    except DAMAGE as error:
        cause = f"it is cut short, damaged or no HDF5 file ({first_line(error)})"
        raise DatasetError(path, cause, _FIX) from error
    return FeatureMatrix(path, texts["barcodes"], texts["id"], texts["name"], texts["feature_type"], counts)


def _in_order(
    path: Path, rows: AnyArray, columns: AnyArray, values: AnyArray, shape: tuple[int, int]
) -> Counts:
    try:
        return Counts.from_entries(rows, columns, values, shape)
    except ValueError as error:
        raise DatasetError(path, f"it {error}", _FIX) from error


def _read_texts(group: h5py.Group, name: str, limit_bytes: int) -> tuple[str, ...]:
    return tuple(
        bytes(text).decode("utf-8") for text in h5ad.read_array(group, name, limit_bytes=limit_bytes)
    )
