"""The public her2st layout: HER2+ breast tumour sections on the first ST platform.

::

    ST-imgs/<patient>/<section>/<any name>.jpg
    ST-cnts/<section>.tsv or .tsv.gz             spots x genes, index "XxY"
    ST-spotfiles/<section>_selection.tsv         x y new_x new_y pixel_x pixel_y selected

References
----------
A. Andersson et al., "Spatial deconvolution of HER2-positive breast cancer delineates tumor-associated
cell type interactions", Nature Communications 12, 6012 (2021); https://github.com/almaan/her2st
"""

from __future__ import annotations

import gzip
import io
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from stinfer.contract import F64, I64, MPP_MAX_UM, MPP_MIN_UM
from stinfer_export.datasets.counts import Counts
from stinfer_export.datasets.section import Platform, Section
from stinfer_export.errors import DatasetError

NAME = "her2st"
PITCH_UM = 200.0
SPOT_DIAMETER_UM = 100.0
PLATFORM = Platform(NAME, PITCH_UM, SPOT_DIAMETER_UM)

_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
_COLUMNS = ("x", "y", "new_x", "new_y", "pixel_x", "pixel_y")
# Pitch in pixels along x and y may differ by the fit's error, not by more.
_MAX_ANISOTROPY = 0.02
_LAYOUT_FIX = (
    "give the folder that holds ST-imgs, ST-cnts and ST-spotfiles (in the her2st repository: data/), unpacked"
)


def list_sections(folder: Path) -> list[str]:
    """List the sections that have counts, in order of their names.

    Raises
    ------
    DatasetError
        The folder is not laid out as her2st.
    """
    counts = folder / "ST-cnts"
    if not counts.is_dir():
        cause = "it has no folder ST-cnts" if folder.is_dir() else "there is no such folder"
        raise DatasetError(folder, cause, _LAYOUT_FIX)
    names = {
        path.name.split(".tsv")[0]
        for path in counts.iterdir()
        if ".tsv" in path.name and not path.name.startswith(".")
    }
    if not names:
        cause = "its folder ST-cnts holds no .tsv or .tsv.gz files"
        raise DatasetError(folder, cause, _LAYOUT_FIX)
    return sorted(names)


def iter_sections(folder: Path, wanted: Sequence[str] | None = None) -> Iterator[Section]:
    """Read sections, one at a time.

    Parameters
    ----------
    folder : of the data set
    wanted : names of sections, by default all

    Raises
    ------
    DatasetError
        A section is missing, or one of its files cannot be read.
    """
    known = list_sections(folder)
    unknown = [name for name in wanted or [] if name not in known]
    if unknown:
        cause = f"it has no section {', '.join(unknown)}; it has {', '.join(known)}"
        raise DatasetError(folder, cause, "correct the list of --sections")
    for name in dict.fromkeys(wanted or known):
        yield read_section(folder, name)


def read_section(folder: Path, name: str) -> Section:
    """Read one section and join its spots with its counts.

    Raises
    ------
    DatasetError
        A file is missing or cannot be read, or places and counts have no spot in common.
    """
    patient, image_path = _find_image(folder, name)
    places = _read_places(folder / "ST-spotfiles" / f"{name}_selection.tsv")
    genes, counted, counts = read_counts(_find_counts(folder, name))
    row_of = {spot: i for i, spot in enumerate(counted)}
    shared = [spot for spot in places if spot in row_of]
    if not shared:
        cause = f"section {name}: no spot has both a place and counts"
        raise DatasetError(folder, cause, "check that its files belong together; spots are named XxY")
    table = np.asarray([places[spot] for spot in shared])
    return Section(
        name=name,
        patient=patient,
        image_path=image_path,
        mpp=_fit_mpp(folder, name, np.asarray(list(places.values()))),
        spots=tuple(shared),
        centers_l0=table[:, 2:4],
        array=table[:, 0:2],
        genes=genes,
        counts=Counts.from_dense(counts[[row_of[spot] for spot in shared]]),
        n_places_only=len(places) - len(shared),
        n_counts_only=len(counted) - len(shared),
    )


