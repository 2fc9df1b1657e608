"""Memory that is free goes back to the system, so that a process takes what its slide takes and no more."""

from __future__ import annotations

import ctypes
import platform

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
