"""A tissue mask of the user's own, and the preview of a run."""

from __future__ import annotations

import hashlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import stinfer
from stinfer.cli import main
from stinfer.errors import NoTissueError, OutputExistsError, SettingError, TissueMaskError
from stinfer.preview import draw_preview
from stinfer.slide import open_slide
from stinfer.subject import open_subject
from stinfer.tissue import TissueMask
from stinfer.tissue_file import read_tissue_mask

DATA = Path(__file__).parents[1] / "data"
BANK, MAP_BANK, BOARD, GLASS = (
    DATA / name for name in ("board.h5", "board_map.h5", "board.png", "glass.png")
)
MPP = 5.0
GREEN, CYAN = (0, 160, 40), (0, 185, 225)


@pytest.fixture
def slide(tmp_path):
    Image.new("RGB", (60, 40), (250, 250, 250)).save(tmp_path / "slide.png")
    with open_slide(tmp_path / "slide.png", 1.0) as opened:
        yield opened


HALF = np.array([[0, 0, 7], [0, 255, 0]])


@pytest.mark.parametrize(
    ("image", "suffix"),
    [
        (Image.fromarray(HALF.astype(np.uint8)), "png"),
        (Image.fromarray(HALF.astype(np.uint8)), "tif"),
        (Image.fromarray((HALF > 0).astype(np.uint8) * np.uint8(255)).convert("1"), "png"),
        (Image.fromarray(HALF.astype(np.uint16)), "png"),
        (Image.fromarray(HALF.astype(np.float32)), "tif"),
        (Image.fromarray(np.dstack([HALF * 0, HALF, HALF * 0]).astype(np.uint8)), "png"),
        # Transparent counts as none, whatever its colour.
        (Image.fromarray(np.dstack([HALF * 0 + 9, HALF, HALF, HALF]).astype(np.uint8), "RGBA"), "png"),
    ],
)
def test_what_is_not_0_is_tissue(tmp_path, slide, image, suffix):
    path = tmp_path / f"mask.{suffix}"
    image.save(path)
    found = read_tissue_mask(path, slide)
    assert found.mask.tolist() == [[False, False, True], [False, True, False]]
    assert found.l0_per_px == (20.0, 20.0)
    assert found.given_name == path.name
    assert found.given_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_black_in_a_palette_is_0(tmp_path, slide):
    image = Image.fromarray(np.array([[0, 1, 2], [2, 1, 0]], dtype=np.uint8), "P")
    image.putpalette([200, 0, 0, 0, 0, 0, 0, 0, 90])
    image.save(tmp_path / "mask.png")
    expected = [[True, False, True], [True, False, True]]
    assert read_tissue_mask(tmp_path / "mask.png", slide).mask.tolist() == expected


def test_a_large_mask_is_reduced_by_what_most_of_it_is(tmp_path, slide, monkeypatch):
    monkeypatch.setattr("stinfer.tissue_file.THUMBNAIL_LONGEST_PX", 3)
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[:20, :11] = 1  # more than half of the first pixel of 20 x 20
    mask[:20, 20:29] = 1  # less than half of the second
    Image.fromarray(mask).save(tmp_path / "mask.png")
    found = read_tissue_mask(tmp_path / "mask.png", slide)
    assert found.mask.tolist() == [[True, False, False], [False, False, False]]


@pytest.mark.parametrize("size", [(60, 40), (30, 20), (3, 2), (300, 200), (7, 5)])
def test_any_size_of_the_slides_proportion_will_do(tmp_path, slide, size):
    Image.new("L", size, 1).save(tmp_path / "mask.png")
    assert read_tissue_mask(tmp_path / "mask.png", slide).mask.shape == size[::-1]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: Image.new("L", (60, 50), 1).save(path), "60 x 50 px, which is not the proportion of"),
        (lambda path: Image.new("L", (40, 60), 1).save(path), "not the proportion of the slide's 60 x 40"),
        (lambda path: Image.new("L", (60, 40), 0).save(path), "all of it is 0"),
        (lambda path: Image.new("RGB", (60, 40)).save(path, "JPEG"), "no PNG or TIFF image"),
        (lambda path: path.write_bytes(b"hello"), "no PNG or TIFF image"),
        (lambda path: path.mkdir(), "no such file"),
        (lambda path: None, "no such file"),
    ],
)
def test_a_mask_that_cannot_be_used_says_why(tmp_path, slide, make, reason):
    path = tmp_path / "mask.png"
    make(path)
    with pytest.raises(TissueMaskError, match=reason) as caught:
        read_tissue_mask(path, slide)
    assert str(path) in caught.value.what


