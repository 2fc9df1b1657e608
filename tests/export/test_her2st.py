"""The her2st reader: what it joins, by hand and against pandas."""

from __future__ import annotations

import gzip
import importlib.util
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stinfer_export.datasets.her2st import iter_sections, list_sections, read_counts, read_section
from stinfer_export.errors import DatasetError

_SPEC = importlib.util.spec_from_file_location("her2st_section", Path(__file__).parent / "her2st_section.py")
shared = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(shared)
PLACES, COUNTS, folder = shared.PLACES, shared.COUNTS, shared.folder
_counts_file, _places_file, _move_pixels = shared.counts_file, shared.places_file, shared.move_pixels

SHARED = Path(os.environ.get("STINFER_DATA") or Path(__file__).parents[3] / "shared")


# What is read


def test_spots_with_a_selected_place_and_counts_are_joined(folder):
    section = read_section(folder, "P1")

    assert section.spots == ("1x1", "2x1", "1x2", "2x2")
    assert section.genes == ("ERBB2", "ACTB", "KRT8")
    assert section.counts.to_dense().tolist() == [[11, 5, 0], [21, 6, 0], [12, 8, 2], [22, 0, 1]]
    assert section.centers_l0.tolist() == [[140, 90], [180, 90], [140, 130], [180, 130]]
    assert section.array.tolist() == [[1, 1], [2, 1], [1, 2], [2, 2]]
    assert (section.name, section.patient) == ("P1", "P")
    assert section.image_path == folder / "ST-imgs/P/P1/HE.png"
    assert section.n_places_only == 1  # 3x1
    assert section.n_counts_only == 2  # 9x9, and 3x2 that is not selected


def test_the_scale_is_the_pitch(folder):
    assert read_section(folder, "P1").mpp == pytest.approx(5.0, rel=1e-12)

    _move_pixels(folder, lambda x, y: (x, y * 1.01))  # slopes 40 and 40.4

    assert read_section(folder, "P1").mpp == pytest.approx(200 / 40.2, rel=1e-12)


def test_the_scale_does_not_depend_on_where_the_image_begins(folder):
    _move_pixels(folder, lambda x, y: (x - 500, y + 1234))

    assert read_section(folder, "P1").mpp == pytest.approx(5.0, rel=1e-12)


def test_a_file_without_the_column_selected_has_only_selected_spots(folder):
    rows = [line.rpartition("\t")[0] for line in PLACES.splitlines()]
    _places_file(folder).write_text("\n".join(rows) + "\n")

    section = read_section(folder, "P1")

    assert section.spots == ("1x1", "2x1", "1x2", "2x2", "3x2")
    assert section.counts.to_dense()[-1].tolist() == [32, 7, 0]


def test_columns_are_found_by_name(folder):
    table = pd.read_csv(_places_file(folder), sep="\t", dtype=str)
    table["note"] = "-"
    table[[*reversed(table.columns)]].to_csv(_places_file(folder), sep="\t", index=False)

    section = read_section(folder, "P1")

    assert section.centers_l0.tolist() == [[140, 90], [180, 90], [140, 130], [180, 130]]
    assert section.mpp == pytest.approx(5.0, rel=1e-12)


@pytest.mark.parametrize("newline", ["\r\n", "\n\n"])
def test_line_ends_of_windows_and_empty_lines_are_read(folder, newline):
    for path, text in ((_counts_file(folder), COUNTS), (_places_file(folder), PLACES)):
        path.write_bytes(text.replace("\n", newline).encode())

    section = read_section(folder, "P1")

    assert section.genes == ("ERBB2", "ACTB", "KRT8")
    assert section.counts.to_dense().tolist() == [[11, 5, 0], [21, 6, 0], [12, 8, 2], [22, 0, 1]]


@pytest.mark.parametrize("gzipped", [False, True])
def test_a_byte_order_mark_is_no_part_of_a_name(folder, gzipped):
    mark = b"\xef\xbb\xbf"
    counts = mark + COUNTS.replace("\tERBB2", "spot\tERBB2", 1).encode()
    _counts_file(folder).write_bytes(gzip.compress(counts) if gzipped else counts)
    _places_file(folder).write_bytes(mark + PLACES.encode())

    section = read_section(folder, "P1")

    assert section.genes == ("ERBB2", "ACTB", "KRT8")
    assert section.spots == ("1x1", "2x1", "1x2", "2x2")


