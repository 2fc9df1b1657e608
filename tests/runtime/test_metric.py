from __future__ import annotations

import numpy as np
import pytest

from stinfer.metric import (
    AffineMetric,
    balancing_metric,
    identity_metric,
    principal_projection,
    project,
    standardizing_metric,
)


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


def test_no_projection_leaves_embeddings_as_they_are():
    vectors = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert project(vectors, None) is vectors


def test_every_window_is_projected_by_hand():
    projection = np.array([[1, 2], [0, -1], [3, 0]], np.float32)
    # Two windows of three channels: (1, 2, 3) and (4, 5, 6).
    found = project(np.array([[1, 2, 3, 4, 5, 6]], np.float32), projection)
    assert found.tolist() == [[1 + 9, 2 - 2, 4 + 18, 8 - 5]]


def test_principal_directions_of_two_channels_by_hand():
    # Channels 10, 14 and 0, 4 in the first window, 10 more in the second: both are 7, 3, 3 and 7 off their
    # mean, so their variance is 29. Less each window's mean they vary together: along (1, 1) / sqrt(2).
    embeddings = np.array([[10, 0, 20, 10], [14, 4, 24, 14]], np.float32)
    projection = principal_projection(embeddings, 2, 1)
    np.testing.assert_allclose(projection, [[1 / np.sqrt(58)], [1 / np.sqrt(58)]], rtol=1e-5)


def made_up(n_refs, n_windows, n_channels, seed=0):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(n_channels, n_channels))
    shared = rng.normal(size=(n_refs, 1, n_channels)) @ mixing
    own = rng.normal(size=(n_refs, n_windows, n_channels)) * 0.3
    offset = rng.normal(size=(n_windows, n_channels)) * 5
    scale = np.array([1e-2, 1, 30, 5, 0.3, 100])[:n_channels]
    return ((shared + own + offset) * scale).reshape(n_refs, -1).astype(np.float32)


def test_principal_directions_equal_a_singular_value_decomposition():
    n_refs, n_windows, n_channels = 80, 3, 6
    embeddings = made_up(n_refs, n_windows, n_channels)
    windows = embeddings.reshape(n_refs, n_windows, n_channels).astype(np.float64)
    deviation = windows.reshape(-1, n_channels).std(axis=0)
    standardized = ((windows - windows.mean(axis=0)) / deviation).reshape(-1, n_channels)
    _, _, directions = np.linalg.svd(standardized, full_matrices=False)
    projection = principal_projection(embeddings, n_windows, 4)
    assert (projection.shape, projection.dtype) == ((n_channels, 4), np.float32)
    found = projection * deviation[:, None]
    for found_one, expected in zip(found.T, directions, strict=False):
        sign = np.sign(expected[np.abs(expected).argmax()])
        np.testing.assert_allclose(found_one, sign * expected, atol=1e-4)
        assert found_one[np.abs(found_one).argmax()] > 0


def test_principal_directions_agree_with_scikit_learn():
    decomposition = pytest.importorskip("sklearn.decomposition")
    embeddings = made_up(60, 1, 6, seed=1)
    standardized = (embeddings - embeddings.mean(axis=0)) / embeddings.std(axis=0)
    expected = decomposition.PCA(3).fit_transform(standardized.astype(np.float64))
    found = project(embeddings - embeddings.mean(axis=0), principal_projection(embeddings, 1, 3))
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-3)


@pytest.mark.parametrize(("n_refs", "asked", "kept"), [(50, 4, 4), (50, 64, 6), (4, 64, 3), (2, 64, 1)])
def test_no_more_directions_than_there_are(n_refs, asked, kept):
    assert principal_projection(made_up(n_refs, 2, 6), 2, asked).shape == (6, kept)


def test_a_channel_that_never_varies_is_projected_to_nothing():
    embeddings = made_up(30, 2, 4)
    embeddings.reshape(30, 2, 4)[:, :, 2] = 7.0
    projection = principal_projection(embeddings, 2, 3)
    assert not projection[2].any()
    assert np.isfinite(projection).all()


def test_balance_by_hand():
    # The first window varies by (2, 0) around (1, 5), the second by (0, 6) and (8, 0) around others.
    projected = np.array([[-1, 5, 10, -6], [3, 5, 26, 6]], np.float32)
    metric = balancing_metric(projected, 2)
    assert metric.mean.tolist() == [1, 5, 18, 0]
    # Total variances 4 and 64 + 36.
    np.testing.assert_allclose(metric.components, [1 / 2, 1 / 2, 1 / 10, 1 / 10], rtol=1e-6)
    np.testing.assert_allclose(metric.apply(projected), [[-1, 0, -0.8, -0.6], [1, 0, 0.8, 0.6]], rtol=1e-6)


def test_balanced_windows_count_alike():
    projected = made_up(200, 3, 4, seed=2)
    found = balancing_metric(projected, 3).apply(projected)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(found.reshape(200, 3, 4).var(axis=0).sum(axis=1), 1, rtol=1e-3)


def test_a_window_that_never_varies_is_left_out():
    metric = balancing_metric(np.array([[1, 2, 7, 7], [3, 2, 7, 7]], np.float32), 2)
    assert metric.components.tolist() == [1, 1, 0, 0]
