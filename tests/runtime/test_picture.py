from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from stinfer.errors import OutputWriteError
from stinfer.picture import GeneMap, draw_gene_map, viridis

PURPLE, YELLOW = (68, 1, 84), (253, 231, 37)
INK = (32, 32, 32)
# Where the slide lies on the sheet.
LEFT, TOP = 24, 64


def drawn(path, gene_map):
    draw_gene_map(path, gene_map)
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.fixture
def shown():
    # A slide of 800 x 400 px of 1 µm, shown at half its size, red.
    return GeneMap(
        gene="ERBB2",
        unit="log1p CP10K",
        values=np.array([1.0, 3.0, 2.0], dtype=np.float32),
        spatial=np.array([[100.0, 100.0], [300.0, 100.0], [500.0, 300.0]]),
        mark_l0=(80.0, 80.0),
        square=False,
        thumbnail=np.full((200, 400, 3), (250, 100, 100), dtype=np.uint8),
        scale=0.5,
        um_per_px=2.0,
    )


def grey_of(color):
    # ITU-R 601-2 luma, as Pillow has it.
    return round((299 * color[0] + 587 * color[1] + 114 * color[2]) / 1000)


def test_viridis_at_its_ends_and_middle():
    assert viridis(np.array([0.0, 0.5, 1.0])).tolist() == [list(PURPLE), [33, 145, 140], list(YELLOW)]


def test_viridis_between_two_stops():
    # Halfway between (68, 1, 84) and (71, 45, 123).
    assert viridis(np.array([[1 / 16]])).tolist() == [[[70, 23, 104]]]


def test_viridis_is_matplotlibs():
    matplotlib = pytest.importorskip("matplotlib")
    colors = matplotlib.colormaps["viridis"]
    stops, between = np.linspace(0, 1, 9), np.linspace(0, 1, 201)
    assert np.abs(viridis(stops) - colors(stops)[:, :3] * 255).max() <= 1
    # Between its nine colours it is straight where matplotlib's is curved.
    assert np.abs(viridis(between) - colors(between)[:, :3] * 255).mean() < 2


@pytest.mark.parametrize("square", [False, True])
def test_a_mark_has_the_colour_of_its_value_over_the_grey_slide(tmp_path, shown, square):
    picture = drawn(tmp_path / "a.png", dataclasses.replace(shown, square=square))
    grey = grey_of((250, 100, 100))
    for (x, y), color in (((50, 50), PURPLE), ((150, 50), YELLOW), ((250, 150), (33, 145, 140))):
        expected = 0.75 * np.array(color) + 0.25 * grey
        assert np.abs(picture[TOP + y, LEFT + x] - expected).max() <= 1.5
    # Marks are 40 px wide: 15 px along the axes is inside, 25 px is not; the corner is that of a square.
    inside = picture[TOP + 50 - 15, LEFT + 50]
    assert np.abs(inside - (0.75 * np.array(PURPLE) + 0.25 * grey)).max() <= 1.5
    assert np.abs(picture[TOP + 50, LEFT + 50 + 25] - grey).max() <= 1
    corner = picture[TOP + 50 - 17, LEFT + 50 - 17]
    assert (np.abs(corner - grey).max() > 30) == square


def test_the_sides_of_a_mark(tmp_path, shown):
    picture = drawn(tmp_path / "a.png", dataclasses.replace(shown, square=True, mark_l0=(80.0, 40.0)))
    row, column = picture[TOP + 50, LEFT : LEFT + 100], picture[TOP : TOP + 100, LEFT + 50]
    grey = grey_of((250, 100, 100))
    assert np.flatnonzero(np.abs(row - grey).max(axis=1) > 30).tolist() == list(range(30, 70))
    assert np.flatnonzero(np.abs(column - grey).max(axis=1) > 30).tolist() == list(range(40, 60))


def test_equal_values_are_drawn(tmp_path, shown):
    picture = drawn(tmp_path / "a.png", dataclasses.replace(shown, values=np.zeros(3, dtype=np.float32)))
    expected = 0.75 * np.array(PURPLE) + 0.25 * grey_of((250, 100, 100))
    assert np.abs(picture[TOP + 50, LEFT + 50] - expected).max() <= 1.5


