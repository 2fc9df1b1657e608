"""The commands `stinfer` and `stinfer-run`. Click lives here alone."""

from __future__ import annotations

import logging
import math
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar
from weakref import WeakSet

import click

from stinfer import __version__
from stinfer.errors import StInferError

if TYPE_CHECKING:
    from stinfer.batch import SlideOutcome

P = ParamSpec("P")
R = TypeVar("R")

_FILE = click.Path(path_type=Path)
# Leaves with it where some of many slides have failed.
EXIT_SOME_FAILED = 3
# Arguments that name the file of one slide.
_ONE_SLIDE = ("out", "spots", "csv", "ome_tiff", "save_map", "tissue_mask", "preview")


class FiniteRange(click.FloatRange):
    """A number in a range; nan and infinity, which compare with nothing, are none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read a number from the command line."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return float(number)


def read_scale(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> float | tuple[float, float] | None:
    """Read µm per pixel from the command line: a number above 0, or two, of x and y."""
    if value is None:
        return None
    above_0 = FiniteRange(min=0, min_open=True)
    numbers = [above_0.convert(part, param, ctx) for part in value.split(",")]
    if len(numbers) > 2:
        what = f"{value} is more than two numbers."
        raise click.BadParameter(what, ctx, param)
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def shows_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Print a known error as its cause and its remedy, and leave with exit code 1.

    A bug keeps its traceback.
    """

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        _signals.clear()
        for name in ("SIGTERM", "SIGHUP"):
            if hasattr(signal, name):
                # Unwinds, so that what is half-written goes.
                signal.signal(getattr(signal, name), _leave)
        try:
            return command(*args, **kwargs)
        except StInferError as error:
            ProgressBar.close_all()
            click.echo(f"Error: {error.what}", err=True)
            click.echo(f"Try:   {error.fix}", err=True)
            raise SystemExit(1) from error

    return wrapped


_signals: list[int] = []


def _leave(number: int, _: FrameType | None) -> None:
    _signals.append(number)
    raise SystemExit(128 + number)


def _leave_if_told() -> None:
    """Leave after a signal whose exit was lost: Python drops what is raised in a callback of its own."""
    if _signals:
        raise SystemExit(128 + _signals[-1])


class _ClickHandler(logging.Handler):
    """Shows what the library logs on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        if hasattr(record, "fields"):
            return  # for the file of --log
        ProgressBar.close_all()
        prefix = {logging.WARNING: "Note:  ", logging.ERROR: "Error: "}.get(record.levelno, "")
        click.echo(prefix + self.format(record), err=True)


def set_up_logging(*, quiet: bool) -> None:
    """Send the library's messages to the terminal; notices always, progress unless `quiet`."""
    for name in ("stinfer", "stinfer_export"):
        logger = logging.getLogger(name)
        logger.handlers = [_ClickHandler(logging.WARNING if quiet else logging.INFO)]
        logger.setLevel(logging.INFO)
        logger.propagate = False


class ProgressBar:
    """A bar with what is done, how fast, and the time left, on a terminal's standard error.

    Parameters
    ----------
    quiet : show nothing
    label : what is being done
    """

    _open: ClassVar[WeakSet[ProgressBar]] = WeakSet()

    def __init__(self, *, quiet: bool, label: str = "encoding") -> None:
        self._quiet = quiet
        self._label = label
        self._bar: Any = None
        self._open.add(self)

    def __call__(self, done: int, total: int, unit: str) -> None:
        """Show that `done` of `total` patches, regions or bands are done."""
        _leave_if_told()
        if self._quiet:
            return
        if done == 0:
            self._close()  # that of the slide before, which has failed
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit=f" {unit}", desc=self._label, file=sys.stderr)
        self._bar.update(done - self._bar.n)
        if done == total:
            self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    @classmethod
    def close_all(cls) -> None:
        """Close the bars that are open, so that a message has a line of its own."""
        for bar in list(cls._open):
            bar._close()


_ENCODING = (
    click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        help="Where to encode; auto takes CUDA where it works, cuda insists on it.",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(min=1, max=4096),
        default=32,
        show_default=True,
        help="Patches encoded at a time; fewer need less memory.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(min=1, max=1024),
        help="Cores to use. [default: all this process may use]",
    ),
)


def encoding_options(command: Callable[P, R]) -> Callable[P, R]:
    """Add the flags that say where and how to encode, the same for banks and slides."""
    for option in reversed(_ENCODING):
        command = option(command)
    return command


