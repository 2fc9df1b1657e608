"""The score of a prediction, against numpy and by hand; predictions are written by anndata."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path

import anndata
import numpy as np
import pytest
from scipy import sparse

from stinfer.bank import Bank
from stinfer.coverage import Coverage
from stinfer.errors import SettingError
from stinfer.pipeline import predict_slide
from stinfer.sparse import Sparse
from stinfer_export.errors import DatasetError
from stinfer_export.gene_choice import variable_genes
from stinfer_export.score import score_prediction

BOARD = Path(__file__).parents[1] / "data/board_v1.h5"

GENES = ("ACTB", "CD3E", "ERBB2", "KRT8")
# Detected in all, half, all and three of four; variances 0, 0.25, 5 and 2.1875 with divisor n.
EXPRESSION = [[2, 0, 1, 0], [2, 0, 3, 1], [2, 1, 5, 2], [2, 1, 7, 4]]
# Totals 10, 20, 10, 0 and 10; NOISE is in no bank, but counts.
COUNTS = """\
\tERBB2\tNOISE\tKRT8
1x1\t1\t8\t1
1x2\t10\t2\t8
2x1\t4\t6\t0
2x2\t0\t0\t0
3x3\t5\t2\t3
"""


def _bank(expression, genes):
    matrix = sparse.csr_matrix(np.asarray(expression, dtype=np.float32))
    return dataclasses.replace(
        Bank.open(BOARD),
        genes=tuple(genes),
        spots=tuple(f"S_{i}" for i in range(matrix.shape[0])),
        expression=Sparse(matrix.data, matrix.indices, matrix.indptr, matrix.shape[1]),
    )


@pytest.fixture
def bank():
    return _bank(EXPRESSION, GENES)


@pytest.fixture
def counts(tmp_path):
    path = tmp_path / "counts.tsv"
    path.write_text(COUNTS)
    return path


def _predict(path, spots, genes, values, source="her2st selection file", bank=BOARD):
    table = anndata.AnnData(np.asarray(values, dtype=np.float32))
    table.obs_names, table.var_names = list(spots), list(genes)
    sha256 = hashlib.sha256(bank.read_bytes()).hexdigest()
    table.uns["stinfer"] = {"places": {"source": source}, "bank": {"name": bank.name, "sha256": sha256}}
    table.write_h5ad(path)
    return path


@pytest.fixture
def prediction(tmp_path):
    """Spots in another order than they were measured in; 7x7 was not measured, 2x2 has no counts."""
    return _predict(
        tmp_path / "prediction.h5ad",
        ["2x1", "7x7", "1x1", "2x2", "3x3", "1x2"],
        ["KRT8", "CD3E", "ERBB2", "ACTB"],
        [[1, 9, 5, 0.5], [8, 8, 8, 8], [4, 9, 1, 0.5], [7, 7, 7, 7], [2, 9, 4, 0.5], [6, 9, 3, 0.5]],
    )


# Genes


def test_genes_are_chosen_by_variance_among_those_detected(bank):
    assert variable_genes(bank.expression, 250, 0.0).tolist() == [2, 3, 1, 0]
    assert variable_genes(bank.expression, 2, 0.0).tolist() == [2, 3]


def test_a_gene_must_be_detected_in_more_than_the_given_part(bank):
    assert variable_genes(bank.expression, 250, 0.49).tolist() == [2, 3, 1, 0]
    assert variable_genes(bank.expression, 250, 0.5).tolist() == [2, 3, 0]
    assert variable_genes(bank.expression, 250, 0.75).tolist() == [2, 0]
    assert variable_genes(bank.expression, 250, 1.0).tolist() == []


def test_genes_are_chosen_by_the_spots_that_measure_them():
    # Two spots of each of two origins. A varies between 0 and 4 in both (variance 4), B between 2 and 8 in
    # the one that measures it (variance 9; with zeros for the others it would be 11), C is 6 in the other:
    # with zeros it would vary most of all but B, and be detected in half.
    dense = np.array([[0, 2, 0], [4, 8, 0], [0, 0, 6], [4, 0, 6]], dtype=np.float32)
    rows, columns = np.nonzero(dense)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=4))])
    measured = np.array([[True, True, False], [True, False, True]])
    coverage = Coverage(np.array([0, 0, 1, 1]), measured)
    expression = Sparse(dense[rows, columns], columns.astype(np.int32), indptr, 3, coverage)

    assert variable_genes(expression, 250, 0.0).tolist() == [1, 0, 2]
    # A is detected in half of the spots, B and C in all that measure them.
    assert variable_genes(expression, 250, 0.5).tolist() == [1, 2]
    unknown_is_0 = Sparse(expression.data, expression.indices, indptr, 3)
    assert variable_genes(unknown_is_0, 250, 0.0).tolist() == [1, 2, 0]


@pytest.mark.parametrize("min_detected", [0.1, 0.3, 0.6])
def test_genes_are_those_of_numpy(min_detected):
    generator = np.random.default_rng(8)
    detected = generator.random((90, 60)) < generator.random(60)
    dense = np.where(detected, generator.gamma(2, 1, (90, 60)), 0).astype(np.float32)
    candidates = [gene for gene in range(60) if np.count_nonzero(dense[:, gene]) > min_detected * 90]
    expected = sorted(candidates, key=lambda gene: -np.var(dense[:, gene].astype(float)))[:20]

    found = variable_genes(_bank(dense, [f"G{i}" for i in range(60)]).expression, 20, min_detected)

    assert found.tolist() == expected


# Agreement


def test_score_is_the_correlation_with_log1p_cp10k(prediction, counts, bank):
    score = score_prediction(prediction, counts, bank, n_genes=2)

    assert score.genes == ("ERBB2", "KRT8")
    assert (score.n_spots, score.n_unmatched, score.n_absent) == (4, 2, 0)
    # 2x1, 1x1, 3x3, 1x2. Counts per 10,000 of all that was measured, NOISE too.
    erbb2 = np.corrcoef([5, 1, 4, 3], np.log1p([4000, 1000, 5000, 5000]))[0, 1]
    krt8 = np.corrcoef([1, 4, 2, 6], np.log1p([0, 1000, 3000, 4000]))[0, 1]
    assert score.pearson.tolist() == pytest.approx([erbb2, krt8], abs=1e-6)
    assert score.mean == pytest.approx((erbb2 + krt8) / 2, abs=1e-6)


def test_genes_without_a_correlation_count_0(prediction, counts, bank):
    score = score_prediction(prediction, counts, bank, min_detected=0.0)

    # CD3E and ACTB were not measured, and their prediction does not vary either.
    assert score.genes == ("ERBB2", "KRT8", "CD3E", "ACTB")
    assert score.n_absent == 2
    assert np.isnan(score.pearson).tolist() == [False, False, True, True]
    assert score.mean == pytest.approx((score.pearson[0] + score.pearson[1]) / 4)


def test_a_gene_that_was_not_measured_is_no_gene_of_another_name(tmp_path, counts):
    # Whatever stands last in the table of counts must not be taken for it.
    bank = _bank([[1, 2], [3, 1], [2, 5]], ["ERBB2", "MISSING"])
    path = _predict(tmp_path / "p.h5ad", ["1x1", "1x2", "2x1"], bank.genes, [[1, 1], [2, 8], [3, 0]])

    score = score_prediction(path, counts, bank)

    assert score.genes == ("MISSING", "ERBB2")
    assert score.n_absent == 1
    assert np.isnan(score.pearson[0])


def test_a_perfect_prediction_scores_1_and_its_opposite_minus_1(tmp_path, counts, bank):
    truth = np.log1p([[1000, 1000], [5000, 4000], [4000, 0], [5000, 3000]])
    spots = ["1x1", "1x2", "2x1", "3x3"]
    good = _predict(tmp_path / "good.h5ad", spots, ["ERBB2", "KRT8"], truth)
    bad = _predict(tmp_path / "bad.h5ad", spots, ["ERBB2", "KRT8"], 10 - truth)

    assert score_prediction(good, counts, bank, n_genes=2).mean == pytest.approx(1)
    assert score_prediction(bad, counts, bank, n_genes=2).mean == pytest.approx(-1)


def test_measured_counts_do_not_choose_the_genes(prediction, counts, bank):
    before = score_prediction(prediction, counts, bank, n_genes=2).genes
    counts.write_text("\tACTB\tCD3E\n1x1\t900\t1\n1x2\t1\t900\n2x1\t500\t3\n")

    after = score_prediction(prediction, counts, bank, n_genes=2)

    assert after.genes == before
    assert after.n_absent == 2
    assert after.mean == 0


# What is refused


@pytest.mark.parametrize(
    ("spots", "n_shared"), [(["8x8", "9x9"], 0), (["1x1", "9x9"], 1), (["2x2", "1x1"], 1)]
)
def test_two_shared_spots_are_needed(tmp_path, counts, bank, spots, n_shared):
    path = _predict(tmp_path / "p.h5ad", spots, GENES, np.eye(2, 4))

    with pytest.raises(SettingError, match=f"share {n_shared} spots$") as caught:
        score_prediction(path, counts, bank)

    assert "--spots FILE" in caught.value.fix


def test_a_prediction_of_few_genes_is_refused(tmp_path, counts, bank):
    path = _predict(tmp_path / "p.h5ad", ["1x1", "1x2"], ["ERBB2"], [[1], [2]])

    with pytest.raises(SettingError) as caught:
        score_prediction(path, counts, bank, n_genes=3, min_detected=0.4)

    assert caught.value.what == f"prediction {path} lacks 2 of the genes to compare (KRT8, …)"
    assert "--genes all" in caught.value.fix


def test_a_prediction_on_a_grid_is_refused(tmp_path, counts, bank):
    # Its places are named <column>x<row> as the spots of her2st, and lie elsewhere.
    path = _predict(tmp_path / "p.h5ad", ["1x1", "1x2"], GENES, np.eye(2, 4), source="grid over tissue")

    with pytest.raises(SettingError) as caught:
        score_prediction(path, counts, bank)

    assert caught.value.what == (
        f"prediction {path} is on a grid, whose names are not those of measured spots"
    )
    assert caught.value.fix == "predict with --spots FILE of the measured section"


def test_a_grid_of_the_runtime_is_known_as_one(tmp_path, counts):
    found = predict_slide(BOARD.with_name("board.png"), BOARD, out=tmp_path / "p.h5ad", mpp=5.0)

    with pytest.raises(SettingError, match="is on a grid"):
        score_prediction(found.path, counts, Bank.open(BOARD))


def test_a_prediction_of_another_bank_is_refused(tmp_path, counts, bank):
    other = tmp_path / "other.h5"
    other.write_bytes(b"another bank")
    path = _predict(tmp_path / "p.h5ad", ["1x1", "1x2"], GENES, np.eye(2, 4), bank=other)

    with pytest.raises(SettingError) as caught:
        score_prediction(path, counts, bank)

    assert caught.value.what == f"prediction {path} was made with another bank than {BOARD}"


def test_a_table_without_the_record_of_a_run_is_refused(tmp_path, counts, bank):
    path = _predict(tmp_path / "p.h5ad", ["1x1", "1x2"], GENES, np.eye(2, 4))
    table = anndata.read_h5ad(path)
    del table.uns["stinfer"]
    table.write_h5ad(path)

    with pytest.raises(SettingError, match=r"p\.h5ad cannot be read") as caught:
        score_prediction(path, counts, bank)

    assert "that stinfer-run wrote" in caught.value.fix


def test_a_file_that_is_no_prediction_is_refused(tmp_path, counts, bank):
    text = tmp_path / "text.h5ad"
    text.write_text("no HDF5")

    for path in (text, tmp_path / "none.h5ad", tmp_path):
        with pytest.raises(SettingError, match="cannot be read") as caught:
            score_prediction(path, counts, bank)
        assert str(path) in caught.value.what


def test_a_bank_in_place_of_a_prediction_is_refused(tmp_path, counts):
    # Its expression is stored sparse, as is that of a prediction that someone saved anew so.
    path = tmp_path / "bank.h5"
    shutil.copy(BOARD, path)

    with pytest.raises(SettingError, match=r"bank\.h5"):
        score_prediction(path, counts, Bank.open(BOARD))


def test_counts_that_cannot_be_read_are_refused(prediction, tmp_path, bank):
    with pytest.raises(DatasetError, match=r"none\.tsv: it cannot be read"):
        score_prediction(prediction, tmp_path / "none.tsv", bank)


def test_a_choice_of_no_genes_is_refused(prediction, counts, bank):
    with pytest.raises(SettingError, match="no gene"):
        score_prediction(prediction, counts, bank, min_detected=1.0)
