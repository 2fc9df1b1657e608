from __future__ import annotations

import csv

import pytest

from stinfer.errors import SpotsFormatError, SpotsOutsideError
from stinfer.spots import read_spots

SIZE = (100, 50)
BIG = (1_000_000, 1_000_000)


@pytest.fixture
def write(tmp_path):
    def write_file(content: str | bytes):
        path = tmp_path / "spots.any"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


@pytest.mark.parametrize(
    "content",
    [
        "x,y\n1.5,2\n99,49.25\n",
        "x\ty\n1.5\t2\n99\t49.25\n",
        "x;y\n1.5;2\n99;49.25\n",
        "Y , X\n2, 1.5\n49.25, 99\n",  # other order, capitals and blanks
        "x,y\r\n1.5,2\r\n99,49.25\r\n",
        "x,y\n1.5,2\n99,49.25",  # no line break at the end
        "x,y\n\n1.5,2\n\n99,49.25\n\n",
        "\ufeffx,y\n1.5,2\n99,49.25\n",
        '"x","y"\n"1.5","2"\n"99","49.25"\n',
        "x,y,note\n1.5,2,a\n99,49.25,\n",
    ],
)
def test_plain_tables(write, content):
    spots = read_spots(write(content), SIZE)
    assert spots.names == ("spot_0", "spot_1")
    assert spots.centers_l0.tolist() == [[1.5, 2.0], [99.0, 49.25]]
    assert (spots.kind, spots.n_unselected) == ("table of x and y", 0)


def test_empty_lines_before_the_header_are_passed_over(write):
    assert read_spots(write("\nx,y\n1,2\n"), SIZE).centers_l0.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("column", ["id", "name", "barcode", "spot", "spot_id", "ID"])
def test_ids_of_a_plain_table(write, column):
    spots = read_spots(write(f"x,{column},y\n1,left,2\n3, right ,4\n"), SIZE)
    assert spots.names == ("left", "right")


HER2ST = "x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected\n"


def test_her2st_selection_takes_pixels_although_x_and_y_are_there_too(write):
    content = (
        HER2ST + "19\t6\t18.9\t6.0\t52.4\t14.69\t1\n7\t8\t7.1\t8.2\t10\t20\t0\n20\t6\t20.1\t6.1\t54\t15\t1\n"
    )
    spots = read_spots(write(content), SIZE)
    assert spots.names == ("19x6", "20x6")
    assert spots.centers_l0.tolist() == [[52.4, 14.69], [54.0, 15.0]]
    assert (spots.kind, spots.n_unselected) == ("her2st selection file", 1)


def test_pixels_alone_with_neither_names_nor_selection(write):
    spots = read_spots(write("pixel_x,pixel_y\n5,6\n7,8\n"), SIZE)
    assert spots.names == ("spot_0", "spot_1")
    assert spots.centers_l0.tolist() == [[5.0, 6.0], [7.0, 8.0]]


def test_an_unselected_spot_may_lie_outside(write):
    content = HER2ST + "1\t1\t1\t1\t5\t5\t1\n2\t2\t2\t2\t500\t5\t0\n"
    assert read_spots(write(content), SIZE).names == ("1x1",)


VISIUM = "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres\n"
# Rows run down the image (y), columns to the right (x).
VISIUM_ROWS = "AAAC-1,0,1,3,30,99\nAAAG-1,1,2,4,49,60\nAAAT-1,1,2,6,48.5,70.25\n"


@pytest.mark.parametrize("header", [VISIUM, ""], ids=["header", "no header"])
def test_visium_positions(write, header):
    spots = read_spots(write(header + VISIUM_ROWS), SIZE)
    assert spots.names == ("AAAG-1", "AAAT-1")
    assert spots.centers_l0.tolist() == [[60.0, 49.0], [70.25, 48.5]]
    assert (spots.kind, spots.n_unselected) == ("Space Ranger tissue positions", 1)