def read_counts(path: Path) -> tuple[tuple[str, ...], tuple[str, ...], I64]:
    """Read a table of counts.

    Parameters
    ----------
    path : tab-separated text, gzipped or not: a header of genes, then a spot and its counts a line

    Returns
    -------
    genes : n_genes symbols
    spots : n_spots names
    counts : (n_spots, n_genes)

    Raises
    ------
    DatasetError
        It is no such table, a name repeats or is none, or a count is negative or fractional.
    """
    fix = "copy the file again from its source; it must hold raw counts, spots x genes"
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DatasetError(path, f"it cannot be read ({error})", fix) from error
    lines = io.StringIO(text)
    genes = tuple(lines.readline().rstrip("\r\n").split("\t")[1:])
    if not genes:
        cause = "its first line names no genes, separated by tabs"
        raise DatasetError(path, cause, fix)
    spots: list[str] = []
    rows: list[I64] = []
    for number, line in enumerate(lines, start=2):
        spot, *values = line.rstrip("\r\n").split("\t")
        if not spot and not values:
            continue
        if len(values) != len(genes):
            cause = f"line {number} has {len(values)} counts, expected {len(genes)}"
            raise DatasetError(path, cause, fix)
        try:
            numbers = np.asarray(values, dtype=np.float64)
        except ValueError as error:
            raise DatasetError(path, f"line {number} (spot {spot}): {error}", fix) from error
        # Beyond 2^53 a float no longer holds whole numbers; NaN fails every comparison.
        is_count = (numbers >= 0) & (numbers <= 2.0**53) & (numbers == np.rint(numbers))
        if not is_count.all():
            wrong = values[int(np.argmin(is_count))]
            raise DatasetError(path, f"line {number} (spot {spot}): {wrong} is no count", fix)
        spots.append(spot)
        rows.append(numbers.astype(np.int64))
    for kind, names in (("gene", genes), ("spot", spots)):
        if len(set(names)) != len(names):
            twice = next(name for name in names if list(names).count(name) > 1)
            raise DatasetError(path, f"{kind} {twice} stands in it twice", fix)
        for number, name in enumerate(names, start=1):
            if not name.strip() or any(unicodedata.category(sign) == "Cc" for sign in name):
                cause = f"{kind} {number} is {name!r}: blank, or with a control character"
                raise DatasetError(path, cause, fix)
    if not spots:
        cause = "it holds no spots"
        raise DatasetError(path, cause, fix)
    return genes, tuple(spots), np.stack(rows)


def _find_counts(folder: Path, name: str) -> Path:
    for ending in (".tsv.gz", ".tsv"):
        path = folder / "ST-cnts" / f"{name}{ending}"
        if path.is_file():
            return path
    cause = f"section {name} has no counts (ST-cnts/{name}.tsv.gz)"
    raise DatasetError(folder, cause, _LAYOUT_FIX)


def _find_image(folder: Path, name: str) -> tuple[str, Path]:
    """Return the patient, who is named by the folder above the section's, and the image."""
    places = sorted(folder.glob(f"ST-imgs/*/{name}"))
    images = [
        path
        for place in places
        if place.is_dir()
        for path in sorted(place.iterdir())
        if path.suffix.lower() in _IMAGE_ENDINGS and not path.name.startswith(".")
    ]
    if len(images) != 1:
        cause = f"section {name} has {len(images)} images in ST-imgs/<patient>/{name}/, expected 1"
        raise DatasetError(folder, cause, _LAYOUT_FIX)
    return images[0].parent.parent.name, images[0]


def _read_places(path: Path) -> dict[str, tuple[float, float, float, float]]:
    """Read the selected spots: name to (new_x, new_y, pixel_x, pixel_y)."""
    fix = f"it must be tab-separated, with the columns {' '.join(_COLUMNS)}"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(path, f"it cannot be read ({error})", fix) from error
    header = lines[0].split("\t") if lines else []
    missing = [column for column in _COLUMNS if column not in header]
    if missing:
        cause = f"it has no column {', '.join(missing)}"
        raise DatasetError(path, cause, fix)
    places: dict[str, tuple[float, float, float, float]] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        values = line.split("\t")
        if len(values) != len(header):
            cause = f"line {number} has {len(values)} values, expected {len(header)}"
            raise DatasetError(path, cause, fix)
        row = dict(zip(header, values, strict=True))
        try:
            place = tuple(float(row[column]) for column in _COLUMNS[2:])
        except ValueError as error:
            raise DatasetError(path, f"line {number}: {error}", fix) from error
        name = f"{row['x']}x{row['y']}"
        if name in places or not np.isfinite(place).all():
            cause = f"line {number}: spot {name} " + ("repeats" if name in places else "has no finite place")
            raise DatasetError(path, cause, fix)
        selected = row.get("selected", "1")
        if selected not in ("0", "1"):
            cause = f"line {number}: selected is {selected!r}, expected 0 or 1"
            raise DatasetError(path, cause, fix)
        if selected == "1":
            places[name] = (place[0], place[1], place[2], place[3])
    return places


def _fit_mpp(folder: Path, name: str, places: F64) -> float:
    """Fit pixels against array coordinates; the slope is the pitch, which is 200 µm."""
    fix = "check that its selection file belongs to its image"
    slopes = []
    for axis in (0, 1):
        array, pixel = places[:, axis], places[:, axis + 2]
        if np.ptp(array) < 1:
            cause = f"section {name}: its spots lie on one line, so its µm per pixel cannot be fitted"
            raise DatasetError(folder, cause, fix)
        slopes.append(float(np.polyfit(array, pixel, 1)[0]))
    if min(slopes) <= 0 or max(slopes) > min(slopes) * (1 + _MAX_ANISOTROPY):
        cause = f"section {name}: the spots' pitch is {slopes[0]:.1f} px in x and {slopes[1]:.1f} px in y"
        raise DatasetError(folder, cause, fix)
    mpp = PITCH_UM / float(np.mean(slopes))
    if not MPP_MIN_UM <= mpp <= MPP_MAX_UM:
        cause = f"section {name}: a pitch of {np.mean(slopes):.4g} px means {mpp:g} µm per pixel"
        raise DatasetError(folder, cause, fix)
    return mpp
