"""Super-resolution against truth: every other spot of a section, predicted from the rest of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from stinfer.contract import F32, F64, I64, Bool
from stinfer_export.agreement import pearson_by_gene
from stinfer_export.calibration import whole_folds
from stinfer_export.datasets.section import Section
from stinfer_export.evaluation.interpolation import (
    IDW_POWERS,
    Method,
    Spots,
    alternate,
    bicubic,
    choose,
    inverse_distance,
    joint_neighbors,
)
from stinfer_export.joint_distance import NEIGHBORS_TRIED, PLACE_WEIGHTS, choose_joint, fifths

BASELINE = "inverse_distance"
BETWEEN_METHODS = {
    "own_bank": "bank of the other half alone",
    "joint": "appearance and place",
    "joint_dense": "appearance and place, mean of 7 places inside the spot",
    "appearance": "appearance alone",
    BASELINE: "inverse distance",
    "bicubic": "bicubic",
}
# A middle and six places around it, at two thirds of the radius: each stands for about as much of the disc.
_RING = 6
_RING_SHARE = 2 / 3
# Fewer cannot be cross-validated in five parts.
MIN_KEPT = 20


@dataclass(frozen=True)
class BetweenResult:
    """One half of a section's spots, predicted from the other.

    Parameters
    ----------
    section : name
    parity : 0 or 1, which half was held out
    n_known, n_asked : spots
    pearson : of each method, mean over genes; a gene without a correlation counts 0
    """

    section: str
    parity: int
    n_known: int
    n_asked: int
    pearson: dict[str, float]


def places_inside(section: Section, spot_diameter_um: float) -> Section:
    """Put seven places in every spot.

    Parameters
    ----------
    section : measured
    spot_diameter_um : of its platform

    Returns
    -------
    a section of seven places a spot, named after it with a number behind a slash, each with its counts
    """
    angle = 2 * np.pi * np.arange(_RING) / _RING
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1) * (_RING_SHARE * spot_diameter_um / 2)
    steps_l0 = np.concatenate([np.zeros((1, 2)), ring]) / section.mpp
    spot_of = np.repeat(np.arange(len(section.spots)), len(steps_l0))
    return replace(
        section,
        spots=tuple(f"{section.spots[i]}/{j % len(steps_l0)}" for j, i in enumerate(spot_of)),
        centers_l0=(section.centers_l0[:, np.newaxis] + steps_l0).reshape(-1, 2),
        array=section.array[spot_of],
        counts=section.counts.take_spots(spot_of),
        n_places_only=0,
        n_counts_only=0,
        notices=(),
    )


def evaluate_between(
    name: str,
    spots: Spots,
    array: F64,
    dense: Spots | None,
    spot_of: I64 | None,
    own_bank: Callable[[Bool], F32 | None] | None = None,
) -> list[BetweenResult]:
    """Hold out either half of a section's spots.

    Whatever a method leaves open is chosen by cross-validation on the spots that are kept.

    Parameters
    ----------
    name : of the section
    spots : its spots; the embedding is after a metric that was fitted without them
    array : (n, 2), column and row on the array
    dense : places inside the spots; None to leave them out
    spot_of : (n_places,), the spot of each of them
    own_bank : predicts the spots that are held out from a bank of the others; see `OwnBank.predict`

    Returns
    -------
    none where a half is too small
    """
    results = []
    dark = alternate(array)
    for parity, held in enumerate((dark, ~dark)):
        known, asked = spots[~held], spots[held]
        if len(known.places) < MIN_KEPT or not len(asked.places):
            continue
        predicted, joint = _predict(known, asked)
        found = None if own_bank is None else own_bank(held)
        if found is not None:
            predicted["own_bank"] = found
        if dense is not None and spot_of is not None:
            inside = held[spot_of]
            predicted["joint_dense"] = _averaged(joint(known, dense[inside]), spot_of[inside])
        scores = {
            method: float(np.nan_to_num(pearson_by_gene(values, asked.expression)).mean())
            for method, values in predicted.items()
        }
        results.append(BetweenResult(name, parity, len(known.places), len(asked.places), scores))
    return results


def _predict(known: Spots, asked: Spots) -> tuple[dict[str, F32], Method]:
    """Return every method's prediction, and the joint method that was chosen."""
    by_place = [partial(inverse_distance, k=k, power=power) for k in NEIGHBORS_TRIED for power in IDW_POWERS]
    folds = whole_folds(known.embedding, fifths(len(known.places)))
    joint, appearance = (
        partial(
            joint_neighbors,
            joint=choose_joint(folds, known.places, known.expression, place_weights=weights),
        )
        for weights in (PLACE_WEIGHTS, (0.0,))
    )
    chosen: dict[str, Method] = {
        "joint": joint,
        "appearance": appearance,
        BASELINE: choose(known, by_place),
        "bicubic": bicubic,
    }
    return {name: method(known, asked) for name, method in chosen.items()}, joint


def _averaged(values: F32, spot_of: I64) -> F32:
    """Average the places of each spot, spots in ascending order."""
    _, position, sizes = np.unique(spot_of, return_inverse=True, return_counts=True)
    total = np.zeros((len(sizes), values.shape[1]))
    np.add.at(total, position, values)
    return np.asarray(total / sizes[:, np.newaxis], dtype=np.float32)
