"""Options that several commands of `stinfer-export` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from stinfer.cli_tools import FiniteRange, P, R, split_names

FILE = click.Path(path_type=Path)
_SIDE_UM = FiniteRange(min=1, max=10_000)


def read_names(_: click.Context, __: click.Parameter, names: str | None) -> list[str] | None:
    """Split a list at its commas; one that is given must name something."""
    if names is None:
        return None
    found = split_names(names)
    if not found:
        msg = f"{names!r} names no section."
        raise click.BadParameter(msg)
    return found


def _read_sides(
    context: click.Context, parameter: click.Parameter, sides: str | None
) -> tuple[float, ...] | None:
    """Read lengths in µm, separated by commas; a list that is given must hold one."""
    if sides is None:
        return None
    found = tuple(_SIDE_UM.convert(side, parameter, context) for side in split_names(sides))
    if not found:
        msg = f"{sides!r} holds no length in µm."
        raise click.BadParameter(msg)
    return found


_FIT_OPTIONS = (
    click.option(
        "--metric",
        type=click.Choice(["none", "standardize", "pca", "supervised"]),
        help="supervised: learned from the references' expression; standardize: every component of the "
        "embedding with the same spread; pca: 64 principal components of that, of every window. [default: "
        "supervised; with one section pca, or standardize for stain_texture]",
    ),
    click.option(
        "--distance",
        type=click.Choice(["cosine", "euclidean"]),
        help="Distance of embeddings. [default: euclidean with a supervised metric, else cosine]",
    ),
    click.option(
        "--k",
        type=click.IntRange(min=1),
        help="Neighbors to average. [default: chosen with a supervised metric, else 100, or a fifth of few "
        "references]",
    ),
    click.option(
        "--weighting",
        type=click.Choice(["uniform", "inverse", "softmax"]),
        default="softmax",
        show_default=True,
        help="How near neighbors weigh more.",
    ),
)

_PLAN_OPTIONS = (
    click.option(
        "--model",
        "models",
        type=FILE,
        multiple=True,
        required=True,
        help="ONNX file of a backbone; give it again for more, whose embeddings are put side by side.",
    ),
    click.option(
        "--preset",
        type=click.Choice(["fast", "best", "custom"]),
        default="fast",
        show_default=True,
        help="fast: one pass over the tissue, with stain_texture beside networks; best: also at half the "
        "scale; custom: the models given and nothing else.",
    ),
    click.option(
        "--tta",
        "orientations",
        type=click.Choice(["1", "4", "8"]),
        default="1",
        show_default=True,
        help="Orientations, flipped and turned, in which networks see the tissue; the time is multiplied.",
    ),
    click.option(
        "--stain",
        type=click.Choice(["none", "macenko", "auto"]),
        default="none",
        show_default=True,
        help="macenko: bring every slide's stains to those of the references before it is encoded; auto: "
        "where that predicts held-out sections better, which takes twice the time.",
    ),
    click.option(
        "--pooling",
        type=click.Choice(["map", "patch"]),
        help="map: encode the tissue once and average cells in windows around a spot; patch: encode a patch "
        "around each. [default: map where the backbone can]",
    ),
    click.option(
        "--fov-um",
        metavar="UM[,UM...]",
        callback=_read_sides,
        help="Fields of view: sides in µm of the windows around a spot that are embedded, ascending; one "
        "with --pooling patch. [default: 110,220,440,880; patch: 154]",
    ),
    click.option(
        "--window",
        type=click.Choice(["square", "disc"]),
        default="square",
        show_default=True,
        help="Shape of the windows; of a disc, --fov-um is the diameter.",
    ),
    click.option(
        "--gene-join",
        type=click.Choice(["union", "intersection"]),
        default="union",
        show_default=True,
        help="Keep the genes of any section (0 where it does not list them) or of every section.",
    ),
    click.option(
        "--max-outside",
        type=FiniteRange(min=0, max=1),
        default=0.25,
        show_default=True,
        help="Drop a spot if more than this part of its patch, or smallest window, is outside the image.",
    ),
    *_FIT_OPTIONS,
)


def plan_options(command: Callable[P, R]) -> Callable[P, R]:
    """Add the flags that say how sections are embedded and what predicts, the same for banks and folds."""
    for option in reversed(_PLAN_OPTIONS):
        command = option(command)
    return command


visium_images = click.option(
    "--image",
    "images",
    type=FILE,
    multiple=True,
    required=True,
    help="The full-resolution image that Space Ranger was given; once for each of OUTS, in their order.",
)


def fit_options(command: Callable[P, R]) -> Callable[P, R]:
    """Add the flags that say how a bank predicts, the same for banks that are built and merged."""
    for option in reversed(_FIT_OPTIONS):
        command = option(command)
    return command
