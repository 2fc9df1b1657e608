"""Banks of sections whose embeddings and expression can be worked out by hand."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import math
import os
import sys
from pathlib import Path

import anndata
import numpy as np
import onnx
import pytest
import scanpy
from onnx import TensorProto, helper
from PIL import Image
from scipy import sparse

from stinfer import h5ad
from stinfer.bank import Bank
from stinfer.embed import open_encoder
from stinfer.errors import (
    BankFormatError,
    ModelFormatError,
    OutputExistsError,
    OutputWriteError,
    SettingError,
    SlideUnreadableError,
)
from stinfer_export.bank_builder import BankPlan, build_bank
from stinfer_export.datasets.her2st import iter_sections
from stinfer_export.datasets.section import Section
from stinfer_export.errors import DatasetError

_SPEC = importlib.util.spec_from_file_location(
    "make_fixtures", Path(__file__).parents[1] / "make_fixtures.py"
)
fixtures = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(fixtures)

N_COLUMNS, N_ROWS = 6, 5
# The spots of the board in the order of its selection file: down the first column, then the next.
BOARD = [(column, row) for column in range(N_COLUMNS) for row in range(N_ROWS)]
RED = [column + 1 for column, _ in BOARD]
GREEN = [row + 1 for _, row in BOARD]
REST = [98 - column - row for column, row in BOARD]
# Euclidean distance of plain mean colors: nothing that is not in the pictures themselves.
PLAIN = {"metric": "none", "distance": "euclidean"}


def _plan(**changes):
    # 100 µm on the board's 10 µm per pixel is half a square: every patch is of one color.
    fixed = {"dataset": "board", "pitch_um": 200.0, "spot_diameter_um": 100.0, "fov_um": 100.0}
    return BankPlan(**(fixed | PLAIN | changes))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("board") / "data"
    fixtures.write_board_data_set(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "mean_color.onnx"
    fixtures.write_mean_color_model(path)
    return path


@pytest.fixture(scope="module")
def board_bank(data, model, tmp_path_factory):
    path = tmp_path_factory.mktemp("bank") / "board.h5"
    summary = build_bank(iter_sections(data), _plan(), model, path, device="cpu")
    return summary, Bank.open(path)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A gray picture of 200 x 100 px; sections on it are 10 µm per pixel."""
    path = tmp_path_factory.mktemp("picture") / "gray.png"
    Image.new("RGB", (200, 100), (100, 120, 140)).save(path)
    return path


def _section(picture, name, genes, counts, centers=None, **changes):
    counts = np.asarray(counts, dtype=np.int64)
    n = len(counts)
    if centers is None:
        centers = [(50.0 + 10 * i, 50.0) for i in range(n)]
    fixed = {
        "name": name,
        "patient": name[0],
        "image_path": picture,
        "mpp": 10.0,
        "spots": tuple(f"{i}x7" for i in range(n)),
        "centers_l0": np.asarray(centers, dtype=np.float64),
        "array": np.asarray([(i, 7) for i in range(n)], dtype=np.float64),
        "genes": tuple(genes),
        "counts": counts,
        "n_places_only": 0,
        "n_counts_only": 0,
    }
    return Section(**(fixed | changes))


def _dense(bank):
    s = bank.expression
    return sparse.csr_matrix((s.data, s.indices, s.indptr), shape=(bank.n_refs, s.n_columns)).toarray()


def _build(sections, plan, model, path, **options):
    summary = build_bank(sections, plan, model, path, device="cpu", **options)
    return summary, Bank.open(path)


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

    assert (s.dataset, s.backbone, s.pooling, s.patch_px) == ("board", "mean_color", "patch", 8)
    assert s.model_sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    assert (s.fov_um, s.pitch_um, s.spot_diameter_um) == (100, 200, 100)
    assert (s.normalization, s.gene_join, s.metric) == ("log1p_cp10k", "union", "none")
    assert (s.distance, s.weighting) == ("euclidean", "softmax")
    assert s.cross_validation == "leave-one-spot-out"
    assert f"numpy {np.__version__}" in s.software.split(", ")
    assert bank.model() == model.read_bytes()


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
    assert found.uns["stinfer"]["model"].tobytes() == model.read_bytes()


# Genes


def _two_sections(picture):
    return [
        _section(picture, "P1", ("B", "A"), [[60, 40], [75, 25], [90, 10]]),
        _section(picture, "P2", ("C", "A"), [[80, 20], [70, 30], [60, 40]]),
    ]