@click.command(name="run", epilog="Example: stinfer-run slide.svs --bank her2st.h5 --png ERBB2,COL1A1")
@click.argument("slides", type=_FILE, nargs=-1, required=True, metavar="SLIDE...")
@click.option("--bank", type=_FILE, required=True, help="Reference bank (.h5) that predicts.")
@click.option(
    "--out", type=_FILE, help="Prediction to write (.h5ad). [default: SLIDE.stinfer.h5ad in this folder]"
)
@click.option(
    "--out-dir",
    type=_FILE,
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
    type=_FILE,
    metavar="FILE",
    help="Where tissue is: a PNG or TIFF of the slide's proportions, not 0 on tissue. [default: it is found]",
)
@click.option(
    "--spots",
    type=_FILE,
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
    default="all",
    show_default=True,
    help="Genes to predict: symbols or Ensembl IDs separated by commas, a file with one a line, "
    "markers:breast, predictable (cross-validated correlation of at least 0.2), or all.",
)
@click.option("--csv", type=_FILE, help="Also write spots x genes, with coordinates, as a CSV file.")
@click.option(
    "--png", default="", metavar="GENES", help="Also draw these genes over the slide, one PNG each."
)
@click.option(
    "--ome-tiff",
    type=_FILE,
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
    type=_FILE,
    metavar="FILE",
    help="Keep the slide's feature map (.map.h5). Given in place of SLIDE it predicts again, elsewhere or "
    "other genes, in seconds.",
)
@click.option(
    "--preview",
    type=_FILE,
    metavar="FILE",
    help="Before anything long, draw the tissue's outline and the places over the slide, as a PNG.",
)
@encoding_options
@click.option(
    "--model",
    type=_FILE,
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
@click.option("--k", type=click.IntRange(min=1), help="Neighbors to average. [default: the bank's]")
@click.option(
    "--weighting",
    type=click.Choice(["uniform", "inverse", "softmax"]),
    help="How near neighbors weigh more. [default: the bank's]",
)
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
@click.option(
    "--log",
    type=_FILE,
    metavar="FILE",
    help="Append what is done, and when, to this file: one JSON object a line, for programs to read.",
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
    from stinfer.pipeline import default_output, predict_slide

    if out_dir is not None:
        make_folder(out_dir)
        arguments["out"] = out_dir / default_output(slide)
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


@main.group(name="bank", epilog="Example: stinfer bank verify her2st.h5")
def bank_group() -> None:
    """Look into reference banks."""


@bank_group.command(epilog="Example: stinfer bank info her2st.h5")
@click.argument("bank", type=_FILE)
@click.option("--genes", is_flag=True, help="List the genes instead, one a line.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON instead, for other programs.")
@shows_errors
def info(bank: Path, *, genes: bool, as_json: bool) -> None:
    """Print what BANK holds: references, genes, scale, backbone, settings and hashes."""
    if genes and as_json:
        msg = "--genes and --json exclude each other."
        raise click.UsageError(msg)
    import json

    from stinfer.bank import Bank
    from stinfer.compare_banks import summarize_bank
    from stinfer.inspect_bank import describe_bank

    opened = Bank.open(bank)
    if as_json:
        click.echo(json.dumps(summarize_bank(opened), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        click.echo("\n".join(opened.genes) if genes else describe_bank(opened))


@bank_group.command(epilog="Example: stinfer bank diff old.h5 her2st.h5")
@click.argument("first", metavar="A", type=_FILE)
@click.argument("second", metavar="B", type=_FILE)
@shows_errors
def diff(first: Path, second: Path) -> None:
    """Print how banks A and B differ: settings, sections, genes, and part by part."""
    from stinfer.bank import Bank
    from stinfer.compare_banks import diff_banks

    for line in diff_banks(Bank.open(first), Bank.open(second)):
        click.echo(line)


@bank_group.command(epilog="Example: stinfer bank verify her2st.h5")
@click.argument("bank", type=_FILE)
@shows_errors
def verify(bank: Path) -> None:
    """Check BANK: hashes, shapes, finiteness, its model, and its index against its embeddings."""
    from stinfer.inspect_bank import verify_bank

    for line in verify_bank(bank):
        click.echo(f"ok  {line}")


def split_names(names: str) -> list[str]:
    """Split names at commas; blanks around them do not count, nor do empty names."""
    return [name.strip() for name in names.split(",") if name.strip()]


def run_main() -> None:
    """Run `stinfer-run`, the same as `stinfer run`."""
    run(prog_name="stinfer-run")


main.add_command(run)
