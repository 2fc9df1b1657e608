"""The reader of Space Ranger's outputs: every malformed variant has a message of its own."""

from __future__ import annotations

import builtins
import gzip
import importlib.util
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from stinfer.errors import ExtraMissingError, SlideNotFoundError, StInferError
from stinfer_export.datasets.visium import read_platform, read_section
from stinfer_export.errors import DatasetError

_SPEC = importlib.util.spec_from_file_location("visium_section", Path(__file__).parent / "visium_section.py")
shared = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(shared)
outs = shared.outs
MATRIX, POSITIONS = "filtered_feature_bc_matrix.h5", "spatial/tissue_positions.csv"


def _refusal(outs, image=None, kind=DatasetError):
    with pytest.raises(StInferError) as caught:
        read_section(outs, image or outs.parents[1] / "full.png")
    assert isinstance(caught.value, kind)
    assert caught.value.fix
    for text in (caught.value.what, caught.value.fix):
        assert "\n" not in text
        assert not text.endswith(".")
    return caught.value.what


# Layout


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("spatial", "it has no folder spatial"),
        (
            "spatial/tissue_positions.csv",
            "it has no tissue_positions.parquet, tissue_positions.csv or tissue_positions_list.csv",
        ),
        ("spatial/scalefactors_json.json", "it has no scalefactors_json.json"),
        (MATRIX, f"it has neither {MATRIX} nor the folder filtered_feature_bc_matrix"),
    ],
)
def test_what_is_absent_is_named(outs, name, cause):
    (outs / name).rename(outs / "elsewhere")

    assert _refusal(outs).endswith(cause)


def test_a_folder_that_is_not_there(tmp_path):
    assert _refusal(tmp_path / "nowhere", tmp_path).endswith("nowhere: there is no such folder")


def test_the_whole_output_of_visium_hd(tmp_path):
    (tmp_path / "binned_outputs").mkdir()

    assert "holds bins of several sizes" in _refusal(tmp_path, tmp_path)


def test_bins_too_small_for_references(outs):
    shared.write_scalefactors(outs, bin_size_um=2.0)

    with pytest.raises(
        DatasetError, match=r"its bins of 2 µm hold too few counts .* at least 8 µm"
    ) as caught:
        read_platform([outs])
    assert "square_008um" in caught.value.fix


# Positions


def _positions(outs, change, header=shared.HEADER):
    rows = [change(list(row)) for row in shared.position_rows()]
    shared.write_positions(outs / POSITIONS, rows, header)


def test_a_header_without_one_column(outs):
    _positions(outs, lambda row: row[:5], shared.HEADER.rpartition(",")[0])

    assert _refusal(outs).endswith("it has no column pxl_col_in_fullres")


def test_pixel_columns_exchanged(outs):
    _positions(outs, lambda row: [*row[:4], row[5], row[4]], header=None)

    assert "pxl_row_in_fullres and pxl_col_in_fullres are exchanged" in _refusal(outs)


def test_array_columns_exchanged(outs):
    _positions(outs, lambda row: [*row[:2], row[3], row[2], *row[4:]], header=None)

    assert "array_row and array_col are exchanged" in _refusal(outs)


def test_the_column_of_tissue_elsewhere(outs):
    _positions(outs, lambda row: [row[0], *row[2:], row[1]], header=None)

    assert (
        "in_tissue of barcode ACGT20-1 is 2, expected 0 or 1: its columns are in another order"
        in _refusal(outs)
    )


def test_places_on_no_lattice(outs):
    rng = np.random.default_rng(1)
    _positions(outs, lambda row: [*row[:4], *(f"{value:.1f}" for value in rng.uniform(0, 800, 2))])

    assert "its places do not lie on a lattice" in _refusal(outs)


def test_a_lattice_of_another_kind(outs):
    _positions(outs, lambda row: [*row[:4], str(100 + 100 * int(row[2])), row[5]])

    assert "a row is 2 times as wide as a column, but 1.73 times in Visium's hexagons" in _refusal(outs)


def test_places_on_a_line(outs):
    _positions(outs, lambda row: [*row[:2], "0", *row[3:]])

    assert "its places lie on one line of the array" in _refusal(outs)


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        ("nan", "pxl_row_in_fullres of barcode ACGT00-1 is no number"),
        ("far", "pxl_row_in_fullres holds what is no number"),
    ],
)
def test_a_place_that_is_none(outs, value, cause):
    _positions(outs, lambda row: [*row[:4], value, row[5]])

    assert cause in _refusal(outs)


def test_a_row_cut_short(outs):
    path = outs / POSITIONS
    path.write_text(path.read_text()[:-20])

    assert "row 24 has 5 values, expected 6" in _refusal(outs)


