from __future__ import annotations

import csv

import numpy as np
import pytest

from stinfer import averaging, prediction
from stinfer.errors import OutputWriteError
from stinfer.prediction import (
    Neighbors,
    PredictionTable,
    SlideImage,
    iter_expression,
    write_csv,
    write_prediction,
)
from stinfer.sparse import Sparse
from stinfer.stage_clock import StageClock

# Four references x three genes.
DENSE = np.array([[0, 2, 0], [1, 0, 4], [0, 0, 0], [3, 8, 0]], dtype=np.float32)
EXPRESSION = Sparse(
    data=np.array([2, 1, 4, 3, 8], dtype=np.float32),
    indices=np.array([1, 0, 2, 0, 1], dtype=np.int32),
    indptr=np.array([0, 1, 3, 3, 5]),
    n_columns=3,
)
NEIGHBORS = Neighbors(
    np.array([[0, 1], [3, 2], [1, 3]]), np.array([[0.5, 0.5], [0.75, 0.25], [0.25, 0.75]], dtype=np.float32)
)
# By hand: (row 0 + row 1) / 2; 3/4 of row 3; row 1 / 4 + row 3 * 3/4.
PREDICTED = [[0.5, 1.0, 2.0], [2.25, 6.0, 0.0], [2.5, 6.0, 1.0]]
ALL = np.arange(3)


def table(genes=("ERBB2", "COL1A1", "GNAS")):
    image = SlideImage(
        name="slide",
        hires=np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
        lowres=np.array([[[9, 8, 7], [6, 5, 4]]], dtype=np.uint8),
        hires_scale=0.5,
        lowres_scale=0.25,
        spot_diameter_l0=145.0,
    )
    return PredictionTable(
        spots=("10x2", "10x3", 'a,"b"'),
        spot_columns={
            "array_row": np.array([2, 3, -4]),
            "confidence": np.array([1, 0.123456789, 0], dtype=np.float32),
            "in_domain": np.array([True, True, False]),
        },
        spatial=np.array([[1.0, 2.5], [1234.567, 0.0], [7.0, 8.0]]),
        genes=genes,
        gene_columns={"pearson": np.linspace(0, 0.5, len(genes))},
        image=image,
        record={"kind": "prediction", "slide": {"name": "slide.svs", "width_px": 300}, "notices": ["one"]},
    )


def assembled(expression, chosen, neighbors):
    found = np.full((len(neighbors.indices), len(chosen)), np.nan)
    written = np.zeros(found.shape, dtype=int)
    for spots, genes, values in iter_expression(expression, chosen, neighbors):
        found[spots, genes] = values
        written[spots, genes] += 1
    assert (written == 1).all()
    return found


def test_expression_by_hand():
    assert assembled(EXPRESSION, ALL, NEIGHBORS).tolist() == PREDICTED


def test_chosen_genes_in_their_order():
    assert assembled(EXPRESSION, np.array([0, 2]), NEIGHBORS).tolist() == [[0.5, 2.0], [2.25, 0], [2.5, 1]]


def test_columns_of_a_sparse_matrix():
    assert EXPRESSION.columns(ALL).tolist() == DENSE.tolist()
    assert EXPRESSION.columns(np.array([2, 0])).tolist() == DENSE[:, [2, 0]].tolist()
    assert EXPRESSION.columns(np.array([], dtype=np.int64)).shape == (4, 0)


