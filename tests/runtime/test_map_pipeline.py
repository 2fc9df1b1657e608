"""Prediction through a map on the board of `tests/make_fixtures.py`: from the slide or a saved map."""

from __future__ import annotations

import hashlib
import math
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

import stinfer
from stinfer import ome_tiff, open_bank
from stinfer.errors import (
    ExtraMissingError,
    MapForeignError,
    MapTooSmallError,
    OutputWriteError,
    SettingError,
    StInferError,
)
from stinfer.outputs import default_output
from stinfer.prediction import NeighborFile

DATA = Path(__file__).parents[1] / "data"
BANK = DATA / "board_map.h5"
PATCH_BANK = DATA / "board.h5"
# Made by the program that wrote banks of format version 2; what it predicts must never change.
SECOND_BANK = DATA / "board_map_v2.h5"
# The board at 10 µm per pixel, as the bank was made at: squares of 20 px, which are 5 x 5 cells, within a
# border of 40 px.
MPP = 10.0
SQUARE, BORDER = 20, 40


def center(column: int, row: int) -> tuple[float, float]:
    return BORDER + (column + 0.5) * SQUARE, BORDER + (row + 0.5) * SQUARE


def expected(count: int) -> float:
    """log1p CP10K of a count in a spot of 100 counts."""
    return math.log(1 + 100 * count)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "board10.png"
    with Image.open(DATA / "board.png") as fine:
        fine.resize((200, 180), Image.Resampling.NEAREST).save(path)
    return path


