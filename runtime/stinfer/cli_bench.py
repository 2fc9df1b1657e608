"""The command `stinfer bench`."""

from __future__ import annotations

from pathlib import Path

import click

from stinfer.cli_tools import FILE, FiniteRange, read_scale, shows_errors


@click.command(epilog="Example: stinfer bench her2st.h5 slide.svs")
@click.argument("bank", type=FILE)
@click.argument("slide", type=FILE, required=False)
@click.option("--runs", type=click.IntRange(1, 100), default=3, show_default=True, help="Runs that count.")
@click.option("--mpp", metavar="F|X,Y", callback=read_scale, help="µm per level-0 pixel, as for stinfer-run.")
@click.option(
    "--pitch-um", type=FiniteRange(min=0, min_open=True), help="Distance of grid points, as for stinfer-run."
)
@click.option("--genes", default="all", show_default=True, help="Genes to predict, as for stinfer-run.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Cores to use. [default: all allowed]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead, for other programs.")
@shows_errors
def bench(
    bank: Path,
    slide: Path | None,
    runs: int,
    mpp: float | tuple[float, float] | None,
    pitch_um: float | None,
    genes: str,
    threads: int | None,
    *,
    as_json: bool,
) -> None:
    """Measure how fast this machine predicts SLIDE with BANK; without SLIDE, tissue that is drawn for it.

    Every run is a whole process, after one that does not count. Nothing is kept of what they predict.
    """
    import json

    from stinfer.bench import lay_out, measure, summarize

    arguments = {
        "bank": str(bank),
        "slide": None if slide is None else str(slide),
        "mpp": mpp,
        "pitch_um": pitch_um,
        "genes": genes,
        "threads": threads,
    }
    summary = summarize(list(measure(arguments, runs)))
    if as_json:
        click.echo(json.dumps(summary, indent=2, allow_nan=False))
    else:
        for line in lay_out(summary):
            click.echo(line)
