"""An evaluation as a picture: how genes are distributed, and maps of the best and the worst."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stinfer.errors import ExtraMissingError
from stinfer_export.agreement import pearson_by_gene
from stinfer_export.evaluation.results import FoldResult, SectionResult

_DPI = 120


def load_figure() -> Any:
    """Return matplotlib's class of figures.

    Raises
    ------
    ExtraMissingError
        It is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as missing:
        raise ExtraMissingError(missing.name or "matplotlib", "evaluate", "a picture") from missing
    return Figure


def draw(path: Path, folds: Sequence[FoldResult], labels: dict[str, str]) -> None:
    """Draw the picture as PNG.

    Parameters
    ----------
    path : to write
    folds : all of them; the maps are of the first fold's first section
    labels : names of the methods, best first
    """
    section = folds[0].sections[0]
    n_shown = len(section.maps.genes)
    figure = load_figure()(
        figsize=(max(2.1 * n_shown, 9), 4.2 + (4.4 if n_shown else 0)), layout="constrained"
    )
    parts = figure.subfigures(2 if n_shown else 1, 1, squeeze=False)[:, 0]
    _draw_distribution(parts[0], folds, labels)
    if n_shown:
        _draw_maps(parts[1], section, next(iter(labels.values())))
    figure.savefig(path, format="png", dpi=_DPI, metadata={"Software": None})


def _draw_distribution(part: Any, folds: Sequence[FoldResult], labels: dict[str, str]) -> None:
    axes = part.subplots()
    methods = [method for method in labels if all(method in s.by_gene for f in folds for s in f.sections)]
    values = [
        np.concatenate([np.nan_to_num(s.by_gene[m].pearson) for f in folds for s in f.sections])
        for m in methods
    ]
    axes.boxplot(values, widths=0.6, showmeans=True, whis=(5, 95), showfliers=False)
    axes.set_xticks(
        np.arange(len(methods)) + 1, [labels[m].replace(", ", ",\n") for m in methods], fontsize=8
    )
    axes.axhline(0, color="0.8", linewidth=1, zorder=0)
    axes.set_ylabel("Pearson correlation over spots")
    n_genes = len(values[0])
    axes.set_title(
        f"{len(folds)} folds, {n_genes} pairs of gene and section "
        "(box: quartiles, whiskers: 5 % and 95 %, triangle: mean)",
        fontsize=9,
    )


def _draw_maps(part: Any, section: SectionResult, label: str) -> None:
    maps = section.maps
    n_best = len(maps.genes) // 2
    part.suptitle(
        f"Section {section.section}: its {n_best} best and {len(maps.genes) - n_best} worst genes, {label}; "
        "colors from each picture's own 1st to 99th percentile",
        fontsize=9,
    )
    axes = part.subplots(2, len(maps.genes), squeeze=False)
    pearson = pearson_by_gene(maps.predicted, maps.measured)
    for row, (name, values) in enumerate((("measured", maps.measured), ("predicted", maps.predicted))):
        for column, gene in enumerate(maps.genes):
            one = axes[row, column]
            low, high = np.quantile(values[:, column], [0.01, 0.99])
            one.scatter(*maps.places.T, c=values[:, column], s=9, vmin=low, vmax=high, cmap="viridis")
            one.set_aspect("equal")
            one.invert_yaxis()
            one.set_xticks([])
            one.set_yticks([])
            if row == 0:
                one.set_title(f"{gene}  {pearson[column]:.2f}", fontsize=9)
            if column == 0:
                one.set_ylabel(name)
