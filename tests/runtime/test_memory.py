"""Freed arrays go back to the system, where malloc would keep them; those of a scratch stay."""

from __future__ import annotations

import platform
import subprocess
import sys

import numpy as np
import pytest

from stinfer.memory import Scratch

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


def test_scratch_keeps_the_memory_of_a_name_and_its_kind() -> None:
    scratch = Scratch()
    first = scratch.zeros("a", (4, 3), np.float32)
    first[:] = 7
    smaller = scratch.empty("a", (2, 5), np.float32)
    assert np.shares_memory(first, smaller)
    assert smaller.tolist() == [[7] * 5] * 2
    assert scratch.zeros("a", (2, 2), np.float32).tolist() == [[0, 0], [0, 0]]
    for other in (
        scratch.empty("b", (2, 5), np.float32),
        scratch.empty("a", (13,), np.float32),
        scratch.empty("a", (1,), np.float64),
    ):
        assert not np.shares_memory(first, other)
