"""What a frozen program is made of: which distribution each of its files is from, and its terms."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.utils import canonicalize_name

# Files that say under which terms something may be passed on.
_TERMS = re.compile(r"(licen[cs]e|copying|notice|authors|thirdpartynotices|public-domain|readme\.ijg)", re.I)
_CODE = (".py", ".pyc", ".pyi", ".so", ".pyd")
_UNNAMED = ("UNKNOWN", "")


@dataclass(frozen=True)
class Part:
    """Something that is inside and has an author, a version and terms of its own.

    Parameters
    ----------
    name, version : as its author calls it
    purl : package URL
    license : SPDX expression or the author's words; empty where nothing is said
    terms : files with its terms: name here, and where it lies
    libraries : its files of compiled code, by their names in the frozen program
    requires : names of others it needs
    """

    name: str
    version: str
    purl: str
    license: str
    terms: Mapping[str, Path] = field(default_factory=dict)
    libraries: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()


@dataclass(frozen=True)
class Frozen:
    """What PyInstaller put together, as its recipe writes it down.

    Parameters
    ----------
    python : version
    prefix : of the environment it was made in
    base_prefix : of Python itself
    files : name in the program, or of a module, and where it was
    libraries : names of those with compiled code
    """

    python: str
    prefix: Path
    base_prefix: Path
    files: Mapping[str, Path]
    libraries: frozenset[str]

    @property
    def standard_library(self) -> Path:
        """Where the modules of Python itself were."""
        minor = ".".join(self.python.split(".")[:2])
        return self.base_prefix / "Lib" if os.name == "nt" else self.base_prefix / "lib" / f"python{minor}"

    def of_python(self, library: str) -> bool:
        """Say whether a library is of Python itself, which may be one of the system's packages."""
        source = self.files[library]
        beside = source.parent in (self.base_prefix, self.base_prefix / "DLLs")  # on Windows
        named = source.name.startswith(("libpython", "Python"))
        return source.is_relative_to(self.standard_library) or beside or named


def read_frozen(path: Path) -> Frozen:
    """Read parts.json, which the recipe has written."""
    about = json.loads(path.read_text(encoding="utf-8"))
    # A link has no file of its own.
    entries = [(name, source, kind) for name, source, kind in about["parts"] if kind != "SYMLINK"]
    compiled = frozenset(name for name, _, kind in entries if kind in ("BINARY", "EXTENSION"))
    files = {name: Path(source) for name, source, _ in entries}
    return Frozen(about["python"], Path(about["prefix"]), Path(about["base_prefix"]), files, compiled)


def installed_parts(frozen: Frozen, site_packages: Path, *, also: Iterable[str] = ()) -> list[Part]:
    """Find the distributions that have at least one file of code inside.

    Parameters
    ----------
    frozen : what is inside
    site_packages : where the distributions were installed
    also : names of those that have become part of the program itself

    Returns
    -------
    in the order of their names
    """
    owners: dict[Path, str] = {}
    found: dict[str, Distribution] = {}
    for distribution in distributions(path=[str(site_packages)]):
        name = canonicalize_name(distribution.metadata["Name"])
        found[name] = distribution
        for file in distribution.files or ():
            # Notes on an installation are no code: a copy of them alone does not count.
            if not file.parts[0].endswith(".dist-info"):
                owners[Path(str(distribution.locate_file(file)))] = name
    inside: dict[str, list[str]] = {name: [] for name in also}
    for file_name, source in frozen.files.items():
        owner = owners.get(source)
        if owner is not None:
            inside.setdefault(owner, []).append(file_name)
    return [
        _part_of(found[name], [n for n in inside[name] if n in frozen.libraries], inside)
        for name in sorted(inside)
    ]


def _part_of(distribution: Distribution, libraries: Iterable[str], inside: Iterable[str]) -> Part:
    """Describe an installed distribution; of what it needs, what is inside."""
    fields = distribution.metadata
    names = {
        canonicalize_name(re.split(r"[^\w.-]", text, maxsplit=1)[0]) for text in distribution.requires or ()
    }
    name = canonicalize_name(fields["Name"])
    return Part(
        name=name,
        version=distribution.version,
        purl=f"pkg:pypi/{name}@{distribution.version}",
        license=license_of(
            fields.get_all("License-Expression"), fields.get_all("License"), fields.get_all("Classifier")
        ),
        terms=terms_of(distribution),
        libraries=tuple(sorted(libraries)),
        requires=tuple(sorted((names & set(inside)) - {name})),
    )


def license_of(expressions: list[str] | None, words: list[str] | None, classifiers: list[str] | None) -> str:
    """Return a distribution's terms from its metadata, the most exact first; a whole text is no name.

    Parameters
    ----------
    expressions, words, classifiers : fields License-Expression, License and Classifier
    """
    for text in [*(expressions or ()), *(words or ())]:
        name = str(text).strip()
        if name not in _UNNAMED and "\n" not in name:
            return name
    osi = "License :: "
    return " AND ".join(str(text).rsplit(" :: ", 1)[1] for text in classifiers or () if text.startswith(osi))


def terms_of(distribution: Distribution) -> dict[str, Path]:
    """Find the files with a distribution's terms and with those of what it contains.

    Returns
    -------
    for each, its path within the distribution, and where it lies
    """
    found = {}
    for file in distribution.files or ():
        told = file.parts[0].endswith(".dist-info") and "licenses" in file.parts
        # A folder licenses beside the code, or a file of such a name anywhere.
        named = _TERMS.match(file.name) or "licenses" in file.parts[:-1]
        if (told or named) and file.suffix not in _CODE:
            path = Path(str(distribution.locate_file(file)))
            if path.is_file():
                short = [
                    part for part in file.parts if not part.endswith(".dist-info") and part != "licenses"
                ]
                found["/".join(short)] = path
    return found
