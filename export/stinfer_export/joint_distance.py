"""Appearance and place as one distance, for spots of one section.

How much place counts, and how many neighbors, is chosen by predicting a fifth of the spots at a time from
the others, which lie all around them, as the spots lie around any place between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stinfer.contract import F32, F64, I64
from stinfer.neighbors import ExactSearch
from stinfer.own_section import with_place
from stinfer.predict import Weighting, expression_from_neighbors, neighbor_weights
from stinfer_export.agreement import pearson_by_gene
from stinfer_export.calibration import Fold, usual_temperature

NEIGHBORS_TRIED = (4, 8, 16, 32, 64, 128)
# Of the place against the appearance, both scaled to the same spread; 0 leaves the place out.
PLACE_WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_N_PARTS = 5
_NOTHING = 1e-12


@dataclass(frozen=True)
class Joint:
    """How spots of a section are averaged.

    Parameters
    ----------
    place_weight : mean squared distance of two places over that of two appearances; 0 leaves the place out
    k : neighbors
    """

    place_weight: float
    k: int


def fifths(n_spots: int) -> I64:
    """Deal spots into five parts, all over the section; each is left out in turn.

    Returns
    -------
    (n_spots,), 0 to 4
    """
    return np.asarray(np.random.default_rng(0).permutation(n_spots) % _N_PARTS, dtype=np.int64)


def weight_per_um(mapped: F32, places_um: F64, place_weight: float) -> float:
    """Return what a µm counts, in units of the appearance's distance.

    Parameters
    ----------
    mapped : (n, dim), embeddings of the references after the metric
    places_um : (n, 2), where they lie
    place_weight : see `Joint`
    """
    appearance = float(mapped.var(axis=0, dtype=np.float64).sum())
    place = float(places_um.var(axis=0).sum())
    return float(np.sqrt(place_weight * max(appearance, _NOTHING) / max(place, _NOTHING)))


def with_places(fold: Fold, places_um: F64, place_weight: float) -> Fold:
    """Put places behind the appearances of a fold.

    Parameters
    ----------
    fold : some spots, and those that predict them
    places_um : (n_spots, 2), of all
    place_weight : see `Joint`
    """
    weight = weight_per_um(fold.known_embedding, places_um[fold.known], place_weight)
    return Fold(
        fold.held,
        fold.known,
        with_place(fold.held_embedding, places_um[fold.held], weight),
        with_place(fold.known_embedding, places_um[fold.known], weight),
    )


def choose_joint(
    folds: Sequence[Fold],
    places_um: F64,
    expression: F32,
    *,
    place_weights: Sequence[float] = PLACE_WEIGHTS,
    neighbors: Sequence[int] = NEIGHBORS_TRIED,
    weighting: Weighting = "softmax",
) -> Joint:
    """Choose what predicts spots that are left out best.

    Parameters
    ----------
    folds : every spot is left out in one
    places_um : (n_spots, 2)
    expression : (n_spots, n_genes), log1p CP10K
    place_weights, neighbors : to choose from; k is lowered where fewer spots remain
    weighting : of the neighbors

    Returns
    -------
    that of the largest mean of Pearson's correlation over genes; of equals the first
    """
    fewest = min(len(fold.known) for fold in folds)
    tried = sorted({min(k, fewest) for k in neighbors})
    scores: dict[Joint, float] = {}
    for place_weight in place_weights:
        predicted = {k: np.empty_like(expression) for k in tried}
        for fold in folds:
            joined = with_places(fold, places_um, place_weight)
            search = ExactSearch(joined.known_embedding, "euclidean")
            distances, indices = search.query(joined.held_embedding, tried[-1])
            for k in tried:
                predicted[k][fold.held] = _average(
                    distances[:, :k], indices[:, :k], expression[fold.known], weighting
                )
        for k in tried:
            found = np.nan_to_num(pearson_by_gene(predicted[k], expression))
            scores[Joint(place_weight, k)] = float(found.mean()) if len(found) else 0.0
    return max(scores, key=lambda joint: scores[joint])


def predict_joint(fold: Fold, places_um: F64, expression: F32, joint: Joint) -> F32:
    """Predict the spots that a fold leaves out.

    Parameters
    ----------
    fold : some spots, and those that predict them
    places_um : (n_spots, 2), of all
    expression : (n_known, n_genes), log1p CP10K
    joint : how

    Returns
    -------
    (n_held, n_genes)
    """
    joined = with_places(fold, places_um, joint.place_weight)
    search = ExactSearch(joined.known_embedding, "euclidean")
    distances, indices = search.query(joined.held_embedding, min(joint.k, len(fold.known)))
    return _average(distances, indices, expression, "softmax")


def _average(distances: F32, indices: I64, expression: F32, weighting: Weighting) -> F32:
    weights = neighbor_weights(distances, weighting, usual_temperature(distances))
    return expression_from_neighbors(weights, indices, expression)
