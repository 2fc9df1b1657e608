"""The command `stinfer-export`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stinfer import __version__
from stinfer.cli_tools import (
    FiniteRange,
    P,
    ProgressBar,
    R,
    encoding_options,
    set_up_logging,
    shows_errors,
)
from stinfer_export.cli_evaluate import evaluate_group
from stinfer_export.cli_options import FILE as _FILE
from stinfer_export.cli_options import fit_options, plan_options, read_names, visium_images

if TYPE_CHECKING:
    from stinfer_export.bank_plan import Preset
    from stinfer_export.datasets.section import Platform, Section

_MODELS = Path("models")
_BANKS = Path("reference_bank")


@click.group(epilog="Example: stinfer-export bank her2st DIR --model models/stain_texture.onnx")
@click.version_option(__version__, prog_name="stinfer-export")
def main() -> None:
    """Convert backbones and build reference banks, on a researcher's machine."""


main.add_command(evaluate_group)


@main.command(epilog="Example: stinfer-export backbone resnet18 --checkpoint resnet18_a1_0-d63eafa0.pth")
@click.argument("name")
@click.option("--checkpoint", type=_FILE, help="Weights: .pth, pytorch_model.bin or .safetensors.")
@click.option("--pretrained", is_flag=True, help="Let timm download the weights instead; needs a network.")
@click.option(
    "--out-dir", type=_FILE, default=_MODELS, show_default=True, help="Folder to write NAME.onnx to."
)
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
@shows_errors
def backbone(name: str, checkpoint: Path | None, out_dir: Path, *, pretrained: bool, overwrite: bool) -> None:
    """Convert the timm backbone NAME to an ONNX file, and compare the two.

    NAME is any convolutional network of timm, with or without its tag; vgg16, densenet121, resnet18,
    resnet50 and resnext50d_32x4d mean the weights of the paper. stain_texture needs no weights and no
    torch.
    """
    set_up_logging(quiet=False)
    from stinfer_export.export_all import export_backbone

    path = export_backbone(name, checkpoint, out_dir, pretrained=pretrained, overwrite=overwrite)
    click.echo(str(path))


@main.command(name="all", epilog="Example: stinfer-export all --her2st her2st/data")
@click.option("--her2st", type=_FILE, metavar="DIR", help="The her2st data set. [default: looked for]")
@click.option(
    "--model",
    metavar="NAME",
    help="Backbone that packs it: of a checkpoint, or of a file models/NAME.onnx. "
    "[default: a network of the paper, any other with a checkpoint, stain_texture]",
)
@shows_errors
def all_(her2st: Path | None, model: str | None) -> None:
    """Convert every backbone in models/checkpoints and build reference_bank/her2st.h5.

    A bank that lies there is kept, and is an error if it was made otherwise. The same as `make export`;
    run it in the project's root.
    """
    set_up_logging(quiet=False)
    from stinfer_export.export_all import export_all

    for line in export_all(her2st, model, ProgressBar(quiet=False)):
        click.echo(line)


@main.group(name="bank", epilog="Example: stinfer-export bank her2st DIR --model models/stain_texture.onnx")
def bank_group() -> None:
    """Pack a reference data set into a bank."""


_BANK_OPTIONS = (
    plan_options,
    click.option(
        "--without-model", is_flag=True, help="Leave the ONNX file out; it must then lie beside the bank."
    ),
    click.option(
        "--own-section",
        is_flag=True,
        help="Of one section: predict between its own spots, on its own image, by appearance and place.",
    ),
    encoding_options,
    click.option("--overwrite", is_flag=True, help="Replace the bank if it exists."),
    click.option("--quiet", is_flag=True, help="Print errors and notices only."),
)


