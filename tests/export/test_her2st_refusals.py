"""The her2st reader: what it refuses."""

from __future__ import annotations

import gzip
import importlib.util
import shutil
from pathlib import Path

import pandas as pd
import pytest

from stinfer.errors import StInferError
from stinfer_export.datasets.her2st import list_sections, read_section
from stinfer_export.errors import DatasetError

_SPEC = importlib.util.spec_from_file_location("her2st_section", Path(__file__).parent / "her2st_section.py")
shared = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(shared)
PLACES, COUNTS, folder = shared.PLACES, shared.COUNTS, shared.folder
_counts_file, _places_file, _move_pixels = shared.counts_file, shared.places_file, shared.move_pixels


def _refusal(folder):
    with pytest.raises(DatasetError) as caught:
        read_section(folder, "P1")
    assert isinstance(caught.value, ValueError)
    assert str(folder) in caught.value.what
    assert caught.value.fix
    return caught.value.what


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
    "blank gene": (("\tACTB\t", "\t \t"), "gene 2 is ' ': blank, or with a control character"),
    "empty gene": (("\tACTB\t", "\t\t"), "gene 2 is '': blank, or with a control character"),
    "NUL in a gene": (("\tACTB", "\tAC\0TB"), "gene 2 is 'AC\\x00TB': blank, or with a control character"),
    "ESC in a gene": (("\tKRT8\n", "\t\x1b[J\n"), "gene 3 is '\\x1b[J': blank, or with a control character"),
    "C1 in a gene": (("\tERBB2", "\tE\x9b"), "gene 1 is 'E\\x9b': blank, or with a control character"),
    "nameless spot": (("\n9x9\t", "\n\t"), "spot 3 is '': blank, or with a control character"),
    "NUL in a spot": (("\n9x9\t", "\n9\0x9\t"), "spot 3 is '9\\x00x9': blank, or with a control character"),
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
