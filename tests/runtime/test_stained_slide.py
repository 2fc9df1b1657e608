"""Slides painted with known stains, read in other ones."""

from __future__ import annotations

import importlib.util
import math
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

import stinfer
from stinfer.contract import F64, U8, Bool
from stinfer.flat_source import FlatSource
from stinfer.record import Notices
from stinfer.slide import Slide
from stinfer.stain import Stain, StainTransfer
from stinfer.stained_slide import StainedSlide, in_stain_of, slide_stain
from stinfer.subject import open_subject
from stinfer.tissue import TissueMask

_SPEC = importlib.util.spec_from_file_location("crafted_bank", Path(__file__).parent / "crafted_bank.py")
crafted = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(crafted)

DATA = Path(__file__).parents[1] / "data"
BANKS = pytest.mark.parametrize(
    "bank", [DATA / "board.h5", DATA / "board_map.h5"], ids=lambda bank: bank.stem
)
# Hematoxylin and eosin; each of length 1.
PAINTS = np.array([[2.0, 2, 1], [2, 6, 3]]) / [[3], [7]]
OTHER_PAINTS = np.array([[3.0, 6, 2], [1, 8, 4]]) / [[7], [9]]


def stained(paints: F64, amounts: tuple[float, float], shape: tuple[int, int]) -> U8:
    """Paint tissue of nuclei, with nearly no eosin, and plasma, with nearly no hematoxylin."""
    rng = np.random.default_rng(0)
    nuclei = rng.random(shape) < 0.4
    shares = np.where(nuclei[..., None], [1.0, 0.02], [0.02, 1.0]) * rng.uniform(0.5, 1.0, (*shape, 1))
    density = shares @ (paints * np.asarray(amounts)[:, None])
    return np.rint(256 * 10**-density - 1).clip(0, 255).astype(np.uint8)


def slide_of(pixels: U8, mpp: tuple[float, float] = (1.0, 1.0)) -> Slide:
    return Slide(Path("slide.svs"), FlatSource(Image.fromarray(pixels)), mpp, "test", "pillow")


def half_tissue(paints: F64, amounts: tuple[float, float]) -> tuple[Slide, TissueMask]:
    """A slide of 1000 x 600 px, the left half tissue, the right one a red that no stain has."""
    pixels = np.full((600, 1000, 3), (250, 20, 30), dtype=np.uint8)
    pixels[:, :500] = stained(paints, amounts, (600, 500))
    mask = np.zeros((30, 50), dtype=bool)
    mask[5:25, 5:20] = True  # so that squares of 200 px around its pixels, of 20 px, hold tissue alone
    return slide_of(pixels), TissueMask(mask, (20.0, 20.0), 0.1)


def angle_deg(one: F64, other: F64) -> float:
    return float(np.degrees(np.arccos(min(one @ other, 1.0))))


# --- measured -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("paints", "amounts"), [(PAINTS, (0.9, 0.7)), (OTHER_PAINTS, (0.6, 1.0))])
def test_the_stains_of_a_slide_are_those_its_tissue_was_painted_with(
    paints: F64, amounts: tuple[float, float]
) -> None:
    found = slide_stain(*half_tissue(paints, amounts))
    assert found is not None
    # Nuclei have 2 % of eosin in them, and the other way round.
    assert max(angle_deg(*pair) for pair in zip(found.directions, paints, strict=True)) < 2
    assert found.amounts == pytest.approx(amounts, rel=0.03)


def read_squares(mask: Bool, mpp: tuple[float, float]) -> list[tuple[float, ...]]:
    """Corner, extent and size of all that is read to measure a stain."""
    slide = slide_of(stained(PAINTS, (0.9, 0.7), (100, 100)), mpp)
    read: list[tuple[float, ...]] = []
    real = slide.read

    def spy(corner: tuple[float, float], extent: tuple[float, float], size_px: tuple[int, int]) -> U8:
        read.append((*corner, *extent, *size_px))
        return real(corner, extent, size_px)

    slide.read = spy
    slide_stain(slide, TissueMask(mask, (10.0, 20.0), 0.1))
    return read


