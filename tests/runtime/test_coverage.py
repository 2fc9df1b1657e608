"""Genes that not every origin of a merged bank measures: who votes for them, by hand and by brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stinfer import prediction
from stinfer.coverage import Coverage
from stinfer.neighbor_file import NeighborFile, Neighbors
from stinfer.origin_search import OriginSearch
from stinfer.predict import neighbor_weights
from stinfer.prediction import Intervals, iter_expression, iter_intervals
from stinfer.sparse import Sparse
from stinfer.voters import OriginNeighbors


@pytest.fixture(autouse=True, params=["as a matrix", "as stored"])
def held(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Average everything in both ways."""
    if request.param == "as stored":
        monkeypatch.setattr(prediction, "_MATRIX", 0)


# Five references on a line, of origins 0, 1, 0, 1, 0.
PLACES = np.array([[0.0], [1.0], [2.0], [4.0], [8.0]], dtype=np.float32)
ORIGIN_OF = np.array([0, 1, 0, 1, 0])
# Gene 0 is measured by both, gene 1 by origin 0, gene 2 by origin 1.
MEASURED = np.array([[True, True, False], [True, False, True]])
COVERAGE = Coverage(ORIGIN_OF, MEASURED)
# What a gene was not measured for is not stored: rows 1 and 3 of gene 1, rows 0, 2 and 4 of gene 2.
DENSE = np.array([[1, 6, 0], [2, 0, 5], [3, 0, 0], [4, 0, 7], [5, 12, 0]], dtype=np.float32)


def to_sparse(dense: np.ndarray, coverage: Coverage | None) -> Sparse:
    rows, columns = np.nonzero(dense)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(dense)))])
    return Sparse(dense[rows, columns], columns.astype(np.int32), indptr, dense.shape[1], coverage)


def find(queries: np.ndarray, k: int, weighting: str = "uniform") -> Neighbors:
    """Find the neighbors of all, and those of each origin."""
    distances = np.abs(queries - PLACES[:, 0])
    indices = np.argsort(distances, axis=1, kind="stable")[:, :k]
    near = np.take_along_axis(distances, indices, axis=1).astype(np.float32)
    found = OriginSearch(PLACES, ORIGIN_OF, 2, "euclidean").query(queries.astype(np.float32), k)
    return Neighbors(indices, neighbor_weights(near, weighting, 1.0), OriginNeighbors(*found, weighting, 1.0))


def predicted(expression: Sparse, chosen: list[int], neighbors: Neighbors) -> np.ndarray:
    found = np.full((len(neighbors), len(chosen)), np.nan)
    for spots, genes, values in iter_expression(expression, np.asarray(chosen), neighbors):
        found[spots, genes] = values
    return found


def test_an_unmeasured_gene_is_not_0_and_its_neighbor_does_not_vote() -> None:
    # At 1.2 the two nearest of all are references 1 and 2, whose gene 0 is 2 and 3. Gene 1: references 2 (0,
    # for it was measured) and 0 (6), not 1. Gene 2: references 1 (5) and 3 (7), not 2.
    found = predicted(to_sparse(DENSE, COVERAGE), [0, 1, 2], find(np.array([[1.2]]), 2))
    assert found.tolist() == [[2.5, 3.0, 6.0]]


def test_where_no_neighbor_measures_a_gene_the_nearest_that_do_vote() -> None:
    # At 8 the two nearest are references 4 and 3. With k 1 the one nearest is of origin 0 alone.
    found = predicted(to_sparse(DENSE, COVERAGE), [0, 1, 2], find(np.array([[8.0]]), 1))
    assert found.tolist() == [[5.0, 12.0, 7.0]]


def test_weights_are_those_of_the_voters_alone() -> None:
    # From 3: references 2 and 3 at 1, 1 at 2, 0 at 3, 4 at 5. Inverse, two of each: gene 1 of references 2 at
    # 1 and 0 at 3, weights 3/4 and 1/4; gene 2 of 3 at 1 and 1 at 2, weights 2/3 and 1/3.
    found = predicted(to_sparse(DENSE, COVERAGE), [0, 1, 2], find(np.array([[3.0]]), 2, "inverse"))
    np.testing.assert_allclose(found, [[3.5, 6 / 4, 7 * 2 / 3 + 5 / 3]], rtol=1e-6)


