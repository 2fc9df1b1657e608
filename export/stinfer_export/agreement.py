"""Agreement of predicted with measured expression, gene by gene and spot by spot. Imports numpy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stinfer.contract import F32, F64

# Averages of the same float32 values differ by this much of themselves.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Agreement:
    """Agreement along one axis: of each gene over spots, or of each spot over genes.

    Parameters
    ----------
    pearson, spearman : (n,), -1 to 1; NaN where prediction or measurement does not vary
    rmse : (n,), root of the mean squared difference, in the values' unit
    variance_ratio : (n,), variance of the prediction over that of the measurement; NaN where that is 0
    """

    pearson: F64
    spearman: F64
    rmse: F64
    variance_ratio: F64


def agreement_by_gene(predicted: F32, measured: F32) -> Agreement:
    """Compare prediction and measurement over spots, gene by gene.

    Parameters
    ----------
    predicted, measured : (n_spots, n_genes)

    Returns
    -------
    of n_genes
    """
    difference = predicted.astype(np.float64) - measured
    variance = measured.var(axis=0, dtype=np.float64)
    varies = variance > 0
    ratio = predicted.var(axis=0, dtype=np.float64) / np.where(varies, variance, 1.0)
    return Agreement(
        pearson=pearson_by_gene(predicted, measured),
        spearman=pearson_by_gene(ranks(predicted), ranks(measured)),
        rmse=np.sqrt((difference * difference).mean(axis=0)),
        variance_ratio=np.where(varies, ratio, np.nan),
    )


def agreement_by_spot(predicted: F32, measured: F32) -> Agreement:
    """Compare prediction and measurement over genes, spot by spot; see `agreement_by_gene`."""
    return agreement_by_gene(predicted.T, measured.T)


def pearson_by_gene(predicted: F32 | F64, measured: F32 | F64) -> F64:
    """Correlate prediction and measurement over spots, gene by gene.

    Parameters
    ----------
    predicted, measured : (n_spots, n_genes)

    Returns
    -------
    (n_genes,), -1 to 1; NaN where either does not vary by more than rounding
    """
    a, a_spread = _centered(predicted)
    b, b_spread = _centered(measured)
    spread = a_spread * b_spread
    varies = spread > 0
    return np.where(varies, (a * b).sum(axis=0) / np.where(varies, spread, 1.0), np.nan)


def ranks(values: F32) -> F64:
    """Rank each column's values, equal values sharing the mean of their ranks.

    Parameters
    ----------
    values : (n, n_columns)

    Returns
    -------
    (n, n_columns), 0 to n - 1
    """
    found = np.empty(values.shape, dtype=np.float64)
    for column in range(values.shape[1]):
        _, group, sizes = np.unique(values[:, column], return_inverse=True, return_counts=True)
        last = np.cumsum(sizes) - 1
        found[:, column] = (last - (sizes - 1) / 2)[group.ravel()]
    return found


def _centered(values: F32 | F64) -> tuple[F64, F64]:
    """Return values less their mean, and the root of their sum of squares: 0 where it is rounding."""
    mean = values.mean(axis=0, dtype=np.float64)
    centered = values.astype(np.float64) - mean
    spread = np.sqrt((centered * centered).sum(axis=0))
    return centered, np.where(spread > _ROUNDING * np.sqrt(len(values)) * np.abs(mean), spread, 0.0)
