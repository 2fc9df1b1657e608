"""Banks of sections whose embeddings and expression can be worked out by hand."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import sys
from pathlib import Path

import anndata
import numpy as np
import pytest
import scanpy

from stinfer.errors import (
    SettingError,
)
from stinfer_export.bank_builder import build_bank
from stinfer_export.datasets.her2st import iter_sections

_SPEC = importlib.util.spec_from_file_location("bank_sections", Path(__file__).parent / "bank_sections.py")
shared = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(shared)
data, model, picture, board_bank = shared.data, shared.model, shared.picture, shared.board_bank
_plan, _section, _dense, _build = shared.plan, shared.section, shared.dense, shared.build
N_COLUMNS, N_ROWS, BOARD = shared.N_COLUMNS, shared.N_ROWS, shared.BOARD
RED, GREEN, REST = shared.RED, shared.GREEN, shared.REST
JOINED = "union of the sections' genes: 2, all of them listed in every section"


# What is in a bank


def test_expression_is_log1p_of_counts_per_10000(board_bank):
    _, bank = board_bank
    # Every total is 100, so a count is 100 per 10,000.
    expected = [[math.log(1 + 100 * n) for n in row] for row in zip(GREEN, RED, REST, strict=True)]

    assert bank.genes == ("GREEN", "RED", "REST")
    np.testing.assert_allclose(_dense(bank), expected, rtol=1e-6)


def test_embeddings_are_the_mean_colors_of_the_patches(board_bank):
    _, bank = board_bank

    colors = [(60 + 20 * column, 40 + 25 * row, 150) for column, row in BOARD]
    np.testing.assert_allclose(bank.embedding, colors, atol=1e-4)
    assert bank.metric.mean.tolist() == [0, 0, 0]
    assert bank.metric.components.tolist() == [1, 1, 1]


def test_references_keep_their_names_and_places(board_bank):
    summary, bank = board_bank

    assert bank.spots == tuple(f"T1_{column}x{row}" for column, row in BOARD)
    assert set(bank.sections) == {"T1"}
    assert set(bank.patients) == {"T"}
    assert bank.spatial.tolist() == [[50 + 20 * column, 50 + 20 * row] for column, row in BOARD]
    assert bank.spot_columns["array_col"].tolist() == [column for column, _ in BOARD]
    assert bank.spot_columns["array_row"].tolist() == [row for _, row in BOARD]
    assert bank.spot_columns["total_counts"].tolist() == [100] * 30
    assert (summary.n_refs, summary.n_genes, summary.path) == (30, 3, bank.path)


def test_settings_say_how_the_bank_was_made(board_bank, model):
    _, bank = board_bank
    s = bank.settings

    assert (s.dataset, s.backbones, s.pooling, s.patch_px) == ("board", ("mean_color",), "patch", 8)
    assert s.models_sha256 == (hashlib.sha256(model.read_bytes()).hexdigest(),)
    assert (s.preset, s.orientations, s.reductions, s.stain, s.tuning) == (
        "custom",
        (1,),
        (1,),
        "none",
        "none",
    )
    assert (s.fov_um, s.window, s.um_per_px) == ((100,), "square", 12.5)
    assert (s.pitch_um, s.spot_diameter_um) == (200, 100)
    assert (s.normalization, s.gene_join, s.metric) == ("log1p_cp10k", "union", "none")
    assert (s.distance, s.weighting) == ("euclidean", "softmax")
    assert s.cross_validation == "leave-one-spot-out"
    assert f"numpy {np.__version__}" in s.software.split(", ")
    assert bank.models() == [model.read_bytes()]


def test_the_bank_says_where_it_came_from(board_bank):
    summary, bank = board_bank
    uns = anndata.read_h5ad(bank.path).uns["stinfer"]

    source = uns["sources"]["T1"]
    assert set(source) == {"image", "mpp_um", "n_spots"}
    assert (source["image"], source["n_spots"]) == ("board.png", 30)
    assert source["mpp_um"] == pytest.approx(10.0)
    assert list(uns["notices"]) == list(summary.notices)


def test_anndata_and_scanpy_see_the_counts_they_would_have_normalised(picture, model, tmp_path):
    generator = np.random.default_rng(4)
    tables = {
        "S1": (("KRT8", "ACTB", "ERBB2", "AAA"), generator.poisson(4, (6, 4))),
        "R2": (("ERBB2", "CD3E", "KRT8"), generator.poisson(3, (5, 3))),
        "S3": (("ZZZ", "ERBB2", "ACTB", "CD3E", "BBB"), generator.poisson(2, (7, 5))),
    }
    sections = [_section(picture, name, genes, counts) for name, (genes, counts) in tables.items()]
    raw = []
    for name, (genes, counts) in tables.items():
        table = anndata.AnnData(counts.astype(np.float32))
        table.obs_names = [f"{name}_{i}x7" for i in range(len(counts))]
        table.var_names = list(genes)
        raw.append(table)
    expected = anndata.concat(raw, join="outer", fill_value=0)
    totals = expected.X.sum(axis=1)
    scanpy.pp.normalize_total(expected, target_sum=1e4)
    scanpy.pp.log1p(expected)

    _build(sections, _plan(metric="standardize", distance="cosine"), model, tmp_path / "a.h5")
    found = anndata.read_h5ad(tmp_path / "a.h5")

    assert list(found.obs_names) == list(expected.obs_names)
    assert list(found.var_names) == ["AAA", "ACTB", "BBB", "CD3E", "ERBB2", "KRT8", "ZZZ"]
    np.testing.assert_allclose(found.X.toarray(), expected[:, found.var_names].X, rtol=1e-5)
    assert found.X.has_canonical_format
    assert np.array_equal(found.X.toarray() == 0, expected[:, found.var_names].X == 0)
    assert list(found.obs["section"]) == ["S1"] * 6 + ["R2"] * 5 + ["S3"] * 7
    assert list(found.obs["patient"]) == ["S"] * 6 + ["R"] * 5 + ["S"] * 7
    np.testing.assert_array_equal(found.obs["total_counts"], totals)
    np.testing.assert_allclose(
        found.var["detected_fraction"], (expected[:, found.var_names].X > 0).mean(axis=0), rtol=1e-6
    )
    assert found.var["n_sections"].tolist() == [1, 2, 1, 2, 3, 2, 1]
    assert found.obsm["spatial"][:6].tolist() == [[50 + 10 * i, 50] for i in range(6)]
    assert found.obsm["embedding"].shape == (18, 3)
    assert found.uns["stinfer"]["gene_join"] == "union"
    assert found.uns["stinfer"]["model_0"].tobytes() == model.read_bytes()


# Neighbors and metric


@pytest.mark.parametrize(
    ("n_refs", "k", "noticed"),
    [(4, 1, True), (9, 1, True), (30, 6, True), (500, 100, False), (505, 100, False)],
)
def test_k_is_100_or_a_fifth_of_few_references(picture, model, tmp_path, n_refs, k, noticed):
    counts = [[i % 7 + 1, 5] for i in range(n_refs)]
    section = _section(picture, "P1", "AB", counts, [(50.0 + i / 10, 50.0) for i in range(n_refs)])

    summary, bank = _build([section], _plan(), model, tmp_path / "a.h5")

    assert bank.settings.k == k
    notice = f"k is {k}, not 100: a 5th of the {n_refs} references"
    assert summary.notices == ((JOINED, notice) if noticed else (JOINED,))


def test_k_may_be_all_references(data, model, tmp_path):
    _, bank = _build(iter_sections(data), _plan(k=30), model, tmp_path / "a.h5")

    assert bank.settings.k == 30


def test_k_may_not_be_more_than_the_references(data, model, tmp_path):
    with pytest.raises(SettingError, match=r"--k 31 is larger than the bank's 30 references"):
        build_bank(iter_sections(data), _plan(k=31), [model], tmp_path / "b.h5", device="cpu")

    assert list(tmp_path.iterdir()) == []


def test_standardize_gives_every_component_the_same_spread(data, model, tmp_path):
    _, bank = _build(iter_sections(data), _plan(metric="standardize"), model, tmp_path / "a.h5")

    raw = np.array([(60 + 20 * column, 40 + 25 * row, 150) for column, row in BOARD], dtype=float)
    np.testing.assert_allclose(bank.metric.mean, raw.mean(axis=0), rtol=1e-6)
    # The third component does not vary and tells nothing.
    expected = np.append(1 / raw.std(axis=0)[:2], 0)
    np.testing.assert_allclose(bank.metric.components, expected, rtol=1e-5)
    np.testing.assert_allclose(bank.embedding, (raw - raw.mean(axis=0)) * expected, atol=1e-5)
    np.testing.assert_allclose(bank.embedding[:, :2].std(axis=0), 1, rtol=1e-5)


def test_accuracy_is_that_of_predicting_each_spot_from_its_neighbors(data, model, tmp_path):
    _, bank = _build(iter_sections(data), _plan(k=2, weighting="uniform"), model, tmp_path / "a.h5")

    # Squares side by side differ by 20 in red, one below the other by 25 in green, two steps aside by 40.
    # So a spot inside is predicted from left and right, one at the edge from its one side and from above
    # or below, where RED is as in the spot itself.
    red = np.log1p(100.0 * np.arange(1, N_COLUMNS + 1))
    predicted = [(red[max(c - 1, 0)] + red[min(c + 1, N_COLUMNS - 1)]) / 2 for c in range(N_COLUMNS)]
    expected = np.corrcoef(np.repeat(predicted, N_ROWS), np.repeat(red, N_ROWS))[0, 1]
    assert bank.gene_columns["cv_pearson"][1] == pytest.approx(expected, abs=1e-5)


def test_the_index_is_left_out_where_annoy_is_not_installed(data, model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "annoy", None)

    summary, bank = _build(iter_sections(data), _plan(), model, tmp_path / "a.h5")

    assert "annoy is not installed: the bank has no index, and search in it is exact" in summary.notices
    assert not bank.annoy_index(tmp_path / "index.ann")
    assert "annoy" not in bank.hashes
    s = bank.settings
    assert (s.annoy_trees, s.annoy_search_k, s.annoy_recall) == (0, 0, 0.0)


def test_the_index_is_stored_with_its_parameters(board_bank, tmp_path):
    pytest.importorskip("annoy")
    _, bank = board_bank

    assert bank.annoy_index(tmp_path / "index.ann")
    data = (tmp_path / "index.ann").read_bytes()
    assert bank.hashes["annoy"] == hashlib.sha256(data).hexdigest()
    assert bank.settings.annoy_trees == 50
    assert bank.settings.annoy_recall >= 0.99