def board_mask(path, columns):
    """A mask of the board at a tenth of its size: only some columns of squares, 4 px each from 8 px on."""
    with Image.open(BOARD) as image:
        mask = np.zeros((image.height // 10, image.width // 10), dtype=np.uint8)
    for column in columns:
        mask[8:-8, 8 + 4 * column : 12 + 4 * column] = 1
    Image.fromarray(mask).save(path)
    return path


@pytest.mark.parametrize("bank", [BANK, MAP_BANK])
def test_a_grid_lies_on_the_given_mask_and_the_mask_is_recorded(tmp_path, bank):
    mask = board_mask(tmp_path / "mask.png", (1, 4))
    out = tmp_path / "p.h5ad"
    stinfer.predict_slide(BOARD, bank, out=out, mpp=MPP, tissue_mask=mask)
    with h5py.File(out) as file:
        # Squares have 40 px, after a border of 80.
        assert sorted(set(file["obsm/spatial"][:, 0])) == [140.0, 260.0]
        tissue = file["uns/stinfer/tissue"]
        assert tissue["source"].asstr()[()] == "given by the user"
        assert tissue["file"].asstr()[()] == "mask.png"
        assert tissue["sha256"].asstr()[()] == hashlib.sha256(mask.read_bytes()).hexdigest()
        with Image.open(mask) as image:
            assert np.array_equal(tissue["mask"][()], np.asarray(image) > 0)
        assert (tissue["l0_per_px_x"][()], tissue["l0_per_px_y"][()]) == (10.0, 10.0)


def test_the_found_mask_is_recorded(tmp_path):
    out = tmp_path / "p.h5ad"
    stinfer.predict_slide(BOARD, BANK, out=out, mpp=MPP)
    with h5py.File(out) as file, open_subject(BOARD, MPP) as subject:
        tissue = file["uns/stinfer/tissue"]
        assert tissue["source"].asstr()[()] == "found on the slide"
        assert tissue["mask"].dtype == np.bool_
        assert np.array_equal(tissue["mask"][()], subject.tissue().mask)
        assert "file" not in tissue
        assert tissue["pen_mm2"][()] == 0.0


def test_a_saved_map_keeps_its_given_mask_and_takes_no_other(tmp_path):
    mask, saved = board_mask(tmp_path / "mask.png", (1, 2, 3, 4)), tmp_path / "a.map.h5"
    stinfer.predict_slide(BOARD, MAP_BANK, out=tmp_path / "a.h5ad", mpp=MPP, tissue_mask=mask, save_map=saved)
    stinfer.predict_slide(saved, MAP_BANK, out=tmp_path / "b.h5ad")
    with h5py.File(tmp_path / "a.h5ad") as first, h5py.File(tmp_path / "b.h5ad") as second:
        for key in ("source", "file", "sha256", "mask", "pen_mm2"):
            a, b = (file["uns/stinfer/tissue"][key][()] for file in (first, second))
            assert np.array_equal(a, b), key
    with pytest.raises(SettingError, match="--tissue-mask is given for map"):
        stinfer.predict_slide(saved, MAP_BANK, out=tmp_path / "c.h5ad", tissue_mask=mask)


# --- preview --------------------------------------------------------------------------------------


def colors(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_outline_and_marks_are_in_their_places(tmp_path):
    mask = np.zeros((50, 100), dtype=bool)
    mask[10:40, 20:80] = True
    white = np.full((500, 1000, 3), 255, dtype=np.uint8)
    path = tmp_path / "a.png"
    # A slide of 10000 x 5000 px: a tenth is shown, 10 px for each of the mask.
    tissue = TissueMask(mask, (100.0, 100.0), 0.1)
    draw_preview(
        path, white, tissue, (10_000, 5000), np.array([[5000.0, 2500.0]]), (400.0, 200.0), square=True
    )
    found = colors(path)
    is_outline = (found == GREEN).all(axis=2)
    expected = np.zeros((500, 1000), dtype=bool)
    expected[100:400, 200:800] = True
    expected[102:398, 202:798] = False
    assert np.array_equal(is_outline, expected)
    is_mark = (found == CYAN).all(axis=2)
    frame = np.zeros((500, 1000), dtype=bool)
    frame[240:260, 480:520] = True
    frame[241:259, 481:519] = False
    assert np.array_equal(is_mark, frame)
    assert (found[~is_mark & ~is_outline] == 255).all()


def test_close_places_are_points(tmp_path):
    tissue = TissueMask(np.zeros((50, 100), dtype=bool), (100.0, 100.0), 0.1)
    white = np.full((500, 1000, 3), 255, dtype=np.uint8)
    centers = np.array([[105.0, 205.0], [155.0, 205.0], [9999.0, 4999.0]])
    draw_preview(tmp_path / "a.png", white, tissue, (10_000, 5000), centers, (50.0, 50.0), square=True)
    rows, columns = np.nonzero((colors(tmp_path / "a.png") == CYAN).all(axis=2))
    assert list(zip(columns.tolist(), rows.tolist(), strict=True)) == [(10, 20), (15, 20), (999, 499)]


def test_the_preview_is_there_before_anything_is_encoded_and_stays(tmp_path, monkeypatch):
    preview = tmp_path / "preview.png"

    def fails(*_, **__):
        assert preview.is_file()
        msg = "encoding has begun"
        raise RuntimeError(msg)

    monkeypatch.setattr("stinfer.embed_subject.iter_patch_embeddings", fails)
    with pytest.raises(RuntimeError, match="encoding has begun"):
        stinfer.predict_slide(BOARD, BANK, out=tmp_path / "p.h5ad", mpp=MPP, preview=preview)
    assert [path.name for path in tmp_path.iterdir()] == ["preview.png"]
    assert (colors(preview) == CYAN).all(axis=2).any()


def test_a_slide_without_tissue_has_a_preview_too(tmp_path):
    preview = tmp_path / "preview.png"
    with pytest.raises(NoTissueError):
        stinfer.predict_slide(GLASS, BANK, out=tmp_path / "p.h5ad", mpp=MPP, preview=preview)
    assert [path.name for path in tmp_path.iterdir()] == ["preview.png"]
    assert not (colors(preview) == CYAN).all(axis=2).any()


def test_a_preview_that_exists_is_replaced_only_if_told(tmp_path):
    preview = tmp_path / "preview.png"
    preview.write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        stinfer.predict_slide(BOARD, BANK, out=tmp_path / "p.h5ad", mpp=MPP, preview=preview)
    assert preview.read_bytes() == b"mine"
    with pytest.raises(SettingError, match="also an input or another output"):
        stinfer.predict_slide(BOARD, BANK, out=tmp_path / "p.h5ad", mpp=MPP, preview=tmp_path / "p.h5ad")
    result = stinfer.predict_slide(
        BOARD, BANK, out=tmp_path / "p.h5ad", mpp=MPP, preview=preview, overwrite=True
    )
    assert result.preview_path == preview
    assert colors(preview).shape[2] == 3


def test_the_flags_on_the_command_line(tmp_path):
    mask = board_mask(tmp_path / "mask.png", (2,))
    arguments = ["run", str(BOARD), "--bank", str(BANK), "--out", str(tmp_path / "p.h5ad")]
    arguments += ["--mpp", "5,5", "--tissue-mask", str(mask), "--preview", str(tmp_path / "v.png")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "v.png") in result.output
    with h5py.File(tmp_path / "p.h5ad") as file:
        assert set(file["obsm/spatial"][:, 0]) == {180.0}


@pytest.mark.parametrize("text", ["5,5,5", "5,", "a", "0", "5,-1", "nan"])
def test_a_scale_that_is_none_is_a_usage_error(text):
    result = CliRunner().invoke(main, ["run", str(BOARD), "--bank", str(BANK), "--mpp", text])
    assert result.exit_code == 2
    assert "--mpp" in result.output


def test_a_scale_of_x_and_y(tmp_path):
    arguments = ["run", str(BOARD), "--bank", str(BANK), "--out", str(tmp_path / "p.h5ad"), "--mpp", "5,2.5"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    with h5py.File(tmp_path / "p.h5ad") as file:
        slide = file["uns/stinfer/slide"]
        assert (slide["mpp_x_um"][()], slide["mpp_y_um"][()]) == (5.0, 2.5)
        # 200 µm are 40 px across and 80 px down.
        steps = [np.diff(np.unique(file["obsm/spatial"][:, axis])).min() for axis in (0, 1)]
        assert steps == [40.0, 80.0]