@pytest.mark.parametrize("pitch", [2.3, 6.0, 7.3, 7.5, 10.9, 31.88])
def test_squares_of_a_grid_leave_no_gaps(tmp_path, shown, pitch):
    n_x, n_y = int(780 / pitch), int(380 / pitch)
    x, y = np.meshgrid((np.arange(n_x) + 0.5) * pitch, (np.arange(n_y) + 0.5) * pitch)
    spatial = np.stack([x.ravel(), y.ravel()], axis=1)
    values = np.zeros(len(spatial), dtype=np.float32)
    grid = dataclasses.replace(shown, values=values, spatial=spatial, mark_l0=(pitch, pitch), square=True)
    picture = drawn(tmp_path / "a.png", grid)
    width, height = int(n_x * pitch / 2), int(n_y * pitch / 2)
    covered = picture[TOP : TOP + height, LEFT : LEFT + width]
    expected = 0.75 * np.array(PURPLE) + 0.25 * grey_of((250, 100, 100))
    assert np.abs(covered - expected).max() <= 1.5
    beyond = picture[TOP : TOP + height, LEFT + width + 2 : LEFT + 400]
    assert np.abs(beyond - grey_of((250, 100, 100))).max() <= 1


def test_a_mark_over_the_edge_stays_on_the_slide(tmp_path, shown):
    at_corner = dataclasses.replace(
        shown, values=np.array([1.0], dtype=np.float32), spatial=np.array([[0.0, 0.0]]), square=True
    )
    picture = drawn(tmp_path / "a.png", at_corner)
    assert (picture[TOP + 10, LEFT - 10 : LEFT] == 255).all()
    assert np.abs(picture[TOP + 10, LEFT + 10] - picture[TOP, LEFT]).max() <= 1


def test_the_colour_bar_runs_from_high_to_low(tmp_path, shown):
    picture = drawn(tmp_path / "a.png", shown)
    x = LEFT + 400 + 24
    assert picture[TOP, x].tolist() == list(YELLOW)
    assert picture[TOP + 199, x].tolist() == list(PURPLE)
    assert picture[TOP, x + 21].tolist() == list(YELLOW)
    # Ticks at both ends.
    assert picture[TOP, x + 25].tolist() == list(INK)
    assert picture[TOP + 199, x + 25].tolist() == list(INK)
    assert picture[TOP + 60, x + 25].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("um_per_px", "length_px"),
    [
        (2.0, 100),  # 400 px = 800 µm, a quarter 200: 200 µm
        (1.0, 100),  # a quarter is 100 µm
        (1.9, 100 / 1.9),  # a quarter is 190 µm: 100 µm
        (12.0, 1000 / 12),  # a quarter is 1200 µm: 1000
        (0.6, 50 / 0.6),  # a quarter is 60 µm: 50
        (float(np.nextafter(1.0, 0.0)), 50),  # a hair less than 100 µm; either step is right
    ],
)
def test_the_scale_bar_is_a_round_length(tmp_path, shown, um_per_px, length_px):
    picture = drawn(tmp_path / "a.png", dataclasses.replace(shown, um_per_px=um_per_px))
    y = TOP + 200 + 8 + 8
    is_ink = (picture[y, LEFT:] == INK).all(axis=1)
    length = int(np.argmin(is_ink))
    if um_per_px == float(np.nextafter(1.0, 0.0)):
        assert min(abs(length - 50), abs(length - 100)) <= 1
    else:
        assert length == pytest.approx(length_px, abs=1.5)


def test_the_same_map_gives_the_same_bytes(tmp_path, shown):
    draw_gene_map(tmp_path / "a.png", shown)
    draw_gene_map(tmp_path / "b.png", shown)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_picture_that_cannot_be_written(tmp_path, shown):
    with pytest.raises(OutputWriteError):
        draw_gene_map(tmp_path / "none" / "a.png", shown)
    assert list(tmp_path.iterdir()) == []
