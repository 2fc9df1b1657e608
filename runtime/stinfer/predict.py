"""From neighbors to expression: weights, averages and confidence. Imports numpy alone."""

from __future__ import annotations

from typing import Literal

import numpy as np

from stinfer.contract import F32, I64, AnyArray

# Spots that are averaged in one product; those on a grid share most of their neighbors.
SPOTS_AT_ONCE = 64
# Where they use more references than this many times their neighbors, most of that product is zeros.
_SCATTERED = 12

Weighting = Literal["uniform", "inverse", "softmax"]


def neighbor_weights(distances: F32, weighting: Weighting, temperature: float) -> F32:
    """Turn distances into weights.

    Parameters
    ----------
    distances : (n, k), not negative, ascending
    weighting :
        ``uniform``: all alike.
        ``inverse``: 1 / d. Where some distances are 0, those neighbors share all the weight and the
        others have none: the rule of scikit-learn's `KNeighborsRegressor(weights="distance")`.
        ``softmax``: exp(-d / temperature).
    temperature : in units of the distance, positive; used by ``softmax`` alone

    Returns
    -------
    (n, k), rows sum to 1
    """
    exact = distances.astype(np.float64)
    if weighting == "uniform":
        weights = np.ones_like(exact)
    elif weighting == "inverse":
        at_zero = exact == 0
        with np.errstate(divide="ignore"):
            weights = np.where(at_zero.any(axis=1, keepdims=True), at_zero, 1.0 / exact)
    elif weighting == "softmax":
        # Relative to the nearest, so that no row underflows to nothing.
        weights = np.exp((exact.min(axis=1, keepdims=True) - exact) / temperature)
    else:
        msg = f"weighting is {weighting!r}, expected uniform, inverse or softmax"
        raise ValueError(msg)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


def expression_from_neighbors(weights: F32, indices: I64, expression: F32) -> F32:
    """Average the neighbors' expression, nearer references weighing more.

    Parameters
    ----------
    weights : (n_spots, k), rows sum to 1
    indices : (n_spots, k), rows of `expression`
    expression : (n_refs, n_genes), log1p CP10K

    Returns
    -------
    (n_spots, n_genes), log1p CP10K, gene order of `expression`
    """
    averaged = np.empty((len(weights), expression.shape[1]), dtype=np.float32)
    by_row = expression
    own = np.empty((indices.shape[1], expression.shape[1]), dtype=expression.dtype)
    for start in range(0, len(weights), SPOTS_AT_ONCE):
        part = slice(start, start + SPOTS_AT_ONCE)
        used, position = np.unique(indices[part], return_inverse=True)
        if len(used) > _SCATTERED * indices.shape[1]:
            # Of another layout, to take a few rows would copy it all; it is turned once.
            by_row = np.ascontiguousarray(by_row)
            for spot in range(start, min(start + SPOTS_AT_ONCE, len(weights))):
                # To clip is faster than to check; there is nothing to clip.
                np.take(by_row, indices[spot], axis=0, out=own, mode="clip")
                np.matmul(weights[spot], own, out=averaged[spot])
            continue
        # Spots share neighbors: each reference is gathered once for many, and averaged by a product.
        position = position.reshape(indices[part].shape)
        spread = np.zeros((len(position), len(used)), dtype=np.float32)
        np.add.at(spread, (np.arange(len(position))[:, None], position), weights[part])
        rows = expression if len(used) == len(expression) else expression[used]
        averaged[part] = spread @ rows
    return averaged


def spread_from_neighbors(weights: F32, indices: I64, expression: F32, mean: F32, middle: F32) -> F32:
    """Return how much the neighbors of each spot differ in expression, by the same weights.

    Parameters
    ----------
    weights, indices, expression : as for `expression_from_neighbors`
    mean : (n_spots, n_genes), what that gave
    middle : (n_genes,), about each gene's mean over all references: squares of large numbers would differ by
        rounding, those of differences from it do not

    Returns
    -------
    (n_spots, n_genes), weighted standard deviation, log1p CP10K
    """
    squares = expression_from_neighbors(weights, indices, (expression - middle) ** 2)
    return spread_from_squares(squares, mean, middle)


def spread_from_squares(squares: F32, mean: F32, middle: F32) -> F32:
    """Return the spread of neighbors whose mean squared distance from the middle is known.

    Parameters
    ----------
    squares : (n_spots, n_genes)
    mean, middle : as for `spread_from_neighbors`

    Returns
    -------
    (n_spots, n_genes), weighted standard deviation, log1p CP10K
    """
    return np.asarray(np.sqrt(np.maximum(squares - (mean - middle) ** 2, 0)), dtype=np.float32)


def interval_half_width(spread: F32, scale: F32, floor: F32) -> F32:
    """Return half the width of a gene's prediction interval at each spot.

    Half of it goes with the spread of the spot's own neighbors, half is the gene's usual one: where all
    neighbors agree by chance, a gene is no better known than elsewhere.

    Parameters
    ----------
    spread : (n_spots, n_genes), see `spread_from_neighbors`
    scale, floor : (n_genes,) of the bank: the conformal quantile, and the gene's mean spread

    Returns
    -------
    (n_spots, n_genes), log1p CP10K; NaN for a gene whose interval is not known

    References
    ----------
    J. Lei et al., "Distribution-free predictive inference for regression", JASA 113 (2018) 1094-1111:
    locally weighted split conformal intervals.
    """
    return np.asarray(scale * (spread + floor) / 2, dtype=np.float32)


def log1p_cp10k(counts: AnyArray, totals: AnyArray) -> F32:
    """Normalise counts for sequencing depth: log(1 + 10,000 count / total).

    Parameters
    ----------
    counts : (n, ...), not negative
    totals : (n,), counts of the whole spot over all its genes, positive

    Returns
    -------
    same shape as `counts`
    """
    scale = 1e4 / np.asarray(totals, dtype=np.float64)
    scaled = np.asarray(counts, dtype=np.float64) * scale.reshape(-1, *[1] * (np.ndim(counts) - 1))
    return np.asarray(np.log1p(scaled), dtype=np.float32)


def domain_distance(distances: F32, domain_k: int) -> F32:
    """Return the mean distance of the nearest references: how far a place is from all that is known.

    Neither k nor the weighting of the prediction enters, so that the bank's quantiles of it hold for both.

    Parameters
    ----------
    distances : (n, k), ascending
    domain_k : how many to average; where k is smaller, all

    Returns
    -------
    (n,)
    """
    return np.asarray(distances[:, :domain_k].mean(axis=1, dtype=np.float64), dtype=np.float32)


def confidence_from_distance(distance: F32, quantiles: F32) -> F32:
    """Say how usual a neighbor distance is among the bank's own held-out references.

    Parameters
    ----------
    distance : (n,), as `domain_distance` gives it
    quantiles : (m,), ascending quantiles 0 to 1 of the same for references predicted from the
        other sections

    Returns
    -------
    (n,), the share of held-out references that lie at least this far from their neighbors: 1 for a
    query nearer than all of them, 0 for one farther than all
    """
    levels = np.linspace(0.0, 1.0, len(quantiles))
    # Mirrored, so that of equal quantiles the lowest counts: all of them lie at least as far.
    share = np.interp(-distance, -quantiles[::-1], levels, left=0.0, right=1.0)
    return np.asarray(share, dtype=np.float32)
