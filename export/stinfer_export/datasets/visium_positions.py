"""`tissue_positions` of Space Ranger 1 to 4: where every barcode lies, on the array and in the image.

Which form a file has is read from its content: version 1 wrote no header, and files are renamed.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stinfer.contract import F64, AnyArray, Bool
from stinfer.errors import ExtraMissingError, first_line
from stinfer_export.errors import DatasetError

COLUMNS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
# In the order in which one is taken.
_NAMES = ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv")
_PARQUET_MARK = b"PAR1"
_FIX = f"copy it again from the folder spatial of Space Ranger; its columns are {', '.join(COLUMNS)}"


@dataclass(frozen=True)
class Positions:
    """All places of an array.

    Parameters
    ----------
    path : where they were read
    barcodes : n unique texts
    in_tissue : (n,)
    array : (n, 2), column and row on the array
    centers_fullres : (n, 2), x and y in px of the image that Space Ranger was given
    """

    path: Path
    barcodes: tuple[str, ...]
    in_tissue: Bool
    array: F64
    centers_fullres: F64


def find_positions(spatial: Path) -> tuple[Path, tuple[str, ...]]:
    """Find the file of positions in the folder `spatial`.

    Returns
    -------
    path : the file to read
    others : names of further ones, which are not read

    Raises
    ------
    DatasetError
        There is none.
    """
    found = [spatial / name for name in _NAMES if (spatial / name).is_file()]
    if not found:
        cause = f"it has no {', '.join(_NAMES[:-1])} or {_NAMES[-1]}"
        raise DatasetError(
            spatial, cause, "give the complete output of Space Ranger, with its folder spatial"
        )
    return found[0], tuple(path.name for path in found[1:])


def read_positions(path: Path) -> Positions:
    """Read positions, in the order of the file.

    Raises
    ------
    DatasetError
        It is no such file, or a value is none of its column.
    ExtraMissingError
        It is a parquet file, and pyarrow is not installed.
    """
    try:
        with path.open("rb") as file:
            is_parquet = file.read(len(_PARQUET_MARK)) == _PARQUET_MARK
    except OSError as error:
        raise DatasetError(path, f"it cannot be read ({error.strerror})", _FIX) from error
    columns = _read_parquet(path) if is_parquet else _read_csv(path)
    barcodes = tuple(str(barcode) for barcode in columns["barcode"])
    if not barcodes:
        cause = "it holds no positions"
        raise DatasetError(path, cause, _FIX)
    twice = [barcode for barcode, n in Counter(barcodes).items() if n > 1]
    if twice:
        raise DatasetError(path, f"barcode {twice[0]} stands in it twice", _FIX)
    numbers = {name: _numbers(path, name, columns[name], barcodes) for name in COLUMNS[1:]}
    flags = numbers["in_tissue"]
    is_flag = (flags == 0) | (flags == 1)
    if not is_flag.all():
        first = int(np.argmin(is_flag))
        cause = (
            f"in_tissue of barcode {barcodes[first]} is {flags[first]:g}, expected 0 or 1: "
            "its columns are in another order"
        )
        raise DatasetError(path, cause, _FIX)
    return Positions(
        path=path,
        barcodes=barcodes,
        in_tissue=flags == 1,
        array=np.stack([numbers["array_col"], numbers["array_row"]], axis=1),
        # Space Ranger counts rows of pixels down, which is y, and columns to the right, which is x.
        centers_fullres=np.stack([numbers["pxl_col_in_fullres"], numbers["pxl_row_in_fullres"]], axis=1),
    )


def _read_csv(path: Path) -> dict[str, Sequence[Any]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        delimiter = "\t" if lines and "\t" in lines[0] else ","
        rows = [row for row in csv.reader(lines, delimiter=delimiter) if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(path, f"it cannot be read as text ({first_line(error)})", _FIX) from error
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    if not set(header) & set(COLUMNS) and len(header) == len(COLUMNS):
        header = list(COLUMNS)
    else:
        rows = rows[1:]
    _refuse_missing(path, header)
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            cause = f"row {number} has {len(row)} values, expected {len(header)}"
            raise DatasetError(path, cause, _FIX)
    return {name: [row[header.index(name)].strip() for row in rows] for name in COLUMNS}


def _read_parquet(path: Path) -> dict[str, Sequence[Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        purpose = "reading positions of Visium HD"
        raise ExtraMissingError(package="pyarrow", extra="parquet", purpose=purpose) from error
    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DatasetError(path, f"it is damaged ({first_line(error)})", _FIX) from error
    _refuse_missing(path, table.column_names)
    return {name: table[name].to_numpy() for name in COLUMNS}


def _refuse_missing(path: Path, header: Sequence[str]) -> None:
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        cause = f"it has no column {', '.join(missing)}"
        raise DatasetError(path, cause, _FIX)


def _numbers(path: Path, column: str, values: Sequence[Any] | AnyArray, barcodes: Sequence[str]) -> F64:
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise DatasetError(path, f"{column} holds what is no number ({first_line(error)})", _FIX) from error
    finite = np.isfinite(numbers)
    if not finite.all():
        cause = f"{column} of barcode {barcodes[int(np.argmin(finite))]} is no number"
        raise DatasetError(path, cause, _FIX)
    return numbers
