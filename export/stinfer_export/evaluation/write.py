"""The files of an evaluation, all of them or none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stinfer.errors import ExtraMissingError
from stinfer.files import make_folder, refuse_existing, written_together
from stinfer_export.evaluation.figures import draw, load_figure
from stinfer_export.evaluation.run import Evaluation
from stinfer_export.evaluation.tables import as_json, labels, write_genes

SUMMARY, GENES, PICTURE, COST = "evaluation.json", "genes.csv", "evaluation.png", "cost.json"


def prepare(folder: Path, *, overwrite: bool) -> None:
    """Make the folder, and check before any long work that everything can be written.

    Raises
    ------
    OutputExistsError
        A file is there, and not to be replaced.
    OutputWriteError
        The folder cannot be made or written.
    ExtraMissingError
        Nothing is there to draw or to interpolate with.
    """
    load_figure()
    if find_spec("scipy") is None:
        raise ExtraMissingError("scipy", "evaluate", "interpolation")  # noqa: EM101  # a package, no message
    make_folder(folder)
    for name in (SUMMARY, GENES, PICTURE, COST):
        refuse_existing(folder / name, overwrite=overwrite)


def write_evaluation(folder: Path, evaluation: Evaluation, settings: Mapping[str, Any]) -> None:
    """Write summary, table of genes, picture and cost.

    The cost has a file of its own: it is the only thing that differs when an evaluation is repeated.

    Raises
    ------
    OutputWriteError
        The disk is full, or the folder cannot be written.
    """
    paths = [folder / name for name in (SUMMARY, GENES, PICTURE, COST)]
    with written_together(paths) as beside:
        summary, genes, picture, cost = (beside[path] for path in paths)
        summary.write_text(as_json(evaluation, settings), encoding="utf-8", newline="\n")
        write_genes(genes, evaluation.folds)
        draw(picture, evaluation.folds, labels(evaluation.folds))
        cost.write_text(_cost(evaluation), encoding="utf-8", newline="\n")


def _cost(evaluation: Evaluation) -> str:
    content = {
        "encode_seconds_per_spot": round(evaluation.seconds_per_spot, 4),
        "sections": {
            name: {"n_spots": n_spots, "encode_seconds": round(seconds, 2)}
            for name, (n_spots, seconds) in evaluation.encoding.items()
        },
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
