"""The supervised metric: against scikit-learn and numpy, and what it may not have seen."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from stinfer_export import recipe
from stinfer_export.recipe import MetricFit, Spots, learn

_SPEC = importlib.util.spec_from_file_location("joined_parts", Path(__file__).parent / "joined_parts.py")
shared = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(shared)

BLOCKS = (5, 3, 4)
DIM, N_GENES = sum(BLOCKS), 9


def _spots(n=60, *, dim_of=BLOCKS, n_groups=3, seed=4):
    """Spots whose expression follows some channels, at other levels and depths in each section."""
    rng = np.random.default_rng(seed)
    dim = sum(dim_of)
    groups = np.sort(rng.integers(0, n_groups, n))
    latent = rng.normal(size=(n, 4))
    embedding = latent @ rng.normal(size=(4, dim)) + 0.4 * rng.normal(size=(n, dim))
    embedding = 3 + embedding * np.geomspace(0.1, 10, dim)
    expression = latent @ rng.normal(size=(4, N_GENES)) + 0.3 * rng.normal(size=(n, N_GENES))
    expression = np.maximum(expression + 4 + 2 * groups[:, None], 0)
    totals = rng.uniform(50, 900, n)
    return Spots(embedding.astype(np.float32), tuple(dim_of), shared.to_sparse(expression), totals, groups)


def _expression(spots):
    n_genes = spots.expression.n_columns
    return spots.expression.columns(np.arange(n_genes)).astype(np.float64)


def _weight(spots):
    weight = spots.totals / (spots.totals + np.median(spots.totals))
    return weight / weight.mean()


def _scaled(spots):
    """Give every channel standard deviation 1, and every block a total variance of 1 in so many."""
    raw = spots.embedding.astype(np.float64)
    scaled = (raw - raw.mean(axis=0)) / raw.std(axis=0)
    first = 0
    for width in spots.blocks:
        scaled[:, first : first + width] /= np.sqrt(width * len(spots.blocks))
        first += width
    return scaled


def _targets(spots):
    """Take from every gene the mean of its section, weighed by depth."""
    targets, weight = _expression(spots), _weight(spots)
    for group in np.unique(spots.groups):
        rows = spots.groups == group
        targets[rows] -= np.average(targets[rows], axis=0, weights=weight[rows])
    return targets


def _distances(places):
    """All squared distances: what a metric is, whatever the signs and turns of its directions."""
    return ((places[:, None] - places[None]) ** 2).sum(axis=2)


def _embedded(fit, penalty, spots):
    return (spots.embedding - fit.mean) @ fit.components(penalty)


def _with_share(monkeypatch, share):
    monkeypatch.setattr(recipe, "COVARIANCE_SHARE", share)


# The two parts


def _evened(places):
    """Keep the 8 directions of largest spread s, each with a spread of s^(3/4), 1 in all over the spots."""
    places = places - places.mean(axis=0)
    left, spreads, _ = np.linalg.svd(places, full_matrices=False)
    places = left[:, :8] * spreads[:8] ** 0.75
    return places / np.sqrt((places**2).sum(axis=1).mean())


@pytest.mark.parametrize("penalty", [0.1, 1.0, 30.0])
@pytest.mark.parametrize(("n", "dim_of"), [(60, BLOCKS), (25, (20, 12))])
def test_one_part_is_what_ridge_regression_predicts(monkeypatch, penalty, n, dim_of):
    _with_share(monkeypatch, 0.0)
    spots = _spots(n, dim_of=dim_of)
    scaled, weight = _scaled(spots), _weight(spots)
    centered = scaled - np.average(scaled, axis=0, weights=weight)
    # In units of a spot's mean squared length.
    alpha = penalty * (weight * (centered**2).sum(axis=1)).sum() / n

    ridge = Ridge(alpha=alpha).fit(scaled, _targets(spots), sample_weight=weight)
    predicted = ridge.predict(scaled)

    # Of 9 genes all 9 principal components are targets, so that the predictions are those of all genes.
    found = _embedded(MetricFit(spots), penalty, spots)
    expected = _distances(_evened(predicted))
    np.testing.assert_allclose(_distances(found), expected, atol=2e-4 * expected.max())
    assert expected.max() > 1


@pytest.mark.parametrize(("n", "dim_of"), [(60, BLOCKS), (25, (20, 12))])
def test_the_other_part_is_the_directions_of_largest_covariance(monkeypatch, n, dim_of):
    _with_share(monkeypatch, 1.0)
    spots = _spots(n, dim_of=dim_of)
    scaled, weight = _scaled(spots), _weight(spots)
    centered = scaled - np.average(scaled, axis=0, weights=weight)
    cross = (weight[:, None] * centered).T @ _targets(spots)
    left, values, _ = np.linalg.svd(cross, full_matrices=False)

    found = _embedded(MetricFit(spots), 1.0, spots)

    # Along each direction, as much as its covariance.
    expected = _distances(_evened(centered @ (left * values)))
    np.testing.assert_allclose(_distances(found), expected, atol=2e-4 * expected.max())


def test_of_many_genes_8_directions_of_the_prediction_are_kept(monkeypatch):
    _with_share(monkeypatch, 0.0)
    rng = np.random.default_rng(8)
    base = _spots(200, dim_of=(30, 10), n_groups=2)
    expression = np.abs(base.embedding @ rng.normal(size=(40, 50)) * 0.1 + rng.normal(size=(200, 50)))
    spots = Spots(base.embedding, base.blocks, shared.to_sparse(expression), base.totals, base.groups)
    scaled, weight = _scaled(spots), _weight(spots)
    centered = scaled - np.average(scaled, axis=0, weights=weight)
    alpha = 0.5 * (weight * (centered**2).sum(axis=1)).sum() / 200
    predicted = Ridge(alpha=alpha).fit(scaled, _targets(spots), sample_weight=weight).predict(scaled)
    values = np.linalg.svd(predicted - predicted.mean(axis=0), compute_uv=False)
    assert values[8] > 0.01 * values[0]

    components = MetricFit(spots).components(0.5)

    assert components.shape == (40, 16)
    assert not components[:, 8:].any()  # the share of the other part is 0
    expected = _distances(_evened(predicted))
    found = _distances(_embedded(MetricFit(spots), 0.5, spots))
    np.testing.assert_allclose(found, expected, atol=2e-4 * expected.max())


def test_the_parts_share_the_squared_distance(monkeypatch):
    spots = _spots()
    found = {}
    for share in (0.0, 0.3, 1.0):
        _with_share(monkeypatch, share)
        found[share] = _distances(_embedded(MetricFit(spots), 0.5, spots))

    np.testing.assert_allclose(found[0.3], 0.7 * found[0.0] + 0.3 * found[1.0], rtol=1e-6, atol=1e-9)


def test_the_share_of_covariance_is_three_tenths():
    assert recipe.COVARIANCE_SHARE == 0.3


# Scale


def test_blocks_are_scaled_by_hand():
    embedding = np.array([[0, 10, 5, 1], [2, 30, 5, -1], [4, 50, 5, 1], [6, 70, 5, -1]], dtype=np.float32)

    mean, scale = recipe._block_scale(embedding, (2, 2))

    assert mean.tolist() == [3, 40, 5, 0]
    # Deviations √5, 10 √5, 0 and 1. Block 1 has two channels that vary, block 2 one; there are two blocks.
    expected = [1 / np.sqrt(5 * 2 * 2), 1 / np.sqrt(500 * 2 * 2), 0, 1 / np.sqrt(1 * 2)]
    np.testing.assert_allclose(scale, expected, rtol=1e-12)
    # So that either block has half of the total variance.
    variance = ((embedding - mean) * scale).var(axis=0)
    np.testing.assert_allclose([variance[:2].sum(), variance[2:].sum()], [0.5, 0.5], rtol=1e-12)


def test_units_of_a_channel_and_copies_of_it_change_nothing():
    spots = _spots()
    units = np.geomspace(0.01, 50, DIM).astype(np.float32)
    other = Spots(spots.embedding * units + 7, BLOCKS, spots.expression, spots.totals, spots.groups)
    # A block of five channels, each there twice, counts as before.
    twice = np.concatenate([spots.embedding[:, :5], spots.embedding], axis=1)
    copied = Spots(twice, (10, 3, 4), spots.expression, spots.totals, spots.groups)

    expected = _distances(_embedded(MetricFit(spots), 0.5, spots))
    for changed in (other, copied):
        found = _distances(_embedded(MetricFit(changed), 0.5, changed))
        np.testing.assert_allclose(found, expected, atol=1e-3 * expected.max())


def test_a_channel_that_does_not_vary_counts_nothing():
    spots = _spots()
    embedding = np.concatenate([spots.embedding, np.full((60, 1), 1000.1, dtype=np.float32)], axis=1)
    wider = Spots(embedding, (5, 3, 5), spots.expression, spots.totals, spots.groups)

    components = MetricFit(wider).components(0.5)

    assert not components[-1].any()
    np.testing.assert_allclose(components[:-1], MetricFit(spots).components(0.5), rtol=1e-6, atol=1e-9)


# Sections and depth


def test_what_differs_between_sections_alone_is_not_learned():
    spots = _spots()
    raised = _expression(spots) + 5.0 * spots.groups[:, None] * np.arange(1, N_GENES + 1)
    other = Spots(spots.embedding, BLOCKS, shared.to_sparse(raised), spots.totals, spots.groups)

    expected = _distances(_embedded(MetricFit(spots), 0.5, spots))

    found = _distances(_embedded(MetricFit(other), 0.5, other))
    np.testing.assert_allclose(found, expected, atol=1e-3 * expected.max())


def test_targets_have_no_weighted_mean_in_any_section():
    spots = _spots()
    weight = _weight(spots)

    targets = recipe._targets(spots, weight)

    for group in range(3):
        rows = spots.groups == group
        np.testing.assert_allclose(weight[rows] @ targets[rows], 0, atol=1e-9)
    # Genes come in another order: those of largest variance first.
    found, expected = (np.sort(np.abs(one).sum(axis=0)) for one in (targets, _targets(spots)))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_spot_of_hardly_any_counts_hardly_counts():
    spots = _spots()
    totals = spots.totals.copy()
    totals[7] = 1e-9
    expression = _expression(spots)
    expression[7] = 50 - 5 * expression[7]
    odd = Spots(spots.embedding, BLOCKS, shared.to_sparse(expression), totals, spots.groups)
    plain = Spots(spots.embedding, BLOCKS, spots.expression, totals, spots.groups)

    deep = Spots(spots.embedding, BLOCKS, shared.to_sparse(expression), spots.totals, spots.groups)

    # What is measured there changes nothing; it would, if the spot were as deep as others.
    expected = _distances(_embedded(MetricFit(plain), 0.5, plain))
    found = _distances(_embedded(MetricFit(odd), 0.5, odd))
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())
    assert np.abs(_distances(_embedded(MetricFit(deep), 0.5, deep)) - expected).max() > 0.02 * expected.max()


# Both ways to decompose


def test_more_channels_than_spots_and_more_spots_than_channels_give_the_same_metric():
    # The same 30 channels, either alone (n > dim) or each there three times (dim > n): copies change nothing.
    spots = _spots(40, dim_of=(30,))
    tripled = Spots(np.tile(spots.embedding, (1, 3)), (90,), spots.expression, spots.totals, spots.groups)

    few, many = (MetricFit(one) for one in (spots, tripled))

    for penalty in (0.1, 2.0):
        expected = _distances(_embedded(few, penalty, spots))
        found = _distances(_embedded(many, penalty, tripled))
        np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())
    # The copies share what the channel had.
    shares = many.components(0.5).reshape(3, 30, -1)
    np.testing.assert_allclose(shares[0], shares[2], rtol=1e-6, atol=1e-9)
    whole, alone = shares.sum(axis=0), few.components(0.5)
    np.testing.assert_allclose(whole @ whole.T, alone @ alone.T, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (12, 12)])
def test_a_decomposition_is_that_of_numpy(shape):
    values = np.random.default_rng(2).normal(size=shape)
    if shape == (12, 12):
        values[-1] = values[0] + values[1]

    left, singular, right = recipe._decompose(values)

    expected = np.linalg.svd(values, compute_uv=False)
    kept = expected > 1e-6
    assert kept.sum() == (11 if shape == (12, 12) else 12)
    np.testing.assert_allclose(np.sort(singular)[::-1], expected[kept], rtol=1e-6)
    np.testing.assert_allclose((left * singular) @ right.T, values, atol=1e-6)


# What is chosen


def _poisoned(spots, held):
    """Change the expression of some spots beyond recognition."""
    expression = _expression(spots)
    rng = np.random.default_rng(99)
    expression[held] = rng.uniform(0, 30, (int(held.sum()), expression.shape[1]))
    return Spots(spots.embedding, spots.blocks, shared.to_sparse(expression), spots.totals, spots.groups)


@pytest.mark.parametrize("section", [0, 1, 2])
def test_what_is_fitted_to_choose_has_not_seen_the_section_it_predicts(monkeypatch, section):
    """Spy on every fit: the one without a section is the same whatever was measured there."""
    fitted = []

    class Spy(MetricFit):
        def __init__(self, spots):
            super().__init__(spots)
            fitted.append((tuple(np.unique(spots.groups)), self.components(0.5)))

    monkeypatch.setattr(recipe, "MetricFit", Spy)
    spots = _spots()
    learn(spots)
    clean, fitted[:] = dict(fitted), []
    learn(_poisoned(spots, spots.groups == section))
    poisoned = dict(fitted)

    without = tuple(group for group in range(3) if group != section)
    assert set(clean) == set(poisoned) == {(1, 2), (0, 2), (0, 1), (0, 1, 2)}
    np.testing.assert_array_equal(poisoned[without], clean[without])
    for groups in set(clean) - {without}:
        assert np.abs(poisoned[groups] - clean[groups]).max() > 0.01


def test_genes_are_chosen_without_the_section_they_are_counted_in(monkeypatch):
    seen = []
    real = recipe.variable_genes

    def spy(expression, n_genes, min_detected):
        seen.append((len(expression.indptr) - 1, n_genes))
        return real(expression, n_genes, min_detected)

    monkeypatch.setattr(recipe, "variable_genes", spy)
    spots = _spots()
    sizes = np.bincount(spots.groups)

    learn(spots)

    assert [n for n, n_genes in seen if n_genes == 250] == [60 - size for size in sizes]


def _by_hand(spots, penalty, k, sharpness):
    """Predict every section from the others with plain numpy; return the mean Pearson and the gap."""
    scores, gaps = [], []
    expression = _expression(spots)
    for group in np.unique(spots.groups):
        known, asked = spots.groups != group, spots.groups == group
        fit = MetricFit(spots[np.flatnonzero(known)])
        places = _embedded(fit, penalty, spots)
        distances = np.sqrt(((places[asked][:, None] - places[known][None]) ** 2).sum(axis=2))
        order = np.argsort(distances, axis=1)[:, :k]
        near = np.take_along_axis(distances, order, axis=1)
        gap = np.median(near[:, -1] - near[:, 0])
        weights = np.exp(-near / (sharpness * gap))
        weights /= weights.sum(axis=1, keepdims=True)
        predicted = (weights[:, :, None] * expression[known][order]).sum(axis=1)
        detected = (expression[known] > 0).mean(axis=0) > 0.3
        found = [
            np.corrcoef(predicted[:, gene], expression[asked][:, gene])[0, 1]
            for gene in np.flatnonzero(detected)
        ]
        scores.append(np.mean(found))
        gaps.append(gap)
    return np.mean(scores), np.mean(gaps)


def test_the_choice_predicts_left_out_sections_best(monkeypatch):
    monkeypatch.setattr(recipe, "NEIGHBORS", (4, 9))
    spots = _spots()
    found = learn(spots)

    tried = {
        (penalty, k, sharpness): _by_hand(spots, penalty, k, sharpness)
        for penalty in (0.1, 0.25, 0.5, 1.0, 2.0)
        for k in (4, 9)
        for sharpness in (0.5, 1.0, 2.0)
    }
    best = max(tried, key=lambda choice: tried[choice][0])
    assert (found.penalty, found.k, found.sharpness) == best
    assert found.inner_pearson == pytest.approx(tried[best][0], abs=1e-4)
    assert found.temperature == pytest.approx(best[2] * tried[best][1], rel=1e-3)
    # Fitted at last on all spots.
    np.testing.assert_array_equal(found.components, MetricFit(spots).components(best[0]))
    np.testing.assert_array_equal(found.mean, MetricFit(spots).mean)
    assert len({round(score, 4) for score, _ in tried.values()}) > 10


def test_neighbors_are_50_to_200_or_as_many_as_every_fold_has():
    # Sections of 150, 30 and 30: without the first, 60 remain.
    base = _spots(210)
    groups = np.repeat([0, 1, 2], [150, 30, 30])
    spots = Spots(base.embedding, BLOCKS, base.expression, base.totals, groups)

    assert learn(spots).k in (50, 60)


def test_k_that_is_given_is_kept_though_a_fold_has_fewer():
    base = _spots(40)
    groups = np.repeat([0, 1], [30, 10])
    spots = Spots(base.embedding, BLOCKS, base.expression, base.totals, groups)

    assert learn(spots, k=25).k == 25
    assert learn(spots, k=7).k == 7


def test_of_many_sections_eight_groups_are_left_out_in_turn():
    groups = np.repeat(np.arange(11), 3)

    folds = recipe._folds(groups)

    left_out = [np.unique(groups[held]).tolist() for held in folds]
    assert left_out == [[0, 1], [2, 3], [4, 5], [6], [7], [8], [9], [10]]
    assert sum(folds).tolist() == [1] * 33
