"""The main job on the board of `tests/make_fixtures.py`, where every prediction is known by hand."""

from __future__ import annotations

import csv
import hashlib
import math
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

import stinfer
from stinfer.errors import (
    GeneUnknownError,
    NoTissueError,
    OutputExistsError,
    OutputWriteError,
    ScaleImpossibleError,
    ScaleUnknownError,
    SettingError,
    SlideNotFoundError,
    SlideUnreadableError,
    SpotsOutsideError,
)
from stinfer.slide import Slide
from stinfer.subject import HIRES_PX

DATA = Path(__file__).parents[1] / "data"
BANK = DATA / "board.h5"
# Made by the programs that wrote banks of format versions 1 and 2; what they predict must never change.
FIRST_BANK, SECOND_BANK = DATA / "board_v1.h5", DATA / "board_v2.h5"
BANKS = [FIRST_BANK, SECOND_BANK, BANK]
BOARD = DATA / "board.png"
GLASS = DATA / "glass.png"
# The board is drawn at 5 µm per pixel: squares of 40 px within a border of 80 px.
MPP = 5.0
SQUARE, BORDER = 40, 80


def center(column: int, row: int) -> tuple[float, float]:
    return BORDER + (column + 0.5) * SQUARE, BORDER + (row + 0.5) * SQUARE


def expected(count: int) -> float:
    """log1p CP10K of a count in a spot of 100 counts."""
    return math.log(1 + 100 * count)


@pytest.fixture
def spots(tmp_path: Path) -> Path:
    path = tmp_path / "spots.csv"
    rows = [f"s{c}{r},{center(c, r)[0]},{center(c, r)[1]}" for c, r in [(0, 0), (5, 4), (2, 3)]]
    path.write_text("id,x,y\n" + "\n".join(rows) + "\n")
    return path


def read_x(path: Path) -> tuple[list[str], list[str], np.ndarray]:
    with h5py.File(path) as file:
        names = [list(file[f"{part}/_index"].asstr()[...]) for part in ("obs", "var")]
        return names[0], names[1], file["X"][...]


@pytest.mark.parametrize("bank", BANKS, ids=lambda bank: bank.stem)
def test_a_spot_on_a_reference_colour_gets_that_reference_alone(
    tmp_path: Path, spots: Path, bank: Path
) -> None:
    result = stinfer.predict_slide(BOARD, bank, out=tmp_path / "p.h5ad", mpp=MPP, spots=spots)
    names, genes, x = read_x(result.path)
    assert names == ["s00", "s54", "s23"]
    assert genes == ["GREEN", "RED", "REST"]
    # Distance 0 to one reference: with inverse weights it has all the weight.
    by_hand = [[expected(1), expected(1), expected(98)]]
    by_hand += [[expected(5), expected(6), expected(89)], [expected(4), expected(3), expected(93)]]
    np.testing.assert_allclose(x, by_hand, rtol=1e-6)


@pytest.mark.parametrize("bank", BANKS, ids=lambda bank: bank.stem)
def test_uniform_weights_average_the_four_nearest(tmp_path: Path, spots: Path, bank: Path) -> None:
    """Colours step by 20 along columns and 25 along rows, so a corner's 4 nearest are known."""
    result = stinfer.predict_slide(
        BOARD, bank, out=tmp_path / "p.h5ad", mpp=MPP, spots=spots, weighting="uniform", k=4
    )
    _, _, x = read_x(result.path)
    # Of square (0, 0): itself, (1, 0) at 20, (0, 1) at 25, (1, 1) at 32; (2, 0) is at 40.
    green = np.mean([expected(1), expected(1), expected(2), expected(2)])
    red = np.mean([expected(1), expected(2), expected(1), expected(2)])
    np.testing.assert_allclose(x[0, :2], [green, red], rtol=1e-6)


