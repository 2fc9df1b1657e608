"""The reader of Space Ranger's outputs, on one written by hand."""

from __future__ import annotations

import gzip
import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stinfer.errors import SettingError
from stinfer_export.datasets.visium import iter_sections, read_matrix, read_platform, read_section
from stinfer_export.datasets.visium_positions import read_positions

_SPEC = importlib.util.spec_from_file_location("visium_section", Path(__file__).parent / "visium_section.py")
shared = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(shared)
outs = shared.outs


@pytest.fixture
def full(outs):
    return outs.parents[1] / "full.png"


def test_spots_on_tissue_are_joined_with_their_counts(outs, full):
    section = read_section(outs, full)

    assert (section.name, section.patient) == ("S1", "S1")
    # In the order of the matrix, which is not that of the positions.
    assert section.spots == tuple(shared.COUNTED)
    assert section.spots[0] == "ACGT55-1"
    assert section.mpp == pytest.approx(1.0, rel=1e-6)
    # Row 5, column 5: x by the column, y by the row.
    np.testing.assert_allclose(section.centers_l0[0], [350.0, 100 + 250 * np.sqrt(3)], atol=1e-6)
    assert section.array[0].tolist() == [5, 5]
    # The antibody is left out of the counts, and so of the totals.
    assert section.counts.to_dense()[0].tolist() == [6, 15, 0]
    assert section.counts.totals()[0] == 21
    assert section.genes == ("KRT8", "ACTB", "KRT8-1")
    assert section.gene_ids == ("ENSG00000000001", "ENSG00000000002", "ENSG00000000003")
    assert (section.n_places_only, section.n_counts_only) == (0, 0)
    assert section.notices == (
        "1 features of type Antibody Capture are dropped",
        "1 genes have the symbol of another and are numbered: KRT8-1",
    )


def test_spots_off_tissue_and_without_counts_are_told(outs, full):
    rows = shared.position_rows()
    rows[2][1] = "0"  # ACGT04, which has counts
    shared.write_positions(outs / "spatial/tissue_positions.csv", rows)
    kept = [barcode for barcode in shared.COUNTED if barcode != "ACGT06-1"]
    shared.write_h5(
        outs / "filtered_feature_bc_matrix.h5", [shared.counts_of(barcode) for barcode in kept], kept
    )

    section = read_section(outs, full)

    assert len(section.spots) == 20
    assert not {"ACGT04-1", "ACGT06-1"} & set(section.spots)
    assert section.n_places_only == 1
    assert "1 spots have counts but are not on tissue; dropped" in section.notices


def test_folder_and_file_of_counts_are_the_same(outs, full):
    by_file = read_section(outs, full)
    shared.write_mtx(outs / "filtered_feature_bc_matrix", shared.counts())

    said = read_section(outs, full).notices[0]
    (outs / "filtered_feature_bc_matrix.h5").unlink()
    by_folder = read_section(outs, full)

    assert said == "counts are read from filtered_feature_bc_matrix.h5, not from the folder beside it"
    assert by_folder.notices == by_file.notices
    assert (by_folder.spots, by_folder.genes, by_folder.gene_ids) == (
        by_file.spots,
        by_file.genes,
        by_file.gene_ids,
    )
    for name in ("values", "columns", "starts"):
        np.testing.assert_array_equal(getattr(by_folder.counts, name), getattr(by_file.counts, name))


def test_a_folder_of_counts_need_not_be_compressed_nor_list_types(outs):
    folder = outs / "filtered_feature_bc_matrix"
    shared.write_mtx(folder, shared.counts(), features=[(i, name, "") for i, name, _ in shared.FEATURES])
    (outs / "filtered_feature_bc_matrix.h5").unlink()
    shared.write_mtx(folder.with_name("plain"), shared.counts())
    shutil.rmtree(folder)
    plain = folder.with_name("plain")

    for path in plain.iterdir():
        text = gzip.decompress(path.read_bytes()).decode()
        if path.name.startswith("features"):
            text = "".join(f"{line.rsplit(chr(9), 1)[0]}\n" for line in text.splitlines())
            path.with_name("genes.tsv").write_text(text)
        else:
            path.with_suffix("").write_text(text)
        path.unlink()
    plain.rename(folder)

    matrix, notices = read_matrix(outs)

    assert notices == ()
    assert set(matrix.types) == {"Gene Expression"}
    assert matrix.counts.to_dense().tolist() == shared.counts().tolist()


# Positions