def test_union_fills_genes_that_a_section_does_not_list_with_zero(picture, model, tmp_path):
    summary, bank = _build(_two_sections(picture), _plan(), model, tmp_path / "a.h5")

    assert bank.genes == ("A", "B", "C")
    counts = [[40, 60, 0], [25, 75, 0], [10, 90, 0], [20, 0, 80], [30, 0, 70], [40, 0, 60]]
    np.testing.assert_allclose(_dense(bank), np.log1p(np.array(counts) * 100.0), rtol=1e-6)
    assert np.array_equal(_dense(bank) == 0, np.array(counts) == 0)
    assert bank.gene_columns["n_sections"].tolist() == [2, 1, 1]
    assert bank.gene_columns["detected_fraction"].tolist() == [1.0, 0.5, 0.5]
    assert (
        "union of the sections' genes: 3, of which 2 are not listed in every section and count 0 where "
        "they are not"
    ) in summary.notices


def test_intersection_keeps_shared_genes_and_the_totals_of_all(picture, model, tmp_path):
    summary, bank = _build(_two_sections(picture), _plan(gene_join="intersection"), model, tmp_path / "a.h5")

    assert bank.genes == ("A",)
    # Of 100 counts of all genes, not of the counts of A alone.
    np.testing.assert_allclose(
        _dense(bank)[:, 0], np.log1p([4000.0, 2500, 1000, 2000, 3000, 4000]), rtol=1e-6
    )
    assert bank.spot_columns["total_counts"].tolist() == [100] * 6
    assert bank.settings.gene_join == "intersection"
    assert (
        "intersection of the sections' genes: 1; 2 genes that are not listed in every section are left out"
    ) in summary.notices


def test_sections_of_the_same_genes_need_no_notice(picture, model, tmp_path):
    sections = [_section(picture, name, "AB", [[1, 2], [2, 1]]) for name in ("P1", "P2")]

    summary, _ = _build(sections, _plan(k=1), model, tmp_path / "a.h5")

    assert summary.notices == ()


def test_sections_without_a_common_gene_have_no_intersection(picture, model, tmp_path):
    sections = [_section(picture, "P1", "A", [[1], [2]]), _section(picture, "P2", "B", [[1], [2]])]

    with pytest.raises(SettingError, match="the sections have no gene in common") as caught:
        build_bank(sections, _plan(gene_join="intersection"), model, tmp_path / "a.h5", device="cpu")

    assert "--gene-join union" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


# Spots that are dropped


def test_spots_are_dropped_by_the_exact_part_of_their_patch_outside(picture, model, tmp_path):
    # A patch is 20 px wide; at x = 5 it spans -5 to 15: exactly a quarter is outside.
    centers = [(5.0, 50.0), (4.99, 50.0), (5.0, 5.0), (195.0, 50.0), (100.0, 50.0), (10.0, 10.0)]
    section = _section(picture, "P1", "AB", [[i + 1, 2] for i in range(6)], centers)

    summary, bank = _build([section], _plan(fov_um=200.0, k=1), model, tmp_path / "a.h5")

    # The corner (5, 5) has 1 - 0.75 x 0.75 = 0.4375 outside.
    assert bank.spots == ("P1_0x7", "P1_3x7", "P1_4x7", "P1_5x7")
    assert summary.notices == (
        "section P1: 2 spots have more than 25% of their patch outside the image; dropped",
        "section P1: the patches of 2 spots reach beyond the image; filled up with white",
    )
    # Beyond the image there is white: a quarter of 255, three quarters of the gray.
    np.testing.assert_allclose(
        bank.embedding[:3],
        [[138.75, 153.75, 168.75], [138.75, 153.75, 168.75], [100, 120, 140]],
        atol=1.0,
    )


@pytest.mark.parametrize(
    ("max_outside", "kept"), [(0.0, [4, 5]), (0.2499, [4, 5]), (0.4375, [0, 2, 3, 4, 5])]
)
def test_max_outside_is_the_largest_part_allowed(picture, model, tmp_path, max_outside, kept):
    centers = [(5.0, 50.0), (-15.0, 50.0), (5.0, 5.0), (195.0, 50.0), (100.0, 50.0), (10.0, 10.0)]
    section = _section(picture, "P1", "AB", [[i + 1, 2] for i in range(6)], centers)
    plan = _plan(fov_um=200.0, k=1, max_outside=max_outside)

    _, bank = _build([section], plan, model, tmp_path / "a.h5")

    assert bank.spots == tuple(f"P1_{i}x7" for i in kept)


def test_spots_without_a_count_are_dropped(picture, model, tmp_path):
    section = _section(picture, "P1", "AB", [[0, 0], [3, 1], [0, 4], [0, 0], [2, 2]])

    summary, bank = _build([section], _plan(k=1), model, tmp_path / "a.h5")

    assert bank.spots == ("P1_1x7", "P1_2x7", "P1_4x7")
    assert bank.spot_columns["total_counts"].tolist() == [4, 4, 4]
    assert summary.notices == ("section P1: 2 spots have no counts above 0; dropped",)


