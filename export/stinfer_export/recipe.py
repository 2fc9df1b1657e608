"""What a bank learns from its references: metric, k, weighting and temperature.

The supervised metric is one affine map, fitted so that places near to each other in it have similar
expression. Whatever it could overfit is chosen by predicting each section from the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stinfer.contract import F32, F64, I64
from stinfer.neighbors import ExactSearch
from stinfer.predict import expression_from_neighbors, neighbor_weights
from stinfer.sparse import Sparse
from stinfer_export.agreement import pearson_by_gene
from stinfer_export.gene_choice import DEFAULT_MIN_DETECTED, DEFAULT_N_GENES, variable_genes

# Genes that the metric is fitted to, the principal components of their expression, and its own directions
# of either kind.
N_TARGETS = 500
N_TARGET_COMPONENTS = 100
RANK = 8
# The directions' spreads are raised to this power: the first few would else say nearly everything.
SPREAD_POWER = 0.75
# Part of the squared distance that directions of large covariance have: what differs between patients, and
# no cross-validation within one patient can tell, is mostly in directions of little variance. Not tuned by
# cross-validation; see the README.
COVARIANCE_SHARE = 0.3
# What is tried.
PENALTIES = (0.1, 0.25, 0.5, 1.0, 2.0)
NEIGHBORS = (50, 100, 200)
SHARPNESSES = (0.5, 1.0, 2.0)
# Groups of sections that are left out in turn.
MAX_FOLDS = 8
_NOTHING = 1e-8


@dataclass(frozen=True)
class Learned:
    """What was fitted, and chosen.

    Parameters
    ----------
    mean : (dim,)
    components : (dim, 2 RANK), at most; the metric is (x - mean) components, Euclidean
    k : neighbors
    temperature : of the softmax
    penalty : of the ridge regression, in units of the mean squared length of a spot's scaled embedding
    sharpness : temperature over the median difference between the k-th and the nearest neighbor's distance
    inner_pearson : mean gene-wise Pearson of the choice, over the sections left out
    """

    mean: F64
    components: F64
    k: int
    temperature: float
    penalty: float
    sharpness: float
    inner_pearson: float


@dataclass(frozen=True)
class Spots:
    """Measured spots to learn from.

    Parameters
    ----------
    embedding : (n, dim), before the metric
    blocks : lengths of the parts of an embedding that count alike, dim in all
    expression : (n, n_genes), log1p CP10K
    totals : (n,), counts of each spot
    groups : (n,), section of each spot
    """

    embedding: F32
    blocks: tuple[int, ...]
    expression: Sparse
    totals: F64
    groups: I64

    def __getitem__(self, rows: I64) -> Spots:
        return Spots(
            self.embedding[rows],
            self.blocks,
            self.expression.rows(rows),
            self.totals[rows],
            self.groups[rows],
        )


class MetricFit:
    """One decomposition of the embeddings, from which the metric of any penalty follows.

    1. Every channel is given mean 0 and standard deviation 1, every block the same total variance.
    2. Targets: log1p CP10K of the 500 genes of largest variance, less the mean of the spot's section, so that
       depth and batch are not learned; reduced to 100 principal components.
    3. Spots count by their depth, total / (total + median total): shallow ones are mostly noise.
    4. Two maps to 8 directions each: the principal components of what ridge regression predicts, and the
       same with an infinite penalty, which are the directions of largest covariance. Their spreads s are
       evened out to s^(3/4).

    Parameters
    ----------
    spots : to learn from

    References
    ----------
    A. Hoerl, R. Kennard, "Ridge regression: biased estimation for nonorthogonal problems", Technometrics 12
    (1970) 55-67. F. Bookstein, "Partial least squares: a dose-response model for measurement in the
    behavioral and brain sciences", Psycoloquy 5 (1994): the covariance part, PLS by singular values.
    """

    def __init__(self, spots: Spots) -> None:
        mean, scale = _block_scale(spots.embedding, spots.blocks)
        scaled = (spots.embedding - mean) * scale
        weight = spots.totals / (spots.totals + np.median(spots.totals))
        weight = weight / weight.mean()
        root = np.sqrt(weight)[:, np.newaxis]
        center = (weight[:, np.newaxis] * scaled).sum(axis=0) / weight.sum()
        targets = _targets(spots, weight)
        left, values, _ = np.linalg.svd(root * targets, full_matrices=False)
        self._targets = left[:, :N_TARGET_COMPONENTS] * values[:N_TARGET_COMPONENTS]
        self._left, self._values, self._right = _decompose(root * (scaled - center))
        self._unit = float((self._values**2).sum()) / len(scaled)
        self._inside = (scaled - center) @ self._right
        self._scale = scale
        self.mean: F64 = mean + np.where(scale > 0, center / np.where(scale > 0, scale, 1.0), 0.0)

    def components(self, penalty: float) -> F64:
        """Return (dim, at most 2 RANK): the metric is (x - mean) components."""
        values = self._values
        ridge = self._part(values / (values**2 + penalty * self._unit))
        share = COVARIANCE_SHARE
        both = np.hstack([np.sqrt(1 - share) * ridge, np.sqrt(share) * self._covariance])
        return np.asarray(self._scale[:, np.newaxis] * (self._right @ both))

    @cached_property
    def _covariance(self) -> F64:
        return self._part(self._values)

    def _part(self, gain: F64) -> F64:
        """Return the directions of one kind, with a mean squared length of 1 over the spots."""
        weights = gain[:, np.newaxis] * (self._left.T @ self._targets)
        predicted = self._inside @ weights
        predicted -= predicted.mean(axis=0)
        _, spreads, directions = np.linalg.svd(predicted, full_matrices=False)
        kept = directions[:RANK].T
        evened = (spreads[:RANK] / max(float(spreads[0]), _NOTHING) + _NOTHING) ** (SPREAD_POWER - 1)
        kept = kept * evened
        found = weights @ kept
        length = (predicted @ kept) ** 2
        return np.asarray(found / np.sqrt(max(float(length.sum(axis=1).mean()), _NOTHING)))


def learn(spots: Spots, held_out: I64 | None = None, *, k: int | None = None) -> Learned:
    """Fit the metric, and choose penalty, k and temperature by leaving sections out.

    Parameters
    ----------
    spots : to learn from
    held_out : (n,), numbers of at least two groups that are left out in turn, each with two spots or more;
        None for the sections
    k : neighbors, where they are not to be chosen

    Returns
    -------
    the metric, fitted on all spots with the choice
    """
    scores: dict[tuple[float, int, float], list[float]] = {}
    gaps: dict[tuple[float, int], list[float]] = {}
    folds = _folds(spots.groups if held_out is None else held_out)
    # As many in every fold, so that the same choices are compared in all.
    fewest = min(int((~held).sum()) for held in folds)
    tried = sorted({min(n, fewest) for n in ([k] if k is not None else NEIGHBORS)})
    for held in folds:
        rest, left_out = np.flatnonzero(~held), np.flatnonzero(held)
        known, asked = spots[rest], spots[left_out]
        fit = MetricFit(known)
        genes = variable_genes(known.expression, DEFAULT_N_GENES, DEFAULT_MIN_DETECTED)
        expression, truth = known.expression.columns(genes), asked.expression.columns(genes)
        for penalty in PENALTIES:
            components = fit.components(penalty)
            mapped = [_map(one.embedding, fit.mean, components) for one in (known, asked)]
            for neighbors in tried:
                distances, indices = ExactSearch(mapped[0], "euclidean").query(mapped[1], neighbors)
                gap = _gap(distances)
                gaps.setdefault((penalty, neighbors), []).append(gap)
                for sharpness in SHARPNESSES:
                    weights = neighbor_weights(distances, "softmax", sharpness * gap)
                    predicted = expression_from_neighbors(weights, indices, expression)
                    found = float(np.nan_to_num(pearson_by_gene(predicted, truth)).mean())
                    scores.setdefault((penalty, neighbors, sharpness), []).append(found)
    means = {choice: float(np.mean(found)) for choice, found in scores.items()}
    penalty, neighbors, sharpness = max(means, key=lambda choice: means[choice])
    fit = MetricFit(spots)
    return Learned(
        mean=fit.mean,
        components=fit.components(penalty),
        k=neighbors if k is None else k,
        temperature=sharpness * float(np.mean(gaps[penalty, neighbors])),
        penalty=penalty,
        sharpness=sharpness,
        inner_pearson=means[penalty, neighbors, sharpness],
    )


def _map(embedding: F32, mean: F64, components: F64) -> F32:
    return np.asarray((embedding - mean) @ components, dtype=np.float32)


def _gap(distances: F32) -> float:
    """Return the median difference between the farthest and the nearest neighbor's distance."""
    return max(float(np.median(distances[:, -1] - distances[:, 0])), 1e-6)