@pytest.fixture(scope="module")
def saved(board: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("map")
    path = folder / "board10.map.h5"
    result = stinfer.predict_slide(board, BANK, out=folder / "p.h5ad", mpp=MPP, save_map=path)
    assert result.map_path == path
    return path


def spots_file(folder: Path, places: dict[str, tuple[float, float]]) -> Path:
    path = folder / "spots.csv"
    path.write_text("id,x,y\n" + "".join(f"{name},{x},{y}\n" for name, (x, y) in places.items()))
    return path


def contents(path: Path) -> dict[str, object]:
    """What a prediction says of its places."""
    with h5py.File(path) as file:
        found = {name: file["obs"][name][...] for name in file["obs"]}
        found |= {"X": file["X"][...], "spatial": file["obsm/spatial"][...], "genes": file["var/_index"][...]}
        images = file["uns/spatial"]
        found |= {size: images[next(iter(images))][f"images/{size}"][...] for size in ("hires", "lowres")}
    return found


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bank", [SECOND_BANK, BANK], ids=lambda bank: bank.stem)
def test_a_spot_on_a_reference_gets_that_reference_alone(tmp_path: Path, board: Path, bank: Path) -> None:
    spots = spots_file(tmp_path, {f"s{c}{r}": center(c, r) for c, r in [(0, 0), (5, 4), (2, 3)]})
    result = stinfer.predict_slide(board, bank, out=tmp_path / "p.h5ad", mpp=MPP, spots=spots)
    # GREEN, RED, REST; the section of the bank is this board.
    by_hand = [[expected(1), expected(1), expected(98)]]
    by_hand += [[expected(5), expected(6), expected(89)], [expected(4), expected(3), expected(93)]]
    np.testing.assert_allclose(contents(result.path)["X"], by_hand, rtol=1e-5)
    # Square (5, 4) is too pale to be tissue.
    assert any("1 of 3 places have hardly any tissue" in notice for notice in result.notices)


def test_a_place_between_four_squares_averages_the_four(tmp_path: Path, board: Path) -> None:
    spots = spots_file(tmp_path, {"between": (BORDER + 2 * SQUARE, BORDER + 2 * SQUARE)})
    result = stinfer.predict_slide(
        board, BANK, out=tmp_path / "p.h5ad", mpp=MPP, spots=spots, k=4, weighting="uniform"
    )
    # Its windows are as much of columns 1 and 2 and of rows 1 and 2: they are 10 and 12.5 off its colour.
    by_hand = [np.mean([expected(2), expected(3)])] * 2
    np.testing.assert_allclose(contents(result.path)["X"][0, :2], by_hand, rtol=1e-6)


def test_a_bank_of_version_2_predicts_what_todays_does(tmp_path: Path, board: Path, saved: Path) -> None:
    read = []
    for slide, mpp in ((board, MPP), (saved, None)):
        for bank in (SECOND_BANK, BANK):
            out = tmp_path / f"{slide.stem}.{bank.stem}.h5ad"
            stinfer.predict_slide(slide, bank, out=out, mpp=mpp, pitch_um=70, search="exact")
            read.append(contents(out))
    assert len(read[0]["X"]) > 150
    for other in read[1:]:
        np.testing.assert_array_equal(other["X"], read[0]["X"])
        np.testing.assert_array_equal(other["neighbor_distance"], read[0]["neighbor_distance"])


def test_the_grid_lies_on_the_squares(tmp_path: Path, board: Path) -> None:
    found = contents(stinfer.predict_slide(board, BANK, out=tmp_path / "p.h5ad", mpp=MPP).path)
    assert len(found["X"]) > 20
    for row, column, place, values in zip(
        found["array_row"], found["array_col"], found["spatial"], found["X"], strict=True
    ):
        assert tuple(place) == center(column - 2, row - 2)
        np.testing.assert_allclose(values[:2], [expected(row - 1), expected(column - 1)], rtol=1e-5)


def test_a_pitch_below_a_cell_is_refused(tmp_path: Path, board: Path) -> None:
    fine = stinfer.predict_slide(board, BANK, out=tmp_path / "p.h5ad", mpp=MPP, pitch_um=40)
    assert fine.n_spots == 25 * 25
    with pytest.raises(SettingError, match="finer than the 40 µm that can be told apart"):
        stinfer.predict_slide(board, BANK, out=tmp_path / "q.h5ad", mpp=MPP, pitch_um=39)


def test_progress_counts_regions(tmp_path: Path, board: Path, saved: Path) -> None:
    seen: dict[Path, list[tuple[int, int, str]]] = {board: [], saved: []}
    for source, mpp in ((board, MPP), (saved, None)):
        stinfer.predict_slide(
            source, BANK, out=tmp_path / "p.h5ad", mpp=mpp, overwrite=True,
            progress=lambda *done, source=source: seen[source].append(done),
        )  # fmt: skip
    assert seen == {board: [(0, 1, "regions"), (1, 1, "regions")], saved: [(0, 1, "bands"), (1, 1, "bands")]}


# --- from the slide or from its map ---------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [{}, {"pitch_um": 40}, {"pitch_um": 333.0}, {"k": 9, "weighting": "softmax"}, {"genes": ["RED"]}],
    ids=str,
)
def test_slide_and_map_give_the_same_prediction(
    tmp_path: Path, board: Path, saved: Path, asked: dict
) -> None:
    slide = contents(stinfer.predict_slide(board, BANK, out=tmp_path / "a.h5ad", mpp=MPP, **asked).path)
    again = contents(stinfer.predict_slide(saved, BANK, out=tmp_path / "b.h5ad", **asked).path)
    assert slide.keys() == again.keys()
    for name, values in slide.items():
        np.testing.assert_array_equal(values, again[name], err_msg=name)


def test_slide_and_map_give_the_same_at_spots_on_tissue(tmp_path: Path, board: Path, saved: Path) -> None:
    random = np.random.default_rng(0)
    places = {f"s{i}": (x, y) for i, (x, y) in enumerate(random.uniform(45, 110, (40, 2)).tolist())}
    spots = spots_file(tmp_path, places)
    slide = contents(stinfer.predict_slide(board, BANK, out=tmp_path / "a.h5ad", mpp=MPP, spots=spots).path)
    again = contents(stinfer.predict_slide(saved, BANK, out=tmp_path / "b.h5ad", spots=spots).path)
    for name, values in slide.items():
        np.testing.assert_array_equal(values, again[name], err_msg=name)


def test_spots_off_the_tissue_need_a_map_that_was_saved_with_them(
    tmp_path: Path, board: Path, saved: Path
) -> None:
    spots = spots_file(tmp_path, {"glass": (20.0, 20.0), "tissue": center(1, 1)})
    with pytest.raises(MapTooSmallError, match="holds tissue only") as caught:
        stinfer.predict_slide(saved, BANK, out=tmp_path / "p.h5ad", spots=spots)
    assert "--save-map" in caught.value.fix
    assert not (tmp_path / "p.h5ad").exists()
    wider = tmp_path / "wider.map.h5"
    slide = stinfer.predict_slide(
        board, BANK, out=tmp_path / "a.h5ad", mpp=MPP, spots=spots, save_map=wider
    ).path
    again = stinfer.predict_slide(wider, BANK, out=tmp_path / "b.h5ad", spots=spots).path
    np.testing.assert_array_equal(contents(slide)["X"], contents(again)["X"])
    # It holds the tissue too, and gives the grid that any other map gives.
    grids = [
        contents(stinfer.predict_slide(path, BANK, out=tmp_path / "c.h5ad", overwrite=True).path)
        for path in (saved, wider)
    ]
    np.testing.assert_array_equal(grids[0]["X"], grids[1]["X"])