def test_a_barcode_twice(outs):
    _positions(outs, lambda row: ["ACGT02-1" if row[0] == "ACGT04-1" else row[0], *row[1:]])

    assert _refusal(outs).endswith("barcode ACGT02-1 stands in it twice")


@pytest.mark.parametrize("content", [b"", b"\n\n", shared.HEADER.encode()])
def test_no_positions(outs, content):
    (outs / POSITIONS).write_bytes(content)

    assert "it has no column barcode" in _refusal(outs) or "it holds no positions" in _refusal(outs)


def test_positions_that_are_no_text(outs):
    (outs / POSITIONS).write_bytes(b"\x89PNG\xff\xfe")

    assert "it cannot be read as text" in _refusal(outs)


def test_damaged_parquet(outs):
    pytest.importorskip("pyarrow")
    (outs / "spatial/tissue_positions.parquet").write_bytes(b"PAR1 and no more PAR1")

    assert "tissue_positions.parquet: it is damaged" in _refusal(outs)


def test_parquet_without_pyarrow(outs, monkeypatch):
    def refuse(name, *args, _import=builtins.__import__, **kwargs):
        if name.partition(".")[0] == "pyarrow":
            raise ModuleNotFoundError(name="pyarrow")
        return _import(name, *args, **kwargs)

    (outs / "spatial/tissue_positions.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr(builtins, "__import__", refuse)

    assert "positions of Visium HD needs the package pyarrow" in _refusal(outs, kind=ExtraMissingError)


# Barcodes


def test_barcodes_with_another_suffix(outs):
    _positions(outs, lambda row: [row[0].removesuffix("-1"), *row[1:]])

    assert _refusal(outs).endswith(
        f"its barcodes end otherwise than those of {MATRIX}: ACGT55, there ACGT55-1"
    )


def test_positions_of_another_array(outs):
    _positions(outs, lambda row: ["TTTT" + row[0][4:], *row[1:]])

    assert "it has 0 of the 22 barcodes" in _refusal(outs)
    assert _refusal(outs).endswith("these are positions of another section")


def test_positions_of_another_section_on_an_array_of_the_same_kind(outs):
    # The same barcodes, but the tissue lay in the upper half, and the counts are of the lower.
    _positions(outs, lambda row: [row[0], str(int(int(row[2]) < 3)), *row[2:]])
    lower = [barcode for barcode in shared.COUNTED if int(barcode[4]) >= 3]
    shared.write_h5(outs / MATRIX, [shared.counts_of(barcode) for barcode in lower], lower)

    assert _refusal(outs).endswith(
        f"11 of the 11 barcodes of {MATRIX} are not on tissue by it, and 12 that are have no counts: "
        "these are positions of another section"
    )


# Counts


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda t: t - 8, "holds negative values (-8): it is scaled or centered, and raw counts are needed"),
        (lambda t: t + 0.25, "raw counts are whole numbers"),
        (
            lambda t: t / t.sum(axis=1, keepdims=True) * 1e4,
            "every spot is normalised to 10000, and raw counts are needed",
        ),
        (
            lambda t: np.log1p(t / t.sum(axis=1, keepdims=True) * 1e4),
            "it is log1p of counts per 10000, and raw counts are needed",
        ),
        (lambda t: np.where(t == 10, np.nan, t), "holds values that are not finite"),
    ],
)
@pytest.mark.parametrize("form", ["h5", "mtx"])
def test_what_is_no_raw_count(outs, change, cause, form):
    table = change(shared.counts().astype(float))
    (outs / MATRIX).unlink()
    if form == "h5":
        shared.write_h5(outs / MATRIX, table)
    else:
        shared.write_mtx(outs / "filtered_feature_bc_matrix", table, field="real")

    assert cause in _refusal(outs)


def test_file_and_folder_of_different_size(outs):
    shared.write_mtx(outs / "filtered_feature_bc_matrix", shared.counts()[:-1], shared.COUNTED[:-1])

    assert _refusal(outs).endswith(
        f"{MATRIX} holds 22 barcodes x 4 features, but the folder filtered_feature_bc_matrix 21 x 4"
    )


def test_no_genes_among_the_features(outs):
    shared.write_h5(
        outs / MATRIX,
        shared.counts(),
        features=[(i, name, "Antibody Capture") for i, name, _ in shared.FEATURES],
    )

    assert _refusal(outs).endswith("none of its 4 features is of type Gene Expression")


