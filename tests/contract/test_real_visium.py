"""Real outputs of Space Ranger, against the readers of scanpy, pandas and anndata."""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

import stinfer
from stinfer.bank import Bank
from stinfer_export.bank_builder import build_bank
from stinfer_export.bank_plan import BankPlan
from stinfer_export.datasets.feature_matrix import take_genes
from stinfer_export.datasets.tenx_mtx import read_tenx_mtx
from stinfer_export.datasets.visium import iter_sections, read_matrix, read_section
from stinfer_export.datasets.visium_positions import find_positions, read_positions
from stinfer_export.datasets.visium_scale import fit_mpp, read_scalefactors
from stinfer_export.errors import DatasetError

_SPEC = importlib.util.spec_from_file_location(
    "make_fixtures", Path(__file__).parents[1] / "make_fixtures.py"
)
fixtures = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(fixtures)

SHARED = Path(os.environ.get("STINFER_DATA", Path(__file__).parents[2] / ".." / "shared"))
PLACENTA = SHARED / "visium" / "placenta_spaceranger3"
HEART = SHARED / "visium" / "heart_spaceranger1"
HD = SHARED / "visium" / "hd_square_002um"

needs_placenta = pytest.mark.skipif(not PLACENTA.is_dir(), reason=f"no {PLACENTA}")
needs_heart = pytest.mark.skipif(not HEART.is_dir(), reason=f"no {HEART}")
needs_hd = pytest.mark.skipif(not HD.is_dir(), reason=f"no {HD}")


def scanpy_counts(outs: Path) -> anndata.AnnData:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Variable names are not unique")
        return sc.read_10x_h5(outs / "filtered_feature_bc_matrix.h5")


