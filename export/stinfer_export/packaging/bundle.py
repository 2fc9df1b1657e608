"""A folder, and an archive of it, that runs on a computer without Python and without a network."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stinfer.files import make_folder, sha256_file, write_text
from stinfer_export.errors import PackagingError
from stinfer_export.packaging.archives import write_archive
from stinfer_export.packaging.banks import bank_components, check_banks, copy_banks
from stinfer_export.packaging.elf import elf_files, needed_glibc
from stinfer_export.packaging.parts import Frozen, Part, installed_parts, read_frozen
from stinfer_export.packaging.sbom import NAME as SBOM
from stinfer_export.packaging.sbom import bill_of_materials, write_bill
from stinfer_export.packaging.sums import files_of, write_sums
from stinfer_export.packaging.system_parts import system_parts
from stinfer_export.packaging.tools import (
    EXTRAS,
    WORK,
    build_wheel,
    filled,
    folder_beside,
    project_root,
    run_tool,
    source_time,
)

_FREEZER = "pyinstaller>=6.10"
_RECIPE = Path(__file__).parent / "stinfer.spec"
_SCRIPTS = {"stinfer_main": "main", "stinfer_run_main": "run_main"}
_WINDOWS = sys.platform == "win32"
# Loads libraries one by one; one that was broken does not load.
_LOAD = "import ctypes, os, sys\nfor name in sys.argv[1:]:\n    ctypes.CDLL(name, os.RTLD_NOW)\n"


@dataclass(frozen=True)
class Bundle:
    """What was made.

    Parameters
    ----------
    folder, archive : where they lie
    n_bytes : of all files in the folder without the banks
    n_files : in the folder
    glibc : oldest one it runs with; None where there is none
    """

    folder: Path
    archive: Path
    n_bytes: int
    n_files: int
    glibc: tuple[int, int] | None


def make_bundle(out_dir: Path, banks: Sequence[Path] = ()) -> Bundle:
    """Freeze the runtime in a clean environment, and put with it what it needs and what must be said of it.

    Parameters
    ----------
    out_dir : folder to make it in; a bundle of the same name is replaced
    banks : reference banks to put in

    Raises
    ------
    SettingError
        Two banks are of one name.
    PackagingError
        A tool failed, or something inside is without terms.
    BankError
        A bank does not stand its test.
    """
    check_banks(banks)
    project = project_root()
    time = source_time(project)
    wheel = build_wheel(project, WORK)
    program = _freeze(wheel, time)
    frozen = read_frozen(WORK / "freeze" / "parts.json")
    version = wheel.name.split("-")[1]
    folder = out_dir / f"stinfer-{version}-{platform.system().lower()}-{platform.machine().lower()}"
    with folder_beside(folder) as made:
        shutil.copytree(program, made, symlinks=True, dirs_exist_ok=True)
        _drop_links(made)
        _strip(made, frozen)
        glibc = needed_glibc(path.read_bytes() for path in elf_files(made))
        copy_banks(banks, made / "banks")
        parts = find_parts(frozen, _site_packages(frozen))
        write_terms(parts, made / "licenses")
        hashes = {name: sha256_file(made / name) for name in files_of(made)}
        within = [_placed(part) for part in parts if part.name != "stinfer"]
        (ours,) = (part for part in parts if part.name == "stinfer")
        write_bill(made / SBOM, bill_of_materials(ours, within, bank_components(made, hashes), hashes, time))
        _write_readme(made, version, glibc)
        run_tool([made / "stinfer", "doctor"], "trying the bundle")
        write_sums(made)
        sizes = {name: (made / name).stat().st_size for name in files_of(made)}
    archive = out_dir / f"{folder.name}.{'zip' if _WINDOWS else 'tar.gz'}"
    write_archive(folder, archive, time)
    n_bytes = sum(size for name, size in sizes.items() if not name.startswith("banks/"))
    return Bundle(folder, archive, n_bytes, len(sizes) + 1, glibc)


def _freeze(wheel: Path, time: int) -> Path:
    """Freeze the wheel in an environment that holds it, what it needs, and PyInstaller.

    Returns
    -------
    the folder with the two commands
    """
    environment, work, out = WORK / "environment", WORK / "freeze", WORK / "frozen"
    for old in (environment, work, out):
        shutil.rmtree(old, ignore_errors=True)
    make_folder(work)
    for script, function in _SCRIPTS.items():
        write_text(work / f"{script}.py", f"from stinfer.cli import {function}\n\n{function}()\n")
    run_tool([sys.executable, "-I", "-m", "venv", environment], "making a clean environment")
    python = (environment / ("Scripts/python.exe" if _WINDOWS else "bin/python")).absolute()
    pip: list[str | Path] = [python, "-I", "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    run_tool([*pip, f"{wheel}[{','.join(EXTRAS)}]", _FREEZER], "filling the clean environment")
    settings = {
        "PYTHONPATH": "",
        "PYTHONNOUSERSITE": "1",
        "PYTHONHASHSEED": "1",
        "SOURCE_DATE_EPOCH": str(time),
        "PYINSTALLER_CONFIG_DIR": str((WORK / "cache").absolute()),
    }
    freeze: list[str | Path] = [python, "-m", "PyInstaller", "--noconfirm", "--log-level", "WARN"]
    places: list[str | Path] = ["--workpath", work.absolute(), "--distpath", out.absolute()]
    run_tool([*freeze, *places, _RECIPE], "freezing the program", settings)
    return out / "stinfer"


def find_parts(frozen: Frozen, site_packages: Path) -> list[Part]:
    """Find everything that is inside: distributions, Python, PyInstaller, and libraries of this system.

    Raises
    ------
    PackagingError
        Something is inside without a text of its terms.
    """
    parts = [
        *installed_parts(frozen, site_packages, also=["pyinstaller"]),
        *system_parts(frozen),
        _python(frozen),
    ]
    without = [part.name for part in parts if not part.terms]
    if without:
        purpose = "collecting licenses"
        raise PackagingError(purpose, f"there is no license text of {', '.join(without)}")
    return parts


def _python(frozen: Frozen) -> Part:
    """Describe Python itself."""
    texts = (frozen.standard_library / "LICENSE.txt", frozen.base_prefix / "LICENSE.txt")
    found = [text for text in texts if text.is_file()]
    return Part(
        name="python",
        version=frozen.python,
        purl=f"pkg:generic/python@{frozen.python}",
        license="PSF-2.0",
        terms={"LICENSE.txt": found[0]} if found else {},
        libraries=tuple(sorted(name for name in frozen.libraries if frozen.of_python(name))),
    )


def _site_packages(frozen: Frozen) -> Path:
    return frozen.prefix / frozen.standard_library.relative_to(frozen.base_prefix) / "site-packages"


def _placed(part: Part) -> Part:
    """Name a part's libraries as they lie in the bundle."""
    return Part(
        part.name,
        part.version,
        part.purl,
        part.license,
        part.terms,
        tuple(f"lib/{name}" for name in part.libraries),
        part.requires,
    )


