"""What an evaluation found, and its means: over genes or spots, sections of a fold, and folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stinfer.contract import F32, F64
from stinfer_export.agreement import Agreement, agreement_by_gene, agreement_by_spot
from stinfer_export.evaluation.between_spots import BASELINE, BetweenResult
from stinfer_export.evaluation.folds import Split
from stinfer_export.section_encoding import Part

METRICS = ("pearson", "spearman", "rmse", "variance_ratio")
# Genes whose maps are shown.
N_SHOWN = 3


@dataclass(frozen=True)
class Maps:
    """The genes of a section that were predicted best and worst.

    Parameters
    ----------
    places : (n_spots, 2), level-0 px
    genes : best first
    measured, predicted : (n_spots, n_genes)
    """

    places: F64
    genes: tuple[str, ...]
    measured: F32
    predicted: F32


@dataclass(frozen=True)
class SectionResult:
    """A held-out section, predicted.

    Parameters
    ----------
    section, patient : of it
    n_spots : of it
    n_absent : genes that it does not list, counted as 0
    by_gene, by_spot : of each method
    maps : of the first method
    """

    section: str
    patient: str
    n_spots: int
    n_absent: int
    by_gene: dict[str, Agreement]
    by_spot: dict[str, Agreement]
    maps: Maps


@dataclass(frozen=True)
class FoldResult:
    """A fold.

    Parameters
    ----------
    split : its sections
    genes : that were predicted, chosen on the training side
    fitted : settings that were, too
    sections : held out
    between : the same sections, every other spot from the rest
    """

    split: Split
    genes: tuple[str, ...]
    fitted: dict[str, object]
    sections: tuple[SectionResult, ...]
    between: tuple[BetweenResult, ...] = ()


def compare(
    part: Part, genes: Sequence[str], n_absent: int, predicted: dict[str, F32], measured: F32
) -> SectionResult:
    """Compare every method's prediction of a section with what was measured.

    Parameters
    ----------
    part : the section
    genes : n_genes symbols
    n_absent : of them, counted as 0
    predicted : of each method (n_spots, n_genes)
    measured : (n_spots, n_genes)
    """
    by_gene = {method: agreement_by_gene(values, measured) for method, values in predicted.items()}
    first = next(iter(predicted))
    # A gene without a correlation is neither good nor bad.
    pearson = by_gene[first].pearson
    order = np.argsort(-pearson, kind="stable")
    order = order[np.isfinite(pearson[order])]
    n_shown = min(N_SHOWN, len(order) // 2)
    shown = np.concatenate([order[:n_shown], order[len(order) - n_shown :]])
    return SectionResult(
        section=part.name,
        patient=part.patient,
        n_spots=len(measured),
        n_absent=n_absent,
        by_gene=by_gene,
        by_spot={method: agreement_by_spot(values, measured) for method, values in predicted.items()},
        maps=Maps(
            part.centers_l0, tuple(genes[i] for i in shown), measured[:, shown], predicted[first][:, shown]
        ),
    )


def fold_means(fold: FoldResult, kind: str) -> dict[str, dict[str, float]]:
    """Average over genes or spots, then over the fold's sections.

    Parameters
    ----------
    fold : it
    kind : ``gene`` or ``spot``

    Returns
    -------
    of each method, each metric; a gene or spot without a correlation counts 0, one that does not vary has no
    part in the variance ratio
    """
    found: dict[str, dict[str, float]] = {}
    for method in fold.sections[0].by_gene:
        agreements = [(s.by_gene if kind == "gene" else s.by_spot)[method] for s in fold.sections]
        found[method] = {
            metric: float(np.mean([_mean(getattr(a, metric), metric) for a in agreements]))
            for metric in METRICS
        }
    return found


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean of some values and their standard deviation (n - 1); None for one alone."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def over_folds(folds: Sequence[FoldResult], kind: str) -> dict[str, dict[str, tuple[float, float | None]]]:
    """Return mean and standard deviation over folds of `fold_means`; methods that every fold has."""
    means = [fold_means(fold, kind) for fold in folds]
    return {
        method: {metric: mean_and_sd([one[method][metric] for one in means]) for metric in METRICS}
        for method in means[0]
        if all(method in one for one in means)
    }


def between_summary(results: Sequence[BetweenResult]) -> dict[str, dict[str, tuple[float, float | None]]]:
    """Return of each method mean and SD over halves of sections, and of its margin over interpolation."""
    found = {}
    for method in results[0].pearson:
        shared = [one.pearson for one in results if method in one.pearson]
        found[method] = {
            "pearson": mean_and_sd([one[method] for one in shared]),
            "margin": mean_and_sd([one[method] - one[BASELINE] for one in shared]),
        }
    return found


def _mean(values: F64, metric: str) -> float:
    if metric in ("pearson", "spearman"):
        return float(np.nan_to_num(values).mean())
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else 0.0
