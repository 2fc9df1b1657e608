"""Agreement, against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from stinfer_export.agreement import agreement_by_gene, agreement_by_spot, ranks

stats = pytest.importorskip("scipy.stats")


@pytest.fixture
def pair():
    """Forty spots and five genes: noisy, with many equal values, as counts have."""
    rng = np.random.default_rng(5)
    measured = rng.poisson(2.0, (40, 5)).astype(np.float32)
    predicted = (0.5 * measured + rng.normal(size=(40, 5))).round(1).astype(np.float32)
    return predicted, measured


def test_agreement_is_that_of_scipy(pair):
    predicted, measured = pair
    found = agreement_by_gene(predicted, measured)
    for gene in range(5):
        a, b = predicted[:, gene], measured[:, gene]
        assert found.pearson[gene] == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-6)
        assert found.spearman[gene] == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
        assert found.rmse[gene] == pytest.approx(np.sqrt(np.mean((a - b) ** 2)), rel=1e-6)
        assert found.variance_ratio[gene] == pytest.approx(np.var(a) / np.var(b), rel=1e-5)


def test_agreement_by_spot_runs_over_genes(pair):
    predicted, measured = pair
    found = agreement_by_spot(predicted, measured)
    assert found.spearman.shape == (40,)
    expected = stats.spearmanr(predicted[7], measured[7]).statistic
    assert found.spearman[7] == pytest.approx(expected, abs=1e-12)


def test_a_gene_that_does_not_vary_has_no_correlation():
    measured = np.array([[1, 0], [1, 2], [1, 4]], dtype=np.float32)
    predicted = np.array([[0, 1], [1, 1], [2, 4]], dtype=np.float32)
    found = agreement_by_gene(predicted, measured)
    assert np.isnan(found.pearson[0])
    assert np.isnan(found.spearman[0])
    assert np.isnan(found.variance_ratio[0])
    # By hand: differences -1, 0, 1; and 1, -1, 0. Variances 2 of 1, 1, 4 over 8/3 of 0, 2, 4.
    assert found.rmse == pytest.approx([np.sqrt(2 / 3), np.sqrt(2 / 3)])
    assert found.variance_ratio[1] == pytest.approx(2.0 / (8 / 3))


def test_equal_values_share_the_mean_of_their_ranks():
    column = np.array([[3.0], [1.0], [3.0], [2.0], [3.0]], dtype=np.float32)
    assert ranks(column)[:, 0].tolist() == [3.0, 0.0, 3.0, 1.0, 3.0]
