"""Averages over stored rows against sums in double precision, one by one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from stinfer import averaging, prediction
from stinfer.averaging import StoredAverager, gene_groups
from stinfer.neighbor_file import Neighbors
from stinfer.prediction import Intervals, iter_expression, iter_intervals
from stinfer.sparse import Sparse

N_REFS, N_GENES = 300, 200


def to_sparse(dense: np.ndarray) -> Sparse:
    rows, columns = np.nonzero(dense)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(dense)))])
    return Sparse(dense[rows, columns], columns.astype(np.int32), indptr, dense.shape[1])


def made_up(n_spots: int, k: int, n_near: int) -> tuple[np.ndarray, Neighbors]:
    """Draw references of 0 to 190 genes, and spots whose neighbors are among so many of them."""
    random = np.random.default_rng(n_near)
    shown = random.random((N_REFS, N_GENES)) < random.permutation(np.linspace(0, 0.95, N_REFS))[:, None]
    dense = np.where(shown, random.gamma(2.0, 1.0, shown.shape), 0).astype(np.float32)
    near = random.permutation(N_REFS)[:n_near]
    indices = np.array([random.permutation(near)[:k] for _ in range(n_spots)])
    return dense, Neighbors(indices, random.dirichlet(np.ones(k), n_spots).astype(np.float32))


def expected(dense: np.ndarray, neighbors: Neighbors) -> tuple[np.ndarray, np.ndarray]:
    """Average one value after the other: mean and spread."""
    weights, values = neighbors.weights[..., None].astype(float), dense[neighbors.indices].astype(float)
    mean = (weights * values).sum(axis=1)
    return mean, np.sqrt((weights * (values - mean[:, None]) ** 2).sum(axis=1))


def assembled(expression: Sparse, chosen: np.ndarray, neighbors: Neighbors, n_workers: int) -> np.ndarray:
    found = np.full((len(neighbors), len(chosen)), np.nan, dtype=np.float32)
    for spots, genes, values in iter_expression(expression, chosen, neighbors, n_workers=n_workers):
        found[spots, genes] = values
    return found


@pytest.fixture
def many_genes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no matrix of all references be made, and blocks be small."""
    monkeypatch.setattr(prediction, "_MATRIX", 0)
    monkeypatch.setattr(prediction, "_SPOTS_PER_CHUNK", 70)
    monkeypatch.setattr(prediction, "_CHUNKS_PER_BLOCK", 1)
    monkeypatch.setattr(averaging, "_JOINED", 500)
    monkeypatch.setattr(averaging, "_DENSE", 16)


# From all neighbors in common, each made dense, to hardly any, and none of them made dense.
SHARED = {"all": (20, 20), "many": (20, 50), "some": (20, 300), "hardly any": (2, 300)}


@pytest.mark.usefixtures("many_genes")
@pytest.mark.parametrize(("k", "n_near"), SHARED.values(), ids=SHARED)
@pytest.mark.parametrize("genes", ["all", "some, in another order"])
def test_means_are_those_of_double_precision(k: int, n_near: int, genes: str) -> None:
    dense, neighbors = made_up(150, k, n_near)
    chosen = np.arange(N_GENES) if genes == "all" else np.random.default_rng(1).permutation(N_GENES)[:150]
    found = assembled(to_sparse(dense), chosen, neighbors, 2)
    np.testing.assert_allclose(found, expected(dense, neighbors)[0][:, chosen], rtol=2e-6, atol=1e-12)


@pytest.mark.usefixtures("many_genes")
@pytest.mark.parametrize(("k", "n_near"), SHARED.values(), ids=SHARED)
@pytest.mark.parametrize("genes", ["all", "some"])
def test_spreads_are_those_of_double_precision(k: int, n_near: int, genes: str) -> None:
    dense, neighbors = made_up(150, k, n_near)
    chosen = np.arange(0, N_GENES, 1 if genes == "all" else 3)
    mean, spread = (values[:, chosen] for values in expected(dense, neighbors))
    # A scale of 2 and a floor of 0: half the width is the spread.
    intervals = Intervals(*(np.full(len(chosen), value, dtype=np.float32) for value in (2, 0)))
    for spots, genes_, values, lower, upper in iter_intervals(
        to_sparse(dense), chosen, neighbors, intervals, n_workers=2
    ):
        np.testing.assert_allclose(values, mean[spots, genes_], rtol=2e-6, atol=1e-12)
        np.testing.assert_allclose(upper - values, spread[spots, genes_], rtol=1e-4, atol=2e-3)
        np.testing.assert_allclose(lower, np.maximum(values - (upper - values), 0), atol=1e-5)


@pytest.mark.usefixtures("many_genes")
@pytest.mark.parametrize(("k", "n_near"), SHARED.values(), ids=SHARED)
def test_threads_and_where_values_lie_change_no_bit(
    in_file: Callable[[Sparse], Sparse], k: int, n_near: int
) -> None:
    dense, neighbors = made_up(400, k, n_near)
    held, every = to_sparse(dense), np.arange(N_GENES)
    found = [
        assembled(expression, every, neighbors, n) for expression in (held, in_file(held)) for n in (1, 2, 5)
    ]
    assert len({values.tobytes() for values in found}) == 1


def test_many_values_are_held_spot_by_spot(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, neighbors = made_up(40, 20, 100)
    expression = to_sparse(dense)
    read: list[int] = []
    real = Sparse.rows

    def counted(self: Sparse, chosen: np.ndarray, *others: object) -> Sparse:
        read.append(int(np.diff(self.indptr)[chosen].sum()))
        return real(self, chosen, *others)

    monkeypatch.setattr(Sparse, "rows", counted)
    for limit in (3000, 1):
        monkeypatch.setattr(averaging, "_STORED", limit)
        read.clear()
        (found,) = StoredAverager(expression, gene_groups(expression, np.arange(N_GENES)), None).average(
            neighbors
        )
        np.testing.assert_allclose(found, expected(dense, neighbors)[0], rtol=2e-6, atol=1e-12)
        assert len(read) == 40 if limit == 1 else max(read) <= limit


def test_by_hand_what_two_share_and_what_one_has_alone() -> None:
    # Both spots use reference 0, of 2 genes of 4: two uses of 2 values are as many as it has columns.
    dense = np.array([[4, 0, 8, 0], [0, 6, 0, 0], [0, 0, 2, 0]], dtype=np.float32)
    expression = to_sparse(dense)
    neighbors = Neighbors(np.array([[0, 1], [2, 0]]), np.array([[0.5, 0.5], [0.75, 0.25]], dtype=np.float32))
    groups = gene_groups(expression, np.arange(4))
    mean, spread = StoredAverager(expression, groups, np.zeros(4, np.float32)).average(neighbors)
    assert mean.tolist() == [[2, 3, 4, 0], [1, 0, 3.5, 0]]
    # 4 and 0 lie 2 from their mean, 6 and 0 lie 3, 8 and 0 lie 4; of 4 and three 0 the root of 3, and so on.
    np.testing.assert_allclose(spread, [[2, 3, 4, 0], [3**0.5, 0, 27**0.5 / 2, 0]], rtol=1e-6)
