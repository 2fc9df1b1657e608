"""Install stInfer from the folder that this file lies in, into an environment of its own, without a network.

    python install.py FOLDER

It goes into the folder of wheels as install.py, and needs nothing but Python there. FOLDER is made; it is
removed again if the installation fails.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path


class RefusedError(Exception):
    """The installation cannot go on; the message says why."""


def check_sums(folder: Path) -> None:
    """Check every file against SHA256SUMS, and that there is none beside.

    Raises
    ------
    RefusedError
        A file lacks, was altered, or is not listed.
    """
    listed = {}
    for line in (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        listed[name] = digest
    for name, digest in sorted(listed.items()):
        path = folder / name
        if not path.is_file():
            msg = f"{name} is not there: copy the folder again"
            raise RefusedError(msg)
        found = hashlib.sha256()
        with path.open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                found.update(block)
        if found.hexdigest() != digest:
            msg = f"{name} was altered or damaged: copy the folder again"
            raise RefusedError(msg)
    for path in sorted((folder / "wheels").iterdir()):
        if f"wheels/{path.name}" not in listed:
            msg = f"wheels/{path.name} does not belong here: copy the folder again"
            raise RefusedError(msg)


def check_python(wanted: str, platform: str) -> None:
    """Check that this is the Python that the wheels are for.

    Raises
    ------
    RefusedError
        It is another version, of 32 bits, or of another system.
    """
    found = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if found != wanted:
        msg = f"this is Python {found}, and the wheels are for Python {wanted}"
        raise RefusedError(msg)
    if sys.maxsize < 2**32:
        msg = "this is a Python of 32 bits, and the wheels are for 64"
        raise RefusedError(msg)
    systems = {"win32": "win", "darwin": "macosx", "linux": "manylinux"}
    if not platform.startswith(systems.get(sys.platform, "?")):
        msg = f"this is {sys.platform}, and the wheels are for {platform}"
        raise RefusedError(msg)


def install(folder: Path, target: Path) -> Path:
    """Make an environment and install the wheels into it.

    Returns
    -------
    the folder of its commands

    Raises
    ------
    RefusedError
        A step failed; the target is not there then.
    """
    windows = os.name == "nt"
    commands = target / ("Scripts" if windows else "bin")
    python = str(commands / ("python.exe" if windows else "python"))
    pip = [python, "-I", "-m", "pip", "--isolated", "--disable-pip-version-check", "--no-input"]
    # No configuration of the site's own, which may name an index that cannot be reached.
    environment = {**os.environ, "PIP_CONFIG_FILE": os.devnull}
    steps = [
        [sys.executable, "-I", "-m", "venv", str(target)],
        [
            *pip,
            "install",
            "--quiet",
            "--no-index",
            "--no-cache-dir",
            "--only-binary",
            ":all:",
            "--find-links",
            str(folder / "wheels"),
            "--require-hashes",
            "-r",
            str(folder / "requirements.txt"),
        ],
        [*pip, "check"],
        [str(commands / "stinfer-run"), "--version"],
    ]
    try:
        for step in steps:
            if subprocess.call(step, env=environment) != 0:
                raise RefusedError("this step failed: " + " ".join(step))
        shutil.copytree(folder / "banks", target / "banks")
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return commands


def main(arguments: list[str]) -> None:
    """Install, or say why not."""
    folder = Path(__file__).resolve().parent
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # old consoles lack letters
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.exit("Usage: install FOLDER, a folder that is not there yet, for the program")
    target = Path(arguments[0]).absolute()
    about = json.loads((folder / "wheelhouse.json").read_text(encoding="utf-8"))
    try:
        if target.exists():
            msg = f"{target} exists; choose another folder, or remove it"
            raise RefusedError(msg)
        check_python(about["python"], about["platform"])
        check_sums(folder)
        commands = install(folder, target)
    except (RefusedError, OSError) as error:
        sys.exit(f"Error: {error}\nNothing was installed.")
    sys.stdout.write(f"Installed. The commands:\n  {commands / 'stinfer-run'}\n  {commands / 'stinfer'}\n")
    for bank in sorted((target / "banks").iterdir()):
        sys.stdout.write(f"A bank: {bank}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
