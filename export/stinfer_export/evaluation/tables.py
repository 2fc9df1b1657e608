"""An evaluation as text: the table on the screen, one row a gene as CSV, everything else as JSON."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stinfer_export.evaluation.between_spots import BASELINE, BETWEEN_METHODS
from stinfer_export.evaluation.methods import METHODS
from stinfer_export.evaluation.results import (
    METRICS,
    FoldResult,
    between_summary,
    fold_means,
    over_folds,
)
from stinfer_export.evaluation.run import Evaluation
from stinfer_export.evaluation.upstream import UPSTREAM_METHODS

_DIGITS = 6


def labels(folds: Sequence[FoldResult]) -> dict[str, str]:
    """Return the names of the methods that were compared."""
    known = UPSTREAM_METHODS if "upstream_k" in folds[0].sections[0].by_gene else METHODS
    return {method: known[method] for method in folds[0].sections[0].by_gene}


def table_lines(evaluation: Evaluation) -> Iterator[str]:
    """Write the table, line by line."""
    folds, names = evaluation.folds, labels(evaluation.folds)
    summaries = {kind: over_folds(folds, kind) for kind in ("gene", "spot")}
    means = [fold_means(fold, "gene") for fold in folds]
    width = max(len(label) for label in names.values())
    for kind, summary in summaries.items():
        yield ""
        cost = f"{'encode s/spot':>15}" if kind == "gene" else ""
        yield f"{'per ' + kind:<{width}}" + "".join(f"{metric:>19}" for metric in METRICS) + cost
        for method, found in summary.items():
            seconds = 0.0 if method == "mean" else evaluation.seconds_per_spot
            cost = f"{seconds:>15.3f}" if kind == "gene" else ""
            cells = "".join(f"{_with_sd(*found[metric]):>19}" for metric in METRICS)
            yield f"{names[method]:<{width}}{cells}{cost}"
    yield ""
    yield f"{'Pearson per fold':<{width}}" + "".join(f"{fold.split.name:>10}" for fold in folds)
    for method in summaries["gene"]:
        yield f"{names[method]:<{width}}" + "".join(f"{one[method]['pearson']:>10.3f}" for one in means)
    between = [one for fold in folds for one in fold.between]
    if between:
        yield from _between_lines(between_summary(between), len(between))


def _between_lines(
    summary: Mapping[str, Mapping[str, tuple[float, float | None]]], n_halves: int
) -> Iterator[str]:
    width = max(len(label) for label in BETWEEN_METHODS.values())
    yield ""
    yield f"{'every other spot':<{width}}{'pearson':>17}{'over ' + BETWEEN_METHODS[BASELINE]:>24}"
    for method, label in BETWEEN_METHODS.items():
        if method in summary:
            found = summary[method]
            margin = "" if method == BASELINE else _with_sd(*found["margin"], sign="+")
            yield f"{label:<{width}}{_with_sd(*found['pearson']):>17}{margin:>24}"
    yield f"({n_halves} halves of sections; mean ± SD over them)"


def _with_sd(mean: float, deviation: float | None, sign: str = "") -> str:
    return f"{mean:{sign}.3f}" + ("" if deviation is None else f" ± {deviation:.3f}")


def write_genes(path: Path, folds: Sequence[FoldResult]) -> None:
    """Write one row for each fold, held-out section, method and gene; empty where there is no number."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["fold", "section", "patient", "method", "gene", *METRICS])
        for fold in folds:
            for section in fold.sections:
                for method, agreement in section.by_gene.items():
                    columns = [getattr(agreement, metric) for metric in METRICS]
                    for i, gene in enumerate(fold.genes):
                        numbers = [f"{c[i]:.6g}" if math.isfinite(c[i]) else "" for c in columns]
                        writer.writerow(
                            [fold.split.name, section.section, section.patient, method, gene, *numbers]
                        )


def as_json(evaluation: Evaluation, settings: Mapping[str, Any]) -> str:
    """Write everything but the table of genes; no time and no path, so that a repeat gives the same text.

    Parameters
    ----------
    evaluation : what was found
    settings : that it was made with
    """
    folds = evaluation.folds
    between = [one for fold in folds for one in fold.between]
    content = {
        "settings": dict(settings),
        "per_gene": _named(over_folds(folds, "gene")),
        "per_spot": _named(over_folds(folds, "spot")),
        "folds": [_fold(fold) for fold in folds],
        "every_other_spot": {
            "summary": _named(between_summary(between)) if between else {},
            "halves": [
                {
                    "section": one.section,
                    "parity": one.parity,
                    "n_known": one.n_known,
                    "n_asked": one.n_asked,
                    "pearson": one.pearson,
                }
                for one in between
            ],
        },
        "notices": list(evaluation.notices),
    }
    return json.dumps(_rounded(content), indent=1, ensure_ascii=False) + "\n"


def _fold(fold: FoldResult) -> dict[str, Any]:
    return {
        "name": fold.split.name,
        "train": list(fold.split.train),
        "test": [
            {"section": s.section, "patient": s.patient, "n_spots": s.n_spots, "n_absent_genes": s.n_absent}
            for s in fold.sections
        ],
        "fitted": fold.fitted,
        "genes": list(fold.genes),
        "per_gene": fold_means(fold, "gene"),
        "per_spot": fold_means(fold, "spot"),
    }


def _named(
    summary: Mapping[str, Mapping[str, tuple[float, float | None]]],
) -> dict[str, dict[str, dict[str, float | None]]]:
    return {
        method: {metric: {"mean": mean, "sd": sd} for metric, (mean, sd) in found.items()}
        for method, found in summary.items()
    }


def _rounded(value: Any) -> Any:
    """Round what is computed, so that no bit of a library's sum shows."""
    if isinstance(value, float):
        return round(value, _DIGITS)
    if isinstance(value, Mapping):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(one) for one in value]
    return value
