"""Banks of their own section, on a slide of one color: there appearance is the same everywhere."""

from __future__ import annotations

import importlib.util
import math
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import stinfer
from stinfer import h5ad
from stinfer.bank import Bank
from stinfer.cli import main
from stinfer.compare_banks import summarize_bank
from stinfer.errors import (
    BankAlteredError,
    BankFormatError,
    SettingError,
    SlideForeignError,
)
from stinfer.inspect_bank import describe_bank
from stinfer.own_section import OwnSection, with_place

_SPEC = importlib.util.spec_from_file_location("crafted_bank", Path(__file__).parent / "crafted_bank.py")
crafted = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(crafted)

DATA = Path(__file__).parents[1] / "data"
BOARD = DATA / "board.png"
# At 5 µm per pixel: squares of 40 px within a border of 80 px, one of which has this color.
SIZE = (6 * 40 + 160, 5 * 40 + 160)
PLAIN_COLUMN, PLAIN_ROW = 1, 2
PLAIN_COLOR = (80, 90, 150)
ASKED = [(0, 0), (4, 1), (5, 4)]


def center(column: float, row: float) -> tuple[float, float]:
    return 80 + (column + 0.5) * 40, 80 + (row + 0.5) * 40


def expected(count: float) -> float:
    """log1p CP10K of a count in a spot of 100 counts."""
    return math.log(1 + 100 * count)


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    path = tmp_path / "plain.png"
    Image.new("RGB", SIZE, PLAIN_COLOR).save(path)
    return path


@pytest.fixture
def spots(tmp_path: Path) -> Path:
    path = tmp_path / "spots.csv"
    rows = [f"s{c}{r},{center(c, r)[0]},{center(c, r)[1]}" for c, r in ASKED]
    path.write_text("id,x,y\n" + "\n".join(rows) + "\n")
    return path


def own_bank(tmp_path: Path, slide: Path, weight: float, name: str = "board.h5", **changed) -> Path:
    path = Path(shutil.copy(DATA / name, tmp_path / "own.h5"))
    crafted.craft_own_section(path, slide, weight, **changed)
    return path


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with h5py.File(path) as file:
        return file["X"][...], file["obs/neighbor_distance"][...]


def test_place_goes_behind_appearance() -> None:
    mapped = np.array([[1, 2], [3, 4]], dtype=np.float32)
    found = with_place(mapped, np.array([[10.0, 20.0], [30.0, 40.0]]), 0.5)
    assert found.dtype == np.float32
    assert found.tolist() == [[1, 2, 5, 10], [3, 4, 15, 20]]
    own = OwnSection("0" * 64, 2, 4, 1, 0.5)
    assert own.join(mapped, np.array([[5.0, 5.0], [15.0, 10.0]])).tolist() == found.tolist()


def test_without_weight_all_places_of_one_color_are_predicted_alike(
    tmp_path: Path, slide: Path, spots: Path
) -> None:
    bank = own_bank(tmp_path, slide, 0.0)
    x, _ = read(stinfer.predict_slide(slide, bank, out=tmp_path / "p.h5ad", spots=spots).path)
    by_color = [expected(PLAIN_ROW + 1), expected(PLAIN_COLUMN + 1), expected(98 - PLAIN_ROW - PLAIN_COLUMN)]
    np.testing.assert_allclose(x, [by_color] * 3, rtol=1e-6)


def test_with_much_weight_a_place_is_predicted_from_the_reference_there(
    tmp_path: Path, slide: Path, spots: Path
) -> None:
    # 10 per µm: a pitch counts 2000, the whole board's colors at most 142.
    bank = own_bank(tmp_path, slide, 10.0)
    x, _ = read(stinfer.predict_slide(slide, bank, out=tmp_path / "p.h5ad", spots=spots, k=1).path)
    by_place = [[expected(r + 1), expected(c + 1), expected(98 - r - c)] for c, r in ASKED]
    np.testing.assert_allclose(x, by_place, rtol=1e-6)


def test_the_squared_distance_is_the_sum_of_both(tmp_path: Path, slide: Path, spots: Path) -> None:
    bank = own_bank(tmp_path, slide, 0.1)
    found = stinfer.predict_slide(slide, bank, out=tmp_path / "p.h5ad", spots=spots)
    squares = []
    for column, row in ASKED:
        squares.append(
            sorted(
                (20 * (c - PLAIN_COLUMN)) ** 2
                + (25 * (r - PLAIN_ROW)) ** 2
                + (0.1 * 200) ** 2 * ((c - column) ** 2 + (r - row) ** 2)
                for c in range(6)
                for r in range(5)
            )
        )
    domain_k = Bank.open(bank).settings.domain_k
    by_hand = np.sqrt(squares)[:, :domain_k].mean(axis=1)
    np.testing.assert_allclose(read(found.path)[1], by_hand, rtol=1e-5)


def test_the_record_says_that_place_was_used_and_who_knew_the_scale(
    tmp_path: Path, slide: Path, spots: Path
) -> None:
    bank = own_bank(tmp_path, slide, 0.1)
    found = stinfer.predict_slide(slide, bank, out=tmp_path / "p.h5ad", spots=spots)
    with h5py.File(found.path) as file:
        record = file["uns/stinfer"]
        own = h5ad.read_scalars(record["bank/own_section"])
        assert (own["place_weight"], own["weight_per_um"], own["mpp_x_um"]) == (0.25, 0.1, 5.0)
        said = h5ad.read_scalars(record["slide"])
    assert own["slide_sha256"] == said["sha256"]
    assert (said["mpp_x_um"], said["mpp_source"]) == (5.0, "bank of this section")