def write_terms(parts: Sequence[Part], folder: Path) -> None:
    """Copy the terms of every part into a folder of its own."""
    for part in parts:
        for name, source in part.terms.items():
            target = folder / f"{part.name}-{part.version.replace(':', '_')}" / name
            make_folder(target.parent)
            shutil.copyfile(source, target)


def _drop_links(folder: Path) -> None:
    """Remove links to libraries, which find each other without; not every disk can hold links."""
    for path in folder.rglob("*"):
        if path.is_symlink():
            path.unlink()


def _strip(folder: Path, frozen: Frozen) -> None:
    """Remove from Python's own libraries what only a debugger reads; then see that every library loads.

    Those of others stay as they were published, byte for byte, and some would break.
    """
    if sys.platform != "linux":
        return
    own = [name for name in sorted(frozen.libraries) if frozen.of_python(name)]
    run_tool(["strip", "--strip-debug", *(folder / "lib" / name for name in own)], "stripping Python")
    load: list[str | Path] = [frozen.prefix / "bin" / "python", "-I", "-c", _LOAD]
    telemetry = {"ORT_DISABLE_TELEMETRY": "1"}
    run_tool([*load, *elf_files(folder / "lib")], "loading the libraries one by one", telemetry)


def _write_readme(folder: Path, version: str, glibc: tuple[int, int] | None) -> None:
    values: Mapping[str, str] = {
        "version": version,
        "system": platform.system(),
        "machine": platform.machine(),
        "sbom": SBOM,
        "needs": "It needs nothing of the computer."
        if glibc is None
        else f"It needs glibc {glibc[0]}.{glibc[1]} or newer:  ldd --version  says which this computer has.",
    }
    write_text(folder / "README.txt", filled("bundle.txt", values))


def size_line(bundle: Bundle) -> str:
    """Say how large a bundle is."""
    packed = bundle.archive.stat().st_size
    return (
        f"{bundle.n_files} files, {bundle.n_bytes / 1e6:.1f} MB without banks; archive {packed / 1e6:.1f} MB"
    )
