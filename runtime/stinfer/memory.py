"""Memory: what is free goes back to the system, and what is needed again and again is kept."""

from __future__ import annotations

import ctypes
import math
import platform
from typing import Any

import numpy as np
import numpy.typing as npt

# Of glibc's malloc.h, and where an array is a mapping of its own.
_M_MMAP_THRESHOLD = -3
_MAPPED_BYTES = 1 << 20


def return_large_blocks() -> None:
    """Let large arrays go back to the system when they are freed, where that is not so anyway.

    glibc raises the size from which it does that to 32 MB as it meets larger arrays, and keeps twice as much
    for every thread: slide after slide a little more.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


class Scratch:
    """Arrays that keep their memory: to get a large one anew takes as long as to fill it."""

    def __init__(self) -> None:
        self._kept: dict[str, npt.NDArray[Any]] = {}

    def empty(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return an array of any content, in the memory of the last one of this name."""
        n = math.prod(shape)
        kept = self._kept.get(name)
        if kept is None or kept.size < n or kept.dtype != dtype:
            kept = self._kept[name] = np.empty(n, dtype=dtype)
        return kept[:n].reshape(shape)

    def zeros(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return an array of zeros, in the memory of the last one of this name."""
        found = self.empty(name, shape, dtype)
        found.fill(0)
        return found
