"""What a run did and when, as JSON lines that a program reads: the file of `--log`.

Everything goes through the logger `stinfer`, like what the terminal shows. A record with `fields` is for this
file alone, one marked `terminal` is not for it. The log holds times and is no part of a result.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Any

from stinfer.errors import OutputExistsError, OutputWriteError, StInferError, first_line
from stinfer.files import cause_of, is_file
from stinfer.record import logger

_slide: ContextVar[str] = ContextVar("slide", default="")
_hidden: ContextVar[Mapping[str, str]] = ContextVar("hidden", default=MappingProxyType({}))


def log_event(event: str, **fields: Any) -> None:
    """Write what happened into the log, if there is one.

    Parameters
    ----------
    event : its name
    fields : texts, numbers, and lists and mappings of them; ``level`` where it is not ``info``
    """
    logger.info(event, extra={"event": event, "fields": fields})


@contextlib.contextmanager
def stage(name: str) -> Iterator[dict[str, Any]]:
    """Log how long a part of a run took, and what is put into the mapping it gives."""
    start = time.monotonic()
    counts: dict[str, Any] = {}
    yield counts
    log_event("stage", stage=name, seconds=round(time.monotonic() - start, 3), **counts)


@contextlib.contextmanager
def logged_slide(slide: str | Path) -> Iterator[None]:
    """Log a slide's begin and what goes wrong with it; what is logged in between is of that slide."""
    with slide_context(slide), _logged("slide"):
        yield


@contextlib.contextmanager
def slide_context(slide: str | Path) -> Iterator[None]:
    """Let what is logged be of a slide."""
    outer = _slide.set(str(slide))
    try:
        yield
    finally:
        _slide.reset(outer)


@contextlib.contextmanager
def hiding(words: Mapping[str, str]) -> Iterator[None]:
    """Let what is logged hold other words in place of some: the names of slides and folders."""
    outer = _hidden.set({**_hidden.get(), **words})
    try:
        yield
    finally:
        _hidden.reset(outer)


def _without_hidden(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_hidden(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_hidden(inner) for inner in value]
    if isinstance(value, str):
        # The longest first: a path before the name at its end.
        for word in sorted(_hidden.get(), key=len, reverse=True):
            value = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", _hidden.get()[word], value)
    return value


@contextlib.contextmanager
def logged_run(**fields: Any) -> Iterator[None]:
    """Log the begin of a run over many slides, and what goes wrong with all of it."""
    with _logged("run", **fields):
        yield


@contextlib.contextmanager
def _logged(what: str, **fields: Any) -> Iterator[None]:
    log_event(f"{what}_started", **fields)
    try:
        yield
    except Exception as error:
        log_failure(what, error)
        raise
    except BaseException as error:
        log_event(f"{what}_interrupted", level="error", kind=type(error).__name__)
        raise


def log_failure(what: str, error: Exception) -> None:
    """Log why a slide, or a run, has failed."""
    if isinstance(error, StInferError):
        log_event(f"{what}_failed", level="error", kind=type(error).__name__, cause=error.what, fix=error.fix)
    else:
        cause = f"a bug: {type(error).__name__}: {first_line(error)}"
        log_event(f"{what}_failed", level="error", kind=type(error).__name__, cause=cause)


@contextlib.contextmanager
def logging_to(path: str | Path | None) -> Iterator[None]:
    """Append to a log while the block runs; None for none.

    Raises
    ------
    OutputExistsError, OutputWriteError
        There is another file of that name, or it cannot be written.
    """
    if path is None:
        yield
        return
    handler = _JsonLines(Path(path))
    # Whoever set up no logging still gets a full log.
    level = logger.level
    if logger.getEffectiveLevel() > logging.INFO:
        logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()


def _begins_as_log(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) in (b"", b"{")


class _JsonLines(logging.Handler):
    """Writes one JSON object a line, each at once."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        if is_file(path) and not _begins_as_log(path):
            raise OutputExistsError(path, ", and is no log")
        try:
            self._file = path.open("a", encoding="utf-8", newline="\n")
        except (OSError, ValueError) as error:
            raise OutputWriteError(path, cause_of(error)) from error

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, in one piece, so that two runs may share a file."""
        if getattr(record, "terminal", False):
            return
        moment = datetime.fromtimestamp(record.created, tz=timezone.utc)
        line = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "message"),
            "slide": _slide.get(),
        }
        line |= getattr(record, "fields", {"message": record.getMessage()})
        line = _without_hidden(line)
        try:
            self._file.write(json.dumps(line, ensure_ascii=True, default=str) + "\n")
            self._file.flush()
        except OSError as error:
            logger.removeHandler(self)  # before the next line, which would be this very warning
            logger.warning(f"log {self._path} cannot be written ({cause_of(error)}): it ends here")

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            self._file.close()
        super().close()