def test_the_grid_covers_the_coloured_squares_and_no_glass(tmp_path: Path) -> None:
    result = stinfer.predict_slide(BOARD, BANK, out=tmp_path / "p.h5ad", mpp=MPP, csv=tmp_path / "p.csv")
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == result.n_spots > 20
    for row in rows:
        # The pitch of 200 µm is a square, and the border two: lattice (c + 2, r + 2) is square (c, r).
        column, line = int(row["array_col"]) - 2, int(row["array_row"]) - 2
        assert row["id"] == f"{column + 2}x{line + 2}"
        assert (float(row["x"]), float(row["y"])) == center(column, line)
        assert float(row["RED"]) == pytest.approx(expected(column + 1), rel=1e-4)
        assert float(row["GREEN"]) == pytest.approx(expected(line + 1), rel=1e-4)
        # Itself at 0 and nine more: nearest by 20, 25 and combinations; a corner's are farther.
        assert 20 < float(row["neighbor_distance"]) < 60
        assert row["in_domain"] == "1"


def test_a_finer_pitch_gives_four_times_the_spots(tmp_path: Path) -> None:
    coarse = stinfer.predict_slide(BOARD, BANK, out=tmp_path / "a.h5ad", mpp=MPP, pitch_um=200)
    fine = stinfer.predict_slide(BOARD, BANK, out=tmp_path / "b.h5ad", mpp=MPP, pitch_um=100)
    assert fine.n_spots == pytest.approx(4 * coarse.n_spots, rel=0.1)


def test_colours_unlike_the_bank_are_out_of_domain_and_said(tmp_path: Path) -> None:
    Image.new("RGB", (200, 200), (0, 255, 0)).save(tmp_path / "green.png")
    (tmp_path / "one.csv").write_text("x,y\n100,100\n")
    result = stinfer.predict_slide(
        tmp_path / "green.png", BANK, out=tmp_path / "p.h5ad", mpp=MPP, spots=tmp_path / "one.csv"
    )
    assert any("in_domain is false" in notice for notice in result.notices)
    with h5py.File(result.path) as file:
        assert not file["obs/in_domain"][0]
        assert file["obs/confidence"][0] == 0
        assert list(file["uns/stinfer/notices"].asstr()[...]) == list(result.notices)


@pytest.mark.parametrize("older", [FIRST_BANK, SECOND_BANK], ids=lambda bank: bank.stem)
def test_a_bank_of_an_older_version_predicts_what_todays_does(tmp_path: Path, older: Path) -> None:
    read = []
    for bank in (older, BANK):
        out = tmp_path / f"{bank.stem}.h5ad"
        stinfer.predict_slide(BOARD, bank, out=out, mpp=MPP, pitch_um=50, search="exact")
        with h5py.File(out) as file:
            columns = [file[f"obs/{name}"][...] for name in ("neighbor_distance", "confidence")]
            read.append((read_x(out), columns))
    (names, genes, x), columns = read[0]
    assert (names, genes) == read[1][0][:2]
    np.testing.assert_array_equal(x, read[1][0][2])
    np.testing.assert_allclose(columns, read[1][1], rtol=1e-6)


def test_the_record_says_what_was_used(tmp_path: Path, spots: Path) -> None:
    result = stinfer.predict_slide(BOARD, BANK, out=tmp_path / "p.h5ad", mpp=MPP, spots=spots)
    with h5py.File(result.path) as file:
        record = file["uns/stinfer"]
        assert record["slide/sha256"].asstr()[()] == hashlib.sha256(BOARD.read_bytes()).hexdigest()
        assert record["bank/sha256"].asstr()[()] == hashlib.sha256(BANK.read_bytes()).hexdigest()
        assert record["slide/name"].asstr()[()] == "board.png"
        assert record["slide/mpp_x_um"][()] == MPP
        assert record["slide/mpp_source"].asstr()[()] == "given by the user"
        assert record["run/provider"].asstr()[()] == "CPUExecutionProvider"
        assert record["run/search"].asstr()[()] == "exact"
        assert record["run/k"][()] == 4
        assert record["places/source"].asstr()[()] == "table of x and y"


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        stinfer.predict_slide(
            BOARD, BANK, out=folder / "p.h5ad", mpp=MPP, csv=folder / "p.csv", png=["RED"], batch_size=8
        )
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert written[0].keys() == {"p.h5ad", "p.csv", "p.RED.png"}
    assert written[0] == written[1]


