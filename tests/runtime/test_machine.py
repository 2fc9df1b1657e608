"""Limits of cgroups and flags of processors, in file systems made for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stinfer import machine

ON_X86 = machine.platform.machine().lower() in ("x86_64", "amd64")


def write(root: Path, **files: str) -> Path:
    """Write files; `__` in a name is a folder's end, and `_dot_` a dot."""
    for name, text in files.items():
        path = root / name.replace("_dot_", ".").replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def test_without_cgroups_affinity_counts(tmp_path: Path) -> None:
    assert machine.cgroup_cores(tmp_path) is None
    assert machine.cgroup_bytes(tmp_path) is None
    assert machine.cores_allowed(tmp_path) == 8


@pytest.mark.parametrize(
    ("text", "share", "cores"),
    [
        ("200000 100000\n", 2.0, 2),
        ("150000 100000\n", 1.5, 2),  # two threads, each three quarters of the time
        ("50000 100000\n", 0.5, 1),
        ("1600000 100000\n", 16.0, 8),
        ("max 100000\n", None, 8),
        ("", None, 8),
        ("-1 100000\n", None, 8),
        ("200000 0\n", None, 8),
        ("200000\n", None, 8),
        ("junk junk\n", None, 8),
    ],
)
def test_cores_of_cgroup_2(tmp_path: Path, text: str, share: float | None, cores: int) -> None:
    root = write(tmp_path, proc__self__cgroup="0::/job\n", sys__fs__cgroup__job__cpu_dot_max=text)
    assert machine.cgroup_cores(root) == share
    assert machine.cores_allowed(root) == cores


def test_the_least_of_all_cgroups_above_counts(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        proc__self__cgroup="0::/a/b\n",
        sys__fs__cgroup__a__b__cpu_dot_max="max 100000\n",
        sys__fs__cgroup__a__cpu_dot_max="300000 100000\n",
        sys__fs__cgroup__a__b__memory_dot_max=f"{4 << 30}\n",
        sys__fs__cgroup__a__memory_dot_max=f"{6 << 30}\n",
    )
    assert machine.cgroup_cores(root) == 3
    assert machine.cgroup_bytes(root) == 4 << 30


def test_cgroup_1(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        proc__self__cgroup="4:memory:/job\n2:cpu,cpuacct:/job\n0::/\n",
        sys__fs__cgroup__cpu__job__cpu_dot_cfs_quota_us="250000\n",
        sys__fs__cgroup__cpu__job__cpu_dot_cfs_period_us="100000\n",
        sys__fs__cgroup__memory__job__memory_dot_limit_in_bytes=f"{3 << 30}\n",
        sys__fs__cgroup__memory__memory_dot_limit_in_bytes="9223372036854771712\n",  # no limit
    )
    assert machine.cgroup_cores(root) == 2.5
    assert machine.cores_allowed(root) == 3
    assert machine.cgroup_bytes(root) == 3 << 30


def test_cgroup_1_without_a_limit(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        proc__self__cgroup="2:cpu:/\n",
        sys__fs__cgroup__cpu__cpu_dot_cfs_quota_us="-1\n",
        sys__fs__cgroup__cpu__cpu_dot_cfs_period_us="100000\n",
    )
    assert machine.cgroup_cores(root) is None


def test_a_path_out_of_the_mount_is_not_followed(tmp_path: Path) -> None:
    """In a container the path may be one of the host, `/../../job`."""
    root = write(
        tmp_path, proc__self__cgroup="0::/../../job\n", sys__fs__cgroup__cpu_dot_max="100000 100000\n"
    )
    assert machine.cgroup_cores(root) == 1


def test_memory_is_the_least_of_all_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_total_bytes", lambda: 16 << 30)
    monkeypatch.setattr(machine, "_address_space_bytes", lambda: None)
    assert machine.memory(tmp_path) == machine.Memory(16 << 30, 16 << 30, "")
    root = write(tmp_path, proc__self__cgroup="0::/\n", sys__fs__cgroup__memory_dot_max=f"{4 << 30}\n")
    assert machine.memory(root) == machine.Memory(16 << 30, 4 << 30, "cgroup")
    monkeypatch.setattr(machine, "_address_space_bytes", lambda: 2 << 30)
    assert machine.memory(root) == machine.Memory(16 << 30, 2 << 30, "ulimit -v")
    monkeypatch.setattr(machine, "_address_space_bytes", lambda: 64 << 30)
    write(tmp_path, sys__fs__cgroup__memory_dot_max="max\n")
    assert machine.memory(root) == machine.Memory(16 << 30, 16 << 30, "")


@pytest.mark.skipif(not ON_X86 or os.name != "posix", reason="flags of x86 on Linux")
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx avx2 avx512f avx512_vnni", (True, True, True)),
        ("fpu avx avx2 avx_vnni", (True, False, True)),
        ("fpu avx avx2 avx512bw", (True, False, False)),
        ("fpu sse4_2", (False, False, False)),
    ],
)
def test_flags_of_the_processor(tmp_path: Path, flags: str, expected: tuple[bool, bool, bool]) -> None:
    root = write(tmp_path, proc__cpuinfo=f"processor\t: 0\nmodel name\t: Fast 9000\nflags\t\t: {flags}\n")
    found = machine.cpu_features(root)
    assert (found.avx2, found.avx512, found.vnni) == expected
    assert machine.cpu_name(root) == "Fast 9000"


@pytest.mark.skipif(not ON_X86 or os.name != "posix", reason="flags of x86 on Linux")
def test_what_the_system_does_not_say_is_unknown(tmp_path: Path) -> None:
    assert machine.cpu_features(tmp_path) == machine.CpuFeatures(avx2=None, avx512=None, vnni=None)


def test_another_processor_has_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    assert machine.cpu_features() == machine.CpuFeatures(avx2=False, avx512=False, vnni=False)
