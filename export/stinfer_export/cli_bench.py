"""The commands `stinfer-export bench …`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from stinfer.cli_tools import FILE, FiniteRange, P, R, shows_errors
from stinfer_export.cli_options import read_names

if TYPE_CHECKING:
    from stinfer.encoder import Device

T = TypeVar("T")

_FOLDER = Path("build/bench")
_BACKBONES = "resnet18,resnet50,densenet121,vgg16,resnext50d_32x4d,stain_texture"


@click.group(name="bench", epilog="Example: stinfer-export bench backbones --backbones resnet18")
def bench_group() -> None:
    """Measure how fast prediction is. Run it on a machine that does nothing else."""


def _options(command: Callable[P, R]) -> Callable[P, R]:
    """Add the flags that all measurements share."""
    for option in reversed(
        (
            click.option(
                "--folder",
                type=FILE,
                default=_FOLDER,
                show_default=True,
                help="For models, banks and results. A model that lies there is measured as it is; a network "
                "of the paper that does not is made, with random weights.",
            ),
            click.option(
                "--rounds", type=click.IntRange(1, 20), default=3, show_default=True, help="Repetitions."
            ),
            click.option(
                "--readme", type=FILE, metavar="FILE", help="Also put the table between its markers in FILE."
            ),
        )
    ):
        command = option(command)
    return command


_device_option = click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="What everything runs on, PyTorch too.",
)


def _slide_options(command: Callable[P, R]) -> Callable[P, R]:
    for option in reversed(
        (
            click.option(
                "--backbones",
                default=_BACKBONES,
                callback=read_names,
                show_default=True,
                help="Which, separated by commas; of each, every precision in the folder.",
            ),
            click.option("--slide", type=FILE, help="To predict. [default: her2st's C5, else drawn tissue]"),
            click.option("--mpp", type=FiniteRange(min=0, min_open=True), help="µm per px of --slide."),
        )
    ):
        command = option(command)
    return command


@bench_group.command(epilog="Example: stinfer-export bench backbones --backbones resnet18 --readme README.md")
@_slide_options
@_device_option
@_options
@shows_errors
def backbones(
    backbones: list[str],
    slide: Path | None,
    mpp: float | None,
    device: Device,
    folder: Path,
    rounds: int,
    readme: Path | None,
) -> None:
    """Patches a second: the whole of stinfer-run, timm in PyTorch, and ONNX Runtime alone, in turn.

    PyTorch runs eager and channels-last, fed by a DataLoader that cuts the same patches off the same slide.
    Its imports are not counted, everything of stinfer-run is. Takes about two minutes a model.
    """
    from stinfer_export.bench import backbones as bench
    from stinfer_export.bench.subjects import find_models, find_slide

    subject = find_slide(slide, mpp, folder)
    models = find_models(folder, backbones, _say, subject)
    found = bench.measure(models, subject, rounds, folder, _say, device)
    _finish(_named("backbones", device), found, bench.summarize, bench.table, folder, readme)


@bench_group.command(epilog="Example: stinfer-export bench area --backbones resnet18")
@_slide_options
@_options
@shows_errors
def area(
    backbones: list[str],
    slide: Path | None,
    mpp: float | None,
    folder: Path,
    rounds: int,
    readme: Path | None,
) -> None:
    """Seconds for a cm² of tissue by the feature map, and what ONNX Runtime alone needs for its pixels.

    Without --slide the section is shown as many times, mirrored, as ONNX Runtime encodes in 16 s, 8 times at
    most: up to 0.6 cm² of tissue. Takes about a minute a model.
    """
    from stinfer_export.bench import area as bench
    from stinfer_export.bench.subjects import find_models, find_slide

    subject = find_slide(slide, mpp, folder)
    models = find_models(folder, backbones, _say, subject)
    found = bench.measure(models, subject, rounds, folder, _say, as_it_is=slide is not None)
    _finish("area", found, bench.summarize, bench.table, folder, readme)


@bench_group.command(epilog="Example: stinfer-export bench search --references 13620,100000 --numbers 16")
@click.option(
    "--references",
    default="13620,100000,1000000",
    show_default=True,
    callback=read_names,
    help="Banks' sizes.",
)
@click.option(
    "--numbers",
    default="16,512",
    show_default=True,
    callback=read_names,
    help="Of an embedding: a learned metric gives 16, a network without one 512.",
)
@click.option(
    "--annoy-up-to",
    type=click.IntRange(min=0),
    default=60_000_000,
    show_default=True,
    help="Numbers of all references together up to which an index is built and measured too.",
)
@_device_option
@_options
@shows_errors
def search(
    references: list[str],
    numbers: list[str],
    annoy_up_to: int,
    device: Device,
    folder: Path,
    rounds: int,
    readme: Path | None,
) -> None:
    """Measure the search of banks: queries a second, recall, time to load and memory.

    Also how long averaging 50 neighbors over 15,000 genes takes, where rows hold as many as measured ones.
    Banks stay in the folder, 8 GB in all, and are not made again.
    """
    from stinfer_export.bench import search as bench
    from stinfer_export.bench.subjects import find_models

    (model, *_) = find_models(folder, ["stain_texture"], _say)
    sizes = [(_count(n, 1000), _count(m, 1)) for n in references for m in numbers]
    found = bench.measure(
        model.path.read_bytes(), sizes, rounds, folder, _say, annoy_up_to=annoy_up_to, device=device
    )
    _finish(_named("search", device), found, bench.summarize, bench.table, folder, readme)


def _named(measurement: str, device: Device) -> str:
    """Return what a table, and its file, are called."""
    return measurement if device == "cpu" else f"{measurement}_{device}"


def _count(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        msg = f"{text} is not a whole number of at least {least}."
        raise click.UsageError(msg)
    return int(text)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _finish(
    name: str,
    measured: Iterable[T],
    summarize: Callable[[Sequence[T]], list[dict[str, Any]]],
    table: Callable[[Sequence[dict[str, Any]]], str],
    folder: Path,
    readme: Path | None,
) -> None:
    """Measure; write down what there is after every part, since the next may fail."""
    from stinfer_export.bench.tables import insert, write_json

    found, rows = [], []
    for one in measured:
        found.append(one)
        rows = summarize(found)
        write_json(folder / f"{name}.json", {name: rows})
    click.echo(table(rows))
    if readme is not None:
        insert(readme, name, table(rows))
