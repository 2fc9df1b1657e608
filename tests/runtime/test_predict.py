from __future__ import annotations

import math

import numpy as np
import pytest

from stinfer.predict import (
    confidence_from_distance,
    domain_distance,
    expression_from_neighbors,
    log1p_cp10k,
    neighbor_weights,
)


def f32(values):
    return np.asarray(values, dtype=np.float32)


def test_uniform_weights():
    assert neighbor_weights(f32([[0, 1, 5, 9]]), "uniform", 1.0).tolist() == [[0.25] * 4]


def test_inverse_weights_by_hand():
    # 1/1 : 1/2 : 1/4 = 4 : 2 : 1
    found = neighbor_weights(f32([[1, 2, 4]]), "inverse", 1.0)
    np.testing.assert_allclose(found, [[4 / 7, 2 / 7, 1 / 7]], rtol=1e-6)


def test_references_at_distance_zero_share_all_the_weight():
    found = neighbor_weights(f32([[0, 0, 3], [0, 1, 2], [1, 1, 2]]), "inverse", 1.0)
    np.testing.assert_allclose(found, [[0.5, 0.5, 0], [1, 0, 0], [0.4, 0.4, 0.2]], rtol=1e-6)


def test_the_smallest_distances_do_not_overflow():
    tiny = np.nextafter(np.float32(0), np.float32(1))
    for weighting in ("uniform", "inverse", "softmax"):
        found = neighbor_weights(f32([[tiny, 1.0]]), weighting, 1.0)
        assert np.isfinite(found).all()
        assert found.sum() == pytest.approx(1.0)


def test_softmax_weights_by_hand():
    found = neighbor_weights(f32([[1.0, 1.5, 3.0]]), "softmax", 0.5)
    raw = [math.exp(-2), math.exp(-3), math.exp(-6)]
    np.testing.assert_allclose(found, [[r / sum(raw) for r in raw]], rtol=1e-6)


def test_softmax_far_from_everything_still_weighs():
    # exp(-1000 / 0.01) alone is 0 in any floating-point number.
    found = neighbor_weights(f32([[1000.0, 1000.01]]), "softmax", 0.01)
    step = float(np.float32(1000.01)) - 1000.0
    np.testing.assert_allclose(found[0, 1] / found[0, 0], math.exp(-step / 0.01), rtol=1e-5)


@pytest.mark.parametrize("weighting", ["uniform", "inverse"])
def test_prediction_agrees_with_scikit_learn(weighting):
    neighbors = pytest.importorskip("sklearn.neighbors")
    rng = np.random.default_rng(1)
    references = rng.normal(size=(60, 6)).astype(np.float32)
    references[7] = references[3]  # two references in one place
    expression = rng.random((60, 4)).astype(np.float32)
    # The last queries are references themselves: distance zero, once twice over.
    queries = np.concatenate([rng.normal(size=(20, 6)), references[[3, 11]]]).astype(np.float32)
    search = neighbors.NearestNeighbors(n_neighbors=9, algorithm="brute").fit(references)
    distances = np.linalg.norm(queries[:, None].astype(float) - references[None].astype(float), axis=2)
    indices = search.kneighbors(queries, return_distance=False)
    indices = np.take_along_axis(
        indices, np.argsort(np.take_along_axis(distances, indices, axis=1), axis=1, kind="stable"), axis=1
    )
    chosen = np.take_along_axis(distances, indices, axis=1).astype(np.float32)
    found = expression_from_neighbors(neighbor_weights(chosen, weighting, 1.0), indices, expression)

    rule = {"uniform": "uniform", "inverse": "distance"}[weighting]
    regressor = neighbors.KNeighborsRegressor(n_neighbors=9, weights=rule, algorithm="kd_tree")
    expected = regressor.fit(references.astype(float), expression).predict(queries.astype(float))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    if weighting == "inverse":
        np.testing.assert_allclose(found[20], (expression[3] + expression[7]) / 2, atol=1e-6)
        np.testing.assert_allclose(found[21], expression[11], atol=1e-6)


