"""Archives that are the same bytes for the same files: sorted, without names of users, of one time."""

from __future__ import annotations

import gzip
import tarfile
import time as clock
import zipfile
from pathlib import Path

from stinfer.files import written_beside
from stinfer_export.packaging.sums import NAME, files_of

_EXECUTABLE = 0o100


def write_archive(folder: Path, path: Path, time: int) -> None:
    """Pack a folder, whole; links in it are packed as what they lead to.

    Parameters
    ----------
    folder : its name is the first part of every name in the archive
    path : .tar.gz or .zip; it appears when it is complete
    time : seconds since 1970, of every file

    Raises
    ------
    OutputWriteError
        The system refuses.
    """
    names = [*files_of(folder), *([NAME] if (folder / NAME).exists() else [])]
    with written_beside(path) as partial:
        if path.suffix == ".zip":
            _write_zip(folder, names, partial, time)
        else:
            _write_tar(folder, names, partial, time)


def _write_tar(folder: Path, names: list[str], path: Path, time: int) -> None:
    with (
        path.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=time) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name in names:
            source = folder / name
            member = tarfile.TarInfo(f"{folder.name}/{name}")
            member.size = source.stat().st_size
            member.mtime = time
            member.mode = _mode(source)
            with source.open("rb") as file:
                archive.addfile(member, file)


def _write_zip(folder: Path, names: list[str], path: Path, time: int) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            member = zipfile.ZipInfo(f"{folder.name}/{name}", clock.gmtime(time)[:6])
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = _mode(folder / name) << 16
            archive.writestr(member, (folder / name).read_bytes())


def _mode(path: Path) -> int:
    return 0o755 if path.stat().st_mode & _EXECUTABLE else 0o644
