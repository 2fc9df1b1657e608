"""What wheels say of themselves, and whether a set of them is complete for another computer."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.parser import BytesParser
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from stinfer.errors import SettingError
from stinfer_export.errors import PackagingError

# Names of the same thing: what a wheel's tag says first, and what Python calls the system.
_SYSTEMS = {
    "win": {"os_name": "nt", "sys_platform": "win32", "platform_system": "Windows"},
    "manylinux": {"os_name": "posix", "sys_platform": "linux", "platform_system": "Linux"},
    "macosx": {"os_name": "posix", "sys_platform": "darwin", "platform_system": "Darwin"},
}
_PLATFORM = re.compile(r"(?:(win)_|(macosx)_\d+_\d+_|(manylinux)_(\d+)_(\d+)_)(\w+)")
_OLDEST_GLIBC = 5
_FORMER_NAMES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}


@dataclass(frozen=True)
class Wheel:
    """A wheel.

    Parameters
    ----------
    path : the file
    name : of the distribution, in lower case with hyphens
    version : of the distribution
    requires : what it needs, with markers
    """

    path: Path
    name: str
    version: str
    requires: tuple[Requirement, ...]


@dataclass(frozen=True)
class Resolved:
    """What a set of wheels gives for a computer.

    Parameters
    ----------
    needed : names of the wheels that are used there
    missing : what none of them satisfies, without markers
    """

    needed: frozenset[str]
    missing: tuple[str, ...]


def read_wheel(path: Path) -> Wheel:
    """Read a wheel's name and what it needs.

    Raises
    ------
    PackagingError
        It is no wheel.
    """
    try:
        name, version, _, _ = parse_wheel_filename(path.name)
        with zipfile.ZipFile(path) as file:
            (metadata,) = (n for n in file.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
            fields = BytesParser().parsebytes(file.read(metadata), headersonly=True)
        requires = tuple(Requirement(text) for text in fields.get_all("Requires-Dist", []))
    except (OSError, ValueError, InvalidWheelFilename, InvalidRequirement, zipfile.BadZipFile) as error:
        purpose = f"reading {path.name}"
        raise PackagingError(purpose, f"it is no wheel ({error})") from error
    return Wheel(path, str(name), str(version), requires)


def platform_tags(platform: str) -> list[str]:
    """List the tags of wheels that run on a platform, the newest first.

    Parameters
    ----------
    platform : tag: win_amd64, manylinux_2_28_x86_64, macosx_11_0_arm64

    Raises
    ------
    SettingError
        It is none.
    """
    found = _parsed(platform)
    if found[3] is None:
        return [platform]
    newest, machine = int(found[5]), found[6]
    tags = []
    for minor in range(newest, _OLDEST_GLIBC - 1, -1):
        tags.append(f"manylinux_2_{minor}_{machine}")
        if minor in _FORMER_NAMES:
            tags.append(f"{_FORMER_NAMES[minor]}_{machine}")
    return tags


def target_markers(platform: str, python: str) -> dict[str, str]:
    """Return what environment markers see on a computer with CPython.

    Parameters
    ----------
    platform : tag, as for `platform_tags`
    python : major and minor version

    Raises
    ------
    SettingError
        One of them is none.
    """
    found = _parsed(platform)
    if not re.fullmatch(r"3\.\d+", python):
        what = f"PYTHON is {python!r}"
        raise SettingError(what, "give major and minor version, for example 3.11")
    system = found[1] or found[2] or found[3]
    machine = "AMD64" if platform == "win_amd64" else found[6]
    return {
        **_SYSTEMS[system],
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "platform_machine": machine,
        "platform_release": "",
        "platform_version": "",
        "python_version": python,
        # The first of its line: what only older Pythons need is then rather there than not.
        "python_full_version": f"{python}.0",
        "implementation_version": f"{python}.0",
    }


def _parsed(platform: str) -> re.Match[str]:
    found = _PLATFORM.fullmatch(platform)
    if found is None or (found[4] is not None and found[4] != "2"):
        what = f"PLATFORM is {platform!r}"
        raise SettingError(what, "give a wheel's tag: win_amd64, manylinux_2_28_x86_64 or macosx_11_0_arm64")
    return found


def resolve(roots: Sequence[Requirement], wheels: Sequence[Wheel], markers: Mapping[str, str]) -> Resolved:
    """Follow what is needed from wheel to wheel, as an installer on the other computer will.

    pip asks the computer that it runs on whether a marker holds, even where it fetches for another: on
    Linux it leaves out what only Windows needs.

    Parameters
    ----------
    roots : what is to be installed
    wheels : what is at hand, one of each name
    markers : of the other computer

    Returns
    -------
    the wheels it needs, and what is not there
    """
    by_name = {wheel.name: wheel for wheel in wheels}
    missing: dict[str, None] = {}
    seen: set[tuple[str, str]] = set()  # name and extra
    to_do = list(roots)
    while to_do:
        wanted = to_do.pop(0)
        name = canonicalize_name(wanted.name)
        wheel = by_name.get(name)
        if wheel is None or not wanted.specifier.contains(wheel.version, prereleases=True):
            missing[str(_without_marker(wanted))] = None
            continue
        for extra in {"", *wanted.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            here = {**markers, "extra": extra}
            to_do += [r for r in wheel.requires if r.marker is None or r.marker.evaluate(here)]
    return Resolved(frozenset(name for name, _ in seen), tuple(sorted(missing)))


def _without_marker(requirement: Requirement) -> Requirement:
    bare = Requirement(str(requirement))
    bare.marker = None
    return bare
