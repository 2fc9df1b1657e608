"""What compiled files of Linux need of the computer they run on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

_MAGIC = b"\x7fELF"
# How a version of glibc stands in the table of names that a file needs.
_GLIBC = re.compile(rb"\0GLIBC_(\d+)\.(\d+)(?=[\0.])")


def is_elf(path: Path) -> bool:
    """Say whether a file is compiled code of Linux, and no link."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def elf_files(folder: Path) -> list[Path]:
    """List the compiled files below a folder, in order of their names."""
    return sorted(path for path in folder.rglob("*") if is_elf(path))


def needed_glibc(contents: Iterable[bytes]) -> tuple[int, int] | None:
    """Return the oldest glibc that has all that compiled files need.

    Parameters
    ----------
    contents : the files

    Returns
    -------
    major and minor version; None if they need none
    """
    versions = [(int(major), int(minor)) for content in contents for major, minor in _GLIBC.findall(content)]
    return max(versions, default=None)