def test_the_record_names_the_slide_and_the_map(tmp_path: Path, board: Path, saved: Path) -> None:
    result = stinfer.predict_slide(saved, BANK, out=tmp_path / "p.h5ad")
    with h5py.File(result.path) as file:
        slide = file["uns/stinfer/slide"]
        assert slide["name"].asstr()[()] == "board10.png"
        assert slide["sha256"].asstr()[()] == hashlib.sha256(board.read_bytes()).hexdigest()
        assert slide["map_name"].asstr()[()] == saved.name
        assert slide["map_sha256"].asstr()[()] == hashlib.sha256(saved.read_bytes()).hexdigest()
        assert (slide["mpp_x_um"][()], slide["mpp_source"].asstr()[()]) == (MPP, "given by the user")
        assert list(file["uns/spatial"]) == ["board10"]
    assert default_output("a/b.map.h5") == Path("b.stinfer.h5ad")


def test_the_same_run_gives_the_same_bytes_of_all_files(tmp_path: Path, board: Path, saved: Path) -> None:
    written = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        stinfer.predict_slide(board, BANK, out=folder / "p.h5ad", mpp=MPP, save_map=folder / "board10.map.h5")
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert written[0].keys() == {"p.h5ad", "board10.map.h5"}
    assert written[0] == written[1]
    assert written[0]["board10.map.h5"] == saved.read_bytes()


# --- mistakes -------------------------------------------------------------------------------------


def test_mistakes_with_maps_are_told_and_leave_nothing(tmp_path: Path, board: Path, saved: Path) -> None:
    out, kept = tmp_path / "p.h5ad", tmp_path / "x.map.h5"
    cases = [
        (saved, BANK, {"mpp": MPP}, SettingError, "leave it out, or predict from the slide"),
        (saved, BANK, {"save_map": kept}, SettingError, "is a map already"),
        (saved, PATCH_BANK, {}, MapForeignError, "the bank encodes patches, not maps"),
        (board, PATCH_BANK, {"mpp": MPP, "save_map": kept}, SettingError, "--pooling map"),
        (board, BANK, {"mpp": MPP, "save_map": out}, SettingError, "also an input or another output"),
        (saved, BANK, {"ome_tiff": saved, "overwrite": True}, SettingError, "also an input or another"),
    ]
    for slide, bank, arguments, error, said in cases:
        if "ome_tiff" in arguments:
            pytest.importorskip("tifffile")
        with pytest.raises(error) as caught:
            stinfer.predict_slide(slide, bank, out=out, **arguments)
        assert said in f"{caught.value.what} {caught.value.fix}"
        assert list(tmp_path.iterdir()) == []


def test_a_failure_after_the_map_was_begun_leaves_no_part_of_it(
    tmp_path: Path, board: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: NeighborFile, *_: object) -> None:
        raise OutputWriteError(tmp_path, "No space left on device")

    monkeypatch.setattr(NeighborFile, "write", fail)
    left = None
    try:
        stinfer.predict_slide(board, BANK, out=tmp_path / "p.h5ad", mpp=MPP, save_map=tmp_path / "x.map.h5")
    except StInferError:
        left = [path.name for path in tmp_path.iterdir()]  # while the error and its frames are still there
    assert left == ["p.h5ad.checkpoint"]


FULL = """
    import resource, sys
    from pathlib import Path
    import stinfer
    from stinfer.errors import OutputWriteError
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
    folder = Path(sys.argv[2])
    out, kept = folder / "p.h5ad", folder / "x.map.h5"
    try:
        stinfer.predict_slide(sys.argv[1], BANK, out=out, mpp=10.0, save_map=kept)
    except OutputWriteError as error:
        print(error.what)
"""