def test_squares_of_200_um_are_read_at_1_um_per_pixel_around_every_pixel_of_a_small_mask() -> None:
    mask = np.zeros((5, 10), dtype=bool)
    mask[1, 7] = mask[3, 2] = True
    # A pixel of the mask is 10 x 20 px; a square is 400 px of 0.5 µm across and 800 of 0.25 down.
    expected = [(75 - 200, 30 - 400, 400, 800, 200, 200), (25 - 200, 70 - 400, 400, 800, 200, 200)]
    assert read_squares(mask, (0.5, 0.25)) == expected


def test_no_more_than_48_squares_are_read_evenly_over_the_tissue() -> None:
    mask = np.zeros((5, 100), dtype=bool)
    mask[2, 1:96] = True
    # 95 pixels, of which every second is one of 48: those from 1 to 95.
    read = read_squares(mask, (1.0, 1.0))
    assert [square[0] for square in read] == [10 * column + 5 - 100 for column in range(1, 96, 2)]
    # Of 49 the one in the middle is left out.
    mask[2, 50:] = False
    read = read_squares(mask, (1.0, 1.0))
    assert [square[0] for square in read] == [
        10 * column + 5 - 100 for column in range(1, 50) if column != 25
    ]


def test_a_slide_without_tissue_or_of_one_colour_has_no_stains() -> None:
    slide, tissue = half_tissue(PAINTS, (0.9, 0.7))
    nothing = TissueMask(np.zeros_like(tissue.mask), tissue.l0_per_px, 0.1)
    assert slide_stain(slide, nothing) is None
    plain = slide_of(np.full((600, 1000, 3), (180, 60, 120), dtype=np.uint8))
    assert slide_stain(plain, tissue) is None


# --- read in others -------------------------------------------------------------------------------


def test_a_slide_is_read_in_the_stains_that_are_wanted() -> None:
    slide, tissue = half_tissue(OTHER_PAINTS, (0.6, 1.0))
    wanted, painted = half_tissue(PAINTS, (0.9, 0.7))[0], stained(PAINTS, (0.9, 0.7), (600, 500))
    notices = Notices()
    found = in_stain_of(slide_stain(wanted, tissue), slide, tissue, "slide a.svs", notices)
    assert isinstance(found, StainedSlide)
    assert (found.size_l0, found.mpp, notices.texts) == ((1000, 600), (1.0, 1.0), [])
    box = ((100.0, 50.0), (300.0, 400.0), (300, 400))
    as_it_is = np.abs(slide.read(*box).astype(int) - painted[50:450, 100:400])
    brought = np.abs(found.read(*box).astype(int) - painted[50:450, 100:400])
    assert as_it_is.mean() > 20
    assert brought.mean() < 2


def test_what_is_read_is_what_the_slide_gives_and_white_stays_white() -> None:
    slide, tissue = half_tissue(PAINTS, (0.9, 0.7))
    own = slide_stain(slide, tissue)
    assert own is not None
    # Twice the amounts: twice the density, -log10((v + 1) / 256) of a gray level v.
    darker = StainedSlide(slide, StainTransfer(own, Stain(own.directions, own.amounts * 2)))
    box = ((20.0, 30.0), (200.0, 100.0), (200, 100))
    expected = (256 * ((slide.read(*box) + 1.0) / 256) ** 2 - 1).clip(0)
    assert np.abs(darker.read(*box) - expected).max() < 3
    beyond = darker.read((-200.0, -200.0), (100.0, 100.0), (10, 10))
    assert (beyond == 255).all()


def test_without_a_stain_of_the_bank_the_slide_is_left_as_it_is() -> None:
    slide, tissue = half_tissue(PAINTS, (0.9, 0.7))
    notices = Notices()
    assert in_stain_of(None, slide, tissue, "slide a.svs", notices) is slide
    assert notices.texts == []