def _bank_options(out: Path) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Add the flags that say how a bank is made, the same for all data sets; `out` is where it goes."""

    def add(command: Callable[P, R]) -> Callable[P, R]:
        for option in reversed(_BANK_OPTIONS):
            command = option(command)
        return click.option(
            "--out",
            type=_FILE,
            default=out,
            show_default=True,
            help="Bank to write; the folder of the default is made.",
        )(command)

    return add


def _pack(
    sections: Iterable[Section],
    platform: Platform,
    *,
    models: tuple[Path, ...],
    out: Path,
    preset: Preset,
    orientations: str,
    without_model: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Build a bank of sections and say what it holds."""
    from stinfer.files import make_folder
    from stinfer_export.bank_builder import build_bank
    from stinfer_export.bank_plan import BankPlan, with_preset

    running = {name: options.pop(name) for name in ("device", "threads", "batch_size", "overwrite")}
    plan = BankPlan(*platform, include_model=not without_model, orientations=int(orientations), **options)
    if out.parent == _BANKS:
        make_folder(out.parent)
    summary = build_bank(
        sections, with_preset(plan, preset), models, out, progress=ProgressBar(quiet=quiet), **running
    )
    if not quiet:
        click.echo(f"{summary.path}: {summary.n_refs} references x {summary.n_genes} genes")


@bank_group.command(
    name="her2st", epilog="Example: stinfer-export bank her2st data --model models/resnet18.a1_in1k.onnx"
)
@click.argument("folder", metavar="DIR", type=_FILE)
@click.option("--sections", callback=read_names, help="Sections to pack, separated by commas. [default: all]")
@_bank_options(_BANKS / "her2st.h5")
@shows_errors
def bank_her2st(folder: Path, sections: list[str] | None, **options: Any) -> None:
    """Pack the her2st data set in DIR: the folder of ST-imgs, ST-cnts and ST-spotfiles."""
    set_up_logging(quiet=options["quiet"])
    from stinfer_export.datasets import her2st as dataset

    _pack(dataset.iter_sections(folder, sections), dataset.PLATFORM, **options)


@bank_group.command(
    name="visium",
    epilog="Example: stinfer-export bank visium outs --image slide.tif --model models/stain_texture.onnx",
)
@click.argument("outs", metavar="OUTS", type=_FILE, nargs=-1, required=True)
@visium_images
@_bank_options(_BANKS / "visium.h5")
@shows_errors
def bank_visium(outs: tuple[Path, ...], images: tuple[Path, ...], **options: Any) -> None:
    """Pack OUTS, the folders `outs` of Space Ranger, a section each; of Visium HD, its square_008um.

    The scale is fitted on the lattice of spots. Where there is no full-resolution image, Space Ranger's own
    pictures do, at a loss.
    """
    set_up_logging(quiet=options["quiet"])
    from stinfer_export.datasets import visium as dataset

    _pack(dataset.iter_sections(outs, images), dataset.read_platform(outs), **options)


@bank_group.command(
    name="anndata",
    epilog="Example: stinfer-export bank anndata C5.h5ad --image C5.tif --model models/stain_texture.onnx",
)
@click.argument("file", metavar="FILE", type=_FILE)
@click.option("--image", type=_FILE, required=True, help="The full-resolution image of the section.")
@_bank_options(_BANKS / "anndata.h5")
@shows_errors
def bank_anndata(file: Path, image: Path, **options: Any) -> None:
    """Pack FILE, a Visium section as AnnData (.h5ad) with raw counts in X, layers["counts"] or raw.

    It must have obsm["spatial"], uns["spatial"] and the array_row and array_col of scanpy.read_visium.
    """
    set_up_logging(quiet=options["quiet"])
    from stinfer_export.datasets import anndata_file as dataset

    section = dataset.AnnDataSection(file)
    _pack([section.read_section(image)], section.platform, **options)


@bank_group.command(
    name="merge", epilog="Example: stinfer-export bank merge her2st.h5 visium.h5 --out breast.h5"
)
@click.argument("banks", metavar="BANK...", type=_FILE, nargs=-1, required=True)
@click.option(
    "--out",
    type=_FILE,
    default=_BANKS / "merged.h5",
    show_default=True,
    help="Bank to write; the folder of the default is made.",
)
@fit_options
@click.option(
    "--without-model", is_flag=True, help="Leave the ONNX file out; it must then lie beside the bank."
)
@click.option("--overwrite", is_flag=True, help="Replace the bank if it exists.")
@click.option("--quiet", is_flag=True, help="Print errors and notices only.")
@shows_errors
def bank_merge(
    banks: tuple[Path, ...], out: Path, *, without_model: bool, quiet: bool, **options: Any
) -> None:
    """Merge BANKs of the same models, fields of view and scale, whatever their platforms, into one.

    A gene that a bank does not list is not 0 in it but unknown: it is predicted from the nearest references
    of the banks that list it. Metric, k and calibration are fitted anew, to the references of all; no image
    is needed. Nothing but depth is evened out between platforms. The pitch of predictions is the first
    bank's.
    """
    set_up_logging(quiet=quiet)
    from stinfer.files import make_folder
    from stinfer_export.merging import merge_banks

    if out.parent == _BANKS:
        make_folder(out.parent)
    summary = merge_banks(banks, out, include_model=not without_model, **options)
    if not quiet:
        click.echo(f"{summary.path}: {summary.n_refs} references x {summary.n_genes} genes")