def test_what_the_slide_itself_says_of_its_scale_is_told_if_it_differs(tmp_path: Path, spots: Path) -> None:
    slide = tmp_path / "plain.png"
    Image.new("RGB", SIZE, PLAIN_COLOR).save(slide, dpi=(2540, 2540))
    bank = own_bank(tmp_path, slide, 0.1)
    found = stinfer.predict_slide(slide, bank, out=tmp_path / "p.h5ad", spots=spots)
    assert "the slide says 10 µm per pixel; the bank's 5 is used instead" in found.notices


def test_another_image_is_refused(tmp_path: Path, slide: Path, spots: Path) -> None:
    bank = own_bank(tmp_path, slide, 0.1)
    out = tmp_path / "p.h5ad"
    with pytest.raises(SlideForeignError, match=r"not the image of section T1, whose places bank .*own\.h5"):
        stinfer.predict_slide(BOARD, bank, out=out, spots=spots)
    assert not out.exists()


@pytest.mark.parametrize(("mpp", "taken"), [(5.02, True), (5.2, False), ((5.0, 4.8), False)])
def test_another_scale_is_refused(tmp_path: Path, slide: Path, spots: Path, mpp: float, taken: bool) -> None:  # noqa: FBT001
    bank = own_bank(tmp_path, slide, 0.1)

    def predict() -> None:
        stinfer.predict_slide(slide, bank, out=tmp_path / "p.h5ad", spots=spots, mpp=mpp)

    if taken:
        predict()
        return
    with pytest.raises(SettingError, match=r"5 x 5 in bank .* of this very section"):
        predict()


def test_a_saved_map_of_the_section_predicts_as_the_section_does(tmp_path: Path, spots: Path) -> None:
    bank = own_bank(tmp_path, BOARD, 0.1, "board_map.h5")
    first = stinfer.predict_slide(
        BOARD, bank, out=tmp_path / "p.h5ad", spots=spots, save_map=tmp_path / "m.map.h5"
    )
    again = stinfer.predict_slide(tmp_path / "m.map.h5", bank, out=tmp_path / "a.h5ad", spots=spots)
    for one, other in zip(read(first.path), read(again.path), strict=True):
        np.testing.assert_array_equal(one, other)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    other_bank = own_bank(elsewhere, DATA / "glass.png", 0.1, "board_map.h5")
    with pytest.raises(SlideForeignError):
        stinfer.predict_slide(tmp_path / "m.map.h5", other_bank, out=tmp_path / "b.h5ad", spots=spots)


def test_a_map_of_the_section_at_another_scale_is_refused(tmp_path: Path, spots: Path) -> None:
    stinfer.predict_slide(
        BOARD, DATA / "board_map.h5", out=tmp_path / "p.h5ad", spots=spots, mpp=6.0,
        save_map=tmp_path / "m.map.h5",
    )  # fmt: skip
    bank = own_bank(tmp_path, BOARD, 0.1, "board_map.h5")
    with pytest.raises(SettingError, match="6 x 6 µm per pixel"):
        stinfer.predict_slide(tmp_path / "m.map.h5", bank, out=tmp_path / "b.h5ad", spots=spots)


@pytest.mark.parametrize(
    "changed",
    [
        {"slide_sha256": "elsewhere"},
        {"slide_sha256": 7},
        {"weight_per_um": -1.0},
        {"weight_per_um": float("nan")},
        {"weight_per_um": "much"},
        {"place_weight": float("inf")},
        {"mpp_x_um": 0.0},
        {"mpp_y_um": 200.0},
    ],
    ids=str,
)
def test_what_no_bank_can_say_is_refused_whatever_its_hash(
    tmp_path: Path, slide: Path, changed: dict
) -> None:
    bank = own_bank(tmp_path, slide, 0.1, **changed)
    with pytest.raises(BankFormatError):
        Bank.open(bank)


def test_a_bank_of_another_distance_is_refused(tmp_path: Path, slide: Path) -> None:
    bank = own_bank(tmp_path, slide, 0.1)
    crafted.craft(bank, distance="cosine")
    with pytest.raises(BankFormatError, match="it compares places, and of several sections or not by euclid"):
        Bank.open(bank)


def test_a_changed_weight_is_noticed_and_so_is_one_that_is_gone(tmp_path: Path, slide: Path) -> None:
    bank = own_bank(tmp_path, slide, 0.1)
    with h5py.File(bank, "r+") as file:
        file["uns/stinfer/own_section/weight_per_um"][...] = 0.2
    with pytest.raises(BankAlteredError, match="own_section"):
        Bank.open(bank)
    with h5py.File(bank, "r+") as file:
        del file["uns/stinfer/own_section"]
    with pytest.raises(BankFormatError):
        Bank.open(bank)


def test_info_says_what_the_bank_is_for(tmp_path: Path, slide: Path) -> None:
    path = own_bank(tmp_path, slide, 0.1)
    bank = Bank.open(path)
    said = describe_bank(bank)
    assert "own section    predicts T1 alone, the image of SHA-256 " in said
    assert "place          counts 0.25 times what appearance counts, 0.1 per µm" in said
    assert "embedding      3 numbers (patch)" in said
    summary = summarize_bank(bank)
    assert summary["own_section"]["weight_per_um"] == 0.1
    assert summarize_bank(Bank.open(DATA / "board.h5"))["own_section"] is None
    result = CliRunner().invoke(main, ["bank", "verify", str(path)])
    assert result.exit_code == 0, result.output
    assert "own_section" in result.output
