"""Where to predict: a file of places, in one of the forms that users have.

Every reader gives level-0 pixels. Which form a file has is read from its content, never its name.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stinfer.contract import F64
from stinfer.errors import SpotsFormatError, SpotsOutsideError
from stinfer.geometry import outside_px

# Columns of Space Ranger's tissue positions; version 1 wrote them without the header.
_VISIUM = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
# A Visium HD section at 2 µm, the largest there is, has 11 million bins.
_LARGEST_BYTES = 2_000_000_000
_ID_COLUMNS = ("id", "name", "barcode", "spot", "spot_id")


@dataclass(frozen=True)
class Spots:
    """Places to predict at.

    Parameters
    ----------
    names : n unique texts
    centers_l0 : (n, 2), level-0 px
    kind : what they were read from, for the record
    n_unselected : rows the file itself marks as not on tissue, left out
    """

    names: tuple[str, ...]
    centers_l0: F64
    kind: str
    n_unselected: int = 0


def read_spots(path: str | Path, size_l0: tuple[int, int]) -> Spots:
    """Read a spots file and check it against the slide.

    Parameters
    ----------
    path : a her2st selection file, Space Ranger tissue positions with or without header, or a text
        table (comma, tab or semicolon) with columns `x` and `y`, and optionally `id`
    size_l0 : the slide's width and height

    Raises
    ------
    SpotsFormatError
        The file is none of these, is empty, or a value is no number.
    SpotsOutsideError
        A spot's center is not on the image.
    """
    path = Path(path)
    spots = _parse(path, _rows(path))
    if not spots.names:
        raise SpotsFormatError(path, "it holds no spots" + (" on tissue" if spots.n_unselected else ""))
    _refuse_repeated(path, spots.names)
    excess = outside_px(spots.centers_l0, size_l0)
    if (excess > 0).any():
        worst = int(np.argmax(excess))
        n_outside = int((excess > 0).sum())
        raise SpotsOutsideError(
            path, n_outside, len(spots.names), spots.names[worst], float(excess[worst]), size_l0
        )
    return spots


def _rows(path: Path) -> list[list[str]]:
    try:
        if path.exists() and not path.is_file():
            cause = "it cannot be read as text (it is no file)"
            raise SpotsFormatError(path, cause)
        if path.stat().st_size > _LARGEST_BYTES:
            cause = f"it is larger than {_LARGEST_BYTES / 1e6:.0f} MB"
            raise SpotsFormatError(path, cause)
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise SpotsFormatError(path, "the file does not exist") from error
    except SpotsFormatError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise SpotsFormatError(path, f"it cannot be read as text ({error})") from error
    if "\0" in text:
        raise SpotsFormatError(path, "it cannot be read as text (it holds NUL bytes)")
    text = text.lstrip("\r\n")
    first = text.split("\n", 1)[0]
    delimiter = max("\t,;", key=first.count)
    try:
        return [
            row
            for row in csv.reader(text.splitlines(), delimiter=delimiter)
            if any(cell.strip() for cell in row)
        ]
    except csv.Error as error:
        raise SpotsFormatError(path, f"it is no table ({error})") from error


def _parse(path: Path, rows: list[list[str]]) -> Spots:
    if not rows:
        raise SpotsFormatError(path, "it is empty")
    header = [name.strip().lower() for name in rows[0]]
    if len(header) == len(_VISIUM) and header[1] in ("0", "1"):
        return _visium(path, _columns(path, list(_VISIUM), rows))
    if len(header) != len(set(header)):
        raise SpotsFormatError(path, "a column name stands twice in its header")
    if {"pixel_x", "pixel_y"} <= set(header):
        # Before the plain table: these files have x and y too, and they are array coordinates.
        return _her2st(path, _columns(path, header, rows[1:]))
    if {"pxl_row_in_fullres", "pxl_col_in_fullres"} <= set(header):
        return _visium(path, _columns(path, header, rows[1:]))
    if {"x", "y"} <= set(header):
        return _plain(path, _columns(path, header, rows[1:]))
    shown = ", ".join(header)[:80]
    raise SpotsFormatError(path, f"its first line has none of the known columns ({shown})")


def _columns(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise SpotsFormatError(path, f"row {number} has {len(row)} values, expected {len(header)}")
    return {name: [row[i].strip() for row in rows] for i, name in enumerate(header)}


def _her2st(path: Path, columns: dict[str, list[str]]) -> Spots:
    n = len(columns["pixel_x"])
    if "x" in columns and "y" in columns:
        names = [f"{x}x{y}" for x, y in zip(columns["x"], columns["y"], strict=True)]
    else:
        names = [f"spot_{i}" for i in range(n)]
    keep = _flags(path, columns["selected"], "selected") if "selected" in columns else [True] * n
    return _spots(path, names, columns["pixel_x"], columns["pixel_y"], keep, "her2st selection file")


def _visium(path: Path, columns: dict[str, list[str]]) -> Spots:
    n = len(columns["pxl_col_in_fullres"])
    names = columns.get("barcode") or [f"spot_{i}" for i in range(n)]
    keep = _flags(path, columns["in_tissue"], "in_tissue") if "in_tissue" in columns else [True] * n
    # Space Ranger counts image rows down (y) and columns to the right (x).
    x, y = columns["pxl_col_in_fullres"], columns["pxl_row_in_fullres"]
    return _spots(path, names, x, y, keep, "Space Ranger tissue positions")


def _plain(path: Path, columns: dict[str, list[str]]) -> Spots:
    n = len(columns["x"])
    # A table that pandas wrote has its index first, without a name.
    keys = [*_ID_COLUMNS, *([""] if next(iter(columns)) == "" else [])]
    named = next((columns[key] for key in keys if key in columns), None)
    names = named or [f"spot_{i}" for i in range(n)]
    return _spots(path, names, columns["x"], columns["y"], [True] * n, "table of x and y")


def _spots(
    path: Path, names: Sequence[str], x: Sequence[str], y: Sequence[str], keep: Sequence[bool], kind: str
) -> Spots:
    centers = np.stack([_numbers(path, x, names), _numbers(path, y, names)], axis=1)
    chosen = [i for i, kept in enumerate(keep) if kept]
    return Spots(tuple(names[i] for i in chosen), centers[chosen], kind, len(names) - len(chosen))


def _numbers(path: Path, texts: Sequence[str], names: Sequence[str]) -> F64:
    values = np.empty(len(texts), dtype=np.float64)
    for i, text in enumerate(texts):
        try:
            # Python reads 1_0 as ten; a table that says so is broken.
            values[i] = float(text.replace("_", "?"))
        except ValueError as error:
            raise SpotsFormatError(path, f"spot {names[i]}: {text!r} is no number") from error
        if not np.isfinite(values[i]):
            raise SpotsFormatError(path, f"spot {names[i]}: {text!r} is no coordinate")
    return values


def _flags(path: Path, texts: Sequence[str], column: str) -> list[bool]:
    for number, text in enumerate(texts, start=1):
        if text not in ("0", "1"):
            raise SpotsFormatError(path, f"row {number}: {column} is {text!r}, expected 0 or 1")
    return [text == "1" for text in texts]


def _refuse_repeated(path: Path, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise SpotsFormatError(path, f"spot {name} stands in it twice")
        seen.add(name)
