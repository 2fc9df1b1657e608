"""The folder `filtered_feature_bc_matrix`: a Matrix Market file, and its barcodes and features as text.

References
----------
R. F. Boisvert, R. Pozo, K. A. Remington, "The Matrix Market exchange formats", NISTIR 5935 (1996)
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from stinfer_export.datasets.counts import Counts
from stinfer_export.datasets.feature_matrix import GENE_EXPRESSION, FeatureMatrix
from stinfer_export.errors import DatasetError

_FIX = "copy the folder again from its source; it must hold matrix.mtx, barcodes.tsv and features.tsv"


@dataclass(frozen=True)
class _Header:
    """First lines of a Matrix Market file: features, barcodes, and how many lines follow."""

    n_features: int
    n_barcodes: int
    n_entries: int


def mtx_shape(folder: Path) -> tuple[int, int]:
    """Return the numbers of barcodes and features without reading the counts.

    Raises
    ------
    DatasetError
        As `read_tenx_mtx`, of the matrix's first lines.
    """
    path = _find(folder, "matrix.mtx")
    with _opened(path) as file:
        header = _read_header(path, file)
    return header.n_barcodes, header.n_features


def read_tenx_mtx(folder: Path) -> FeatureMatrix:
    """Read a matrix; barcodes and features in the order of their files.

    Raises
    ------
    DatasetError
        A file is missing, damaged or of another length than the matrix, or there are no raw counts.
    """
    matrix = _find(folder, "matrix.mtx")
    n_barcodes, n_features = mtx_shape(folder)
    # Before the counts, so that a size that is only claimed is found out.
    barcodes = _read_table(_find(folder, "barcodes.tsv"), n_barcodes)
    features = _read_table(_find(folder, "features.tsv", "genes.tsv"), n_features)
    with _opened(matrix) as file:
        header = _read_header(matrix, file)
        entries = np.empty((0, 3))
        if header.n_entries:
            entries = np.loadtxt(file, dtype=np.float64, max_rows=header.n_entries, ndmin=2, comments=None)
        if entries.shape != (header.n_entries, 3) or file.read(1 << 16).strip():
            cause = f"it does not hold the {header.n_entries} lines of three numbers that it says"
            raise DatasetError(matrix, cause, _FIX)
    is_place = (np.abs(entries[:, :2]) < 2.0**53) & (entries[:, :2] == np.rint(entries[:, :2]))
    if not is_place.all():
        cause = "its first two columns are not whole numbers"
        raise DatasetError(matrix, cause, _FIX)
    places = entries[:, :2].astype(np.int64)
    try:
        # Matrix Market counts from 1.
        counts = Counts.from_entries(
            places[:, 1] - 1, places[:, 0] - 1, entries[:, 2], (n_barcodes, n_features)
        )
    except ValueError as error:
        raise DatasetError(matrix, f"it {error}", _FIX) from error
    return FeatureMatrix(
        path=folder,
        barcodes=tuple(row[0] for row in barcodes),
        ids=tuple(row[0] for row in features),
        # Cell Ranger 2 listed genes alone, without a type.
        symbols=tuple(row[1] if len(row) > 1 else row[0] for row in features),
        types=tuple(row[2] if len(row) > 2 else GENE_EXPRESSION for row in features),
        counts=counts,
    )


def _find(folder: Path, *names: str) -> Path:
    for name in names:
        for path in (folder / f"{name}.gz", folder / name):
            if path.is_file():
                return path
    raise DatasetError(folder, f"it has no file {names[0]}.gz or {names[0]}", _FIX)


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """Open a text file, compressed or not: a name that ends in .gz proves nothing."""
    try:
        with path.open("rb") as raw:
            is_gzip = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            unpacked = gzip.GzipFile(fileobj=raw) if is_gzip else raw
            with io.TextIOWrapper(unpacked, encoding="utf-8") as file:
                yield file
    except (OSError, EOFError, zlib.error, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(path, f"it cannot be read ({error})", _FIX) from error


def _read_header(path: Path, file: TextIO) -> _Header:
    words = file.readline().lower().split()
    if words[:3] != ["%%matrixmarket", "matrix", "coordinate"] or len(words) != 5:
        cause = "it is no Matrix Market file of coordinates"
        raise DatasetError(path, cause, _FIX)
    line = file.readline()
    while line.startswith("%"):
        line = file.readline()
    try:
        header = _Header(*(int(word) for word in line.split()))
    except (ValueError, TypeError) as error:
        cause = f"its size is {line.strip()!r}, expected three whole numbers"
        raise DatasetError(path, cause, _FIX) from error
    # R writes a matrix without any counts as a symmetric pattern.
    if header.n_entries and (words[3] not in ("integer", "real") or words[4] != "general"):
        cause = f"its entries are {words[3]} {words[4]}, expected integer general"
        raise DatasetError(path, cause, _FIX)
    return header


def _read_table(path: Path, n_lines: int) -> list[list[str]]:
    with _opened(path) as file:
        rows = [line.rstrip("\r\n").split("\t") for line in file if line.strip()]
    if len(rows) != n_lines:
        cause = f"it has {len(rows)} lines, but the matrix beside it {n_lines}"
        raise DatasetError(path, cause, _FIX)
    return rows
