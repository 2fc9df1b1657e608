"""Sections that are AnnData already, against the same section as Space Ranger wrote it."""

from __future__ import annotations

import builtins
import importlib.util
import re
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from stinfer.errors import ExtraMissingError
from stinfer_export.datasets.anndata_file import AnnDataSection
from stinfer_export.datasets.visium import read_section
from stinfer_export.errors import DatasetError

_SPEC = importlib.util.spec_from_file_location("visium_section", Path(__file__).parent / "visium_section.py")
shared = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(shared)
outs = shared.outs


@pytest.fixture
def data():
    """The section as `scanpy.read_visium` makes it, its symbols unique."""
    rows = {row[0]: row for row in shared.position_rows()}
    order = [rows[barcode] for barcode in shared.COUNTED]
    obs = pd.DataFrame(
        {
            "in_tissue": [int(row[1]) for row in order],
            "array_row": [int(row[2]) for row in order],
            "array_col": [int(row[3]) for row in order],
        },
        index=shared.COUNTED,
    )
    ids, names, kinds = zip(*shared.FEATURES, strict=True)
    var = pd.DataFrame({"gene_ids": ids, "feature_types": kinds}, index=["KRT8", "ACTB", "CD3", "KRT8-1"])
    found = anndata.AnnData(sparse.csr_matrix(shared.counts().astype(np.float32)), obs, var)
    found.obsm["spatial"] = np.array([[float(row[5]), float(row[4])] for row in order])
    found.uns["spatial"] = {"S1": {"scalefactors": dict(shared.SCALEFACTORS)}}
    assert names[3] == "KRT8"
    return found


def _write(data, folder):
    path = folder / "S1.h5ad"
    data.write_h5ad(path)
    return path


def _read(data, folder):
    return AnnDataSection(_write(data, folder)).read_section(folder / "full.png")


def _refusal(data, folder):
    with pytest.raises(DatasetError) as caught:
        _read(data, folder)
    assert "S1.h5ad" in caught.value.what
    assert caught.value.fix
    return caught.value.what


def _same(found, section):
    for name in ("name", "spots", "genes", "gene_ids"):
        assert getattr(found, name) == getattr(section, name), name
    assert found.mpp == pytest.approx(section.mpp, rel=1e-6)
    np.testing.assert_allclose(found.centers_l0, section.centers_l0, rtol=1e-9)
    np.testing.assert_array_equal(found.array, section.array)
    np.testing.assert_array_equal(found.counts.to_dense(), section.counts.to_dense())


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_matrix, lambda table: table.toarray()])
def test_it_is_the_section_that_space_ranger_wrote(data, outs, tmp_path, kind):
    data.X = kind(data.X)

    found = _read(data, tmp_path)

    _same(found, read_section(outs, tmp_path / "full.png"))
    assert found.notices == (
        "raw counts are read from X",
        "1 features of type Antibody Capture are dropped",
    )


def test_raw_counts_are_found_beside_normalised_ones(data, outs, tmp_path):
    expected = read_section(outs, tmp_path / "full.png")
    layered = data.copy()
    layered.layers["counts"] = layered.X.copy()
    layered.X = layered.X.log1p()
    kept = data.copy()
    kept.raw = data
    kept = kept[:, [1, 0]].copy()
    kept.X = kept.X / 7

    for changed, source in ((layered, "layers['counts']"), (kept, "raw")):
        found = _read(changed, tmp_path)
        _same(found, expected)
        assert found.notices[0] == f"raw counts are read from {source}"


def test_only_spots_on_tissue_are_kept(data, outs, tmp_path):
    data.obs["in_tissue"] = [0, 0, *data.obs["in_tissue"][2:]]

    found = _read(data, tmp_path)

    assert found.spots == tuple(shared.COUNTED[2:])
    assert found.counts.to_dense()[0].tolist() == [
        n
        for n, feature in zip(shared.counts_of(shared.COUNTED[2]), shared.FEATURES, strict=True)
        if feature[2] == "Gene Expression"
    ]
    assert "2 spots are not on tissue; dropped" in found.notices


def test_what_says_nothing_of_features_is_all_genes(data, outs, tmp_path):
    del data.var["feature_types"], data.var["gene_ids"]

    found = _read(data, tmp_path)

    assert found.genes == ("KRT8", "ACTB", "CD3", "KRT8-1")
    assert found.gene_ids is None


def _normalised(data):
    data.X = data.X.multiply(1e4 / data.X.sum(axis=1)).tocsr()


def _logarithm(data):
    _normalised(data)
    data.X = data.X.log1p()


def _scaled(data):
    data.X = data.X.toarray() - 5.5


def _off_tissue(data):
    data.obs["in_tissue"] = 0


def _two_sections(data):
    data.uns["spatial"]["S2"] = data.uns["spatial"]["S1"]


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (
            _normalised,
            r"X holds fractions \(.*\): every spot is normalised to 10000, and raw",
        ),
        (_logarithm, r"it holds no raw counts: X holds fractions \(.*\): it is log1p of counts per 10000"),
        (_scaled, r"X holds negative values \(-5.5\): it is scaled or centered"),
        (_two_sections, "it holds 2 sections: S1, S2"),
        (lambda data: data.uns.pop("spatial"), r"it has no uns\['spatial'\]"),
        (lambda data: data.uns["spatial"]["S1"].pop("scalefactors"), "has no scalefactors"),
        (lambda data: data.obsm.pop("spatial"), r"it has no obsm\['spatial'\]"),
        (
            lambda data: data.obs.pop("array_col"),
            r"it has no obs\['array_col'\], without which its µm",
        ),
        (_off_tissue, "none of its spots is on tissue"),
    ],
)
def test_what_is_refused(data, outs, tmp_path, change, cause):
    change(data)

    assert re.search(cause, _refusal(data, tmp_path))


def test_nothing_in_x(data, outs, tmp_path):
    data.X = None

    assert "it holds no raw counts: it has neither X, counts nor raw" in _refusal(data, tmp_path)


def test_x_and_y_exchanged(data, outs, tmp_path):
    data.obsm["spatial"] = data.obsm["spatial"][:, ::-1].copy()

    assert "exchanged" in _refusal(data, tmp_path)


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(DatasetError, match="there is no such file"):
        AnnDataSection(tmp_path / "S1.h5ad")
    (tmp_path / "S1.h5ad").write_bytes(b"no HDF5")
    with pytest.raises(DatasetError, match="it is cut short, damaged or no AnnData file"):
        AnnDataSection(tmp_path / "S1.h5ad")


def test_anndata_is_optional(tmp_path, monkeypatch):
    def refuse(name, *args, _import=builtins.__import__, **kwargs):
        if name == "anndata":
            raise ModuleNotFoundError(name="anndata")
        return _import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ExtraMissingError, match="reading AnnData files needs the package anndata") as caught:
        AnnDataSection(tmp_path / "S1.h5ad")
    assert caught.value.fix == "pip install 'stinfer[anndata]'"
