"""Freed arrays go back to the system, where malloc would keep them."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# An array that is freed raises the size that glibc keeps; the next of that size, below others, then stays.
SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from stinfer.memory import return_large_blocks
def resident_mb():
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmRSS"))
    return int(line.split()[1]) / 1024
if sys.argv[1] == "yes":
    return_large_blocks()
del_me = np.ones(24 << 20, dtype=np.uint8)
del del_me
before = resident_mb()
kept = []
for _ in range(6):
    large = np.ones(20 << 20, dtype=np.uint8)
    kept.append(np.ones(1 << 19, dtype=np.uint8))  # lies above it
    kept.append(large)
kept = [array for array in kept if array.nbytes < 1 << 20]
del large
print(round(resident_mb() - before))
"""


def grown_mb(asked: str) -> int:
    command = [sys.executable, "-c", SCRIPT, asked]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc alone is told")
def test_large_arrays_are_not_kept() -> None:
    assert grown_mb("yes") < 10  # six of half a MB
    assert grown_mb("no") > 80  # so the line above can fail