def _folds(groups: I64) -> list[np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Return which spots are left out in turn: a group each time, or several where there are many."""
    names = np.unique(groups)
    shares = np.array_split(names, min(len(names), MAX_FOLDS))
    return [np.isin(groups, share) for share in shares]


def _block_scale(embedding: F32, blocks: Sequence[int]) -> tuple[F64, F64]:
    """Return mean and scale, (dim,): standard deviation 1, and every block the same total variance."""
    mean = embedding.mean(axis=0, dtype=np.float64)
    deviation = embedding.std(axis=0, dtype=np.float64)
    varies = deviation > np.maximum(1e-6 * np.abs(mean), _NOTHING)
    scale = np.where(varies, 1.0 / np.where(varies, deviation, 1.0), 0.0)
    first = 0
    for width in blocks:
        block = slice(first, first + width)
        scale[block] /= np.sqrt(max(int(varies[block].sum()), 1) * len(blocks))
        first += width
    return mean, scale


def _targets(spots: Spots, weight: F64) -> F64:
    """Return (n, at most 500): expression of the most variable genes, less each section's weighted mean."""
    genes = variable_genes(spots.expression, N_TARGETS, 0.0)
    targets = spots.expression.columns(genes).astype(np.float64)
    for group in np.unique(spots.groups):
        rows = spots.groups == group
        share = weight[rows] / weight[rows].sum()
        targets[rows] -= share @ targets[rows]
    return targets


def _decompose(values: F64) -> tuple[F64, F64, F64]:
    """Return left directions, singular values and right directions, through the smaller Gram matrix."""
    n, dim = values.shape
    if n <= dim:
        squares, left = np.linalg.eigh(values @ values.T)
        kept = squares > 1e-9 * squares[-1]
        singular, left = np.sqrt(squares[kept]), left[:, kept]
        return left, singular, values.T @ (left / singular)
    squares, right = np.linalg.eigh(values.T @ values)
    kept = squares > 1e-9 * squares[-1]
    singular, right = np.sqrt(squares[kept]), right[:, kept]
    return values @ (right / singular), singular, right