def test_an_origin_of_fewer_references_than_k_votes_with_all_of_them() -> None:
    # k is 4; origin 1 has two references, whose mean is 6, and origin 0 three: 6, 0 and 12.
    found = predicted(to_sparse(DENSE, COVERAGE), [2, 1], find(np.array([[3.0]]), 4))
    np.testing.assert_allclose(found, [[6.0, 6.0]], rtol=1e-6)


def test_genes_keep_the_order_asked_for() -> None:
    neighbors = find(np.array([[1.2], [8.0]]), 2)
    in_order = predicted(to_sparse(DENSE, COVERAGE), [0, 1, 2], neighbors)
    turned = predicted(to_sparse(DENSE, COVERAGE), [2, 0, 1], neighbors)
    np.testing.assert_array_equal(turned, in_order[:, [2, 0, 1]])


def test_where_all_is_measured_nothing_changes_by_a_bit() -> None:
    random = np.random.default_rng(3)
    dense = random.random((5, 40)).astype(np.float32)
    everything = Coverage(ORIGIN_OF, np.ones((2, 40), dtype=bool))
    neighbors = find(random.random((30, 1)) * 8, 3, "softmax")
    plain = Neighbors(neighbors.indices, neighbors.weights)
    chosen = list(range(40))
    np.testing.assert_array_equal(
        predicted(to_sparse(dense, everything), chosen, neighbors),
        predicted(to_sparse(dense, None), chosen, plain),
    )


@pytest.mark.parametrize("weighting", ["uniform", "inverse", "softmax"])
@pytest.mark.parametrize("k", [1, 7, 30])
def test_every_gene_is_predicted_as_by_the_references_that_measure_it(weighting: str, k: int) -> None:
    random = np.random.default_rng(k)
    places, queries = random.normal(size=(60, 3)), random.normal(size=(11, 3))
    origin_of = random.integers(0, 3, 60)
    measured = random.random((3, 9)) < 0.6
    measured[0, ~measured.any(axis=0)] = True
    dense = np.where(measured[origin_of], random.random((60, 9)), 0).astype(np.float32)
    coverage = Coverage(origin_of, measured)
    search = OriginSearch(places.astype(np.float32), origin_of, 3, "euclidean")
    by_origin = OriginNeighbors(*search.query(queries.astype(np.float32), k), weighting, 0.5)
    everyone = Neighbors(*by_origin.voters(np.ones(3, dtype=bool)), by_origin)
    found = predicted(to_sparse(dense, coverage), list(range(9)), everyone)
    intervals = Intervals(np.full(9, 2.0, dtype=np.float32), np.zeros(9, dtype=np.float32))
    half = np.empty((11, 9))
    for spots, genes, values, _, upper in iter_intervals(
        to_sparse(dense, coverage), np.arange(9), everyone, intervals
    ):
        np.testing.assert_allclose(values, found[spots, genes], rtol=1e-6)
        half[spots, genes] = upper - values

    for gene in range(9):
        own = np.flatnonzero(measured[origin_of, gene])
        for query in range(11):
            distances = np.linalg.norm(places[own] - queries[query], axis=1)
            nearest = np.argsort(distances)[:k]
            d = distances[nearest]
            raw = {"uniform": np.ones_like(d), "inverse": 1 / d, "softmax": np.exp(-d / 0.5)}[weighting]
            weights, values = raw / raw.sum(), dense[own[nearest], gene]
            mean = (weights * values).sum()
            np.testing.assert_allclose(found[query, gene], mean, rtol=1e-4)
            # A scale of 2 and a floor of 0: half the width is the spread.
            spread = np.sqrt((weights * (values - mean) ** 2).sum())
            np.testing.assert_allclose(half[query, gene], spread, atol=2e-3)