@pytest.mark.parametrize("n_genes_at_once", [1, 3, 17])
def test_blocks_cover_everything_once_and_change_nothing(monkeypatch, n_genes_at_once):
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((40, 17)) < 0.3, rng.random((40, 17)), 0).astype(np.float32)
    rows, columns = np.nonzero(dense)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=40))])
    expression = Sparse(dense[rows, columns], columns, indptr, 17)
    indices = np.array([rng.permutation(40)[:6] for _ in range(25)])
    weights = rng.dirichlet(np.ones(6), 25).astype(np.float32)
    monkeypatch.setattr(prediction, "_MATRIX", 40 * n_genes_at_once)
    monkeypatch.setattr(prediction, "_SPOTS_PER_CHUNK", 10)
    monkeypatch.setattr(prediction, "_CHUNKS_PER_BLOCK", 1)
    chosen = np.delete(np.arange(17), 3)
    found = assembled(expression, chosen, Neighbors(indices, weights))
    expected = np.einsum("nk,nkg->ng", weights.astype(float), dense[indices].astype(float))[:, chosen]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_waiting_for_averages_is_not_counted_as_writing(tmp_path, monkeypatch):
    now = [100.0]
    real = averaging.expression_from_neighbors

    def slow(*arguments):
        now[0] += 7
        return real(*arguments)

    monkeypatch.setattr(averaging, "expression_from_neighbors", slow)
    clock = StageClock(lambda: now[0])
    with clock.during("write"):
        write_prediction(tmp_path / "a.h5ad", table(), EXPRESSION, ALL, NEIGHBORS, clock=clock)
    assert {name: clock.seconds[name] for name in ("average", "write")} == {"average": 7.0, "write": 0.0}


def test_csv_by_hand(tmp_path):
    write_csv(tmp_path / "a.csv", table(), EXPRESSION, ALL, NEIGHBORS)
    assert (tmp_path / "a.csv").read_bytes().decode() == (
        "id,x,y,array_row,confidence,in_domain,ERBB2,COL1A1,GNAS\n"
        "10x2,1.00,2.50,2,1,1,0.5,1,2\n"
        "10x3,1234.57,0.00,3,0.12346,1,2.25,6,0\n"
        '"a,""b""",7.00,8.00,-4,0,0,2.5,6,1\n'
    )


def test_csv_of_chosen_genes_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "_BLOCK", 1)
    monkeypatch.setattr(prediction, "_MATRIX", 1)
    monkeypatch.setattr(prediction, "_SPOTS_PER_CHUNK", 2)
    write_csv(tmp_path / "a.csv", table(("ERBB2", "GNAS")), EXPRESSION, np.array([0, 2]), NEIGHBORS)
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["10x2", "10x3", 'a,"b"']
    assert [(float(row["ERBB2"]), float(row["GNAS"])) for row in rows] == [(0.5, 2), (2.25, 0), (2.5, 1)]


def test_anndata_reads_a_prediction(tmp_path):
    anndata = pytest.importorskip("anndata")
    write_prediction(tmp_path / "a.h5ad", table(), EXPRESSION, ALL, NEIGHBORS)
    found = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert found.X.dtype == np.float32
    assert found.X.tolist() == PREDICTED
    assert found.obs_names.tolist() == ["10x2", "10x3", 'a,"b"']
    assert found.var_names.tolist() == ["ERBB2", "COL1A1", "GNAS"]
    assert found.obs["array_row"].tolist() == [2, 3, -4]
    assert found.obs["in_domain"].tolist() == [True, True, False]
    assert found.var["pearson"].tolist() == [0, 0.25, 0.5]
    assert found.obsm["spatial"].tolist() == [[1.0, 2.5], [1234.567, 0.0], [7.0, 8.0]]
    slide = found.uns["spatial"]["slide"]
    assert np.array_equal(slide["images"]["hires"], np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
    assert slide["images"]["lowres"].tolist() == [[[9, 8, 7], [6, 5, 4]]]
    assert slide["scalefactors"] == {
        "spot_diameter_fullres": 145.0,
        "tissue_hires_scalef": 0.5,
        "tissue_lowres_scalef": 0.25,
    }
    assert found.uns["stinfer"]["slide"] == {"name": "slide.svs", "width_px": 300}
    assert list(found.uns["stinfer"]["notices"]) == ["one"]


@pytest.mark.parametrize("write", [write_csv, write_prediction])
def test_the_same_prediction_gives_the_same_bytes(tmp_path, write):
    for name in ("a", "b"):
        write(tmp_path / name, table(), EXPRESSION, ALL, NEIGHBORS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("write", [write_csv, write_prediction])
def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch, write):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(averaging, "expression_from_neighbors", fail)
    with pytest.raises(OutputWriteError, match="No space left on device"):
        write(path, table(), EXPRESSION, ALL, NEIGHBORS)
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["a"]