def test_expression_by_hand():
    expression = f32([[1, 10], [2, 20], [4, 40]])
    weights = f32([[0.75, 0.25], [0.5, 0.5]])
    found = expression_from_neighbors(weights, np.array([[0, 2], [1, 1]]), expression)
    assert found.tolist() == [[1.75, 17.5], [2.0, 20.0]]


@pytest.mark.parametrize("layout", ["C", "F"])
@pytest.mark.parametrize("n_refs", [20, 150, 4000], ids=["all shared", "some shared", "scattered"])
def test_expression_agrees_with_double_precision_whatever_spots_share(n_refs, layout):
    rng = np.random.default_rng(2)
    expression = np.asarray(rng.random((n_refs, 11)), dtype=np.float32, order=layout)
    # Two products, of which the second is of fewer spots.
    indices = np.stack([rng.choice(n_refs, 5, replace=False) for _ in range(90)])
    weights = neighbor_weights(f32(rng.random((90, 5))), "inverse", 1.0)

    found = expression_from_neighbors(weights, indices, expression)

    exact = np.einsum("sk,skg->sg", weights.astype(np.float64), expression[indices].astype(np.float64))
    np.testing.assert_allclose(found, exact, rtol=1e-6)


def test_log1p_cp10k_by_hand():
    counts = np.array([[1, 0, 3], [5, 5, 0]])
    found = log1p_cp10k(counts, np.array([4, 20]))
    expected = [[math.log(2501), 0, math.log(7501)], [math.log(2501), math.log(2501), 0]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32


def test_log1p_cp10k_of_one_value_per_spot():
    # Values of a sparse matrix, each with the total of its own row.
    found = log1p_cp10k(np.array([1, 2]), np.array([10, 1000]))
    np.testing.assert_allclose(found, [math.log(1001), math.log(21)], rtol=1e-6)


@pytest.mark.filterwarnings("ignore")  # scanpy's own
def test_log1p_cp10k_agrees_with_scanpy():
    scanpy = pytest.importorskip("scanpy")
    anndata = pytest.importorskip("anndata")
    counts = np.random.default_rng(3).poisson(2.0, (20, 50)).astype(np.float32)
    table = anndata.AnnData(counts.copy())
    scanpy.pp.normalize_total(table, target_sum=1e4)
    scanpy.pp.log1p(table)
    np.testing.assert_allclose(log1p_cp10k(counts, counts.sum(axis=1)), table.X, rtol=1e-5, atol=1e-6)


def test_domain_distance_by_hand():
    distances = f32([[1, 3, 5, 7], [0, 0, 9, 90]])
    assert domain_distance(distances, 3).tolist() == [3.0, 3.0]
    assert domain_distance(distances, 1).tolist() == [1.0, 0.0]
    # Fewer neighbors than wanted: all of them.
    assert domain_distance(distances, 10).tolist() == [4.0, 24.75]


@pytest.mark.parametrize(
    ("distance", "expected"),
    [(0.0, 1.0), (1.0, 1.0), (1.5, 0.875), (2.0, 0.75), (4.0, 0.5), (10.0, 0.125), (12.0, 0.0), (99.0, 0.0)],
)
def test_confidence_by_hand(distance, expected):
    quantiles = f32([1, 2, 4, 8, 12])  # at 0, 1/4, 1/2, 3/4 and 1
    assert confidence_from_distance(f32([distance]), quantiles).tolist() == [expected]


def test_confidence_where_quantiles_are_equal():
    # Three quarters of the references lie at 0 and all lie at least that far; the same at 5.
    assert confidence_from_distance(f32([0.0]), f32([0, 0, 0, 0, 8])).tolist() == [1.0]
    assert confidence_from_distance(f32([5.0]), f32([5, 5, 5])).tolist() == [1.0]


def test_confidence_never_rises_with_distance():
    quantiles = np.sort(np.random.default_rng(5).random(101).astype(np.float32))
    found = confidence_from_distance(np.linspace(-0.1, 1.1, 500, dtype=np.float32), quantiles)
    assert (np.diff(found) <= 0).all()
    assert (found[0], found[-1]) == (1.0, 0.0)
