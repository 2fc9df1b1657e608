"""What the tests of Visium share: an output of Space Ranger of 24 spots, written by hand."""

from __future__ import annotations

import gzip
import json

import h5py
import numpy as np
import pytest
from PIL import Image

# A pitch of 100 px, which is 100 µm, so 1 µm per pixel: columns are 50 px apart, rows 50 √3.
PLACES = [(row, column) for row in range(6) for column in range(row % 2, 8, 2)]
BARCODES = [f"ACGT{row}{column}-1" for row, column in PLACES]
OFF_TISSUE = ["ACGT00-1", "ACGT57-1"]
COUNTED = [barcode for barcode in reversed(BARCODES) if barcode not in OFF_TISSUE]
FULL_PX = (1200, 900)
SCALEFACTORS = {
    "spot_diameter_fullres": 65.0,
    "fiducial_diameter_fullres": 105.0,
    "tissue_hires_scalef": 2000 / 1200,
    "tissue_lowres_scalef": 0.5,
}
FEATURES = [
    ("ENSG00000000001", "KRT8", "Gene Expression"),
    ("ENSG00000000002", "ACTB", "Gene Expression"),
    ("AB01", "CD3", "Antibody Capture"),
    ("ENSG00000000003", "KRT8", "Gene Expression"),
]
HEADER = "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres"


def pixel(row, column):
    return 100 + 50 * column, 100 + 50 * np.sqrt(3) * row


def counts_of(barcode):
    """Return counts of the four features: of row r and column c, r + 1, 10 + c, 7, and c in even rows."""
    row, column = int(barcode[4]), int(barcode[5])
    return [row + 1, 10 + column, 7, column if row % 2 == 0 else 0]


def counts():
    return np.array([counts_of(barcode) for barcode in COUNTED])


def position_rows():
    rows = []
    for barcode, (row, column) in zip(BARCODES, PLACES, strict=True):
        x, y = pixel(row, column)
        on_tissue = int(barcode not in OFF_TISSUE)
        rows.append([barcode, str(on_tissue), str(row), str(column), f"{y:.9f}", f"{x:.9f}"])
    return rows


def write_positions(path, rows, header=HEADER):
    path.write_text("\n".join([*([header] if header else []), *(",".join(row) for row in rows)]) + "\n")


def write_h5(path, table, barcodes=COUNTED, features=FEATURES):
    """Write barcodes x features as Space Ranger does: the transposed table, by columns."""
    table = np.asarray(table)
    rows, columns = np.nonzero(table)
    starts = np.searchsorted(rows, np.arange(len(table) + 1))
    with h5py.File(path, "w") as file:
        matrix = file.create_group("matrix")
        matrix["shape"] = np.array([len(features), len(barcodes)], dtype=np.int32)
        matrix["barcodes"] = np.array(barcodes, dtype="S")
        matrix.create_dataset("data", data=table[rows, columns], compression="gzip")
        matrix.create_dataset("indices", data=columns, compression="gzip")
        matrix["indptr"] = starts
        group = matrix.create_group("features")
        for name, values in zip(("id", "name", "feature_type"), zip(*features, strict=True), strict=True):
            group[name] = np.array(values, dtype="S")


def write_mtx(folder, table, barcodes=COUNTED, features=FEATURES, field="integer"):
    """Write features x barcodes as Matrix Market, entries in no particular order."""
    folder.mkdir()
    table = np.asarray(table)
    entries = [
        f"{column + 1} {row + 1} {table[row, column]}"
        for column in reversed(range(len(features)))
        for row in range(len(barcodes))
        if table[row, column]
    ]
    size = f"{len(features)} {len(barcodes)} {len(entries)}"
    text = (
        "\n".join([f"%%MatrixMarket matrix coordinate {field} general", "%a remark", size, *entries]) + "\n"
    )
    (folder / "matrix.mtx.gz").write_bytes(gzip.compress(text.encode()))
    (folder / "barcodes.tsv.gz").write_bytes(gzip.compress(("\n".join(barcodes) + "\n").encode()))
    lines = "\n".join("\t".join(feature) for feature in features) + "\n"
    (folder / "features.tsv.gz").write_bytes(gzip.compress(lines.encode()))


def write_scalefactors(outs, **changes):
    (outs / "spatial/scalefactors_json.json").write_text(json.dumps(SCALEFACTORS | changes))


def write_image(path, size=FULL_PX):
    """Write a picture whose red grows to the right and whose green grows downwards."""
    x, y = (np.linspace(0, 255, n).astype(np.uint8) for n in size)
    red, green = np.meshgrid(x, y)
    Image.fromarray(np.stack([red, green, np.full_like(red, 150)], axis=2)).save(path)
    return path


@pytest.fixture
def outs(tmp_path):
    """An output with counts as HDF5, and its full-resolution image beside it as `full.png`."""
    folder = tmp_path / "S1" / "outs"
    (folder / "spatial").mkdir(parents=True)
    write_h5(folder / "filtered_feature_bc_matrix.h5", counts())
    write_positions(folder / "spatial/tissue_positions.csv", position_rows())
    write_scalefactors(folder)
    write_image(tmp_path / "full.png")
    return folder