def test_genes_are_grouped_by_what_measures_them() -> None:
    assert COVERAGE.n_origins == 2
    groups = [
        (origins.tolist(), positions.tolist())
        for origins, positions in Coverage(ORIGIN_OF, MEASURED[:, [1, 0, 2, 1]]).groups(
            np.array([3, 1, 2, 0])
        )
    ]
    assert groups == [([True, False], [0, 3]), ([True, True], [1]), ([False, True], [2])]
    assert COVERAGE.is_partial(np.array([0, 1]))
    assert not COVERAGE.is_partial(np.array([0]))
    assert COVERAGE.n_measuring().tolist() == [5, 3, 2]
    assert COVERAGE.rows(np.array([1, 3, 4])).n_measuring().tolist() == [3, 1, 2]


def test_columns_that_all_measure_by_themselves() -> None:
    some = to_sparse(DENSE, COVERAGE).only_columns(np.array([0, 2]))
    assert some.coverage is None
    assert some.is_valid()
    assert some.columns(np.arange(2)).tolist() == DENSE[:, [0, 2]].tolist()
    assert to_sparse(DENSE, COVERAGE).n_measured == 10
    assert to_sparse(DENSE, None).n_measured == 15


def test_rows_without_any_reference_of_an_origin_have_no_weight() -> None:
    distances = np.array([[[1.0, 3.0], [np.inf, np.inf]]], dtype=np.float32)
    indices = np.array([[[4, 2], [0, 0]]])
    for weighting in ("uniform", "inverse", "softmax"):
        neighbors = OriginNeighbors(distances, indices, weighting, 1.0)
        assert neighbors.voters(np.array([False, True]))[1].tolist() == [[0.0, 0.0]]
        first, weights = neighbors.voters(np.array([True, True]))
        assert first.tolist() == [[4, 2]]
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)
    assert neighbors[:0].distances.shape == (0, 2, 2)


def test_equally_near_voters_come_in_the_references_order() -> None:
    distances = np.array([[[1.0, 2.0], [1.0, 2.0]]], dtype=np.float32)
    indices = np.array([[[7, 3], [5, 1]]])
    found, _ = OriginNeighbors(distances, indices, "uniform", 1.0).voters(np.array([True, True]))
    assert found.tolist() == [[5, 7]]


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_origins_are_searched_as_all_are(distance: str) -> None:
    random = np.random.default_rng(5)
    places = random.normal(size=(40, 4)).astype(np.float32)
    queries = random.normal(size=(6, 4)).astype(np.float32)
    origin_of = np.repeat([0, 2], 20)  # origin 1 has no reference
    distances, indices = OriginSearch(places, origin_of, 3, distance).query(queries, 25)
    assert np.isinf(distances[:, 1]).all()
    assert np.isinf(distances[:, [0, 2], 20:]).all()
    for origin in (0, 2):
        assert (origin_of[indices[:, origin, :20]] == origin).all()
    a, b = (vectors.astype(float) for vectors in (queries, places))
    if distance == "cosine":
        a, b = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (a, b))
    exact = np.linalg.norm(a[:, None] - b[None], axis=2)
    exact = exact**2 / 2 if distance == "cosine" else exact
    for origin in (0, 2):
        expected = np.sort(exact[:, origin_of == origin], axis=1)
        np.testing.assert_allclose(distances[:, origin, :20], expected, atol=1e-5)


def test_neighbors_of_each_origin_are_kept_on_disk(tmp_path: Path) -> None:
    neighbors = find(np.linspace(0, 8, 13)[:, None], 2, "softmax")
    with NeighborFile(tmp_path, 13, 2, 2, "softmax", 1.0) as kept:
        for spots in (np.arange(5, 13), np.arange(5)):
            assert neighbors.by_origin is not None
            some = OriginNeighbors(
                neighbors.by_origin.distances[spots], neighbors.by_origin.indices[spots], "softmax", 1.0
            )
            kept.write(spots, Neighbors(neighbors.indices[spots], neighbors.weights[spots], some))
        np.testing.assert_array_equal(
            predicted(to_sparse(DENSE, COVERAGE), [0, 1, 2], kept),
            predicted(to_sparse(DENSE, COVERAGE), [0, 1, 2], neighbors),
        )
