"""What a bank knows of its own accuracy: every section predicted from the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stinfer.contract import F32, F64, I64, Bool
from stinfer.neighbor_file import Neighbors
from stinfer.neighbors import Distance, ExactSearch
from stinfer.origin_search import OriginSearch
from stinfer.predict import (
    Weighting,
    domain_distance,
    expression_from_neighbors,
    interval_half_width,
    neighbor_weights,
    spread_from_neighbors,
)
from stinfer.sparse import Sparse
from stinfer.voters import OriginNeighbors
from stinfer_export.agreement import pearson_by_gene

_N_QUANTILES = 101
# Values of references x genes held at once.
_BLOCK = 16_000_000
# Few, so that a rare but known tissue counts as known; more than one, against chance.
_DOMAIN_K = 10
# Part of the held-out measurements that a gene's interval is to hold.
INTERVAL_LEVEL = 0.9
# Fewer held-out references say nothing of a tenth of them.
_MIN_FOR_INTERVAL = 20
# Where nothing was learned, the softmax gives the k-th neighbor exp(-2), about a seventh, of the nearest
# one's weight.
_TEMPERATURE_SHARE = 0.5


@dataclass(frozen=True)
class Fold:
    """Some references, and where a metric that was fitted without them puts all.

    Parameters
    ----------
    held : (n_held,), references left out
    known : (n_known,), the others that may predict them
    held_embedding, known_embedding : (n, dim), after that metric
    """

    held: I64
    known: I64
    held_embedding: F32
    known_embedding: F32


@dataclass(frozen=True)
class Calibration:
    """Cross-validated properties of a bank.

    Parameters
    ----------
    temperature : of the softmax
    domain_k : nearest references whose mean distance says how usual a place is
    distance_quantiles : (101,), of that mean distance, of the references
    gene_pearson : (n_genes,), Pearson correlation of predicted and measured over a section's spots,
        averaged over sections; NaN where a gene varies in no section
    gene_pearson_sd : (n_genes,), its standard deviation over sections; NaN with fewer than two
    interval_scale, interval_floor : (n_genes,), of the 90 % intervals, see `interval_half_width`; NaN where
        they are not known
    """

    temperature: float
    domain_k: int
    distance_quantiles: F32
    gene_pearson: F32
    gene_pearson_sd: F32
    interval_scale: F32
    interval_floor: F32


def usual_temperature(distances: F32) -> float:
    """Return the softmax temperature where none was learned.

    Parameters
    ----------
    distances : (n, k), ascending

    Returns
    -------
    half the median difference between the k-th and the nearest neighbor's distance
    """
    return max(_TEMPERATURE_SHARE * float(np.median(distances[:, -1] - distances[:, 0])), 1e-6)


def whole_folds(embedding: F32, section_codes: I64) -> list[Fold]:
    """Leave sections out, or single spots where there is one section, from a metric that is the same for all.

    Parameters
    ----------
    embedding : (n_refs, dim), after the metric
    section_codes : (n_refs,), section of each reference, or of whatever else is left out together
    """
    single = bool((section_codes == section_codes[0]).all())
    groups = np.arange(len(embedding)) if single else section_codes
    folds = []
    for group in np.unique(groups):
        held, known = np.flatnonzero(groups == group), np.flatnonzero(groups != group)
        folds.append(Fold(held, known, embedding[held], embedding[known]))
    return folds


def calibrate(
    folds: list[Fold],
    section_codes: I64,
    expression: Sparse,
    distance: Distance,
    k: int,
    weighting: Weighting,
    temperature: float | None,
) -> Calibration:
    """Predict what each fold leaves out from the rest, and compare.

    Parameters
    ----------
    folds : every reference is left out in one
    section_codes : (n_refs,), section of each reference
    expression : (n_refs, n_genes), log1p CP10K; a gene is compared where it was measured, by references of
        which it was
    distance, k, weighting : of the bank; k is lowered where fewer references remain
    temperature : of the softmax; None for half of the median difference between the k-th and the first
        neighbor's distance
    """
    n_refs, n_genes = len(section_codes), expression.n_columns
    n_left = min(len(fold.known) for fold in folds)
    k_left, domain_k = min(k, n_left), min(_DOMAIN_K, n_left)
    if k_left < 1:
        # One reference alone: nothing to predict it from.
        nothing = np.full(n_genes, np.nan, dtype=np.float32)
        zeros = np.zeros(_N_QUANTILES, dtype=np.float32)
        return Calibration(1.0, 1, zeros, nothing, nothing, nothing, nothing)
    n_found = max(k_left, domain_k)
    distances = np.empty((n_refs, n_found), dtype=np.float32)
    indices = np.empty((n_refs, n_found), dtype=np.int64)
    coverage = expression.coverage
    shape = (n_refs, 0 if coverage is None else coverage.n_origins, k_left)
    origin_distances, origin_indices = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.int64)
    for fold in folds:
        search = ExactSearch(fold.known_embedding, distance)
        distances[fold.held], found = search.query(fold.held_embedding, n_found)
        indices[fold.held] = fold.known[found]
        if coverage is not None:
            known = coverage.origin_of[fold.known]
            origins = OriginSearch(fold.known_embedding, known, coverage.n_origins, distance)
            origin_distances[fold.held], found = origins.query(fold.held_embedding, k_left)
            origin_indices[fold.held] = fold.known[found]
    quantiles = np.quantile(domain_distance(distances, domain_k), np.linspace(0, 1, _N_QUANTILES))
    distances, indices = distances[:, :k_left], indices[:, :k_left]
    if temperature is None:
        temperature = usual_temperature(distances)
    by_origin = None
    if coverage is not None:
        by_origin = OriginNeighbors(origin_distances, origin_indices, weighting, temperature)
    neighbors = Neighbors(indices, neighbor_weights(distances, weighting, temperature), by_origin)
    pearson, scale, floor = _by_gene(expression, section_codes, neighbors)
    with np.errstate(invalid="ignore"):
        n_varying = np.isfinite(pearson).sum(axis=0)
        mean = np.where(n_varying > 0, np.nansum(pearson, axis=0) / np.maximum(n_varying, 1), np.nan)
        squares = np.nansum((pearson - mean) ** 2, axis=0) / np.maximum(n_varying - 1, 1)
        deviation = np.where(n_varying > 1, np.sqrt(squares), np.nan)
    return Calibration(
        temperature=temperature,
        domain_k=domain_k,
        distance_quantiles=quantiles.astype(np.float32),
        gene_pearson=mean.astype(np.float32),
        gene_pearson_sd=deviation.astype(np.float32),
        interval_scale=scale,
        interval_floor=floor,
    )


def _by_gene(expression: Sparse, section_codes: I64, neighbors: Neighbors) -> tuple[F64, F32, F32]:
    """Compare what is predicted of held-out references with what was measured, gene by gene.

    Returns
    -------
    pearson : (n_sections, n_genes)
    interval_scale, interval_floor : (n_genes,)
    """
    rows_of = [np.flatnonzero(section_codes == section) for section in np.unique(section_codes)]
    pearson = np.full((len(rows_of), expression.n_columns), np.nan)
    scale = np.full(expression.n_columns, np.nan, dtype=np.float32)
    floor = np.full(expression.n_columns, np.nan, dtype=np.float32)
    for chosen, voters, usable in _voting(expression, neighbors):
        for block, predicted, spread in iter_spreads(expression, chosen, voters):
            genes = chosen[block]
            measured = expression.columns(genes)
            for i, rows in enumerate(rows_of):
                if usable[rows].all():
                    pearson[i, genes] = pearson_by_gene(predicted[rows], measured[rows])
            if usable.sum() >= _MIN_FOR_INTERVAL:
                error, usual = np.abs(measured - predicted)[usable], spread[usable]
                floor[genes] = usual.mean(axis=0)
                scale[genes] = _conformal(error, usual, floor[genes])
    return pearson, scale, floor


def _voting(expression: Sparse, neighbors: Neighbors) -> Iterator[tuple[I64, Neighbors, Bool]]:
    """Sort all genes by who votes for them.

    Yields
    ------
    genes : (n,), columns
    voters : of them
    usable : (n_refs,), references of which the genes were measured and that others predict
    """
    coverage, every = expression.coverage, np.arange(expression.n_columns)
    if coverage is None:
        yield every, neighbors, np.ones(len(neighbors), dtype=np.bool_)
        return
    for origins, genes in coverage.groups(every):
        voters = neighbors.of(origins)
        yield genes, voters, origins[coverage.origin_of] & (voters.weights.sum(axis=1) > 0)


def _conformal(error: F32, spread: F32, floor: F32) -> F32:
    """Return the factor that a gene's half widths take to hold 90 % of the errors; NaN where it has none."""
    width = interval_half_width(spread, np.ones_like(floor), floor)
    known = floor > 0
    ratio = error / np.where(width > 0, width, 1)
    n = len(ratio)
    rank = min(int(np.ceil((n + 1) * INTERVAL_LEVEL)), n) - 1
    found = np.partition(ratio, rank, axis=0)[rank]
    return np.asarray(np.where(known, found, np.nan), dtype=np.float32)


def iter_spreads(expression: Sparse, chosen: I64, neighbors: Neighbors) -> Iterator[tuple[slice, F32, F32]]:
    """Predict all spots, some genes at a time.

    Yields
    ------
    genes : slice of `chosen`
    predicted, spread : (n_spots, n_block_genes)
    """
    step = max(_BLOCK // max(len(expression.indptr) - 1, len(neighbors)), 1)
    for start in range(0, len(chosen), step):
        genes = slice(start, min(start + step, len(chosen)))
        dense = expression.columns(chosen[genes])
        mean = expression_from_neighbors(neighbors.weights, neighbors.indices, dense)
        middle = dense.mean(axis=0, dtype=np.float64).astype(np.float32)
        yield genes, mean, spread_from_neighbors(neighbors.weights, neighbors.indices, dense, mean, middle)