def test_the_picture_shows_low_and_high_where_they_are(tmp_path: Path) -> None:
    stinfer.predict_slide(BOARD, BANK, out=tmp_path / "p.h5ad", mpp=MPP, png=["RED"])
    picture = np.asarray(Image.open(tmp_path / "p.RED.png")).astype(int)
    # The map lies 24 px from the left and 64 from the top; viridis runs from violet to yellow.
    left, right = (picture[64 + int(center(c, 2)[1]), 24 + int(center(c, 2)[0])] for c in (1, 5))
    assert left[2] > left[1]
    assert right[0] > right[2]
    assert right[1] > right[2]


CASES = [
    ({"slide": Path("nowhere.svs")}, SlideNotFoundError, "nowhere.svs"),
    ({"mpp": None}, ScaleUnknownError, "--mpp"),
    ({"mpp": 352.0}, ScaleImpossibleError, "352"),
    ({"slide": GLASS}, NoTissueError, "glass.png"),
    ({"genes": "RED,GREN"}, GeneUnknownError, "nearest: GREEN"),
    ({"png": ["nope"]}, GeneUnknownError, "nope"),
    ({"k": 31}, SettingError, "30 references"),
    ({"k": 2.5}, SettingError, "k is 2.5"),
    ({"batch_size": 0}, SettingError, "batch_size is 0"),
    ({"threads": -1}, SettingError, "threads is -1"),
    ({"weighting": "gauss"}, SettingError, "use one of uniform, inverse, softmax"),
    ({"device": "gpu"}, SettingError, "use one of auto, cpu, cuda"),
    ({"search": "brute"}, SettingError, "use one of auto, exact, annoy"),
    ({"out": Path("no_such_folder/p.h5ad")}, OutputWriteError, "no_such_folder"),
    ({"pitch_um": 1.0}, SettingError, "finer than the 5 µm that can be told apart"),
    ({"spots": Path("spots.csv"), "pitch_um": 50.0}, SettingError, "contradict"),
]


@pytest.mark.parametrize(
    ("changed", "error", "said"), CASES, ids=lambda case: getattr(case, "__name__", None)
)
def test_a_mistake_has_its_own_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict, error: type, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = {"slide": BOARD, "bank": BANK, "out": Path("p.h5ad"), "mpp": MPP} | changed
    with pytest.raises(error) as caught:
        stinfer.predict_slide(**arguments)
    assert said in f"{caught.value.what} {caught.value.fix}"
    assert list(tmp_path.iterdir()) == []


def test_spots_off_the_image_are_refused_with_the_distance(tmp_path: Path) -> None:
    (tmp_path / "spots.csv").write_text("id,x,y\na,10,10\nb,407.5,10\n")
    with pytest.raises(SpotsOutsideError, match=r"1 of 2 .* 400 x 360 px; spot b by 7\.5 px"):
        stinfer.predict_slide(BOARD, BANK, out=tmp_path / "p.h5ad", mpp=MPP, spots=tmp_path / "spots.csv")


def test_existing_output_is_kept_unless_told(tmp_path: Path, spots: Path) -> None:
    out = tmp_path / "p.h5ad"
    out.write_text("precious")
    with pytest.raises(OutputExistsError):
        stinfer.predict_slide(BOARD, BANK, out=out, mpp=MPP, spots=spots)
    assert out.read_text() == "precious"
    stinfer.predict_slide(BOARD, BANK, out=out, mpp=MPP, spots=spots, overwrite=True)
    assert read_x(out)[0] == ["s00", "s54", "s23"]


def test_an_existing_picture_is_found_before_anything_is_encoded(tmp_path: Path, spots: Path) -> None:
    (tmp_path / "p.RED.png").write_text("precious")
    with pytest.raises(OutputExistsError, match=r"p\.RED\.png"):
        stinfer.predict_slide(BOARD, BANK, out=tmp_path / "p.h5ad", mpp=MPP, spots=spots, png=["RED"])
    assert not (tmp_path / "p.h5ad").exists()


@pytest.mark.parametrize(
    "clash", [{"out": "board.png"}, {"out": "bank.h5"}, {"csv": "p.h5ad"}, {"csv": "./bank.h5"}], ids=str
)
def test_an_output_that_is_an_input_or_another_output_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clash: dict
) -> None:
    monkeypatch.chdir(tmp_path)
    slide, bank = Path(shutil.copy(BOARD, "board.png")), Path(shutil.copy(BANK, "bank.h5"))
    arguments = {"out": "p.h5ad", "mpp": MPP, "overwrite": True} | clash
    with pytest.raises(SettingError, match="also an input or another output"):
        stinfer.predict_slide(slide, bank, **arguments)
    assert (slide.read_bytes(), bank.read_bytes()) == (BOARD.read_bytes(), BANK.read_bytes())