@main.group(name="fetch", epilog="Example: stinfer-export fetch weights resnet18")
def fetch_group() -> None:
    """Fetch public files, where there is a network. Nothing else of stInfer does, unless told.

    Proxies and certificates are those of the environment: HTTPS_PROXY, NO_PROXY, REQUESTS_CA_BUNDLE.
    """


@fetch_group.command(name="weights", epilog="Example: stinfer-export fetch weights all")
@click.argument("name", metavar="NAME")
@shows_errors
def fetch_weights(name: str) -> None:
    """Fetch the weights of backbone NAME into models/checkpoints, and check them.

    NAME is vgg16, densenet121, resnet18, resnet50, resnext50d_32x4d or all. A broken download goes on where
    it broke off.
    """
    set_up_logging(quiet=False)
    from stinfer_export import fetch

    for line in fetch.fetch_weights(name, progress=ProgressBar(quiet=False, label="fetching")):
        click.echo(line)


@fetch_group.command(name="her2st", epilog="Example: stinfer-export fetch her2st")
@shows_errors
def fetch_her2st() -> None:
    """Fetch the her2st data set into reference_bank/data/her2st, where `make export` finds it."""
    set_up_logging(quiet=False)
    from stinfer_export import fetch

    for line in fetch.fetch_her2st(progress=ProgressBar(quiet=False, label="fetching")):
        click.echo(line)


@main.command(name="demo-data", epilog="Example: stinfer-export demo-data demo/data")
@click.argument("folder", metavar="DIR", type=_FILE)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of everything random."
)
@shows_errors
def demo_data(folder: Path, seed: int) -> None:
    """Write synthetic H&E sections with simulated expression to DIR, in the layout of her2st.

    Beside them lie a pyramidal slide to predict, its spots and its simulated truth.
    """
    from stinfer_export.demo import write_demo_data

    data = write_demo_data(folder, seed=seed)
    click.echo(f"{data.folder}: sections {', '.join(data.sections)}; slide {data.slide}")


@main.command(epilog="Example: stinfer-export score C5.h5ad --counts ST-cnts/C5.tsv.gz --bank her2st.h5")
@click.argument("prediction", type=_FILE)
@click.option(
    "--counts", type=_FILE, required=True, help="Measured raw counts, spots x genes (.tsv or .tsv.gz)."
)
@click.option("--bank", type=_FILE, required=True, help="The bank that predicted; it chooses the genes.")
@click.option(
    "--n-genes",
    type=click.IntRange(min=1),
    default=250,
    show_default=True,
    help="Compare this many genes: those of largest variance in the bank.",
)
@click.option(
    "--min-detected",
    type=FiniteRange(min=0, max=1),
    default=0.3,
    show_default=True,
    help="... among those detected in more than this part of the bank's spots.",
)
@shows_errors
def score(prediction: Path, counts: Path, bank: Path, n_genes: int, min_detected: float) -> None:
    """Compare PREDICTION with measured counts of the same spots: Pearson per gene, over spots."""
    import numpy as np

    from stinfer.bank import Bank
    from stinfer_export.score import score_prediction

    found = score_prediction(prediction, counts, Bank.open(bank), n_genes=n_genes, min_detected=min_detected)
    # As in the mean, a gene without a correlation counts 0.
    low, middle, high = np.quantile(np.nan_to_num(found.pearson), [0.25, 0.5, 0.75])
    click.echo(f"{found.n_spots} spots ({found.n_unmatched} predicted spots were not measured)")
    click.echo(f"{len(found.genes)} genes ({found.n_absent} not listed by the measurement: counted as 0)")
    click.echo(f"mean gene-wise Pearson {found.mean:.3f} (quartiles {low:.3f}, {middle:.3f}, {high:.3f})")
