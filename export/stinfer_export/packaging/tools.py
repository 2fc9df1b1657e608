"""Other programs that packaging calls, the project it packs, and the folders it makes."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import Template

from stinfer.errors import OutputWriteError, StInferError
from stinfer.files import cause_of, make_folder
from stinfer_export.errors import PackagingError

# What of the runtime's extras a workstation gets.
EXTRAS = ("cpu", "sign", "tiff")
# Where intermediate files lie, in the folder of the project.
WORK = Path("build/packaging")
_TEMPLATES = Path(__file__).parent / "templates"
_LINES_SHOWN = 8


def run_tool(
    command: Sequence[str | Path], purpose: str, environment: Mapping[str, str] | None = None
) -> str:
    """Run another program to its end.

    Parameters
    ----------
    command : program and arguments
    purpose : what it is for, in the message if it fails
    environment : variables beside those that are there

    Returns
    -------
    what it printed on standard output

    Raises
    ------
    PackagingError
        It is not there, or fails; with its last lines.
    """
    try:
        done = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, **(environment or {})},
            check=False,
        )
    except OSError as error:
        raise PackagingError(purpose, f"{command[0]}: {cause_of(error)}") from error
    if done.returncode != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise PackagingError(purpose, "\n".join([f"exit code {done.returncode}", *lines[-_LINES_SHOWN:]]))
    return done.stdout


def project_root() -> Path:
    """Return the folder of the project that this runs from.

    Raises
    ------
    PackagingError
        This is an installed package: there is no project to pack.
    """
    root = Path(__file__).resolve().parents[3]
    if not (root / "pyproject.toml").is_file():
        purpose = "finding the project"
        raise PackagingError(
            purpose, f"{root} holds no pyproject.toml; run make in a checkout of the project"
        )
    return root


def source_time(project: Path) -> int:
    """Return the time that files made now are given, so that the same source gives the same bytes.

    Returns
    -------
    seconds since 1970: SOURCE_DATE_EPOCH where it is set, else the time of the last commit
    """
    told = os.environ.get("SOURCE_DATE_EPOCH", "")
    if told.isdecimal():
        return int(told)
    command: list[str | Path] = ["git", "-C", project, "log", "-1", "--format=%ct"]
    return int(
        run_tool(command, "asking git for the time of the last commit; SOURCE_DATE_EPOCH tells it too")
    )


def build_wheel(project: Path, folder: Path) -> Path:
    """Build the project's own wheel, which holds no compiled code.

    Parameters
    ----------
    project : its folder
    folder : where to write the wheel; it is made

    Returns
    -------
    the wheel
    """
    with tempfile.TemporaryDirectory() as scratch:
        command: list[str | Path] = [sys.executable, "-m", "build", "--wheel", "--outdir", scratch, project]
        times = {"SOURCE_DATE_EPOCH": str(source_time(project))}
        run_tool(command, "building the wheel of this project", times)
        (built,) = Path(scratch).glob("*.whl")
        make_folder(folder)
        return Path(shutil.copy(built, folder))


@contextlib.contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """Give an empty folder; when the block ends well it takes the place of `path`, else it is removed.

    Raises
    ------
    OutputWriteError
        The system refuses.
    """
    make_folder(path.parent)
    scratch = Path(tempfile.mkdtemp(prefix=".stinfer-", dir=path.parent))
    try:
        scratch.chmod(0o755)
        yield scratch
        if path.is_dir():
            shutil.rmtree(path)
        scratch.replace(path)
    except OSError as error:
        if isinstance(error, StInferError):
            raise
        raise OutputWriteError(path, cause_of(error)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def filled(name: str, values: Mapping[str, str]) -> str:
    """Return a template with its values filled in."""
    return Template((_TEMPLATES / name).read_text(encoding="utf-8")).substitute(values)