@pytest.mark.parametrize(
    ("content", "cause"),
    [(b"no HDF5", "it is cut short, damaged or no HDF5 file"), (None, "holds no matrix with features")],
)
def test_a_file_that_is_no_matrix(outs, content, cause):
    if content is None:
        with h5py.File(outs / MATRIX, "w") as file:
            file["other"] = 1
    else:
        (outs / MATRIX).write_bytes(content)

    assert cause in _refusal(outs)


@pytest.mark.parametrize(
    ("name", "value", "cause"),
    [
        ("barcodes", np.array(["A-1"], dtype="S"), "its barcodes are 1, but its matrix has 22"),
        ("indptr", np.zeros(23, dtype=int), "is no valid table of compressed columns"),
        ("indptr", np.array([0, 9]), "is no valid table of compressed columns"),
        ("shape", np.array([1, 22]), "its id are 4, but its matrix has 1"),
    ],
)
def test_parts_that_do_not_fit(outs, name, value, cause):
    with h5py.File(outs / MATRIX, "r+") as file:
        del file["matrix"][name]
        file["matrix"][name] = value

    assert cause in _refusal(outs)


def test_an_entry_beyond_the_features(outs):
    with h5py.File(outs / MATRIX, "r+") as file:
        file["matrix/indices"][0] = 4

    assert "it has an entry of gene 5, but only 4" in _refusal(outs)


def test_an_entry_twice(outs):
    with h5py.File(outs / MATRIX, "r+") as file:
        file["matrix/indices"][1] = file["matrix/indices"][0]

    assert "it holds spot 1, gene 1 twice" in _refusal(outs)


def test_a_matrix_that_declares_more_than_it_holds(outs):
    with h5py.File(outs / MATRIX, "r+") as file:
        del file["matrix/data"]
        file["matrix"].create_dataset("data", shape=(1 << 40,), dtype=np.int32, chunks=(1 << 20,))

    assert "declares more bytes than the file holds" in _refusal(outs)


def test_a_matrix_that_lies_in_another_file(outs):
    (outs / MATRIX).rename(outs / "other.h5")
    with h5py.File(outs / MATRIX, "w") as file:
        file["matrix"] = h5py.ExternalLink("other.h5", "matrix")

    assert "is a link to another file" in _refusal(outs)


@pytest.mark.parametrize(
    ("name", "change", "cause"),
    [
        ("matrix.mtx.gz", lambda text: text.replace("\n1 1 ", "\nnan 1 "), "are not whole numbers"),
        ("matrix.mtx.gz", lambda text: text.replace("\n1 1 ", "\n1 inf "), "are not whole numbers"),
        ("matrix.mtx.gz", lambda text: "\n".join(text.split("\n")[:-3]), "it does not hold the"),
        ("matrix.mtx.gz", lambda text: text + "1 1 1\n", "it does not hold the"),
        ("matrix.mtx.gz", lambda text: "a,b\n" + text, "it is no Matrix Market file of coordinates"),
        (
            "matrix.mtx.gz",
            lambda text: text.replace("general", "symmetric"),
            "its entries are integer symmetric, expected integer general",
        ),
        ("matrix.mtx.gz", lambda text: text.replace("4 22 ", "4 "), "its size is"),
        ("matrix.mtx.gz", lambda text: text.replace("\n1 1 ", "\n1.5 1 "), "are not whole numbers"),
        (
            "matrix.mtx.gz",
            lambda text: text.replace("\n1 1 ", "\n0 1 "),
            "it has an entry of gene 0, but only 4",
        ),
        ("matrix.mtx.gz", lambda text: text.replace("\n1 1 ", "\none 1 "), "it cannot be read"),
        ("barcodes.tsv.gz", lambda text: text[9:], "it has 21 lines, but the matrix beside it 22"),
        ("features.tsv.gz", lambda text: text + "X\tX\tX\n", "it has 5 lines, but the matrix beside it 4"),
    ],
)
def test_a_damaged_folder_of_counts(outs, name, change, cause):
    (outs / MATRIX).unlink()
    folder = outs / "filtered_feature_bc_matrix"
    shared.write_mtx(folder, shared.counts())
    before = gzip.decompress((folder / name).read_bytes()).decode()
    assert change(before) != before
    (folder / name).write_bytes(gzip.compress(change(before).encode()))

    assert cause in _refusal(outs)
    assert name in _refusal(outs)


def test_a_size_that_is_only_claimed_is_found_out(outs):
    (outs / MATRIX).unlink()
    folder = outs / "filtered_feature_bc_matrix"
    shared.write_mtx(folder, shared.counts())
    text = gzip.decompress((folder / "matrix.mtx.gz").read_bytes()).replace(b"\n4 22 ", b"\n4 999999999999 ")
    (folder / "matrix.mtx.gz").write_bytes(gzip.compress(text))

    assert _refusal(outs).endswith("barcodes.tsv.gz: it has 22 lines, but the matrix beside it 999999999999")


