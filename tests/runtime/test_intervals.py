"""Intervals and neighbors of a prediction, and the genes that can be predicted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

import stinfer
from stinfer.bank import Bank
from stinfer.errors import SettingError
from stinfer.genes import notice_doubtful, select_genes
from stinfer.open_bank import OpenBank
from stinfer.predict import interval_half_width, spread_from_neighbors
from stinfer.record import Notices

DATA = Path(__file__).parents[1] / "data"
BANK, BOARD = DATA / "board.h5", DATA / "board.png"


def test_the_spread_of_neighbors_by_hand() -> None:
    expression = np.array([[1, 2], [3, 2], [7, 2]], dtype=np.float32)
    indices = np.array([[0, 1], [2, 1]])
    weights = np.array([[0.5, 0.5], [0.75, 0.25]], dtype=np.float32)
    mean = np.array([[2, 2], [6, 2]], dtype=np.float32)
    # Of 1 and 3 alike: 1; of 7 and, a quarter, 3: the root of 0.75 * 1 + 0.25 * 9.
    for middle in ([0, 0], [11 / 3, 2]):  # about which it is computed makes no difference
        found = spread_from_neighbors(weights, indices, expression, mean, np.array(middle, dtype=np.float32))
        np.testing.assert_allclose(found, [[1, 0], [np.sqrt(3), 0]], rtol=1e-5, atol=1e-6)


def test_half_of_a_width_goes_with_the_neighbors_and_half_is_the_genes_own() -> None:
    spread = np.array([[0, 1], [2, 3]], dtype=np.float32)
    found = interval_half_width(spread, np.array([2, np.nan], np.float32), np.array([0.5, 1], np.float32))
    np.testing.assert_array_equal(found, [[0.5, np.nan], [2.5, np.nan]])


@pytest.mark.parametrize("genes", [["RED", "GREEN"], "all"], ids=["some", "all"])
def test_layers_and_neighbors_are_those_of_the_bank(tmp_path: Path, genes: list[str] | str) -> None:
    arguments = {"mpp": 5.0, "pitch_um": 150, "genes": genes, "weighting": "softmax", "k": 5}
    plain = stinfer.predict_slide(BOARD, BANK, out=tmp_path / "plain.h5ad", **arguments)
    result = stinfer.predict_slide(
        BOARD, BANK, out=tmp_path / "p.h5ad", intervals=True, save_neighbors=True, **arguments
    )
    with h5py.File(plain.path) as file:
        values = file["X"][...]
        assert list(file["layers"]) == []
        assert "neighbor_index" not in file["obsm"]
    with h5py.File(result.path) as file:
        names = file["var/_index"].asstr()[...].tolist()
        lower, upper = (file[f"layers/{name}"][...] for name in ("lower", "upper"))
        indices, weights = file["obsm/neighbor_index"][...], file["obsm/neighbor_weight"][...]
        np.testing.assert_allclose(file["X"][...], values, rtol=1e-6)
    bank = Bank.open(BANK)
    chosen = np.array([bank.genes.index(name) for name in names])
    neighbors = bank.expression.columns(chosen)[indices].astype(np.float64)
    assert indices.shape == weights.shape == (len(values), 5)
    assert (np.diff(weights, axis=1) <= 0).all()  # the nearest first
    mean = (weights[..., None] * neighbors).sum(axis=1)
    np.testing.assert_allclose(values, mean, rtol=1e-5)
    spread = np.sqrt((weights[..., None] * (neighbors - mean[:, None]) ** 2).sum(axis=1))
    scale, floor = (bank.gene_columns[f"interval_{name}"][chosen] for name in ("scale", "floor"))
    half = scale * (spread + floor) / 2
    # A spread is the root of a difference of squares, of which few digits are left where it is small.
    np.testing.assert_allclose(upper, mean + half, atol=0.01)
    np.testing.assert_allclose(lower, np.maximum(mean - half, 0), atol=0.01)
    assert (lower < values).all()
    assert (values < upper).all()


@pytest.mark.parametrize("name", ["board_v1.h5", "board_v2.h5"])
def test_a_bank_of_before_there_were_intervals_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingError, match="was built before there were any"):
        stinfer.predict_slide(BOARD, DATA / name, out=tmp_path / "p.h5ad", mpp=5.0, intervals=True)
    assert list(tmp_path.iterdir()) == []


MEANING = "(cross-validated correlation of at least 0.2)"


@pytest.mark.parametrize("request_", ["predictable", None], ids=["asked", "default"])
def test_predictable_genes_are_those_of_a_correlation_of_a_fifth(request_: str | None) -> None:
    genes, notices = ("A", "B", "C", "D"), Notices()
    accuracy = np.array([0.2, np.nan, 0.19, 0.7])
    assert select_genes(request_, genes, None, notices, accuracy).tolist() == [0, 3]
    assert notices.texts == [f"2 of 4 genes are predicted, those that are predictable {MEANING}"]


@pytest.mark.parametrize(
    ("request_", "accuracy"),
    [("all", [0.2, 0.1]), (None, [0.1, np.nan]), (None, None)],
    ids=["all", "default, none predictable", "default, unknown"],
)
def test_where_all_genes_are_predicted_it_is_said_how_many_are_predictable(
    request_: str | None, accuracy: list[float] | None
) -> None:
    notices, known = Notices(), None if accuracy is None else np.asarray(accuracy)
    assert select_genes(request_, ("A", "B"), None, notices, known).tolist() == [0, 1]
    n_predictable = 1 if request_ == "all" else 0
    assert notices.texts == [f"all 2 genes are predicted, of which {n_predictable} are predictable {MEANING}"]


def test_nothing_is_said_where_every_gene_is_predictable() -> None:
    notices = Notices()
    assert select_genes(None, ("A", "B"), None, notices, np.array([0.2, 0.9])).tolist() == [0, 1]
    assert notices.texts == []


def test_genes_that_are_named_and_not_predictable_are_told() -> None:
    notices = Notices()
    notice_doubtful([2, 0, 1, 2], ("A", "B", "C"), np.array([0.2, np.nan, 0.123]), notices)
    assert notices.texts == [f"2 of the 3 genes named are not predictable {MEANING}: B (unknown), C (0.12)"]


def test_of_many_doubtful_genes_five_are_shown() -> None:
    notices = Notices()
    notice_doubtful(range(7), tuple("ABCDEFG"), None, notices)
    (text,) = notices.texts
    assert text.endswith("A (unknown), B (unknown), C (unknown), D (unknown), E (unknown), …")


def test_a_named_gene_that_is_not_predictable_is_told_in_the_record(tmp_path: Path) -> None:
    """The board's genes are predictable; of a bank where the second is not."""
    bank = OpenBank(BANK, device="cpu", threads=None, search="exact")
    gene, others = bank.bank.genes[1], [name for i, name in enumerate(bank.bank.genes) if i != 1]
    accuracy = np.full(len(bank.bank.genes), 0.9, dtype=np.float32)
    accuracy[1] = 0.05
    bank.bank = replace(bank.bank, gene_columns={**bank.bank.gene_columns, "cv_pearson": accuracy})
    told = f"1 of the 1 genes named are not predictable {MEANING}: {gene} (0.05)"
    named = stinfer.predict_slide(BOARD, bank, out=tmp_path / "named.h5ad", mpp=5.0, genes=[gene])
    assert told in named.notices
    drawn = stinfer.predict_slide(BOARD, bank, out=tmp_path / "drawn.h5ad", mpp=5.0, png=[gene])
    assert told in drawn.notices
    with h5py.File(tmp_path / "drawn.h5ad") as file:
        assert file["var/_index"].asstr()[:].tolist() == others
        assert told in file["uns/stinfer/notices"].asstr()[:].tolist()


@pytest.mark.parametrize("accuracy", [None, np.array([np.nan, 0.1])], ids=["unknown", "low"])
def test_where_no_gene_is_predictable_that_is_an_error(accuracy: np.ndarray | None) -> None:
    with pytest.raises(SettingError, match=r"no gene of the bank has a cross-validated correlation of at"):
        select_genes("predictable", ("A", "B"), None, Notices(), accuracy)