def test_whole_numbers_may_be_written_as_decimals(folder):
    _counts_file(folder).write_text(COUNTS.replace("\t22\t", "\t22.0\t").replace("\t21\t", "\t2.1e1\t"))

    section = read_section(folder, "P1")

    assert section.counts.to_dense()[:, 0].tolist() == [11, 21, 12, 22]
    assert section.counts.values.dtype == np.int64


def test_gzipped_or_not_is_the_same(folder):
    plain = read_section(folder, "P1")
    (folder / "ST-cnts/P1.tsv.gz").write_bytes(gzip.compress(COUNTS.encode()))
    _counts_file(folder).unlink()

    packed = read_section(folder, "P1")

    assert (packed.spots, packed.genes) == (plain.spots, plain.genes)
    assert packed.counts.to_dense().tolist() == plain.counts.to_dense().tolist()


def test_read_counts_keeps_the_order_of_the_file(folder):
    genes, spots, counts = read_counts(_counts_file(folder))

    assert genes == ("ERBB2", "ACTB", "KRT8")
    assert spots == ("2x2", "1x1", "9x9", "2x1", "3x2", "1x2")
    assert counts[:, 0].tolist() == [22, 11, 99, 21, 32, 12]


def test_sections_are_listed_and_read_by_name(folder):
    for name in ("B2", "A1"):
        shutil.copytree(folder / "ST-imgs/P/P1", folder / "ST-imgs" / name[0] / name)
        shutil.copy(_places_file(folder), folder / f"ST-spotfiles/{name}_selection.tsv")
        (folder / f"ST-cnts/{name}.tsv.gz").write_bytes(gzip.compress(COUNTS.encode()))

    assert list_sections(folder) == ["A1", "B2", "P1"]
    assert [(s.patient, s.name) for s in iter_sections(folder)] == [("A", "A1"), ("B", "B2"), ("P", "P1")]
    assert [s.name for s in iter_sections(folder, ["P1", "A1", "P1"])] == ["P1", "A1"]
    with pytest.raises(DatasetError, match=r"no section C9, C8; it has A1, B2, P1$") as caught:
        list(iter_sections(folder, ["P1", "C9", "C8"]))
    assert caught.value.fix == "correct the list of --sections"


def test_c5_is_what_pandas_joins():
    data = SHARED / "her2st"
    if not (data / "ST-cnts/C5.tsv.gz").is_file():
        pytest.skip(f"{data}/ST-cnts/C5.tsv.gz is not there")
    places = pd.read_csv(data / "ST-spotfiles/C5_selection.tsv", sep="\t")
    counts = pd.read_csv(data / "ST-cnts/C5.tsv.gz", sep="\t", index_col=0)
    selected = places[places.selected == 1]
    selected = selected.set_index(selected.x.astype(str) + "x" + selected.y.astype(str))
    joined = selected.join(counts, how="inner")
    slopes = [
        selected[a].cov(selected[p]) / selected[a].var()
        for a, p in (("new_x", "pixel_x"), ("new_y", "pixel_y"))
    ]

    section = read_section(data, "C5")

    assert len(joined) == len(section.spots) == 181
    order = pd.Index(section.spots)
    assert not order.has_duplicates
    assert set(order) == set(joined.index)
    joined = joined.loc[order]
    assert section.genes == tuple(counts.columns)
    assert np.array_equal(section.counts.to_dense(), joined[list(counts.columns)].to_numpy())
    assert np.array_equal(section.centers_l0, joined[["pixel_x", "pixel_y"]].to_numpy())
    assert np.array_equal(section.array, joined[["new_x", "new_y"]].to_numpy())
    assert section.mpp == pytest.approx(200 / np.mean(slopes), rel=1e-9)
    assert round(section.mpp, 2) == 0.69
    assert section.n_places_only == len(selected) - 181
    assert section.n_counts_only == len(counts) - 181
    assert (section.patient, section.image_path.name) == ("C", "5714_HE_BT_E1.jpg")