def _same(a, b):
    assert a.barcodes == b.barcodes
    for name in ("in_tissue", "array", "centers_fullres"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize("name", ["tissue_positions.csv", "tissue_positions_list.csv"])
@pytest.mark.parametrize("header", [shared.HEADER, None])
def test_a_header_is_seen_in_the_file_not_in_its_name(outs, tmp_path, name, header):
    path = tmp_path / name
    shared.write_positions(path, shared.position_rows(), header)

    _same(read_positions(path), read_positions(outs / "spatial/tissue_positions.csv"))


def test_columns_are_found_by_their_names(outs, tmp_path):
    order = [5, 3, 0, 4, 1, 2]
    names = shared.HEADER.split(",")
    path = tmp_path / "p.csv"
    rows = [[row[i] for i in order] for row in shared.position_rows()]
    shared.write_positions(path, rows, ",".join(names[i] for i in order))

    _same(read_positions(path), read_positions(outs / "spatial/tissue_positions.csv"))


def test_positions_in_parquet(outs, full):
    pytest.importorskip("pyarrow")
    plain = read_section(outs, full)
    path = outs / "spatial/tissue_positions.csv"
    table = pd.read_csv(path)
    table.to_parquet(outs / "spatial/tissue_positions.parquet")

    both = read_section(outs, full)
    path.unlink()

    np.testing.assert_array_equal(read_section(outs, full).centers_l0, plain.centers_l0)
    assert "positions are read from tissue_positions.parquet, not from tissue_positions.csv" in both.notices


def test_positions_in_the_middle_of_a_turned_image(outs, tmp_path):
    # Turned by a quarter: columns go down, rows to the left.
    rows = shared.position_rows()
    for row in rows:
        row[4], row[5] = row[5], str(900 - float(row[4]))
    shared.write_positions(outs / "spatial/tissue_positions.csv", rows)
    image = shared.write_image(tmp_path / "turned.png", (900, 1200))

    assert read_section(outs, image).mpp == pytest.approx(1.0, rel=1e-6)


def test_the_scale_withstands_misplaced_spots(outs, full):
    rows = shared.position_rows()
    for i in (3, 11, 17):
        rows[i][4], rows[i][5] = "150", "640"
    shared.write_positions(outs / "spatial/tissue_positions.csv", rows)

    assert read_section(outs, full).mpp == pytest.approx(1.0, rel=1e-3)


def test_the_scale_is_of_the_pitch_not_of_the_spots_diameter(outs, full):
    shared.write_scalefactors(outs, spot_diameter_fullres=78.0)

    assert read_section(outs, full).mpp == pytest.approx(1.0, rel=1e-6)


# Images


def test_the_low_resolution_picture_is_known_by_its_size(outs, tmp_path):
    section = read_section(outs, shared.write_image(tmp_path / "low.png", (600, 450)))

    assert section.mpp == pytest.approx(2.0, rel=1e-6)
    np.testing.assert_allclose(section.centers_l0[0], [175.0, 50 + 125 * np.sqrt(3)], atol=1e-6)
    assert section.notices[-1] == (
        "low.png is the low-resolution picture of 2 µm per px: patches are coarse, 154 µm are 77 px of it; "
        "give the full-resolution image where there is one"
    )


def test_the_high_resolution_picture_is_known_by_its_size(outs, tmp_path):
    # Of so small a section it is larger than the image itself.
    section = read_section(outs, shared.write_image(tmp_path / "high.png", (2000, 1500)))

    assert section.mpp == pytest.approx(0.6, rel=1e-6)
    np.testing.assert_allclose(section.centers_l0[0, 0], 350.0 / 0.6, rtol=1e-6)
    assert not any("coarse" in notice for notice in section.notices)


def test_what_the_image_says_of_its_scale_is_told_where_it_differs(outs, full):
    # 50,800 dots per inch are 0.5 µm each.
    Image.open(full).save(full.with_name("said.tif"), dpi=(50_800, 50_800))
    Image.open(full).save(full.with_name("right.tif"), dpi=(25_400, 25_400))

    said, right = (read_section(outs, full.with_name(f"{name}.tif")) for name in ("said", "right"))

    assert said.notices[-1] == "said.tif says 0.5 µm per px; the 1 of the spots' lattice are used instead"
    assert said.mpp == pytest.approx(1.0, rel=1e-6)
    assert not any("per px" in notice for notice in right.notices)


def test_without_scale_factors_of_pictures_the_image_must_hold_the_spots(outs, full):
    shared.write_scalefactors(outs, tissue_hires_scalef=None, tissue_lowres_scalef=None)

    assert read_section(outs, full).mpp == pytest.approx(1.0, rel=1e-6)


# Several outputs


def test_outputs_are_read_with_their_images(outs, full, tmp_path):
    other = tmp_path / "S2" / "outs"
    shutil.copytree(outs, other)

    sections = list(iter_sections([outs, other], [full, full]))

    assert [section.name for section in sections] == ["S1", "S2"]
    assert read_platform([outs, other]).pitch_um == 100.0


def test_every_output_needs_an_image_and_a_name_of_its_own(outs, full, tmp_path):
    with pytest.raises(SettingError, match="2 outputs of Space Ranger, but 1 images"):
        list(iter_sections([outs, outs], [full]))
    other = tmp_path / "again" / "S1"
    shutil.copytree(outs, other)
    with pytest.raises(SettingError, match="two outputs are named S1, after their folder"):
        list(iter_sections([outs, other], [full, full]))


def test_spots_and_bins_are_not_packed_together(outs, tmp_path):
    other = tmp_path / "square_008um"
    shutil.copytree(outs, other)
    shared.write_scalefactors(other, bin_size_um=8.0)

    assert read_platform([other]).spot_diameter_um == 8.0
    with pytest.raises(SettingError, match="of spots or bins 8 and 100 µm apart"):
        read_platform([outs, other])


def test_bins_of_visium_hd_lie_on_squares(outs, tmp_path):
    # Bins of 8 µm, 8 px apart, mirrored as in outputs of Space Ranger 3.
    rows = [
        [barcode, "1", str(row), str(column), f"{200 + 8 * row}", f"{600 - 8 * column}"]
        for barcode, (row, column) in zip(shared.BARCODES, shared.PLACES, strict=True)
    ]
    shared.write_positions(outs / "spatial/tissue_positions.csv", rows)
    shared.write_scalefactors(outs, bin_size_um=8.0, spot_diameter_fullres=8.0)
    image = shared.write_image(tmp_path / "hd.png")

    section = read_section(outs, image)

    assert section.mpp == pytest.approx(1.0, rel=1e-6)
    assert section.centers_l0[section.spots.index("ACGT55-1")].tolist() == [560, 240]