def test_a_slide_whose_stains_cannot_be_told_is_left_as_it_is_and_that_is_said() -> None:
    _, tissue = half_tissue(PAINTS, (0.9, 0.7))
    plain = slide_of(np.full((600, 1000, 3), (180, 60, 120), dtype=np.uint8))
    notices = Notices()
    assert in_stain_of(Stain(PAINTS, np.ones(2)), plain, tissue, "slide a.svs", notices) is plain
    assert notices.texts == [
        "slide a.svs: hematoxylin and eosin cannot be told apart; its stains are left as they are"
    ]


# --- a bank with stains ---------------------------------------------------------------------------


def board_stain() -> Stain:
    with open_subject(DATA / "board.png", 5.0) as subject:
        found = slide_stain(subject.source, subject.tissue())
    assert found is not None
    return found


def predicted(tmp_path: Path, bank: Path, stain: Stain, slide: Path) -> tuple[F64, tuple[str, ...]]:
    """Predict RED at the squares of column 0 to 3 of row 1 from the nearest reference alone."""
    path = Path(shutil.copy(bank, tmp_path / "bank.h5"))
    crafted.craft_stain(path, stain.directions, stain.amounts)
    spots = tmp_path / "spots.csv"
    spots.write_text("id,x,y\n" + "".join(f"s{c},{100 + 40 * c},140\n" for c in range(4)))
    result = stinfer.predict_slide(
        slide, path, out=tmp_path / "p.h5ad", mpp=5.0, spots=spots, k=1, genes=["RED"]
    )
    with h5py.File(result.path) as file:
        return file["X"][:, 0], result.notices


BY_HAND = [math.log(1 + 100 * (column + 1)) for column in range(4)]


@BANKS
def test_a_slide_in_the_banks_own_stains_is_predicted_as_without(tmp_path: Path, bank: Path) -> None:
    found, notices = predicted(tmp_path, bank, board_stain(), DATA / "board.png")
    np.testing.assert_allclose(found, BY_HAND, rtol=1e-6)
    assert not any("told apart" in notice for notice in notices)


@BANKS
def test_a_slide_is_brought_to_the_banks_stains_before_it_is_encoded(tmp_path: Path, bank: Path) -> None:
    """The board in half the density, which the bank's stain doubles again; as it is it is another's."""
    with Image.open(DATA / "board.png") as board:
        pixels = np.asarray(board.convert("RGB"))
    pale = np.rint(256 * np.sqrt((pixels + 1.0) / 256) - 1).astype(np.uint8)
    Image.fromarray(pale).save(tmp_path / "pale.png")
    with open_subject(tmp_path / "pale.png", 5.0) as subject:
        own = slide_stain(subject.source, subject.tissue())
    assert own is not None
    brought, _ = predicted(tmp_path, bank, Stain(own.directions, own.amounts * 2), tmp_path / "pale.png")
    np.testing.assert_allclose(brought, BY_HAND, rtol=1e-6)
    (tmp_path / "p.h5ad").unlink()
    left, _ = predicted(tmp_path, bank, own, tmp_path / "pale.png")
    assert np.abs(left - BY_HAND).min() > 0.1


@BANKS
def test_a_run_says_that_stains_cannot_be_told(tmp_path: Path, bank: Path) -> None:
    with Image.open(DATA / "board.png") as board:
        pixels = np.asarray(board.convert("RGB")).copy()
    # Every square in the colour of column 2, row 1.
    pixels[80:280, 80:320] = (100, 65, 150)
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    found, notices = predicted(tmp_path, bank, board_stain(), tmp_path / "plain.png")
    assert notices.count(
        "slide plain.png: hematoxylin and eosin cannot be told apart; its stains are left as they are"
    ) == 1  # fmt: skip
    # Left as it is, the middle of it is the reference of that colour.
    assert found[2] == pytest.approx(math.log(301), rel=1e-6)
