"""The machine as this process may use it: processor, cores and memory, within the limits that are set."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Of Windows' IsProcessorFeaturePresent.
_PF_AVX2, _PF_AVX512F = 40, 41
# Flags of Linux that mean the same to us.
_AVX512, _VNNI = {"avx512f"}, {"avx512_vnni", "avx_vnni"}
_X86 = ("x86_64", "amd64", "i386", "i686")
# cgroup v1 says so where there is no limit.
_NO_LIMIT_BYTES = 1 << 60


@dataclass(frozen=True)
class CpuFeatures:
    """What vector instructions the processor has; None where the system does not say.

    Parameters
    ----------
    avx2, avx512, vnni : of x86; false on other processors
    """

    avx2: bool | None
    avx512: bool | None
    vnni: bool | None


@dataclass(frozen=True)
class Memory:
    """Memory in bytes; None where the system does not say.

    Parameters
    ----------
    total : of the machine
    allowed : what this process may take: the least of that and of all limits
    limited_by : ``cgroup``, ``ulimit -v``, or empty
    """

    total: int | None
    allowed: int | None
    limited_by: str


def cpu_features(root: Path = Path("/")) -> CpuFeatures:
    """Ask the system for the processor's vector instructions.

    Parameters
    ----------
    root : of the file system, on Linux
    """
    if platform.machine().lower() not in _X86:
        return CpuFeatures(avx2=False, avx512=False, vnni=False)
    if sys.platform == "win32":
        # 0 also means that this Windows does not know of the feature.
        present = ctypes.WinDLL("kernel32").IsProcessorFeaturePresent
        return CpuFeatures(
            avx2=bool(present(_PF_AVX2)) or None, avx512=bool(present(_PF_AVX512F)) or None, vnni=None
        )
    if sys.platform == "darwin":
        return CpuFeatures(
            avx2=_sysctl("hw.optional.avx2_0"), avx512=_sysctl("hw.optional.avx512f"), vnni=None
        )
    for line in _lines(root / "proc/cpuinfo"):
        name, _, flags = line.partition(":")
        if name.strip() == "flags":
            found = set(flags.split())
            return CpuFeatures(avx2="avx2" in found, avx512=bool(found & _AVX512), vnni=bool(found & _VNNI))
    return CpuFeatures(avx2=None, avx512=None, vnni=None)


def cpu_name(root: Path = Path("/")) -> str:
    """Return what the processor is called, as far as the system says."""
    for line in _lines(root / "proc/cpuinfo"):
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def cores_allowed(root: Path = Path("/")) -> int:
    """Count the cores this process may use, which may be fewer than the machine has.

    Affinity, and the share of time that a cgroup grants: more threads than that would only wait.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cgroup_cores(root)
    return cores if share is None else max(1, min(cores, math.ceil(share)))


def cgroup_cores(root: Path = Path("/")) -> float | None:
    """Return how many cores' time the process's cgroups grant it; None where they do not limit it."""
    found = []
    for folder in _cgroup_folders(root, "cpu"):
        quota, period = _first_words(folder / "cpu.max", 2)
        if quota is None:
            quota, period = (
                _first_words(folder / f"cpu.cfs_{name}_us", 1)[0] for name in ("quota", "period")
            )
        if quota is not None and period is not None and quota > 0 and period > 0:
            found.append(quota / period)
    return min(found, default=None)


def memory(root: Path = Path("/")) -> Memory:
    """Ask the system for its memory, and for the limits of this process."""
    total = _total_bytes()
    limits = {"cgroup": cgroup_bytes(root), "ulimit -v": _address_space_bytes()}
    least = min(((limit, name) for name, limit in limits.items() if limit is not None), default=(None, ""))
    if least[0] is None or (total is not None and least[0] >= total):
        return Memory(total, total, "")
    return Memory(total, least[0], least[1])


def cgroup_bytes(root: Path = Path("/")) -> int | None:
    """Return the memory that the process's cgroups grant it; None where they do not limit it."""
    found = []
    for folder in _cgroup_folders(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _first_words(folder / name, 1)[0]
            if limit is not None and 0 < limit < _NO_LIMIT_BYTES:
                found.append(int(limit))
    return min(found, default=None)


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """List the folders of the process's cgroup and of those above it, of both versions."""
    mount = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, inside = rest.partition(":")
        if number == "0" and not controllers:
            base = mount
        elif controller in controllers.split(","):
            base = mount / controller
        else:
            continue
        # A container sees its own cgroup as the root, whatever its path outside.
        parts = Path(inside.strip().lstrip("/")).parts
        for length in range(len(parts), -1, -1):
            yield base.joinpath(*(part for part in parts[:length] if part != ".."))


def _first_words(path: Path, n: int) -> list[float | None]:
    words = next(iter(_lines(path)), "").split()
    return [float(words[i]) if i < len(words) and words[i].lstrip("-").isdigit() else None for i in range(n)]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _total_bytes() -> int | None:
    if sys.platform == "win32":
        # MEMORYSTATUSEX: two 32-bit numbers, its size first, then 64-bit ones, the machine's memory first.
        status = (ctypes.c_uint64 * 8)()
        ctypes.cast(status, ctypes.POINTER(ctypes.c_uint32))[0] = ctypes.sizeof(status)
        known = ctypes.WinDLL("kernel32").GlobalMemoryStatusEx(ctypes.byref(status))
        return int(status[1]) if known else None
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def _address_space_bytes() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _sysctl(name: str) -> bool | None:
    """Ask macOS for a number that is 0 or 1; None where it does not know the name."""
    value, size = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    failed = ctypes.CDLL(None).sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0)
    return None if failed else bool(value.value)
