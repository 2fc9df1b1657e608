"""The commands `stinfer` and `stinfer-run`. Click lives in the modules `cli…` alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stinfer import __version__
from stinfer.cli_bank import bank_group
from stinfer.cli_bench import bench
from stinfer.cli_doctor import doctor
from stinfer.cli_tools import (
    FILE,
    FiniteRange,
    ProgressBar,
    encoding_options,
    read_scale,
    set_up_logging,
    shows_errors,
    split_names,
)

if TYPE_CHECKING:
    from stinfer.batch import SlideOutcome

# Leaves with it where some of many slides have failed.
EXIT_SOME_FAILED = 3
# Arguments that name the file of one slide.
_ONE_SLIDE = ("out", "spots", "csv", "ome_tiff", "save_map", "tissue_mask", "preview")


@click.command(name="run", epilog="Example: stinfer-run slide.svs --bank her2st.h5 --png ERBB2,COL1A1")
@click.argument("slides", type=FILE, nargs=-1, required=True, metavar="SLIDE...")
@click.option("--bank", type=FILE, required=True, help="Reference bank (.h5) that predicts.")
@click.option(
    "--out", type=FILE, help="Prediction to write (.h5ad). [default: SLIDE.stinfer.h5ad in this folder]"
)
@click.option(
    "--out-dir",
    type=FILE,
    metavar="DIR",
    help="Folder for the predictions, named after their slides; made if need be. [default: this folder]",
)
@click.option(
    "--mpp",
    metavar="F|X,Y",
    callback=read_scale,
    help="µm per level-0 pixel, one number or those of x and y. [default: what the slide says, or an error]",
)
@click.option(
    "--tissue-mask",
    type=FILE,
    metavar="FILE",
    help="Where tissue is: a PNG or TIFF of the slide's proportions, not 0 on tissue. [default: it is found]",
)
@click.option(
    "--spots",
    type=FILE,
    help="Where to predict: a her2st selection file, Space Ranger tissue positions, or a CSV with x,y in "
    "level-0 px. [default: a grid over the tissue]",
)
@click.option(
    "--pitch-um",
    type=FiniteRange(min=0, min_open=True),
    help="Distance of grid points in µm; smaller is denser (super-resolution), down to a cell of the feature "
    "map, 22 µm. [default: that of the bank]",
)
@click.option(
    "--genes",
    help="Genes to predict: symbols or Ensembl IDs separated by commas, a file with one a line, "
    "markers:breast, predictable (cross-validated correlation of at least 0.2), or all. [default: "
    "predictable, or all where the bank does not know]",
)
@click.option("--csv", type=FILE, help="Also write spots x genes, with coordinates, as a CSV file.")
@click.option(
    "--png", default="", metavar="GENES", help="Also draw these genes over the slide, one PNG each."
)
@click.option(
    "--ome-tiff",
    type=FILE,
    metavar="FILE",
    help="Also write the grid as an OME-TIFF with a channel per gene of --genes, which QuPath and napari lay "
    "over the slide.",
)
@click.option(
    "--intervals",
    is_flag=True,
    help="Also write a 90 % interval for every value, as the layers lower and upper: three times the file.",
)
@click.option(
    "--save-neighbors",
    is_flag=True,
    help="Also write which of the bank's references made each prediction, with their weights.",
)
@click.option(
    "--save-map",
    type=FILE,
    metavar="FILE",
    help="Keep the slide's feature map (.map.h5). Given in place of SLIDE it predicts again, elsewhere or "
    "other genes, in seconds.",
)
@click.option(
    "--preview",
    type=FILE,
    metavar="FILE",
    help="Before anything long, draw the tissue's outline and the places over the slide, as a PNG.",
)
@encoding_options
@click.option(
    "--model",
    type=FILE,
    metavar="FILE",
    help="Encode with this file in place of the bank's own: the same weights in another precision, as fp16 "
    "for CUDA. Refused where the two do not agree on the slide. [default: the bank's]",
)
@click.option(
    "--search",
    type=click.Choice(["auto", "exact", "annoy"]),
    default="auto",
    show_default=True,
    help="How to find neighbors; auto takes Annoy only for large banks and a recall of at least 0.99.",
)
@click.option(
    "--bank-key",
    type=FILE,
    metavar="FILE|DIR",
    help="Accept only a bank that this public key (.pub), or one of a folder of them, has signed. [default: "
    "those of the environment variable STINFER_BANK_KEYS, where it is set; else any bank]",
)
@click.option("--k", type=click.IntRange(min=1), help="Neighbors to average. [default: the bank's]")
@click.option(
    "--weighting",
    type=click.Choice(["uniform", "inverse", "softmax"]),
    help="How near neighbors weigh more. [default: the bank's]",
)
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
@click.option(
    "--log",
    type=FILE,
    metavar="FILE",
    help="Append what is done, and when, to this file: one JSON object a line, for programs to read.",
)
@click.option(
    "--pseudonym",
    type=FILE,
    metavar="KEYFILE",
    help="Call the slide by a keyed hash of its content, slide-<16 digits>, in all outputs, their default "
    "names and the log. KEYFILE: 16 bytes or more that nobody can guess (openssl rand -out KEYFILE 32).",
)
@click.option("--quiet", is_flag=True, help="Print errors and notices only.")
@click.version_option(__version__, prog_name="stinfer")
@shows_errors
def run(
    slides: tuple[Path, ...], bank: Path, png: str, out_dir: Path | None, *, quiet: bool, **options: Any
) -> None:
    """Predict spatial gene expression for each SLIDE from a reference bank.

    SLIDE is anything OpenSlide reads, a JPEG, PNG or TIFF image, or a map that --save-map wrote. The
    prediction is an AnnData file that scanpy and squidpy open: log1p of counts per 10,000, with a
    confidence for every spot.

    A run that was cut off goes on where it was when the same command is given again. Of several slides, one
    that fails does not stop the rest, and those that are finished are passed over the next time; the exit
    code is 3 if any has failed.

    For research use; not a diagnostic device.
    """
    one_each = [f"--{name.replace('_', '-')}" for name in _ONE_SLIDE if options[name] is not None]
    if len(slides) > 1 and one_each:
        msg = f"{one_each[0]} names the file of one slide, and {len(slides)} are given."
        raise click.UsageError(msg)
    if out_dir is not None and options["out"] is not None:
        msg = "--out and --out-dir contradict each other."
        raise click.UsageError(msg)
    set_up_logging(quiet=quiet)
    arguments = {"png": split_names(png), "progress": ProgressBar(quiet=quiet), **options}
    if len(slides) > 1:
        _run_many(slides, bank, out_dir, arguments, quiet=quiet)
    else:
        _run_one(slides[0], bank, out_dir, arguments, quiet=quiet)


def _run_one(
    slide: Path, bank: Path, out_dir: Path | None, arguments: dict[str, Any], *, quiet: bool
) -> None:
    from stinfer.files import make_folder
    from stinfer.outputs import default_output
    from stinfer.pipeline import predict_slide
    from stinfer.pseudonym import open_pseudonyms

    if out_dir is not None:
        names = open_pseudonyms(arguments["pseudonym"])
        called = slide if names is None else names.of_slide(slide)
        make_folder(out_dir)
        arguments["out"] = out_dir / default_output(called)
    result = predict_slide(slide, bank, **arguments)
    if not quiet:
        click.echo(f"{result.path}: {result.n_spots} spots x {result.n_genes} genes, log1p CP10K")
        for path in result.paths[1:]:
            click.echo(str(path))


def _run_many(
    slides: tuple[Path, ...], bank: Path, out_dir: Path | None, arguments: dict[str, Any], *, quiet: bool
) -> None:
    from stinfer.batch import predict_slides

    for name in _ONE_SLIDE:
        del arguments[name]
    outcomes = predict_slides(slides, bank, out_dir=out_dir, **arguments)
    ProgressBar.close_all()
    n_failed = sum(found.outcome == "failed" for found in outcomes)
    if n_failed or not quiet:
        for line in _summary(outcomes):
            click.echo(line)
    if n_failed:
        raise SystemExit(EXIT_SOME_FAILED)


def _summary(outcomes: Sequence[SlideOutcome]) -> Iterator[str]:
    """Lay out what became of each slide, a line each."""
    width = max(len("slide"), *(len(str(found.slide)) for found in outcomes))
    yield f"{'slide':<{width}}  {'spots':>9}  {'seconds':>8}  result"
    for found in outcomes:
        spots = "-" if found.outcome == "failed" else f"{found.n_spots:,}"
        result = {"done": str(found.out), "finished before": f"{found.out} (finished before)"}.get(
            found.outcome, f"failed: {found.error}"
        )
        yield f"{found.slide!s:<{width}}  {spots:>9}  {found.seconds:>8.1f}  {result}"


@click.group(epilog="Example: stinfer bank info her2st.h5")
@click.version_option(__version__, prog_name="stinfer")
def main() -> None:
    """Infer spatial gene expression from H&E slides, offline."""


def run_main() -> None:
    """Run `stinfer-run`, the same as `stinfer run`."""
    run(prog_name="stinfer-run")


main.add_command(run)
main.add_command(bank_group)
main.add_command(bench)
main.add_command(doctor)
