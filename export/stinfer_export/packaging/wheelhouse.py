"""A folder of wheels, banks and an installer, for a computer that has Python and no network."""

from __future__ import annotations

import json
import logging
import platform as this_computer
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from stinfer.errors import SettingError
from stinfer.files import make_folder, sha256_file, write_text
from stinfer_export.errors import PackagingError
from stinfer_export.packaging import site_install
from stinfer_export.packaging.banks import check_banks, copy_banks
from stinfer_export.packaging.sums import files_of, write_sums
from stinfer_export.packaging.tools import (
    EXTRAS,
    WORK,
    build_wheel,
    filled,
    folder_beside,
    project_root,
    run_tool,
)
from stinfer_export.packaging.wheels import Wheel, platform_tags, read_wheel, resolve, target_markers

logger = logging.getLogger("stinfer_export")

# glibc that a Linux has when nothing is said of it, minor version: that of RHEL 8.
_GLIBC_MINOR = 28
_ROUNDS = 5
_ANNOY = {
    True: "The Annoy index of a bank is used where it is faster.",
    False: "There is no Annoy here, since it has no wheel: all references are searched, which is exact.",
}


@dataclass(frozen=True)
class Made:
    """What was made.

    Parameters
    ----------
    folder : where it lies
    files : each with its size in bytes
    """

    folder: Path
    files: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class _Target:
    """The computer that wheels are for: a wheel's tag and a version of Python."""

    platform: str
    python: str

    @property
    def abi(self) -> str:
        return "cp" + self.python.replace(".", "")

    @property
    def pip_options(self) -> list[str]:
        tags = [part for tag in platform_tags(self.platform) for part in ("--platform", tag)]
        # pip adds those of the stable ABI and of pure Python by itself.
        return [*tags, "--python-version", self.python, "--implementation", "cp", "--abi", self.abi]


def make_wheelhouse(
    out_dir: Path, banks: Sequence[Path] = (), platform: str | None = None, python: str | None = None
) -> Made:
    """Collect the runtime's wheels for a computer, and check that none lacks there.

    Parameters
    ----------
    out_dir : folder to make it in; one of the same name is replaced
    banks : reference banks to put in
    platform : tag of wheels; this computer's if None
    python : major and minor version there; this one's if None

    Returns
    -------
    the folder and its files

    Raises
    ------
    SettingError
        No such platform or version; or two banks of one name.
    PackagingError
        There is no wheel of something that is needed, or a tool failed.
    BankError
        A bank does not stand its test.
    """
    target = _Target(platform or this_platform(), python or f"{sys.version_info[0]}.{sys.version_info[1]}")
    markers = target_markers(target.platform, target.python)
    check_banks(banks)
    own = read_wheel(build_wheel(project_root(), WORK))
    path = out_dir / f"wheelhouse-{own.version}-{target.platform}-{target.abi}"
    with folder_beside(path) as folder:
        wheels = _fetch(folder / "wheels", own.path, target, markers)
        annoy = _fetch_annoy(folder / "wheels", target)
        copy_banks(banks, folder / "banks")
        _write_texts(folder, [*wheels, *annoy], target, own.version)
        write_sums(folder)
        files = tuple((name, (folder / name).stat().st_size) for name in files_of(folder))
    return Made(path, files)


def this_platform() -> str:
    """Return the tag of wheels that run on computers like this; on Linux with glibc 2.28 and newer."""
    machine = this_computer.machine()
    known = {
        "linux": f"manylinux_2_{_GLIBC_MINOR}_{machine}",
        "win32": "win_" + machine.lower(),
        "darwin": f"macosx_14_0_{machine}",
    }
    if sys.platform not in known:
        what = f"wheels for {sys.platform} are of no tag that is known"
        raise SettingError(what, "name the platform: win_amd64, manylinux_2_28_x86_64")
    return known[sys.platform]


def _fetch(folder: Path, own: Path, target: _Target, markers: dict[str, str]) -> list[Wheel]:
    """Download what the runtime needs on the target, and nothing else; binary wheels only."""
    root = f"{own}[{','.join(EXTRAS)}]"
    roots = [Requirement(f"stinfer[{','.join(EXTRAS)}]")]
    added: list[str] = []
    purpose = f"collecting wheels for {target.platform}, Python {target.python}"
    for _ in range(_ROUNDS):
        _download(folder, [root, *added], target, purpose)
        wheels = [read_wheel(path) for path in sorted(folder.glob("*.whl"))]
        found = resolve(roots, wheels, markers)
        if not found.missing:
            break
        logger.info("pip left out what only the target needs: %s", ", ".join(found.missing))
        added += found.missing
    else:
        raise PackagingError(purpose, f"nothing satisfies {', '.join(found.missing)}")
    for wheel in wheels:
        if wheel.name not in found.needed:
            wheel.path.unlink()
    return [wheel for wheel in wheels if wheel.name in found.needed]


def _fetch_annoy(folder: Path, target: _Target) -> list[Wheel]:
    """Download Annoy, where there is a wheel of it."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            _download(Path(scratch), ["--no-deps", "annoy"], target, "looking for a wheel of annoy")
        except PackagingError as error:
            # Everything else has just come from there, so it is not the network.
            if "No matching distribution found for annoy" not in error.what:
                raise
            logger.warning("annoy has no wheel for %s: left out, search will be exact", target.platform)
            return []
        (found,) = Path(scratch).glob("*.whl")
        return [read_wheel(Path(shutil.copy(found, folder)))]


def _download(folder: Path, wanted: Sequence[str], target: _Target, purpose: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    run_tool([*pip, "--only-binary=:all:", *target.pip_options, "--dest", folder, *wanted], purpose)


def _write_texts(folder: Path, wheels: Sequence[Wheel], target: _Target, version: str) -> None:
    """Write the installer, what it reads, and what a person reads."""
    values = {
        "version": version,
        "platform": target.platform,
        "python": target.python,
        "python_tuple": target.python.replace(".", ", "),
        "annoy": _ANNOY[any(wheel.name == "annoy" for wheel in wheels)],
    }
    pins = sorted(pin_of(wheel, EXTRAS if wheel.name == "stinfer" else ()) for wheel in wheels)
    write_text(folder / "requirements.txt", "".join(f"{pin}\n" for pin in pins))
    about = {name: values[name] for name in ("version", "platform", "python")}
    write_text(folder / "wheelhouse.json", json.dumps(about, indent=2) + "\n")
    write_text(folder / "README.txt", filled("wheelhouse.txt", values))
    write_text(folder / "install.sh", filled("install.sh", values))
    # cmd.exe loses labels in files without carriage returns.
    (folder / "install.bat").write_bytes(filled("install.bat", values).replace("\n", "\r\n").encode("ascii"))
    (folder / "install.sh").chmod(0o755)
    shutil.copyfile(site_install.__file__, folder / "install.py")


def pin_of(wheel: Wheel, extras: Sequence[str] = ()) -> str:
    """Return the line of requirements.txt that takes this very wheel and no other."""
    chosen = f"[{','.join(extras)}]" if extras else ""
    return f"{wheel.name}{chosen}=={wheel.version} --hash=sha256:{sha256_file(wheel.path)}"
