"""The commands `stinfer-export evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stinfer.cli_tools import FiniteRange, P, ProgressBar, R, encoding_options, set_up_logging, shows_errors
from stinfer_export.cli_options import FILE, plan_options, read_names, visium_images

if TYPE_CHECKING:
    from stinfer_export.bank_plan import Preset
    from stinfer_export.datasets.section import Platform, Section
    from stinfer_export.evaluation.folds import HoldOut
    from stinfer_export.evaluation.run import Protocol

_N_GENES = click.option(
    "--n-genes",
    type=click.IntRange(min=1),
    default=250,
    show_default=True,
    help="Compare this many genes: those of largest variance.",
)
_MIN_DETECTED = click.option(
    "--min-detected",
    type=FiniteRange(min=0, max=1),
    default=0.3,
    show_default=True,
    help="... among those detected in more than this part of the spots.",
)


@click.group(name="evaluate", epilog="Example: stinfer-export evaluate her2st DIR --model m.onnx --out-dir e")
def evaluate_group() -> None:
    """Measure how well sections are predicted from others."""


_EVALUATE_OPTIONS = (
    click.option("--out-dir", type=FILE, required=True, help="Folder to write to; made if need be."),
    click.option(
        "--hold-out",
        type=click.Choice(["section", "patient"]),
        default="section",
        show_default=True,
        help="What is predicted from all the rest, in turn.",
    ),
    click.option(
        "--test-on",
        callback=read_names,
        help="Predict these sections, separated by commas, once, from all others. [default: as --hold-out "
        "says]",
    ),
    click.option(
        "--genes",
        default="top",
        show_default=True,
        metavar="top|all|FILE",
        help="top: --n-genes of largest variance on the training side; all: those detected there often "
        "enough; or a text file with one gene a line: those of them that the training side has.",
    ),
    _N_GENES,
    _MIN_DETECTED,
    click.option(
        "--protocol",
        type=click.Choice(["stinfer", "upstream"]),
        default="stinfer",
        show_default=True,
        help="upstream: as the published code, whatever the other flags say: raw counts, 224 px patches at "
        "the image's scale, pixels without normalisation, weights 1 - d / sum(d), k 1000 or all.",
    ),
    plan_options,
    encoding_options,
    click.option("--overwrite", is_flag=True, help="Replace the results if they exist."),
    click.option("--quiet", is_flag=True, help="Print errors, notices and the table only."),
)


def _evaluate_options(command: Callable[P, R]) -> Callable[P, R]:
    """Add the flags that say what is held out, compared and written, the same for all data sets."""
    for option in reversed(_EVALUATE_OPTIONS):
        command = option(command)
    return command


def _evaluate(
    sections: Iterable[Section],
    platform: Platform,
    *,
    out_dir: Path,
    hold_out: HoldOut,
    test_on: list[str] | None,
    genes: str,
    n_genes: int,
    min_detected: float,
    protocol: Protocol,
    models: tuple[Path, ...],
    preset: Preset,
    orientations: str,
    overwrite: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Evaluate on sections and print the table."""
    from stinfer_export.bank_plan import BankPlan, with_preset
    from stinfer_export.evaluation.folds import split_once, split_sections
    from stinfer_export.evaluation.run import Evaluator, GeneSet
    from stinfer_export.evaluation.tables import table_lines
    from stinfer_export.evaluation.write import prepare, write_evaluation

    running = {name: options.pop(name) for name in ("device", "threads", "batch_size")}
    plan = with_preset(BankPlan(*platform, orientations=int(orientations), **options), preset)
    evaluator = Evaluator(
        plan, models, out_dir / "embeddings", GeneSet(genes, n_genes, min_detected), protocol,
        progress=ProgressBar(quiet=quiet), **running,
    )  # fmt: skip
    prepare(out_dir, overwrite=overwrite)
    found = list(sections)
    patients = {section.name: section.patient for section in found}
    splits = split_once(list(patients), test_on) if test_on else split_sections(patients, hold_out)
    held = f"once: {', '.join(test_on)}" if test_on else hold_out
    evaluation = evaluator.run(found, splits)
    write_evaluation(out_dir, evaluation, {"hold_out": held, **evaluator.settings()})
    for line in table_lines(evaluation):
        click.echo(line)


@evaluate_group.command(
    name="her2st",
    epilog="Example: stinfer-export evaluate her2st data --model models/resnet18.a1_in1k.onnx --out-dir e",
)
@click.argument("folder", metavar="DIR", type=FILE)
@click.option("--sections", callback=read_names, help="Sections to use, separated by commas. [default: all]")
@_evaluate_options
@shows_errors
def evaluate_her2st(folder: Path, sections: list[str] | None, **options: Any) -> None:
    """Predict held-out sections of the her2st data set in DIR, and compare with what was measured.

    Genes, means, metric, k and temperature come from the training side of each fold. Embeddings are kept in
    OUT_DIR/embeddings and used again. Written are evaluation.json, genes.csv, evaluation.png and cost.json.
    """
    set_up_logging(quiet=options["quiet"])
    from stinfer_export.datasets import her2st as dataset

    _evaluate(dataset.iter_sections(folder, sections), dataset.PLATFORM, **options)


@evaluate_group.command(
    name="visium",
    epilog="Example: stinfer-export evaluate visium a b --image a.tif --image b.tif --model m.onnx "
    "--out-dir e",
)
@click.argument("outs", metavar="OUTS", type=FILE, nargs=-1, required=True)
@visium_images
@_evaluate_options
@shows_errors
def evaluate_visium(outs: tuple[Path, ...], images: tuple[Path, ...], **options: Any) -> None:
    """Predict held-out sections of OUTS, folders `outs` of Space Ranger, and compare with what was measured.

    As `evaluate her2st` does. Each of OUTS is one section, its patient named after its folder.
    """
    set_up_logging(quiet=options["quiet"])
    from stinfer_export.datasets import visium as dataset

    _evaluate(dataset.iter_sections(outs, images), dataset.read_platform(outs), **options)


@evaluate_group.command(name="bank", epilog="Example: stinfer-export evaluate bank her2st.h5")
@click.argument("bank", metavar="BANK", type=FILE)
@_N_GENES
@_MIN_DETECTED
@shows_errors
def evaluate_bank(bank: Path, n_genes: int, min_detected: float) -> None:
    """Say what BANK recorded of its own cross-validation.

    A bank keeps embeddings after a metric fitted to all its sections: none of them can be held out any more.
    """
    from stinfer.bank import Bank
    from stinfer_export.evaluation.recorded import recorded_lines

    for line in recorded_lines(Bank.open(bank), n_genes, min_detected):
        click.echo(line)