def test_progress_ends_at_the_number_of_spots(tmp_path: Path, spots: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    stinfer.predict_slide(
        BOARD,
        BANK,
        out=tmp_path / "p.h5ad",
        mpp=MPP,
        spots=spots,
        batch_size=2,
        progress=lambda done, total, unit: seen.append((done, total, unit)),
    )
    assert seen == [(0, 3, "patches"), (2, 3, "patches"), (3, 3, "patches")]


def test_a_scale_that_contradicts_the_slide_is_told(tmp_path: Path) -> None:
    with Image.open(BOARD) as board:
        board.save(tmp_path / "board.png", dpi=(5080, 5080))  # 5 µm per pixel
    said = {}
    for mpp in (5.1, 6.0):
        result = stinfer.predict_slide(
            tmp_path / "board.png", BANK, out=tmp_path / "p.h5ad", mpp=mpp, overwrite=True
        )
        said[mpp] = [notice for notice in result.notices if "the slide says 5 µm" in notice]
    assert (len(said[5.1]), len(said[6.0])) == (0, 1)


def test_a_print_resolution_is_no_contradiction(tmp_path: Path) -> None:
    with Image.open(BOARD) as board:
        board.save(tmp_path / "board.png", dpi=(72, 72))
    result = stinfer.predict_slide(tmp_path / "board.png", BANK, out=tmp_path / "p.h5ad", mpp=MPP)
    assert not any("the slide says" in notice for notice in result.notices)


def test_a_gene_is_drawn_once_however_often_it_is_named(tmp_path: Path) -> None:
    result = stinfer.predict_slide(BOARD, BANK, out=tmp_path / "p.h5ad", mpp=MPP, png=["RED", "RED"])
    assert [path.name for path in result.png_paths] == ["p.RED.png"]


@pytest.mark.parametrize("name", ["..png", "a\udcffb.png"], ids=["dots", "not UTF-8"])
def test_a_slide_of_an_odd_name_is_predicted(tmp_path: Path, name: str) -> None:
    slide = Path(shutil.copy(BOARD, tmp_path / name))
    result = stinfer.predict_slide(slide, BANK, out=tmp_path / "p.h5ad", mpp=MPP)
    with h5py.File(result.path) as file:
        assert len(file["uns/spatial"]) == 1
        assert file["uns/stinfer/slide/name"].asstr()[()] in ("..png", "a?b.png")


def test_an_output_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputWriteError, match="a device or a pipe"):
        stinfer.predict_slide(BOARD, BANK, out=tmp_path / "pipe", mpp=MPP, overwrite=True)
    with pytest.raises(SlideUnreadableError, match="a device or a pipe"):
        stinfer.predict_slide(tmp_path / "pipe", BANK, out=tmp_path / "p.h5ad", mpp=MPP)


def test_a_pitch_of_too_many_places_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("stinfer.places.MAX_PLACES", 100)
    with pytest.raises(SettingError, match="more than 100"):
        stinfer.predict_slide(BOARD, BANK, out=tmp_path / "p.h5ad", mpp=MPP, pitch_um=50)


def test_a_slide_that_cannot_be_seen_whole_leaves_no_prediction(
    tmp_path: Path, spots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pictures are read beside the patches: what is wrong comes out all the same."""
    read = Slide.thumbnail

    def damaged(slide: Slide, longest_px: int):
        if longest_px == HIRES_PX:
            raise SlideUnreadableError(slide.path, "a tile is damaged")
        return read(slide, longest_px)

    monkeypatch.setattr(Slide, "thumbnail", damaged)
    with pytest.raises(SlideUnreadableError, match="a tile is damaged"):
        stinfer.predict_slide(BOARD, BANK, out=tmp_path / "p.h5ad", mpp=MPP, spots=spots, batch_size=1)
    assert not (tmp_path / "p.h5ad").exists()