def test_spots_that_the_reader_could_not_join_are_counted(picture, model, tmp_path):
    section = _section(picture, "P1", "AB", [[3, 1], [2, 2]], n_places_only=5, n_counts_only=1)

    summary, _ = _build([section], _plan(k=1), model, tmp_path / "a.h5")

    assert summary.notices == (
        "section P1: 5 spots have a place but no counts; dropped",
        "section P1: 1 spots have counts but no place; dropped",
    )


def test_a_section_that_loses_all_spots_is_left_out(picture, model, tmp_path):
    sections = [
        _section(picture, "P1", "AB", [[0, 0], [0, 0]]),
        _section(picture, "P2", "BC", [[3, 1], [2, 2]]),
    ]

    _, bank = _build(sections, _plan(k=1), model, tmp_path / "a.h5")

    assert bank.genes == ("B", "C")
    assert bank.sections == ("P2", "P2")


def test_no_usable_spot_at_all_is_refused(picture, model, tmp_path):
    section = _section(picture, "P1", "AB", [[1, 1], [2, 2]], [(-500.0, 50.0), (50.0, 900.0)])

    with pytest.raises(SettingError, match="no section has a spot that can be used") as caught:
        build_bank([section], _plan(), model, tmp_path / "a.h5", device="cpu")

    assert "--max-outside" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_a_bank_of_one_reference_is_one_that_the_runtime_opens(picture, model, tmp_path):
    section = _section(picture, "P1", "AB", [[1, 3]])

    _, bank = _build([section], _plan(), model, tmp_path / "a.h5")

    assert bank.settings.k == 1
    np.testing.assert_allclose(_dense(bank), [[math.log(2501), math.log(7501)]], rtol=1e-6)
    assert np.isnan(bank.gene_columns["cv_pearson"]).all()


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
    assert (notice in summary.notices) == noticed
    assert len(summary.notices) == noticed


def test_k_may_be_all_references(data, model, tmp_path):
    _, bank = _build(iter_sections(data), _plan(k=30), model, tmp_path / "a.h5")

    assert bank.settings.k == 30


def test_k_may_not_be_more_than_the_references(data, model, tmp_path):
    with pytest.raises(SettingError, match=r"--k 31 is larger than the bank's 30 references"):
        build_bank(iter_sections(data), _plan(k=31), model, tmp_path / "b.h5", device="cpu")

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
    assert bank.annoy_index() is None
    assert "annoy" not in bank.hashes
    s = bank.settings
    assert (s.annoy_trees, s.annoy_search_k, s.annoy_recall) == (0, 0, 0.0)


def test_the_index_is_stored_with_its_parameters(board_bank):
    pytest.importorskip("annoy")
    _, bank = board_bank

    data = bank.annoy_index()
    assert data is not None
    assert bank.hashes["annoy"] == hashlib.sha256(data).hexdigest()
    assert bank.settings.annoy_trees == 50
    assert bank.settings.annoy_recall >= 0.99


# Runs


