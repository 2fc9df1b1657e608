"""Banks and predictions open in the tools that users have: anndata, scanpy and squidpy's convention."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

import stinfer
from stinfer.bank import Bank

anndata = pytest.importorskip("anndata")
DATA = Path(__file__).parents[1] / "data"
BANK = DATA / "board_v1.h5"


@pytest.fixture(scope="module")
def prediction(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prediction") / "board.h5ad"
    stinfer.predict_slide(DATA / "board.png", BANK, out=out, mpp=5.0)
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
    assert bytes(read.uns["stinfer"]["model"].tobytes()) == bank.model()


def test_anndata_opens_the_prediction(prediction: Path) -> None:
    read = anndata.read_h5ad(prediction)
    spot = read["4x3"]  # square (2, 1): GREEN 2, RED 3
    by_hand = [math.log(1 + 100 * count) for count in (2, 3, 95)]
    np.testing.assert_allclose(np.asarray(spot.X)[0], by_hand, rtol=1e-6)
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
