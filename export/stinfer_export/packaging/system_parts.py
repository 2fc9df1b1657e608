"""Libraries of the computer that a bundle is made on: which of its packages they are from."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from stinfer_export.errors import PackagingError
from stinfer_export.packaging.parts import Frozen, Part
from stinfer_export.packaging.tools import run_tool

_PURPOSE = "finding where a library is from"


def system_parts(frozen: Frozen) -> list[Part]:
    """Find the packages of the system whose libraries are inside.

    Parameters
    ----------
    frozen : what is inside

    Returns
    -------
    in the order of their names

    Raises
    ------
    PackagingError
        Nobody knows a library: it may not be passed on without its terms.
    """
    owners: dict[str, list[str]] = {}
    for name in sorted(frozen.libraries):
        source = frozen.files[name]
        if not frozen.of_python(name) and not source.is_relative_to(frozen.prefix):
            owners.setdefault(_package_of(source), []).append(name)
    return [_describe(package, libraries) for package, libraries in sorted(owners.items())]


def common_terms(copyright_text: str, folder: Path = Path("/usr/share/common-licenses")) -> dict[str, Path]:
    """Find the license texts that a package's copyright names and does not repeat.

    Parameters
    ----------
    copyright_text : of the package
    folder : where Debian keeps them

    Returns
    -------
    files by their names
    """
    named = set(re.findall(re.escape(str(folder)) + r"/([\w.-]*\w)", copyright_text))
    return {name: folder / name for name in sorted(named) if (folder / name).is_file()}


def _package_of(library: Path) -> str:
    """Ask Debian's package manager who has installed a file, also by its name before /lib became a link."""
    real = library.resolve()
    if shutil.which("dpkg-query") is None:
        raise PackagingError(_PURPOSE, f"{library} is of this system, whose packages are not those of Debian")
    for path in (real, Path("/") / real.relative_to("/usr") if real.is_relative_to("/usr") else real):
        done = subprocess.run(["dpkg-query", "--search", path], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.split(": ")[0].split(",")[0]
    raise PackagingError(_PURPOSE, f"no package of this system has {library}")


def _describe(package: str, libraries: list[str]) -> Part:
    fields = "${Package}\n${Version}\n${Architecture}"
    name, version, machine = run_tool(
        ["dpkg-query", "--show", f"--showformat={fields}", package], _PURPOSE
    ).split()
    terms = Path("/usr/share/doc") / name / "copyright"
    if not terms.is_file():
        raise PackagingError(_PURPOSE, f"package {name} has no {terms}")
    return Part(
        name=name,
        version=version,
        purl=f"pkg:deb/debian/{name}@{version.replace(':', '%3A').replace('+', '%2B')}?arch={machine}",
        license="",
        terms={"copyright": terms, **common_terms(terms.read_text(encoding="utf-8", errors="replace"))},
        libraries=tuple(libraries),
    )
