"""Banks, maps and predictions open in the tools that users have: anndata, scanpy and squidpy's convention."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

import stinfer
from stinfer.bank import Bank
from stinfer_export.bank_builder import build_bank
from stinfer_export.bank_plan import BankPlan
from stinfer_export.datasets.her2st import iter_sections

_SPEC = importlib.util.spec_from_file_location(
    "make_fixtures", Path(__file__).parents[1] / "make_fixtures.py"
)
fixtures = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(fixtures)

anndata = pytest.importorskip("anndata")
DATA = Path(__file__).parents[1] / "data"
BANK = DATA / "board_v1.h5"
MAP_BANK = DATA / "board_map.h5"


@pytest.fixture(scope="module")
def slide_map(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The saved map of the board; what was predicted with it lies beside it."""
    folder = tmp_path_factory.mktemp("map")
    path = folder / "board.map.h5"
    stinfer.predict_slide(DATA / "board.png", MAP_BANK, out=folder / "p.h5ad", mpp=5.0, save_map=path)
    return path


@pytest.fixture(scope="module", params=["patches", "map", "saved map"])
def prediction(
    request: pytest.FixtureRequest, slide_map: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("prediction") / "board.h5ad"
    if request.param == "patches":
        stinfer.predict_slide(DATA / "board.png", BANK, out=out, mpp=5.0)
        return out
    if request.param == "map":
        return slide_map.with_name("p.h5ad")
    stinfer.predict_slide(slide_map, MAP_BANK, out=out)
    return out


def test_anndata_opens_the_bank() -> None:
    read = anndata.read_h5ad(BANK)
    bank = Bank.open(BANK)
    assert tuple(read.var_names) == bank.genes
    assert tuple(read.obs_names) == bank.spots
    assert set(read.obs["section"]) == {"T1"}
    # Column 5, row 4: GREEN 5, RED 6 and REST 89 of 100 counts.
    by_hand = [math.log(1 + 100 * count) for count in (5, 6, 89)]
    np.testing.assert_allclose(read["T1_5x4"].X.toarray()[0], by_hand, rtol=1e-6)
    np.testing.assert_array_equal(read.obsm["spatial"], bank.spatial)
    assert read.uns["stinfer"]["backbone"] == "mean_color"
    assert [bytes(read.uns["stinfer"]["model"].tobytes())] == bank.models()


def test_anndata_opens_a_bank_of_maps() -> None:
    read = anndata.read_h5ad(MAP_BANK)
    bank = Bank.open(MAP_BANK)
    assert tuple(read.var_names) == bank.genes
    assert tuple(read.obs_names) == bank.spots
    by_hand = [math.log(1 + 100 * count) for count in (5, 6, 89)]
    np.testing.assert_allclose(read["T1_5x4"].X.toarray()[0], by_hand, rtol=1e-6)
    np.testing.assert_array_equal(read.obsm["spatial"], bank.spatial)
    # Square (2, 1), and with its eight neighbors: both have its color in the mean.
    color = [100, 65, 150]
    np.testing.assert_allclose(read["T1_2x1"].obsm["embedding"], [color + color], atol=1e-3)
    uns = read.uns["stinfer"]
    assert (uns["format_version"], uns["pooling"], uns["window"]) == (3, "map", "square")
    assert (list(uns["backbones"]), list(uns["models_sha256"])) == (
        ["mean_cells"],
        list(bank.settings.models_sha256),
    )
    assert (uns["orientations"].tolist(), uns["reductions"].tolist()) == ([1], [1])
    assert uns["fov_um"].tolist() == [200, 600]
    assert uns["um_per_px"] == 10.0
    assert [bytes(uns["model_0"].tobytes())] == bank.models()


def test_anndata_opens_a_bank_of_maps_with_a_projection(tmp_path: Path) -> None:
    """As `stinfer-export bank` makes one of a single section: principal components."""
    data, model = tmp_path / "data", tmp_path / "cells.onnx"
    fixtures.write_board_data_set(data)
    fixtures.write_mean_cells_model(model)
    plan = BankPlan("her2st", 200.0, 100.0, fov_um=(200.0, 600.0), window="disc", metric="pca")
    made = build_bank(iter_sections(data), plan, [model], tmp_path / "bank.h5", device="cpu")

    read = anndata.read_h5ad(made.path)
    bank = Bank.open(made.path)
    uns = read.uns["stinfer"]
    assert (uns["pooling"], uns["window"], uns["metric"]) == ("map", "disc", "pca")
    assert uns["projection_0"].dtype == np.float32
    np.testing.assert_array_equal(uns["projection_0"], bank.projections[0])
    np.testing.assert_array_equal(read.obsm["embedding"], bank.embedding)
    assert list(uns["notices"]) == list(made.notices)
    read.write_h5ad(tmp_path / "again.h5ad")
    again = anndata.read_h5ad(tmp_path / "again.h5ad")
    np.testing.assert_array_equal(again.X.toarray(), read.X.toarray())
    np.testing.assert_array_equal(again.uns["stinfer"]["projection_0"], bank.projections[0])


def test_anndata_opens_a_saved_map(slide_map: Path) -> None:
    read = anndata.read_h5ad(slide_map)
    # A cell is 40 µm, so 8 px of the slide; that of column 22 and row 17 lies amid square (2, 1).
    assert list(read.var_names) == ["channel_0", "channel_1", "channel_2"]
    cell = read["22x17"]
    np.testing.assert_allclose(cell.X, [[100, 65, 150]], atol=1e-3)
    np.testing.assert_array_equal(cell.obsm["spatial"], [[180, 140]])
    assert cell.obs[["array_row", "array_col", "tissue_fraction"]].values.tolist() == [[17, 22, 1.0]]
    names = [
        f"{column}x{row}" for column, row in zip(read.obs["array_col"], read.obs["array_row"], strict=True)
    ]
    assert list(read.obs_names) == names
    uns = read.uns["stinfer"]
    assert (uns["kind"], uns["format_version"], uns["backbones"], uns["cell_um"]) == (
        "map",
        2,
        "mean_cells",
        40,
    )
    assert (uns["slide_name"], uns["width_px"], uns["height_px"], uns["mpp_x_um"]) == (
        "board.png",
        400,
        360,
        5,
    )
    np.testing.assert_array_equal(uns["hires"], np.asarray(Image.open(DATA / "board.png").convert("RGB")))
    assert uns["tissue_mask"].dtype == bool


def test_a_written_back_map_is_the_same(slide_map: Path, tmp_path: Path) -> None:
    read = anndata.read_h5ad(slide_map)
    read.write_h5ad(tmp_path / "again.h5ad")
    again = anndata.read_h5ad(tmp_path / "again.h5ad")
    np.testing.assert_array_equal(again.X, read.X)
    assert again.obs.equals(read.obs)
    np.testing.assert_array_equal(again.uns["stinfer"]["tissue_mask"], read.uns["stinfer"]["tissue_mask"])


def test_a_saved_map_predicts_what_its_slide_did(slide_map: Path, tmp_path: Path) -> None:
    stinfer.predict_slide(slide_map, MAP_BANK, out=tmp_path / "again.h5ad")
    first = anndata.read_h5ad(slide_map.with_name("p.h5ad"))
    again = anndata.read_h5ad(tmp_path / "again.h5ad")
    np.testing.assert_array_equal(again.X, first.X)
    assert again.obs.equals(first.obs)
    np.testing.assert_array_equal(again.obsm["spatial"], first.obsm["spatial"])
    assert again.uns["stinfer"]["slide"]["map_name"] == "board.map.h5"
    assert "map_name" not in first.uns["stinfer"]["slide"]
    library, first_library = again.uns["spatial"]["board"], first.uns["spatial"]["board"]
    assert library["scalefactors"] == first_library["scalefactors"]
    for name, picture in first_library["images"].items():
        np.testing.assert_array_equal(library["images"][name], picture)


def test_anndata_opens_the_prediction(prediction: Path) -> None:
    read = anndata.read_h5ad(prediction)
    spot = read["4x3"]  # square (2, 1): GREEN 2, RED 3
    by_hand = [math.log(1 + 100 * count) for count in (2, 3, 95)]
    # Cells at a square's edge hold some of the next, since the slide is reduced: not quite the reference.
    rtol = {"patch": 1e-6, "map": 4e-3}[read.uns["stinfer"]["bank"]["pooling"]]
    np.testing.assert_allclose(np.asarray(spot.X)[0], by_hand, rtol=rtol)
    np.testing.assert_array_equal(spot.obsm["spatial"], [[180.0, 140.0]])
    assert read.obs["in_domain"].dtype == bool
    assert read.uns["stinfer"]["unit"] == "log1p CP10K"


def test_a_written_back_prediction_is_the_same(prediction: Path, tmp_path: Path) -> None:
    read = anndata.read_h5ad(prediction)
    read.write_h5ad(tmp_path / "again.h5ad")
    again = anndata.read_h5ad(tmp_path / "again.h5ad")
    np.testing.assert_array_equal(again.X, read.X)
    assert again.obs.equals(read.obs)


@pytest.mark.filterwarnings("ignore")  # scanpy warns that squidpy shall take over; not ours to mend
def test_scanpy_draws_a_gene_over_the_slide(prediction: Path, tmp_path: Path) -> None:
    scanpy = pytest.importorskip("scanpy")
    mpl.use("Agg")
    read = anndata.read_h5ad(prediction)
    (axis,) = scanpy.pl.spatial(read, color="RED", show=False)
    # The slide's picture, and the spots where their squares are: level-0 px times the scale, here 1.
    assert axis.images[0].get_array().shape == (360, 400, 3)
    assert read.uns["spatial"]["board"]["scalefactors"]["tissue_hires_scalef"] == 1.0
    drawn = axis.collections[0]
    np.testing.assert_allclose(
        sorted(float(value) for value in drawn.get_array()),
        sorted(float(value) for value in np.asarray(read[:, "RED"].X).ravel()),
        rtol=1e-6,
    )
    axis.figure.savefig(tmp_path / "red.png")
    assert (tmp_path / "red.png").stat().st_size > 1000


def test_squidpys_keys_are_there(prediction: Path) -> None:
    """squidpy.pl.spatial_scatter reads images["hires"], tissue_hires_scalef and spot_diameter_fullres."""
    library = anndata.read_h5ad(prediction).uns["spatial"]["board"]
    assert set(library["images"]) == {"hires", "lowres"}
    assert library["scalefactors"]["spot_diameter_fullres"] == 40.0  # 200 µm at 5 µm per pixel
