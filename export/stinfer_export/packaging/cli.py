"""The commands of `python -m stinfer_export.packaging`, which make calls."""

from __future__ import annotations

from pathlib import Path

import click

from stinfer.cli_tools import set_up_logging, shows_errors
from stinfer_export.cli_options import FILE

_DIST = Path("dist")
_BANKS = click.option(
    "--bank", "banks", type=FILE, multiple=True, help="Reference bank to put in; again for more."
)
_OUT_DIR = click.option(
    "--out-dir", type=FILE, default=_DIST, show_default=True, help="Folder to write to; it is made."
)


@click.group(epilog="Example: python -m stinfer_export.packaging wheelhouse --platform win_amd64")
def main() -> None:
    """Pack the runtime for workstations without a network, from a checkout of the project."""


@main.command(epilog="Example: python -m stinfer_export.packaging wheelhouse --platform win_amd64")
@_BANKS
@click.option(
    "--platform", help="Tag of wheels: win_amd64, manylinux_2_28_x86_64. [default: this computer's]"
)
@click.option("--python", help="Version of Python there, for example 3.11. [default: this one's]")
@_OUT_DIR
@shows_errors
def wheelhouse(banks: tuple[Path, ...], platform: str | None, python: str | None, out_dir: Path) -> None:
    """Collect the wheels of the runtime, with banks and an installer, for a computer that has Python."""
    set_up_logging(quiet=False)
    from stinfer_export.packaging.wheelhouse import make_wheelhouse

    made = make_wheelhouse(out_dir, banks, platform, python)
    for name, n_bytes in made.files:
        click.echo(f"{n_bytes / 1e6:9.3f} MB  {name}")
    click.echo(f"{sum(n_bytes for _, n_bytes in made.files) / 1e6:9.3f} MB  {made.folder}")


@main.command(epilog="Example: python -m stinfer_export.packaging bundle --bank reference_bank/her2st.h5")
@_BANKS
@_OUT_DIR
@shows_errors
def bundle(banks: tuple[Path, ...], out_dir: Path) -> None:
    """Make a folder, and an archive of it, that runs on computers like this without Python."""
    set_up_logging(quiet=False)
    from stinfer_export.packaging.bundle import make_bundle, size_line

    made = make_bundle(out_dir, banks)
    click.echo(f"{made.folder}: {size_line(made)}")
    if made.glibc is not None:
        click.echo(f"needs glibc {made.glibc[0]}.{made.glibc[1]} or newer")
    click.echo(str(made.archive))
