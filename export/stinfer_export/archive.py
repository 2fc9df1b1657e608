"""Unpack a part of a zip archive that nobody has to trust: no path escapes, no bomb, all or nothing."""

from __future__ import annotations

import shutil
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from stinfer.files import make_folder
from stinfer_export.errors import ArchiveError

_MAX_FILES = 20_000
_BLOCK_BYTES = 1 << 20


def unpack(archive: Path, wanted: tuple[str, ...], folder: Path, *, limit_bytes: int) -> int:
    """Unpack what lies in some folders of an archive.

    Parameters
    ----------
    archive : zip file, as GitHub makes it: all in one folder
    wanted : folders of it, by their path below that one; each is written by its own name
    folder : where to write them; it is made, and appears when all is unpacked
    limit_bytes : the largest that all of it may be when unpacked

    Returns
    -------
    number of files

    Raises
    ------
    ArchiveError
        It is damaged or too large, leads out of its folder, or holds nothing of what is wanted.
    OutputWriteError
        The folder cannot be made.
    """
    make_folder(folder.parent)
    scratch = Path(tempfile.mkdtemp(prefix=".stinfer-", dir=folder.parent))
    try:
        with zipfile.ZipFile(archive) as file:
            chosen = _choose(archive, file, wanted)
            if sum(item.file_size for item, _ in chosen) > limit_bytes or len(chosen) > _MAX_FILES:
                cause = f"it unpacks to more than {limit_bytes / 1e9:.0f} GB or {_MAX_FILES} files"
                raise ArchiveError(archive, cause)
            for item, path in chosen:
                target = scratch / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with file.open(item) as source, target.open("wb") as out:
                    # No more than the archive declares, whatever the data hold; a wrong sum is an error.
                    shutil.copyfileobj(source, out, _BLOCK_BYTES)
        scratch.chmod(0o755)
        scratch.replace(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ArchiveError(archive, f"it is damaged ({error})") from error
    except OSError as error:
        if isinstance(error, ArchiveError):
            raise
        raise ArchiveError(archive, f"it cannot be unpacked ({error.strerror or error})") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return len(chosen)


def _choose(
    archive: Path, file: zipfile.ZipFile, wanted: tuple[str, ...]
) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """Return the wanted files, each with its path in the folder to be made."""
    chosen = []
    for item in file.infolist():
        path = PurePosixPath(item.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in item.filename or ":" in item.filename:
            raise ArchiveError(archive, f"it leads out of its folder: {item.filename!r}")
        below = PurePosixPath(*path.parts[1:])
        top = next((PurePosixPath(name) for name in wanted if below.is_relative_to(name)), None)
        if top is None or item.is_dir():
            continue
        if stat.S_ISLNK(item.external_attr >> 16):
            raise ArchiveError(archive, f"it holds a link: {item.filename!r}")
        chosen.append((item, below.relative_to(top.parent)))
    missing = [name for name in wanted if not any(path.parts[0] == Path(name).name for _, path in chosen)]
    if missing:
        raise ArchiveError(archive, f"it has no folder {', '.join(missing)}")
    return chosen
