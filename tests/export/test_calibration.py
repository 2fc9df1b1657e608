"""A bank's accuracy and distances: against scikit-learn, and by hand on a line."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from sklearn.neighbors import KNeighborsRegressor, NearestNeighbors

from stinfer.coverage import Coverage
from stinfer.sparse import Sparse
from stinfer_export.agreement import pearson_by_gene
from stinfer_export.calibration import Fold, calibrate, whole_folds


def _sparse(dense):
    matrix = sparse.csr_matrix(np.asarray(dense, dtype=np.float32))
    return Sparse(matrix.data, matrix.indices, matrix.indptr, matrix.shape[1])


def _line(*positions):
    return np.array(positions, dtype=np.float32)[:, None]


def _calibrate(embedding, codes, expression, distance, k, weighting):
    """Calibrate with one metric for all, the temperature not learned."""
    folds = whole_folds(embedding, codes)
    return calibrate(folds, codes, expression, distance, k, weighting, None)


@pytest.fixture(scope="module")
def references():
    """Three sections of unequal size, shuffled into each other."""
    generator = np.random.default_rng(11)
    codes = generator.permutation(np.repeat([0, 1, 2], [12, 17, 9]))
    embedding = generator.normal(size=(38, 4)).astype(np.float32)
    signal = embedding @ generator.normal(size=(4, 6))
    expression = np.maximum(signal + generator.normal(size=(38, 6)), 0).astype(np.float32)
    return embedding, codes.astype(np.int64), expression


def _weights(weighting, temperature):
    if weighting == "softmax":
        return lambda distances: np.exp(-distances / temperature)
    return {"uniform": "uniform", "inverse": "distance"}[weighting]


def _fold(embedding, expression, held_out, distance, k, weights):
    """Predict held-out references by scikit-learn, trained on all others."""
    regressor = KNeighborsRegressor(n_neighbors=k, weights=weights, metric=distance, algorithm="brute")
    # In double precision, so that its distances are the more exact of the two.
    regressor.fit(embedding[~held_out].astype(float), expression[~held_out].astype(float))
    return regressor.predict(embedding[held_out].astype(float))


def _distances(embedding, groups, distance, k):
    """Find each reference's k smallest distances to references of other groups."""
    found = np.empty((len(embedding), k))
    for group in np.unique(groups):
        held_out = groups == group
        search = NearestNeighbors(n_neighbors=k, metric=distance, algorithm="brute")
        search.fit(embedding[~held_out].astype(float))
        found[held_out] = search.kneighbors(embedding[held_out].astype(float))[0]
    return found


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("weighting", ["uniform", "inverse", "softmax"])
def test_accuracy_is_that_of_scikit_learn_trained_on_the_other_sections(references, distance, weighting):
    embedding, codes, expression = references
    nearest = _distances(embedding, codes, distance, 5)
    temperature = np.median(nearest[:, -1] - nearest[:, 0]) / 2
    pearson = np.empty((3, 6))
    for section in range(3):
        held_out = codes == section
        predicted = _fold(embedding, expression, held_out, distance, 5, _weights(weighting, temperature))
        for gene in range(6):
            pearson[section, gene] = np.corrcoef(predicted[:, gene], expression[held_out, gene])[0, 1]

    found = _calibrate(embedding, codes, _sparse(expression), distance, 5, weighting)

    assert found.temperature == pytest.approx(temperature, rel=1e-4)
    np.testing.assert_allclose(found.gene_pearson, pearson.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(found.gene_pearson_sd, pearson.std(axis=0, ddof=1), atol=1e-4)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize(("k", "weighting"), [(4, "inverse"), (15, "softmax")])
def test_distances_are_quantiles_of_the_ten_nearest_of_other_sections(references, distance, k, weighting):
    embedding, codes, expression = references
    expected = _distances(embedding, codes, distance, 10).mean(axis=1)

    found = _calibrate(embedding, codes, _sparse(expression), distance, k, weighting)

    assert found.domain_k == 10
    assert len(found.distance_quantiles) == 101
    np.testing.assert_allclose(found.distance_quantiles, np.percentile(expected, range(101)), rtol=1e-4)


def test_one_section_is_predicted_spot_by_spot(references):
    embedding, _, expression = references
    predicted = np.concatenate(
        [_fold(embedding, expression, np.arange(38) == i, "cosine", 6, "uniform") for i in range(38)]
    )

    found = _calibrate(embedding, np.zeros(38, dtype=np.int64), _sparse(expression), "cosine", 6, "uniform")

    expected = [np.corrcoef(predicted[:, gene], expression[:, gene])[0, 1] for gene in range(6)]
    np.testing.assert_allclose(found.gene_pearson, expected, atol=1e-4)
    assert np.isnan(found.gene_pearson_sd).all()


def test_a_section_never_predicts_itself():
    # Every place is there three times in each section. Within a section its three spots agree; in the
    # other section they are the opposite. Whoever looks at the own section is right, and so wrong here.
    places = np.tile(np.repeat([0.0, 1, 2, 3], 3), 2)
    codes = np.repeat([0, 1], 12)
    expression = np.where(codes == 0, places, 10 - places)[:, None]

    found = _calibrate(_line(*places), codes, _sparse(expression), "euclidean", 3, "softmax")

    assert found.gene_pearson[0] == pytest.approx(-1, abs=1e-6)
    assert found.gene_pearson_sd[0] == pytest.approx(0, abs=1e-6)


def test_within_one_section_a_spot_never_predicts_itself():
    # Two spots at every place, one up and one down: the nearest other spot is always the opposite.
    places = np.repeat([0.0, 10, 20, 30], 2)
    expression = np.tile([[1.0], [5.0]], (4, 1))

    found = _calibrate(
        _line(*places), np.zeros(8, dtype=np.int64), _sparse(expression), "euclidean", 1, "uniform"
    )

    assert found.gene_pearson[0] == pytest.approx(-1, abs=1e-6)


def test_distances_and_temperature_by_hand():
    # Section 0 at 0 and 10, section 1 at 1 and 12.
    codes = np.array([0, 0, 1, 1])
    expression = _sparse([[1], [2], [1], [2]])

    one = _calibrate(_line(0, 10, 1, 12), codes, expression, "euclidean", 1, "uniform")
    two = _calibrate(_line(0, 10, 1, 12), codes, expression, "euclidean", 2, "uniform")

    # Of the other section: 1 and 12, 2 and 9, 1 and 9, 2 and 12. Means 6.5, 5.5, 5, 7.
    for found in (one, two):
        assert found.domain_k == 2
        assert found.distance_quantiles[[0, 50, 100]] == pytest.approx([5, 6, 7])
    # Differences 11, 7, 8, 10; half of their median 9.
    assert two.temperature == pytest.approx(4.5)
    assert one.gene_pearson.tolist() == pytest.approx([1.0])


def test_k_is_lowered_to_what_other_sections_hold():
    # Seven spots in section 0, three in section 1: for section 0 only three others remain.
    places = np.concatenate([np.arange(7.0), [0.55, 2.6, 4.35]])
    codes = np.repeat([0, 1], [7, 3])
    expression = _sparse(np.sin(places)[:, None])
    nearest = _distances(_line(*places), codes, "euclidean", 3)

    found = _calibrate(_line(*places), codes, expression, "euclidean", 9, "inverse")

    predicted = np.concatenate(
        [
            _fold(_line(*places), np.sin(places)[:, None], codes == section, "euclidean", 3, "distance")
            for section in (0, 1)
        ]
    )[:, 0]
    pearson = [np.corrcoef(predicted[part], np.sin(places)[part])[0, 1] for part in (slice(7), slice(7, 10))]
    assert found.gene_pearson[0] == pytest.approx(np.mean(pearson), abs=1e-5)
    assert found.domain_k == 3
    assert found.temperature == pytest.approx(np.median(nearest[:, 2] - nearest[:, 0]) / 2)
    np.testing.assert_allclose(
        found.distance_quantiles, np.percentile(nearest.mean(axis=1), range(101)), rtol=1e-5
    )


def test_one_reference_has_nothing_to_be_predicted_from():
    found = _calibrate(_line(3), np.array([0]), _sparse([[1.0, 0.0]]), "euclidean", 1, "softmax")

    assert found.temperature > 0
    assert np.isnan(found.gene_pearson).all()
    assert np.isnan(found.gene_pearson_sd).all()
    assert found.distance_quantiles.tolist() == [0] * 101


def test_a_gene_that_varies_in_one_section_has_no_accuracy_there_and_no_spread():
    # Gene 0 is constant in section 1: its prediction of section 0 is constant too. Gene 1 varies in all.
    # Gene 2 is nowhere.
    places = [0.0, 1, 2, 0, 1, 2]
    expression = [[1, 1, 0], [2, 2, 0], [3, 3, 0], [4, 3, 0], [4, 2, 0], [4, 1, 0]]

    found = _calibrate(_line(*places), np.repeat([0, 1], 3), _sparse(expression), "euclidean", 1, "uniform")

    assert np.isnan(found.gene_pearson[[0, 2]]).all()
    assert found.gene_pearson[1] == pytest.approx(-1)
    assert np.isnan(found.gene_pearson_sd[[0, 2]]).all()
    assert found.gene_pearson_sd[1] == pytest.approx(0, abs=1e-6)


def test_accuracy_is_the_mean_of_the_sections_where_there_is_one():
    # Three places, sections 1 and 2 shifted by 1 and 3: sections 0 and 1 predict each other, 1 predicts 2.
    # Gene 0 of sections 0, 1, 2: (1, 2, 3), (3, 2, 1) and constant.
    # Section 0 from 1: -1. Section 1 from 0: -1. Section 2 does not vary: nothing.
    # Gene 1: (1, 2, 3), (1, 2, 3), (3, 2, 1). Section 0 from 1: 1. 1 from 0: 1. 2 from 1: -1.
    places = [0.0, 10, 20, 1, 11, 21, 3, 13, 23]
    expression = np.array([[1, 2, 3, 3, 2, 1, 5, 5, 5], [1, 2, 3, 1, 2, 3, 3, 2, 1]]).T

    found = _calibrate(
        _line(*places), np.repeat([0, 1, 2], 3), _sparse(expression), "euclidean", 1, "uniform"
    )

    assert found.gene_pearson.tolist() == pytest.approx([-1, 1 / 3], abs=1e-6)
    assert found.gene_pearson_sd.tolist() == pytest.approx([0, np.std([1, 1, -1], ddof=1)], abs=1e-6)


def test_a_prediction_that_is_the_same_everywhere_has_no_accuracy():
    # All references of the other section, weighed alike: every spot of a section gets the same mean.
    generator = np.random.default_rng(0)
    embedding = generator.normal(size=(130, 3)).astype(np.float32)
    expression = generator.uniform(1, 8, size=(130, 33)).astype(np.float32)

    found = _calibrate(embedding, np.repeat([0, 1], 65), _sparse(expression), "cosine", 65, "uniform")

    assert np.isnan(found.gene_pearson).all()


def test_every_fold_is_searched_in_the_metric_that_was_fitted_for_it():
    # Section 0 at 0, 10, 20; section 1 at 1, 11, 21. The metric for section 1 turns the others round.
    codes = np.repeat([0, 1], 3)
    expression = _sparse([[1], [2], [3], [1], [2], [3]])
    first, second = np.arange(3), np.arange(3, 6)
    folds = [
        Fold(first, second, _line(0, 10, 20), _line(1, 11, 21)),
        Fold(second, first, _line(1, 11, 21), _line(20, 10, 0)),
    ]

    found = calibrate(folds, codes, expression, "euclidean", 1, "softmax", 2.5)

    # Section 0 is predicted 1, 2, 3, and section 1 is predicted 3, 2, 1.
    assert found.gene_pearson.tolist() == pytest.approx([0.0], abs=1e-6)
    assert found.gene_pearson_sd.tolist() == pytest.approx([np.std([1, -1], ddof=1)])
    # Distances to all three: 1, 11, 21; 9, 1, 11; 19, 9, 1, and the same the other way round.
    assert found.domain_k == 3
    assert found.distance_quantiles[[0, 50, 100]] == pytest.approx([7, 29 / 3, 11])
    # What was learned is not measured again.
    assert found.temperature == 2.5


# Intervals


def test_a_genes_interval_holds_nine_tenths_of_what_was_held_out(references):
    embedding, codes, expression = references
    expression = np.hstack([expression, np.zeros((38, 1), dtype=np.float32)])
    mean, spread = np.empty((2, 38, 7))
    for i in range(38):
        known = np.flatnonzero(codes != codes[i])
        near = known[np.argsort(np.linalg.norm(embedding[known] - embedding[i], axis=1))[:5]]
        mean[i], spread[i] = expression[near].mean(axis=0), expression[near].std(axis=0)

    found = _calibrate(embedding, codes, _sparse(expression), "euclidean", 5, "uniform")

    np.testing.assert_allclose(found.interval_floor, spread.mean(axis=0), atol=1e-4)
    # Half of a width is the spot's own, half the gene's usual. Of 38 errors the 36th: 39 x 0.9, rounded up.
    width = (spread + spread.mean(axis=0)) / 2
    ratio = np.sort(np.abs(expression - mean)[:, :6] / width[:, :6], axis=0)
    np.testing.assert_allclose(found.interval_scale[:6], ratio[35], rtol=1e-3)
    inside = np.abs(expression - mean) <= width * found.interval_scale * 1.001
    assert inside[:, :6].sum(axis=0).tolist() == [36] * 6
    # A gene that is nowhere has none.
    assert np.isnan(found.interval_scale[6])


@pytest.mark.parametrize(("n_refs", "known"), [(19, False), (20, True)])
def test_fewer_than_20_references_say_nothing_of_a_tenth(n_refs, known):
    rng = np.random.default_rng(4)
    places, expression = rng.normal(size=(n_refs, 2)).astype(np.float32), rng.uniform(1, 3, (n_refs, 2))

    found = _calibrate(places, np.arange(n_refs) % 2, _sparse(expression), "euclidean", 3, "uniform")

    assert np.isfinite(found.interval_scale).tolist() == [known] * 2
    assert np.isfinite(found.interval_floor).tolist() == [known] * 2


# Pearson


def test_pearson_is_that_of_numpy():
    generator = np.random.default_rng(5)
    predicted = generator.normal(3, 1, (50, 7)).astype(np.float32)
    measured = (predicted * 0.3 + generator.normal(0, 1, (50, 7))).astype(np.float32)

    found = pearson_by_gene(predicted, measured)

    expected = [np.corrcoef(predicted[:, gene], measured[:, gene])[0, 1] for gene in range(7)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_pearson_by_hand():
    predicted = np.array([[1, 1, 5, 1], [2, 2, 5, 2], [3, 3, 5, 3]], dtype=np.float32)
    measured = np.array([[10, 3, 1, 7], [20, 2, 2, 7], [30, 1, 3, 7]], dtype=np.float32)

    found = pearson_by_gene(predicted, measured)

    assert found[:2].tolist() == pytest.approx([1, -1])
    assert np.isnan(found[2:]).all()


# Genes that not every origin measures


@pytest.fixture(scope="module")
def covered():
    """Four sections of two origins, 0 0 1 1; three genes of both, and two of each alone."""
    generator = np.random.default_rng(4)
    codes = np.repeat([0, 1, 2, 3], [30, 25, 28, 32])
    origin_of = np.array([0, 0, 1, 1])[codes]
    measured = np.array([[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 1, 1]], dtype=bool)
    embedding = generator.normal(size=(len(codes), 3)).astype(np.float32)
    signal = embedding @ generator.normal(size=(3, 7))
    dense = np.maximum(signal + 0.5 * generator.normal(size=signal.shape) + 1, 0)
    dense = np.where(measured[origin_of], dense, 0).astype(np.float32)
    expression = _sparse(dense)
    covered = Sparse(expression.data, expression.indices, expression.indptr, 7, Coverage(origin_of, measured))
    return embedding, codes, origin_of, measured, dense, covered


# 40 is more than some sections have: all that measure a gene vote.
@pytest.mark.parametrize(("weighting", "k"), [("uniform", 20), ("inverse", 40)])
def test_accuracy_and_intervals_are_of_references_that_measure_a_gene(covered, weighting, k):
    embedding, codes, origin_of, measured, dense, expression = covered
    found = _calibrate(embedding, codes, expression, "euclidean", k, weighting)

    for gene in range(7):
        mine = measured[origin_of, gene]
        pearson, errors, spreads = [], [], []
        for section in range(4):
            asked, known = mine & (codes == section), mine & (codes != section)
            if not asked.any():
                continue
            n = min(k, int(known.sum()))
            search = NearestNeighbors(n_neighbors=n, algorithm="brute").fit(embedding[known].astype(float))
            distances, indices = search.kneighbors(embedding[asked].astype(float))
            weights = np.ones_like(distances) if weighting == "uniform" else 1 / distances
            weights /= weights.sum(axis=1, keepdims=True)
            values = dense[known][indices, gene].astype(float)
            mean = (weights * values).sum(axis=1)
            spreads.append(np.sqrt((weights * (values - mean[:, None]) ** 2).sum(axis=1)))
            errors.append(np.abs(dense[asked, gene] - mean))
            pearson.append(np.corrcoef(mean, dense[asked, gene])[0, 1])
        np.testing.assert_allclose(found.gene_pearson[gene], np.mean(pearson), atol=1e-4)
        np.testing.assert_allclose(found.gene_pearson_sd[gene], np.std(pearson, ddof=1), atol=1e-4)
        assert len(pearson) == (4 if gene < 3 else 2)
        error, spread = np.concatenate(errors), np.concatenate(spreads)
        np.testing.assert_allclose(found.interval_floor[gene], spread.mean(), rtol=1e-3)
        ratio = np.sort(error / ((spread + spread.mean()) / 2))
        rank = int(np.ceil(0.9 * (len(ratio) + 1))) - 1
        np.testing.assert_allclose(found.interval_scale[gene], ratio[rank], rtol=1e-3)


def test_a_gene_of_one_section_alone_has_no_accuracy(covered):
    embedding, codes, *_, expression = covered
    # Sections 0 and 1 are of origin 0, section 2 of origin 1; without section 3 none is left to predict it.
    rows = np.flatnonzero(codes < 3)
    found = _calibrate(embedding[rows], codes[rows], expression.rows(rows), "euclidean", 10, "softmax")

    assert np.isnan(found.gene_pearson).tolist() == [False] * 5 + [True] * 2
    assert np.isnan(found.interval_scale).tolist() == [False] * 5 + [True] * 2
    assert np.isnan(found.interval_floor).tolist() == [False] * 5 + [True] * 2


def test_where_all_is_measured_the_calibration_is_the_same_to_the_bit(references):
    embedding, codes, dense = references
    plain = _sparse(dense)
    everything = Coverage(np.array([0, 0, 1])[codes], np.ones((2, 6), dtype=bool))
    same = Sparse(plain.data, plain.indices, plain.indptr, 6, everything)

    first = _calibrate(embedding, codes, plain, "euclidean", 5, "softmax")
    second = _calibrate(embedding, codes, same, "euclidean", 5, "softmax")

    for name in vars(first):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