@pytest.mark.parametrize("limit", [1000, 8000, 20_000, 30_000])
def test_a_full_disk_while_the_map_is_saved_is_told_and_leaves_what_is_encoded(
    tmp_path: Path, board: Path, saved: Path, limit: int
) -> None:
    pytest.importorskip("resource")
    assert saved.stat().st_size > 30_000
    script = textwrap.dedent(FULL).replace("BANK", repr(str(BANK)))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(board), str(tmp_path), str(limit)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    kept = tmp_path / "p.h5ad.checkpoint"
    said = f"1 of 1 regions are kept in {kept}: run the same command again to go on there\n"
    # The neighbors, or the one region of 40 x 38 cells of 3 channels, need more than the smaller limits.
    whole = limit > 4 * 40 * 38 * 3
    assert (done.returncode, done.stderr) == (0, said if whole else "")
    assert done.stdout == f"cannot write {tmp_path / 'x.map.h5'}: File too large\n" or not whole
    assert done.stdout.startswith("cannot write ")
    if not whole:
        assert not kept.exists() or kept.stat().st_size <= limit
    assert [path.name for path in tmp_path.iterdir()] == ([kept.name] if whole else [])


# --- the dense image ------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [{}, {"pitch_um": 40}, {"pitch_um": 333.0}], ids=str)
@pytest.mark.parametrize("bank", [BANK, PATCH_BANK], ids=lambda bank: bank.stem)
def test_the_image_holds_the_predictions_where_they_are(
    tmp_path: Path, board: Path, bank: Path, asked: dict
) -> None:
    tifffile = pytest.importorskip("tifffile")
    image = tmp_path / "p.ome.tif"
    result = stinfer.predict_slide(
        board, bank, out=tmp_path / "p.h5ad", mpp=MPP, ome_tiff=image, genes=["RED", "GREEN"], **asked
    )
    assert result.ome_tiff_path == image
    pitch_um = asked.get("pitch_um", 200)
    planes = tifffile.imread(image)
    # The slide is 2000 x 1800 µm.
    assert planes.shape == (2, math.ceil(1800 / pitch_um), math.ceil(2000 / pitch_um))
    found = contents(result.path)
    by_hand = np.full(planes.shape, np.nan, dtype=np.float32)
    for values, (x, y) in zip(found["X"], found["spatial"], strict=True):
        by_hand[:, int(y * MPP / pitch_um), int(x * MPP / pitch_um)] = values
    np.testing.assert_array_equal(planes, by_hand)
    with tifffile.TiffFile(image) as file:
        assert 'Name="GREEN"' in file.pages[0].tags["ImageDescription"].value


def test_more_genes_than_are_held_at_once_come_in_order(
    tmp_path: Path, board: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile = pytest.importorskip("tifffile")
    monkeypatch.setattr("stinfer.report._PLANES_AT_ONCE", 2)
    result = stinfer.predict_slide(saved, BANK, out=tmp_path / "p.h5ad", ome_tiff=tmp_path / "p.ome.tif")
    planes, found = tifffile.imread(tmp_path / "p.ome.tif"), contents(result.path)
    for gene, plane in enumerate(planes):
        values = plane[found["array_row"], found["array_col"]]
        np.testing.assert_array_equal(values, found["X"][:, gene])


def test_an_image_that_cannot_be_is_refused_before_anything_is_encoded(
    tmp_path: Path, board: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_bank, "open_encoders", None)
    arguments = {"out": tmp_path / "p.h5ad", "mpp": MPP, "ome_tiff": tmp_path / "p.ome.tif"}
    spots = spots_file(tmp_path, {"a": center(0, 0)})
    with pytest.raises(SettingError, match="--spots gives places that are none"):
        stinfer.predict_slide(board, BANK, spots=spots, **arguments)
    with monkeypatch.context() as patched:
        patched.setattr(ome_tiff, "MAX_GENES", 2)
        with pytest.raises(SettingError, match="3 channels, more than 2"):
            stinfer.predict_slide(board, BANK, **arguments)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ExtraMissingError, match="tifffile"):
        stinfer.predict_slide(board, BANK, **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["spots.csv"]


def test_a_map_of_any_name_is_known_by_what_it_holds(tmp_path: Path, saved: Path) -> None:
    renamed = Path(shutil.copy(saved, tmp_path / "something.tif"))
    assert stinfer.predict_slide(renamed, BANK, out=tmp_path / "p.h5ad").n_spots == 25