def test_visium_without_header_whose_first_row_repeats_a_number(write):
    # The first row of most Space Ranger 1 files: in_tissue, array_row and array_col are all 0.
    spots = read_spots(write("AAAA-1,0,0,0,2,3\n" + VISIUM_ROWS), SIZE)
    assert spots.names == ("AAAG-1", "AAAT-1")
    assert spots.n_unselected == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is empty"),
        ("\n\n", "it is empty"),
        ("x,y\n", "it holds no spots$"),
        (VISIUM + "AAAC-1,0,1,3,30,99\n", "it holds no spots on tissue"),
        ("a,b\n1,2\n", r"its first line has none of the known columns \(a, b\)"),
        ("1,2\n3,4\n", "its first line has none of the known columns"),
        ("x,y,x\n1,2,3\n", "a column name stands twice"),
        ("x,y\n1\n", "row 1 has 1 values, expected 2"),
        ("x,y\n1,2\n1,2,3\n", "row 2 has 3 values, expected 2"),
        ("x,y\n1,2\n3,four\n", "spot spot_1: 'four' is no number"),
        ("x,y\n1,\n", "spot spot_0: '' is no number"),
        ("x;y\n1,5;2\n", "spot spot_0: '1,5' is no number"),
        ("id,x,y\na,1,2\nb,NaN,2\n", "spot b: 'NaN' is no coordinate"),
        ("x,y\n1,-inf\n", "spot spot_0: '-inf' is no coordinate"),
        ("id,x,y\na,1,2\nb,3,4\na,5,6\n", "spot a stands in it twice"),
        (HER2ST + "1\t1\t1\t1\t5\t5\tyes\n", "row 1: selected is 'yes', expected 0 or 1"),
        (VISIUM + "A-1,2,1,3,30,99\n", "row 1: in_tissue is '2', expected 0 or 1"),
        ("id,x,y\na\0b,1,2\n", "spots file"),  # a NUL cannot be written to HDF5
        (b"id,x,y\nGr\xf6\xdfe,1,2\n", "it cannot be read as text"),
        ("x,y\n1,2\n".encode("utf-16"), "it cannot be read as text"),
        (b"PAR1\x15\x00\x80\xff\xfe", "it cannot be read as text"),
        (b"\x00\x01\x02\x03\n\x04", "spots file"),
    ],
)
def test_what_is_no_spots_file_is_refused_with_its_path(write, content, message):
    path = write(content)
    with pytest.raises(SpotsFormatError, match=message) as caught:
        read_spots(path, SIZE)
    assert str(path) in caught.value.what


def test_a_field_larger_than_csv_allows_is_refused(write):
    with pytest.raises(SpotsFormatError, match="it is no table"):
        read_spots(write('x,y\n"' + "1" * 200_000 + '",2\n'), SIZE)


def test_a_long_first_line_does_not_fill_the_terminal(write):
    path = write("z" * 100_000)
    with pytest.raises(SpotsFormatError) as caught:
        read_spots(path, SIZE)
    assert len(caught.value.what) < 1000


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(SpotsFormatError, match="the file does not exist"):
        read_spots(tmp_path / "none.csv", SIZE)
    with pytest.raises(SpotsFormatError, match="it cannot be read as text"):
        read_spots(tmp_path, SIZE)


def test_spots_on_the_edge_are_accepted(write):
    assert read_spots(write("x,y\n0,0\n100,50\n"), SIZE).centers_l0.tolist() == [[0.0, 0.0], [100.0, 50.0]]


def test_spots_outside_are_counted_and_the_worst_is_named(write):
    path = write("id,x,y\nin,5,5\nleft,-2.5,5\nbelow,10,57.25\nright,101,5\n")
    with pytest.raises(SpotsOutsideError) as caught:
        read_spots(path, SIZE)
    assert caught.value.what == (
        f"spots file {path}: 3 of 4 spots lie outside the image of 100 x 50 px; spot below by 7.2 px"
    )


@pytest.mark.parametrize(("section", "n_spots"), [("C5", 183), ("B4", 137)])
def test_real_her2st_selection(shared, section, n_spots):
    path = shared / "her2st" / "ST-spotfiles" / f"{section}_selection.tsv"
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["selected"] == "1"]
    assert len(rows) == n_spots
    spots = read_spots(path, BIG)
    assert spots.names == tuple(f"{row['x']}x{row['y']}" for row in rows)
    assert spots.centers_l0.tolist() == [[float(row["pixel_x"]), float(row["pixel_y"])] for row in rows]
    assert spots.kind == "her2st selection file"


@pytest.mark.parametrize(
    ("folder", "name", "n_header"),
    [
        ("placenta_spaceranger3", "tissue_positions.csv", 1),
        ("heart_spaceranger1", "tissue_positions_list.csv", 0),
    ],
)
def test_real_visium_positions(shared, folder, name, n_header):
    path = shared / "visium" / folder / "spatial" / name
    with path.open(newline="") as file:
        rows = list(csv.reader(file))[n_header:]
    on_tissue = [row for row in rows if row[1] == "1"]
    spots = read_spots(path, BIG)
    assert spots.names == tuple(row[0] for row in on_tissue)
    assert spots.centers_l0.tolist() == [[float(row[5]), float(row[4])] for row in on_tissue]
    assert spots.n_unselected == len(rows) - len(on_tissue)
    assert spots.kind == "Space Ranger tissue positions"


def test_real_parquet_positions_are_refused(shared):
    path = shared / "visium" / "hd_square_002um" / "spatial" / "tissue_positions.parquet"
    with pytest.raises(SpotsFormatError, match="cannot be read as text"):
        read_spots(path, BIG)
