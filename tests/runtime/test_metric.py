from __future__ import annotations

import numpy as np
import pytest

from stinfer.metric import AffineMetric, identity_metric, standardizing_metric


def test_identity_changes_nothing():
    vectors = np.array([[1.5, -2.0, 0.0], [1e-7, 3e7, -0.25]], dtype=np.float32)
    assert np.array_equal(identity_metric(3).apply(vectors), vectors)


def test_diagonal_by_hand():
    metric = AffineMetric(np.array([1, 2], np.float32), np.array([2, -0.5], np.float32))
    assert metric.apply(np.array([[3, 4], [1, 2]], np.float32)).tolist() == [[4.0, -1.0], [0.0, 0.0]]


def test_matrix_by_hand():
    components = np.array([[1, 0, 2], [0, 3, -1]], np.float32)
    metric = AffineMetric(np.array([1, 1], np.float32), components)
    # (3, 5) - (1, 1) = (2, 4): 2*1, 4*3, 2*2 - 4*1
    assert metric.apply(np.array([[3, 5]], np.float32)).tolist() == [[2.0, 12.0, 0.0]]


def test_results_are_float32_whatever_comes_in():
    assert identity_metric(2).apply(np.ones((1, 2))).dtype == np.float32


def test_standardizing_agrees_with_scikit_learn():
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(200, 5)) * [1, 10, 0.01, 1e4, 1e-5] + [0, 5, -3, 1e4, 1e-4]).astype(
        np.float32
    )
    expected = preprocessing.StandardScaler().fit_transform(vectors.astype(np.float64))
    np.testing.assert_allclose(standardizing_metric(vectors).apply(vectors), expected, atol=2e-3)


def test_components_that_do_not_vary_are_left_out():
    vectors = np.array([[7, 0, 1], [7, 0, 3]], dtype=np.float32)
    metric = standardizing_metric(vectors)
    assert metric.apply(vectors).tolist() == [[0, 0, -1], [0, 0, 1]]
    # A query that differs there is not thrown infinitely far away.
    assert metric.apply(np.array([[8, 5, 2]], np.float32)).tolist() == [[0, 0, 0]]


def test_a_component_that_varies_by_rounding_alone_is_left_out():
    base = np.float32(1000.0)
    vectors = np.array([[base], [np.nextafter(base, np.float32(2000))]] * 5, dtype=np.float32)
    assert standardizing_metric(vectors).components.tolist() == [0.0]
