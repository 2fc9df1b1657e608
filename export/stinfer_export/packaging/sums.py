"""SHA256SUMS: a hash of every file in a folder, in the format of `sha256sum`."""

from __future__ import annotations

from pathlib import Path

from stinfer.files import sha256_file, write_text

NAME = "SHA256SUMS"


def files_of(folder: Path) -> list[str]:
    """List the files below a folder, with slashes and in the order of their bytes, without SHA256SUMS."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted((name for name in found if name != NAME), key=lambda name: name.encode())


def write_sums(folder: Path) -> Path:
    """Write SHA256SUMS into a folder; `sha256sum --check SHA256SUMS` in it checks every file.

    Returns
    -------
    the file
    """
    path = folder / NAME
    lines = (f"{sha256_file(folder / name)}  {name}\n" for name in files_of(folder))
    write_text(path, "".join(lines))
    return path