def test_the_same_input_gives_the_same_bytes(data, model, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        build_bank(iter_sections(data), _plan(), model, tmp_path / name / "x.h5", device="cpu")

    assert (tmp_path / "a/x.h5").read_bytes() == (tmp_path / "b/x.h5").read_bytes()


def test_another_input_gives_other_hashes(picture, model, tmp_path):
    banks = []
    for counts in ([[3, 1], [2, 2]], [[3, 1], [2, 3]]):
        section = _section(picture, "P1", "AB", counts)
        banks.append(_build([section], _plan(k=1), model, tmp_path / "a.h5", overwrite=True)[1])

    changed = {part for part, digest in banks[0].hashes.items() if banks[1].hashes[part] != digest}
    assert changed == {"expression", "spots"}  # spots: their total counts


def test_progress_tells_of_every_batch(data, model, tmp_path):
    told = []

    def progress(done, total):
        told.append((done, total))

    _build(iter_sections(data), _plan(), model, tmp_path / "a.h5", batch_size=8, progress=progress)

    assert told == [(8, 30), (16, 30), (24, 30), (30, 30)]


def test_an_existing_bank_is_refused_before_any_work(model, tmp_path):
    def never():
        pytest.fail("a section was read")
        yield

    path = tmp_path / "a.h5"
    path.write_bytes(b"precious")

    with pytest.raises(OutputExistsError, match=r"a\.h5 exists"):
        build_bank(never(), _plan(), model, path, device="cpu")

    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_bank_is_replaced_when_asked(data, model, tmp_path, board_bank):
    path = tmp_path / "board.h5"
    path.write_bytes(b"old")

    build_bank(iter_sections(data), _plan(), model, path, device="cpu", overwrite=True)

    assert path.read_bytes() == board_bank[1].path.read_bytes()


def test_a_missing_folder_is_refused(data, model, tmp_path):
    with pytest.raises(OutputWriteError, match=r"the folder .*nowhere does not exist"):
        build_bank(iter_sections(data), _plan(), model, tmp_path / "nowhere/a.h5", device="cpu")


def test_a_missing_model_is_refused(data, tmp_path):
    with pytest.raises(SettingError, match=r"model .*none\.onnx cannot be read: No such file") as caught:
        build_bank(iter_sections(data), _plan(), tmp_path / "none.onnx", tmp_path / "a.h5", device="cpu")

    assert "stinfer-export backbone" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def _foreign_model(path):
    """Write a model that is sound, but not one of ours."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["a"], ["b"])],
        "identity",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, ["n"])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def test_a_model_that_is_none_of_ours_is_refused(data, model, tmp_path):
    _foreign_model(tmp_path / "foreign.onnx")
    (tmp_path / "cut.onnx").write_bytes(model.read_bytes()[:100])
    (tmp_path / "text.onnx").write_text("not a model")
    (tmp_path / "empty.onnx").write_bytes(b"")
    before = sorted(tmp_path.iterdir())

    for path in before:
        with pytest.raises(ModelFormatError, match=path.name):
            build_bank(iter_sections(data), _plan(), path, tmp_path / "a.h5", device="cpu")

    assert sorted(tmp_path.iterdir()) == before


def test_a_section_that_cannot_be_read_leaves_nothing_behind(data, model, tmp_path):
    def sections():
        yield from iter_sections(data)
        raise DatasetError(data, "broken", "mend it")

    with pytest.raises(DatasetError, match="broken"):
        build_bank(sections(), _plan(), model, tmp_path / "a.h5", device="cpu")

    assert list(tmp_path.iterdir()) == []


def test_an_image_that_cannot_be_read_leaves_nothing_behind(model, tmp_path):
    image = tmp_path / "HE.jpg"
    image.write_bytes(b"no image")
    section = _section(image, "P1", "AB", [[3, 1], [2, 2]])

    with pytest.raises(SlideUnreadableError, match=r"HE\.jpg"):
        build_bank([section], _plan(), model, tmp_path / "a.h5", device="cpu")

    assert list(tmp_path.iterdir()) == [image]


@pytest.mark.parametrize("writer", ["write_csr", "write_table", "write_mapping"])
def test_a_full_disk_leaves_nothing_behind_and_the_old_bank_whole(data, model, tmp_path, monkeypatch, writer):
    real = getattr(h5ad, writer)
    path = tmp_path / "a.h5"
    path.write_bytes(b"old")

    def full(group, name, *arguments, **options):
        # The root's empty mappings still fit; what has content does not.
        if isinstance(arguments[0], dict) and not arguments[0]:
            return real(group, name, *arguments, **options)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(h5ad, writer, full)
    with pytest.raises(OutputWriteError, match=r"a\.h5: No space left on device"):
        build_bank(iter_sections(data), _plan(), model, path, device="cpu", overwrite=True)

    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


# The model beside the bank


def test_a_model_that_was_left_out_is_found_beside_the_bank(data, model, tmp_path):
    _, bank = _build(iter_sections(data), _plan(include_model=False), model, tmp_path / "a.h5")
    assert "model" not in bank.hashes
    assert model.read_bytes() not in bank.path.read_bytes()

    with pytest.raises(BankFormatError, match=r"there is no mean_color\.onnx beside it"):
        open_encoder(bank, device="cpu", threads=1)

    (tmp_path / "mean_color.onnx").write_bytes(model.read_bytes())
    encoder = open_encoder(bank, device="cpu", threads=1)
    pixels = np.full((1, 8, 8, 3), (10, 20, 30), dtype=np.uint8)
    np.testing.assert_allclose(encoder.embed(pixels), [[10, 20, 30]], atol=1e-5)


def test_another_model_beside_the_bank_is_refused(data, model, tmp_path):
    _, bank = _build(iter_sections(data), _plan(include_model=False), model, tmp_path / "a.h5")
    other = onnx.load(model)
    other.doc_string = "another"
    onnx.save(other, tmp_path / "mean_color.onnx")

    with pytest.raises(ModelFormatError, match=bank.settings.model_sha256):
        open_encoder(bank, device="cpu", threads=1)