def compare_counts(outs: Path) -> None:
    """Compare every barcode, gene and count with what scanpy reads."""
    theirs = scanpy_counts(outs)
    matrix, _ = read_matrix(outs)
    table = take_genes(matrix)
    assert matrix.barcodes == tuple(theirs.obs_names)
    assert table.ids == tuple(theirs.var["gene_ids"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Suffix used")
        theirs.var_names_make_unique()
    assert table.genes == tuple(theirs.var_names)
    np.testing.assert_array_equal(table.counts.to_dense(), theirs.X.toarray())


@needs_placenta
def test_placenta_is_read_as_scanpy_reads_it(tmp_path: Path) -> None:
    compare_counts(PLACENTA)
    outs = tmp_path / "outs"
    shutil.copytree(PLACENTA, outs, copy_function=os.symlink)
    # scanpy reads no places without the picture that this output lacks.
    (outs / "spatial/tissue_hires_image.png").symlink_to(PLACENTA / "spatial/tissue_lowres_image.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = sc.read_visium(outs)
    section = read_section(PLACENTA, PLACENTA / "spatial/tissue_lowres_image.png")

    assert (len(section.spots), len(section.genes)) == (2898, 19465)
    assert (section.spots[0], section.spots[-1]) == (theirs.obs_names[0], theirs.obs_names[-1])
    assert section.spots[0] == "AACAGGAAGAGCATAG-1"
    # The picture is a fifth of the image.
    np.testing.assert_allclose(section.centers_l0 / 0.2, theirs.obsm["spatial"].astype(float), rtol=1e-9)
    np.testing.assert_array_equal(section.array[:, 0], theirs.obs["array_col"])
    np.testing.assert_array_equal(section.array[:, 1], theirs.obs["array_row"])
    # Neighbors in a row are 21.38 px apart in the image, so 4.276 px in the picture.
    assert section.mpp == pytest.approx(100 / 4.276, rel=2e-3)


@needs_placenta
@pytest.mark.slow
def test_file_and_folder_of_placenta_give_the_same_bank(tmp_path: Path) -> None:
    by_folder = read_tenx_mtx(PLACENTA / "filtered_feature_bc_matrix")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Variable names are not unique")
        theirs = sc.read_10x_mtx(PLACENTA / "filtered_feature_bc_matrix", make_unique=False)
    assert by_folder.barcodes == tuple(theirs.obs_names)
    np.testing.assert_array_equal(by_folder.counts.to_dense(), theirs.X.toarray())

    model = tmp_path / "mean_color.onnx"
    fixtures.write_mean_color_model(model)
    banks = []
    for form, left_out in (("h5", "filtered_feature_bc_matrix"), ("mtx", "filtered_feature_bc_matrix.h5")):
        outs = tmp_path / form / "placenta"
        shutil.copytree(PLACENTA, outs, ignore=shutil.ignore_patterns(left_out))
        image = outs / "spatial/tissue_lowres_image.png"
        plan = BankPlan("visium", 100.0, 55.0, pooling="patch")
        banks.append(build_bank(iter_sections([outs], [image]), plan, [model], tmp_path / form / "bank.h5"))

    assert banks[0].path.read_bytes() == banks[1].path.read_bytes()
    assert (banks[0].n_refs, banks[0].n_genes) == (2898, 19465)
    assert any("23.4 µm per px: patches are coarse" in notice for notice in banks[0].notices)
    bank = Bank.open(banks[0].path)
    assert bank.gene_ids is not None
    assert bank.gene_ids[bank.genes.index("Xkr4")] == "ENSMUSG00000051951"
    assert "gene_ids" in anndata.read_h5ad(bank.path).var
    assert isinstance(stinfer.Bank.open(bank.path), Bank)


@needs_heart
def test_heart_without_a_header() -> None:
    compare_counts(HEART)
    positions = read_positions(find_positions(HEART / "spatial")[0])
    theirs = pd.read_csv(HEART / "spatial/tissue_positions_list.csv", header=None)

    assert positions.barcodes == tuple(theirs[0])
    assert (positions.barcodes[0], positions.barcodes[-1]) == ("ACGCCTGACACGCGCT-1", theirs[0].iloc[-1])
    np.testing.assert_array_equal(positions.in_tissue, theirs[1] == 1)
    np.testing.assert_array_equal(positions.array, theirs[[3, 2]])
    np.testing.assert_array_equal(positions.centers_fullres, theirs[[5, 4]])
    assert positions.centers_fullres[0].tolist() == [2779, 2546]
    section = read_section(HEART, HEART / "spatial/tissue_lowres_image.png")
    # Spots of 89.43 px are 65.0 µm, as Space Ranger 1 has them.
    assert 89.42751063343188 * section.mpp * 0.045004502 == pytest.approx(65.0, abs=0.5)


@needs_heart
def test_the_black_picture_of_heart_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"it is blank: every pixel is \(0, 0, 0\)"):
        read_section(HEART, HEART / "spatial/tissue_hires_image.png")


@needs_hd
def test_visium_hd_in_parquet() -> None:
    pytest.importorskip("pyarrow")
    compare_counts(HD)
    theirs = pd.read_parquet(HD / "spatial/tissue_positions.parquet")
    positions = read_positions(find_positions(HD / "spatial")[0])

    assert positions.barcodes == tuple(theirs["barcode"])
    assert (positions.barcodes[0], positions.barcodes[-1]) == (
        "s_002um_00305_01021-1",
        "s_002um_02703_00756-1",
    )
    np.testing.assert_array_equal(
        positions.centers_fullres, theirs[["pxl_col_in_fullres", "pxl_row_in_fullres"]]
    )
    scale = read_scalefactors(HD / "spatial")
    mpp = fit_mpp(positions.path, positions.array, positions.centers_fullres, scale)
    # What Space Ranger itself says.
    assert mpp == pytest.approx(0.2738242950835738, rel=1e-3)
    with pytest.raises(
        DatasetError, match=r"has 10\.93 µm per px, expected 0\.05 to 1: of so coarse an image"
    ):
        read_section(HD, HD / "spatial/tissue_lowres_image.png")
