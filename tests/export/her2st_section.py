"""What the tests of the her2st reader share: a data set of one section of six spots."""

from __future__ import annotations

import pytest
from PIL import Image

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


def counts_file(folder):
    return folder / "ST-cnts/P1.tsv"


def places_file(folder):
    return folder / "ST-spotfiles/P1_selection.tsv"


def move_pixels(folder, move):
    """Replace (pixel_x, pixel_y) of every spot."""
    header, *rows = PLACES.splitlines()
    lines = [header]
    for row in rows:
        x, y, new_x, new_y, pixel_x, pixel_y, selected = row.split("\t")
        moved = move(float(pixel_x), float(pixel_y))
        lines.append("\t".join([x, y, new_x, new_y, *map(str, moved), selected]))
    places_file(folder).write_text("\n".join(lines) + "\n")
