"""Files written beside and renamed, so that no reader ever meets half of one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from stinfer.errors import OutputExistsError, OutputWriteError, SettingError, StInferError

_PARTIAL = re.compile(r"\.stinfer-([0-9a-f]{16})-[0-9a-f]{16}\.partial")


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Check, before any long work, that a file may be written.

    Raises
    ------
    OutputExistsError
        It exists and is not to be replaced.
    OutputWriteError
        It is a folder, or its folder does not exist or cannot be written.
    """
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise OutputWriteError(path, cause_of(error)) from error
    if is_folder:
        raise OutputWriteError(path, "it is a folder")
    if exists and not path.is_file():
        raise OutputWriteError(path, "it is a device or a pipe, not a file")
    if exists and not overwrite:
        raise OutputExistsError(path)
    if not path.parent.is_dir():
        raise OutputWriteError(path, f"the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise OutputWriteError(path, f"the folder {path.parent} cannot be written")


def is_file(path: Path) -> bool:
    """Say whether there is a regular file, also for names that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def refuse_same_file(inputs: Sequence[Path], outputs: Sequence[Path]) -> None:
    """Check that no output replaces an input or another output.

    Raises
    ------
    SettingError
        Two names lead to one file.
    """
    taken = {_resolved(path) for path in inputs}
    for path in outputs:
        if _resolved(path) in taken:
            what = f"output {path} is also an input or another output of this run"
            raise SettingError(what, "give every output a name of its own")
        taken.add(_resolved(path))


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError):  # RuntimeError: a loop of links, until Python 3.13
        return path  # a name that no file can have; refused where it is opened


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are not there yet.

    Raises
    ------
    OutputWriteError
        The system refuses, or there is a file of that name.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputWriteError(path, cause_of(error)) from error


@contextlib.contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Give a name in the same folder; rename it to `path` when the block ends well.

    The partial file is removed when the block fails, for whatever reason.

    Raises
    ------
    OutputWriteError
        The system refuses to write: disk full, quota, permission.
    """
    partial = _partial_of(path)
    try:
        partial.touch(exist_ok=False)
        yield partial
        _flush(partial)
        partial.replace(path)
    except OSError as error:
        if isinstance(error, StInferError):
            raise
        raise OutputWriteError(path, cause_of(error)) from error
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def written_together(
    paths: Sequence[Path], complete: Callable[[Mapping[Path, Path]], None] | None = None
) -> Iterator[dict[Path, Path]]:
    """Give a name beside each of some files; rename them all when the block ends well, or none.

    Parameters
    ----------
    paths : the files
    complete : called with all names when the block has ended well, before the first is renamed

    Yields
    ------
    the name to write to, for each path

    Raises
    ------
    OutputWriteError
        The system refuses to write one of them.
    """
    beside = {path: _partial_of(path) for path in paths}
    final = {partial: path for path, partial in beside.items()}
    try:
        yield beside
        if complete is not None:
            complete(beside)
        for path, partial in beside.items():
            try:
                partial.replace(path)
            except OSError as error:
                raise OutputWriteError(path, cause_of(error)) from error
        for folder in {path.parent for path in paths}:
            _flush_folder(folder)
    except OutputWriteError as error:
        raise OutputWriteError(final.get(error.path, error.path), error.cause) from error
    finally:
        for partial in final:
            partial.unlink(missing_ok=True)


def name_tag(path: Path) -> str:
    """Return what marks the files of ours that lie beside an output and belong to it.

    Returns
    -------
    16 hexadecimal digits, of the output's name alone
    """
    return hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]


def remove_partials(path: Path) -> None:
    """Remove what a killed run has left half-written of an output; no other run may be writing it."""
    for left in path.parent.glob(f".stinfer-{name_tag(path)}-*.partial"):
        if _PARTIAL.fullmatch(left.name):
            left.unlink(missing_ok=True)


def _partial_of(path: Path) -> Path:
    """Return a new name beside a file; one beside a partial file belongs to the same output."""
    partial = _PARTIAL.fullmatch(path.name)
    tag = partial[1] if partial else name_tag(path)
    return path.with_name(f".stinfer-{tag}-{secrets.token_hex(8)}.partial")


def write_text(path: Path, text: str) -> None:
    """Write a whole text file, UTF-8, all or nothing."""
    with written_beside(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def sha256_file(path: Path) -> str:
    """Hash a file without holding it.

    Returns
    -------
    64 hexadecimal digits
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_folder(folder: Path) -> None:
    """Wait until the names in a folder would outlive the machine's power, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def cause_of(error: Exception) -> str:
    """Return the system's words for why it refused."""
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
