"""One run at a time on an output: a second one says so at once, and what a killed one left does not block."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

import filelock

from stinfer.errors import OutputBusyError, OutputWriteError
from stinfer.files import cause_of, name_tag, remove_partials

# A lock that its holder is just giving back is free in a moment.
_PATIENCE_S = 0.2
_HOLDER_BYTES = 1000


@contextlib.contextmanager
def locked(outputs: Sequence[Path]) -> Iterator[None]:
    """Keep other runs from some outputs, and remove what a killed run has left of them half-written.

    The system gives a lock back when its process ends, in whatever way.

    Raises
    ------
    OutputBusyError
        Another run is writing one of them.
    OutputWriteError
        The system refuses.
    """
    with contextlib.ExitStack() as stack:
        for output in outputs:
            stack.enter_context(_locked(output))
            remove_partials(output)
        yield


@contextlib.contextmanager
def _locked(output: Path) -> Iterator[None]:
    path = output.with_name(f".stinfer-{name_tag(output)}.lock")
    lock = filelock.FileLock(path)
    holder = _holder(path)  # now, since some versions of filelock empty the file as they try
    try:
        lock.acquire(timeout=_PATIENCE_S, poll_interval=_PATIENCE_S / 4)
    except filelock.Timeout as error:
        raise OutputBusyError(output, holder) from error
    except OSError as error:
        raise OutputWriteError(output, cause_of(error)) from error
    try:
        with contextlib.suppress(OSError):  # who holds it is for a message alone
            path.write_text(json.dumps({"pid": os.getpid(), "host": platform.node()}), encoding="utf-8")
        yield
    finally:
        # While it is held: who waits for this very file finds that it has no name any more, and looks again.
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()


def _holder(path: Path) -> str:
    """Say which process holds a lock, as far as its file tells."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_HOLDER_BYTES))
        pid, host = int(found["pid"]), str(found["host"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return ""
    return f" (process {pid} on {host})" if host.isprintable() else f" (process {pid})"
