"""What a bank knows of its own accuracy: every section predicted from the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stinfer.contract import F32, F64, I64
from stinfer.neighbors import Distance, ExactSearch
from stinfer.predict import Weighting, domain_distance, neighbor_weights
from stinfer.prediction import Neighbors, iter_expression
from stinfer.sparse import Sparse
from stinfer_export.agreement import pearson_by_gene

_N_QUANTILES = 101
# Few, so that a rare but known tissue counts as known; more than one, against chance.
_DOMAIN_K = 10
# The softmax gives the k-th neighbor exp(-2), about a seventh, of the nearest one's weight.
_TEMPERATURE_SHARE = 0.5


@dataclass(frozen=True)
class Calibration:
    """Cross-validated properties of a bank.

    Parameters
    ----------
    scheme : ``leave-one-section-out``, or ``leave-one-spot-out`` where there is one section
    temperature : of the softmax: half of the median difference between the k-th and the first
        neighbor's distance
    domain_k : nearest references whose mean distance says how usual a place is
    distance_quantiles : (101,), of that mean distance, of the references
    gene_pearson : (n_genes,), Pearson correlation of predicted and measured over a section's spots,
        averaged over sections; NaN where a gene varies in no section
    gene_pearson_sd : (n_genes,), its standard deviation over sections; NaN with fewer than two
    """

    scheme: str
    temperature: float
    domain_k: int
    distance_quantiles: F32
    gene_pearson: F32
    gene_pearson_sd: F32


def calibrate(
    embedding: F32, section_codes: I64, expression: Sparse, distance: Distance, k: int, weighting: Weighting
) -> Calibration:
    """Predict every section from the others, and compare.

    Parameters
    ----------
    embedding : (n_refs, dim), after the metric
    section_codes : (n_refs,), section of each reference
    expression : (n_refs, n_genes), log1p CP10K
    distance, k, weighting : of the bank; k is lowered where fewer references remain
    """
    n_refs = len(embedding)
    single = bool((section_codes == section_codes[0]).all())
    groups = np.arange(n_refs) if single else section_codes
    n_left = n_refs - int(np.bincount(groups).max())
    k_left, domain_k = min(k, n_left), min(_DOMAIN_K, n_left)
    n_genes = expression.n_columns
    if k_left < 1:
        # One reference alone: nothing to predict it from.
        nothing = np.full(n_genes, np.nan, dtype=np.float32)
        zeros = np.zeros(_N_QUANTILES, dtype=np.float32)
        return Calibration("none", 1.0, 1, zeros, nothing, nothing)
    distances, indices = ExactSearch(embedding, distance).query(
        embedding, max(k_left, domain_k), excluded=groups, groups=groups
    )
    quantiles = np.quantile(domain_distance(distances, domain_k), np.linspace(0, 1, _N_QUANTILES))
    distances, indices = distances[:, :k_left], indices[:, :k_left]
    temperature = _TEMPERATURE_SHARE * float(np.median(distances[:, -1] - distances[:, 0]))
    temperature = max(temperature, 1e-6)
    weights = neighbor_weights(distances, weighting, temperature)
    pearson = _pearson_by_section(expression, section_codes, Neighbors(indices, weights))
    with np.errstate(invalid="ignore"):
        n_found = np.isfinite(pearson).sum(axis=0)
        mean = np.where(n_found > 0, np.nansum(pearson, axis=0) / np.maximum(n_found, 1), np.nan)
        squares = np.nansum((pearson - mean) ** 2, axis=0) / np.maximum(n_found - 1, 1)
        deviation = np.where(n_found > 1, np.sqrt(squares), np.nan)
    return Calibration(
        scheme="leave-one-spot-out" if single else "leave-one-section-out",
        temperature=temperature,
        domain_k=domain_k,
        distance_quantiles=quantiles.astype(np.float32),
        gene_pearson=mean.astype(np.float32),
        gene_pearson_sd=deviation.astype(np.float32),
    )


def _pearson_by_section(expression: Sparse, section_codes: I64, neighbors: Neighbors) -> F64:
    """Return (n_sections, n_genes)."""
    sections = np.unique(section_codes)
    result = np.full((len(sections), expression.n_columns), np.nan)
    for i, section in enumerate(sections):
        rows = np.flatnonzero(section_codes == section)
        part = Neighbors(neighbors.indices[rows], neighbors.weights[rows])
        every = np.arange(expression.n_columns)
        for genes, predicted in _whole_columns(expression, every, part):
            measured = expression.columns(every[genes])[rows]
            result[i, genes] = pearson_by_gene(predicted, measured)
    return result


def _whole_columns(expression: Sparse, chosen: I64, neighbors: Neighbors) -> list[tuple[slice, F32]]:
    """Gather the blocks of a prediction that hold the same genes."""
    gathered: dict[int, tuple[slice, list[F32]]] = {}
    for _, genes, values in iter_expression(expression, chosen, neighbors):
        gathered.setdefault(genes.start, (genes, []))[1].append(values)
    return [(genes, np.concatenate(parts)) for genes, parts in gathered.values()]
