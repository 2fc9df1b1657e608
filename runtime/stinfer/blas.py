"""Matrix products of one thread each, where threads of our own share the cores."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np

# Before the name and behind it, in numpy's own builds since 2.0 and before.
_AFFIXES = (("scipy_", "64_"), ("scipy_", ""), ("", "64_"), ("", ""))


class _Limit:
    """How many blocks hold products to one thread, and how many threads there were before the first."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.n_blocks = 0
        self.n_threads = 1


_limit = _Limit()


@contextlib.contextmanager
def one_thread_a_product() -> Iterator[None]:
    """Keep numpy's matrix products to one thread each while the block runs.

    Its OpenBLAS shares a product between threads that wait busily for each other and for the next one: beside
    threads that encode, or products of a millisecond, that takes more than it gives. Of another BLAS nothing
    is changed.
    """
    found = _openblas()
    if found is None:
        yield
        return
    get_threads, set_threads = found
    with _limit.lock:
        if not _limit.n_blocks:
            _limit.n_threads = get_threads()
            set_threads(1)
        _limit.n_blocks += 1
    try:
        yield
    finally:
        with _limit.lock:
            _limit.n_blocks -= 1
            if not _limit.n_blocks:
                set_threads(_limit.n_threads)


@cache
def _openblas() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """Return what tells and what sets the number of threads of numpy's OpenBLAS; None where it has none."""
    package = Path(np.__file__).parent
    for folder in (package.parent / "numpy.libs", package / ".dylibs"):
        for path in sorted(folder.glob("*openblas*")):
            with contextlib.suppress(OSError):
                library = ctypes.CDLL(str(path))
                for before, behind in _AFFIXES:
                    name = f"{before}openblas_%s_num_threads{behind}"
                    if hasattr(library, name % "set"):
                        return getattr(library, name % "get"), getattr(library, name % "set")
    return None
