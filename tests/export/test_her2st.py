"""The her2st reader: what it joins, by hand and against pandas, and what it refuses."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stinfer.errors import StInferError
from stinfer_export.datasets.her2st import iter_sections, list_sections, read_counts, read_section
from stinfer_export.errors import DatasetError

SHARED = Path(os.environ.get("STINFER_DATA") or Path(__file__).parents[3] / "shared")

# Pitch 40 px on both axes, so 200 µm / 40 px = 5 µm per pixel. 3x1 has no counts, 3x2 is not selected.
PLACES = """\
x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected
1\t1\t1.0\t1.0\t140.0\t90.0\t1
2\t1\t2.0\t1.0\t180.0\t90.0\t1
1\t2\t1.0\t2.0\t140.0\t130.0\t1
2\t2\t2.0\t2.0\t180.0\t130.0\t1
3\t2\t3.0\t2.0\t220.0\t130.0\t0
3\t1\t3.0\t1.0\t220.0\t90.0\t1
"""
# In another order than the places; 9x9 has no place.
COUNTS = """\
\tERBB2\tACTB\tKRT8
2x2\t22\t0\t1
1x1\t11\t5\t0
9x9\t99\t9\t9
2x1\t21\t6\t0
3x2\t32\t7\t0
1x2\t12\t8\t2
"""


@pytest.fixture
def folder(tmp_path):
    """A data set of one section of six spots."""
    root = tmp_path / "her2st"
    for name in ("ST-imgs/P/P1", "ST-cnts", "ST-spotfiles"):
        (root / name).mkdir(parents=True)
    Image.new("RGB", (300, 200), (200, 150, 180)).save(root / "ST-imgs/P/P1/HE.png")
    (root / "ST-spotfiles/P1_selection.tsv").write_text(PLACES)
    (root / "ST-cnts/P1.tsv").write_text(COUNTS)
    return root


def _counts_file(folder):
    return folder / "ST-cnts/P1.tsv"


def _places_file(folder):
    return folder / "ST-spotfiles/P1_selection.tsv"


def _move_pixels(folder, move):
    """Replace (pixel_x, pixel_y) of every spot."""
    header, *rows = PLACES.splitlines()
    lines = [header]
    for row in rows:
        x, y, new_x, new_y, pixel_x, pixel_y, selected = row.split("\t")
        moved = move(float(pixel_x), float(pixel_y))
        lines.append("\t".join([x, y, new_x, new_y, *map(str, moved), selected]))
    _places_file(folder).write_text("\n".join(lines) + "\n")


def _refusal(folder):
    with pytest.raises(DatasetError) as caught:
        read_section(folder, "P1")
    assert isinstance(caught.value, ValueError)
    assert str(folder) in caught.value.what
    assert caught.value.fix
    return caught.value.what


# What is read


def test_spots_with_a_selected_place_and_counts_are_joined(folder):
    section = read_section(folder, "P1")

    assert section.spots == ("1x1", "2x1", "1x2", "2x2")
    assert section.genes == ("ERBB2", "ACTB", "KRT8")
    assert section.counts.tolist() == [[11, 5, 0], [21, 6, 0], [12, 8, 2], [22, 0, 1]]
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
    assert section.counts[-1].tolist() == [32, 7, 0]


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
    assert section.counts.tolist() == [[11, 5, 0], [21, 6, 0], [12, 8, 2], [22, 0, 1]]


def test_whole_numbers_may_be_written_as_decimals(folder):
    _counts_file(folder).write_text(COUNTS.replace("\t22\t", "\t22.0\t").replace("\t21\t", "\t2.1e1\t"))

    section = read_section(folder, "P1")

    assert section.counts[:, 0].tolist() == [11, 21, 12, 22]
    assert section.counts.dtype == np.int64


def test_gzipped_or_not_is_the_same(folder):
    plain = read_section(folder, "P1")
    (folder / "ST-cnts/P1.tsv.gz").write_bytes(gzip.compress(COUNTS.encode()))
    _counts_file(folder).unlink()

    packed = read_section(folder, "P1")

    assert (packed.spots, packed.genes) == (plain.spots, plain.genes)
    assert packed.counts.tolist() == plain.counts.tolist()


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
    assert np.array_equal(section.counts, joined[list(counts.columns)].to_numpy())
    assert np.array_equal(section.centers_l0, joined[["pixel_x", "pixel_y"]].to_numpy())
    assert np.array_equal(section.array, joined[["new_x", "new_y"]].to_numpy())
    assert section.mpp == pytest.approx(200 / np.mean(slopes), rel=1e-9)
    assert round(section.mpp, 2) == 0.69
    assert section.n_places_only == len(selected) - 181
    assert section.n_counts_only == len(counts) - 181
    assert (section.patient, section.image_path.name) == ("C", "5714_HE_BT_E1.jpg")


# What is refused: the folder


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"nowhere: there is no such folder$") as caught:
        list_sections(tmp_path / "nowhere")
    assert "ST-imgs, ST-cnts and ST-spotfiles" in caught.value.fix


def test_a_folder_of_another_layout_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"it has no folder ST-cnts$"):
        list_sections(tmp_path)


def test_a_folder_without_tables_of_counts_is_refused(folder):
    _counts_file(folder).rename(folder / "ST-cnts/P1.csv")

    with pytest.raises(DatasetError, match=r"its folder ST-cnts holds no \.tsv or \.tsv\.gz files$"):
        list_sections(folder)


def test_a_section_without_counts_is_refused(folder):
    _counts_file(folder).unlink()

    assert _refusal(folder).endswith("section P1 has no counts (ST-cnts/P1.tsv.gz)")


def test_a_section_without_an_image_is_refused(folder):
    (folder / "ST-imgs/P/P1/HE.png").rename(folder / "ST-imgs/P/P1/HE.txt")

    assert _refusal(folder).endswith("section P1 has 0 images in ST-imgs/<patient>/P1/, expected 1")


def test_a_section_with_two_images_is_refused(folder):
    shutil.copy(folder / "ST-imgs/P/P1/HE.png", folder / "ST-imgs/P/P1/HE.JPG")

    assert _refusal(folder).endswith("section P1 has 2 images in ST-imgs/<patient>/P1/, expected 1")


def test_a_section_of_two_patients_is_refused(folder):
    shutil.copytree(folder / "ST-imgs/P/P1", folder / "ST-imgs/Q/P1")

    assert "section P1 has 2 images" in _refusal(folder)


def test_a_file_in_place_of_the_folder_of_images_is_refused(folder):
    shutil.rmtree(folder / "ST-imgs/P/P1")
    (folder / "ST-imgs/P/P1").write_bytes(b"")

    assert "section P1 has 0 images" in _refusal(folder)


# What is refused: the counts

BROKEN_COUNTS = {
    "ragged row": (("\n1x1\t11\t5\t0", "\n1x1\t11\t5"), "line 3 has 2 counts, expected 3"),
    "longer row": (("\n1x1\t11\t5\t0", "\n1x1\t11\t5\t0\t0"), "line 3 has 4 counts, expected 3"),
    "name alone": (("\n1x1\t11\t5\t0", "\n1x1"), "line 3 has 0 counts, expected 3"),
    "negative count": (("\t21\t6\t", "\t21\t-6\t"), "line 5 (spot 2x1): -6 is no count"),
    "fractional count": (("\t21\t6\t", "\t21\t0.5\t"), "line 5 (spot 2x1): 0.5 is no count"),
    "NaN": (("\t21\t6\t", "\t21\tnan\t"), "line 5 (spot 2x1): nan is no count"),
    "infinite count": (("\t21\t6\t", "\t21\tinf\t"), "line 5 (spot 2x1): inf is no count"),
    "count beyond 64 bits": (("\t21\t6\t", "\t21\t1e30\t"), "line 5 (spot 2x1): 1e30 is no count"),
    "text": (("\t21\t6\t", "\t21\tlots\t"), "line 5 (spot 2x1): could not convert string to float: 'lots'"),
    "empty count": (("\t21\t6\t", "\t21\t\t"), "line 5 (spot 2x1): could not convert string to float: ''"),
    "duplicated gene": (("\tKRT8\n", "\tERBB2\n"), "gene ERBB2 stands in it twice"),
    "duplicated spot": (("\n9x9\t", "\n2x2\t"), "spot 2x2 stands in it twice"),
    "spots across": ((COUNTS, COUNTS.replace("\t", ",")), "its first line names no genes, separated by tabs"),
    "header alone": ((COUNTS, COUNTS.splitlines()[0] + "\n"), "it holds no spots"),
    "empty file": ((COUNTS, ""), "its first line names no genes, separated by tabs"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_COUNTS)
def test_broken_counts_are_refused(folder, case):
    (old, new), message = BROKEN_COUNTS[case]
    assert old in COUNTS
    _counts_file(folder).write_text(COUNTS.replace(old, new))

    what = _refusal(folder)

    assert what == f"data set {_counts_file(folder)}: {message}"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(gzip.compress(COUNTS.encode())[:-20], id="cut short"),
        pytest.param(gzip.compress(COUNTS.encode())[:5], id="cut in the header"),
        pytest.param(gzip.compress(COUNTS.encode())[:30] + b"\xff" * 20, id="overwritten"),
        pytest.param(gzip.compress(COUNTS.encode())[:-8] + bytes(8), id="wrong checksum"),
        pytest.param(gzip.compress(b"\tA\xff\n1x1\t3\n"), id="not UTF-8"),
    ],
)
def test_a_damaged_gzip_is_refused(folder, content):
    _counts_file(folder).unlink()
    (folder / "ST-cnts/P1.tsv.gz").write_bytes(content)

    what = _refusal(folder)

    assert what.startswith(f"data set {folder / 'ST-cnts/P1.tsv.gz'}: it cannot be read (")


# What is refused: the places

BROKEN_PLACES = {
    "missing columns": (("pixel_x\tpixel_y", "px\tpy"), "it has no column pixel_x, pixel_y"),
    "empty file": ((PLACES, ""), "it has no column x, y, new_x, new_y, pixel_x, pixel_y"),
    "ragged row": (("\n2\t1\t2.0\t1.0\t", "\n2\t1\t2.0\t"), "line 3 has 6 values, expected 7"),
    "text": (("\t180.0\t90.0\t", "\tleft\t90.0\t"), "line 3: could not convert string to float: 'left'"),
    "NaN": (("\t180.0\t90.0\t", "\tnan\t90.0\t"), "line 3: spot 2x1 has no finite place"),
    "infinite": (("\t180.0\t90.0\t", "\tinf\t90.0\t"), "line 3: spot 2x1 has no finite place"),
    "duplicated spot": (("\n1\t2\t", "\n2\t1\t"), "line 4: spot 2x1 repeats"),
}


@pytest.mark.parametrize("case", BROKEN_PLACES)
def test_broken_places_are_refused(folder, case):
    (old, new), message = BROKEN_PLACES[case]
    assert old in PLACES
    _places_file(folder).write_text(PLACES.replace(old, new))

    what = _refusal(folder)

    assert what == f"data set {_places_file(folder)}: {message}"


def test_a_missing_selection_file_is_refused(folder):
    _places_file(folder).unlink()

    assert _refusal(folder).startswith(f"data set {_places_file(folder)}: it cannot be read (")


def test_a_selection_file_that_is_no_text_is_refused(folder):
    _places_file(folder).write_bytes(b"x\ty\xff\xfe\n")

    assert _refusal(folder).startswith(f"data set {_places_file(folder)}: it cannot be read (")


def test_places_of_another_section_are_refused(folder):
    header, *rows = PLACES.splitlines()
    _places_file(folder).write_text("\n".join([header, *(f"5{row}" for row in rows)]) + "\n")

    assert _refusal(folder).endswith("section P1: no spot has both a place and counts")


def test_a_selection_of_nothing_is_refused(folder):
    _places_file(folder).write_text(PLACES.replace("\t1\n", "\t0\n"))

    assert _refusal(folder).endswith("section P1: no spot has both a place and counts")


@pytest.mark.parametrize("column", ["new_x", "new_y"])
def test_spots_on_a_line_are_refused(folder, column):
    table = pd.read_csv(_places_file(folder), sep="\t")
    table[column] = 1.0
    table.to_csv(_places_file(folder), sep="\t", index=False)

    assert _refusal(folder).endswith(
        "section P1: its spots lie on one line, so its µm per pixel cannot be fitted"
    )


def test_swapped_axes_are_refused(folder):
    table = pd.read_csv(_places_file(folder), sep="\t", dtype=str)
    # Every place of the lattice, so that pixel_y does not change along new_x at all.
    table["selected"] = "1"
    table = table.rename(columns={"pixel_x": "pixel_y", "pixel_y": "pixel_x"})
    table.to_csv(_places_file(folder), sep="\t", index=False)

    assert "section P1: the spots' pitch is " in _refusal(folder)


@pytest.mark.parametrize(
    ("move", "pitches"),
    [
        pytest.param(lambda x, y: (400 - x, y), "-40.0 px in x and 40.0 px in y", id="mirrored in x"),
        pytest.param(lambda x, y: (x, 400 - y), "40.0 px in x and -40.0 px in y", id="mirrored in y"),
        pytest.param(lambda x, y: (x, y * 1.03), "40.0 px in x and 41.2 px in y", id="stretched by 3 %"),
        pytest.param(lambda x, y: (x * 1.03, y), "41.2 px in x and 40.0 px in y", id="widened by 3 %"),
    ],
)
def test_places_that_do_not_fit_the_array_are_refused(folder, move, pitches):
    _move_pixels(folder, move)

    assert _refusal(folder).endswith(f"section P1: the spots' pitch is {pitches}")


@pytest.mark.parametrize(("factor", "mpp"), [(1 / 5, 25), (200, 0.025)])
def test_an_impossible_scale_is_refused_with_a_remedy_that_exists(folder, factor, mpp):
    _move_pixels(folder, lambda x, y: (x * factor, y * factor))

    with pytest.raises(StInferError, match=f"{mpp:g} µm per pixel") as caught:
        read_section(folder, "P1")

    assert "P1" in caught.value.what
    assert str(folder) in caught.value.what
    # A data set's scale comes from its own files: no option of the export stage sets it.
    assert "--mpp" not in caught.value.fix
