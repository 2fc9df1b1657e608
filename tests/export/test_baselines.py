"""The baselines, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from stinfer_export.evaluation import baselines

decomposition = pytest.importorskip("sklearn.decomposition")
linear_model = pytest.importorskip("sklearn.linear_model")
neighbors = pytest.importorskip("sklearn.neighbors")
preprocessing = pytest.importorskip("sklearn.preprocessing")


@pytest.fixture
def spots():
    """Sixty training and ten held-out spots; expression depends on the embedding, with noise."""
    rng = np.random.default_rng(2)
    embedding = rng.normal(3.0, 2.0, (70, 12)).astype(np.float32)
    noise = rng.normal(0.0, 12.0, (70, 5))
    expression = (embedding[:, :4] @ rng.normal(size=(4, 5)) + noise).astype(np.float32)
    return embedding[:60], expression[:60], embedding[60:], expression[60:]


def test_hest_ridge_is_scikit_learns_ridge_on_standardized_components(spots):
    train, expression, test, _ = spots
    scaler = preprocessing.StandardScaler().fit(train)
    pca = decomposition.PCA(12, svd_solver="full").fit(scaler.transform(train))
    known, asked = (pca.transform(scaler.transform(part)) for part in (train, test))
    expected = linear_model.Ridge(100 / (12 * 5)).fit(known, expression).predict(asked)
    np.testing.assert_allclose(baselines.hest_ridge(train, expression, test), expected, atol=2e-4)


def test_the_ridges_alpha_is_that_which_predicts_the_other_groups_best(spots):
    train, expression, test, _ = spots
    groups = np.repeat([0, 1, 2], 20)

    def fitted(rows, asked, alpha):
        scaler = preprocessing.StandardScaler().fit(train[rows])
        model = linear_model.Ridge(alpha).fit(scaler.transform(train[rows]), expression[rows])
        return model.predict(scaler.transform(asked))

    def score(alpha):
        found = []
        for group in range(3):
            predicted = fitted(groups != group, train[groups == group], alpha)
            measured = expression[groups == group]
            found.append([np.corrcoef(predicted[:, g], measured[:, g])[0, 1] for g in range(5)])
        return np.mean(found)

    best = max(baselines.RIDGE_ALPHAS, key=score)
    assert best not in (baselines.RIDGE_ALPHAS[0], baselines.RIDGE_ALPHAS[-1])
    predicted = baselines.cross_validated_ridge(train, expression, test, groups)
    np.testing.assert_allclose(predicted, fitted(slice(None), test, best), atol=2e-4)


@pytest.mark.parametrize(("weighting", "theirs"), [("uniform", "uniform"), ("inverse", "distance")])
def test_plain_neighbors_are_those_of_scikit_learn(spots, weighting, theirs):
    train, expression, test, _ = spots
    model = neighbors.KNeighborsRegressor(7, weights=theirs, metric="cosine").fit(train, expression)
    found = baselines.plain_neighbors(train, expression, test, weighting, k=7)
    np.testing.assert_allclose(found, model.predict(test), atol=1e-4)


def test_components_of_more_numbers_than_spots_are_those_of_scikit_learn():
    rng = np.random.default_rng(4)
    train, test = (rng.normal(size=(n, 50)) for n in (20, 6))
    scaler = preprocessing.StandardScaler().fit(train)
    pca = decomposition.PCA(8, svd_solver="full").fit(scaler.transform(train))
    _, asked = baselines.principal_components(train, test, 8)
    expected = pca.transform(scaler.transform(test))
    signs = np.sign((asked * expected).sum(axis=0))
    np.testing.assert_allclose(asked * signs, expected, atol=1e-9)
    assert baselines.principal_components(train, test, 256)[0].shape == (20, 19)


def test_the_published_weights_are_nearly_uniform():
    # Cosine distances of (1, 0): 0 to itself, 1 to (0, 1), 2 to (-1, 0). Weights 1 - 0/3, 1 - 1/3, 1 - 2/3.
    train = np.array([[1, 0], [0, 1], [-1, 0]], dtype=np.float32)
    counts = np.array([[6], [12], [18]], dtype=np.float32)
    found = baselines.upstream_neighbors(train, counts, np.array([[2, 0]], dtype=np.float32), k=1000)
    assert found[0, 0] == pytest.approx((6 * 1 + 12 * 2 / 3 + 18 * 1 / 3) / 2)


def test_the_mean_is_that_of_the_training_spots():
    expression = np.array([[1, 0], [3, 4]], dtype=np.float32)
    assert baselines.mean_expression(3, expression).tolist() == [[2, 2]] * 3
