"""What the commands share: errors shown, signals, progress, and common flags."""

from __future__ import annotations

import logging
import math
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, ParamSpec, TypeVar
from weakref import WeakSet

import click

from stinfer.errors import StInferError

P = ParamSpec("P")
R = TypeVar("R")

FILE = click.Path(path_type=Path)


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
        help="Patches encoded at a time; fewer need less memory. [default: 32; 1024 on CUDA]",
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


def split_names(names: str) -> list[str]:
    """Split names at commas; blanks around them do not count, nor do empty names."""
    return [name.strip() for name in names.split(",") if name.strip()]