def test_a_folder_of_counts_cut_short_or_incomplete(outs):
    (outs / MATRIX).unlink()
    folder = outs / "filtered_feature_bc_matrix"
    shared.write_mtx(folder, shared.counts())
    (folder / "matrix.mtx.gz").write_bytes((folder / "matrix.mtx.gz").read_bytes()[:-12])
    assert "matrix.mtx.gz: it cannot be read" in _refusal(outs)
    (folder / "matrix.mtx.gz").unlink()
    assert _refusal(outs).endswith("it has no file matrix.mtx.gz or matrix.mtx")


# Scale factors


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("{", "it cannot be read as JSON"),
        ("[]", "it is no table of names and numbers"),
        ("{}", "it has no spot_diameter_fullres"),
        ('{"spot_diameter_fullres": "big"}', "its spot_diameter_fullres is 'big', expected a number above 0"),
        ('{"spot_diameter_fullres": NaN}', "its spot_diameter_fullres is nan, expected a number above 0"),
        ('{"spot_diameter_fullres": 1' + "0" * 400 + "}", "expected a number above 0"),
        ('{"spot_diameter_fullres": 0}', "its spot_diameter_fullres is 0, expected a number above 0"),
    ],
)
def test_damaged_scale_factors(outs, content, cause):
    (outs / "spatial/scalefactors_json.json").write_text(content)

    assert cause in _refusal(outs)


def test_scale_factors_of_another_section(outs):
    shared.write_scalefactors(outs, spot_diameter_fullres=130.0)

    assert _refusal(outs).endswith(
        "its spot_diameter_fullres of 130 px is 130 µm at the fitted 1 µm per px, expected 50 to 80"
    )


def test_bins_of_another_size_than_their_lattice(outs):
    rows = [
        [barcode, "1", str(row), str(column), f"{200 + 8 * row}", f"{200 + 8 * column}"]
        for barcode, (row, column) in zip(shared.BARCODES, shared.PLACES, strict=True)
    ]
    shared.write_positions(outs / POSITIONS, rows)
    shared.write_scalefactors(outs, bin_size_um=16.0, spot_diameter_fullres=16.0)

    assert "of 16 px is 32 µm at the fitted 2 µm per px, expected 15.68 to 16.32" in _refusal(outs)


def test_a_scale_that_contradicts_the_lattice(outs):
    shared.write_scalefactors(outs, microns_per_pixel=0.5)

    assert _refusal(outs).endswith("its microns_per_pixel is 0.5, but the lattice of the positions gives 1")


# The image


def test_an_image_of_another_size(outs, tmp_path):
    image = shared.write_image(tmp_path / "other.png", (1000, 750))

    assert _refusal(outs, image).endswith(
        "other.png: its longer side is 1000 px, and by the scale factors the image that Space Ranger was "
        "given has 1200 px, or 600 px of the low-resolution picture, or 2000 px of the high-resolution one"
    )


def test_an_image_too_small_for_the_spots(outs, tmp_path):
    image = shared.write_image(tmp_path / "cropped.png", (1200, 500))

    assert _refusal(outs, image).endswith(
        "it is too small for the spots: 1200 x 500 px, expected more than 450 x 533 px "
        "of a full-resolution image"
    )


def test_an_image_too_small_without_scale_factors_of_pictures(outs, tmp_path):
    shared.write_scalefactors(outs, tissue_lowres_scalef=None)
    image = shared.write_image(tmp_path / "small.png", (300, 225))

    assert "it is too small for the spots: 300 x 225 px" in _refusal(outs, image)


def test_an_image_too_coarse_to_see_a_spot(outs, tmp_path):
    rows = [[*row[:4], *(str(float(value) / 15) for value in row[4:])] for row in shared.position_rows()]
    shared.write_positions(outs / POSITIONS, rows)
    shared.write_scalefactors(outs, spot_diameter_fullres=65 / 15)
    image = shared.write_image(tmp_path / "low.png", (600, 450))

    assert _refusal(outs, image).endswith(
        "low.png: it has 30 µm per px, expected 0.05 to 27.5: of so coarse an image a spot "
        "of 55 µm is less than 2 px"
    )


def test_a_blank_image(outs, tmp_path):
    image = tmp_path / "black.png"
    Image.new("RGB", shared.FULL_PX).save(image)

    assert _refusal(outs, image).endswith("black.png: it is blank: every pixel is (0, 0, 0)")


def test_an_image_that_is_not_there(outs, tmp_path):
    assert "no.png does not exist" in _refusal(outs, tmp_path / "no.png", SlideNotFoundError)
