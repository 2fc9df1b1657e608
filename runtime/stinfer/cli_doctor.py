"""The command `stinfer doctor`."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path

import click

from stinfer.cli_tools import FILE, shows_errors

_STATUS = {"ok": "ok", "note": "note", "failed": "FAILED"}
# Of the table: columns of the status and the name, and of all where it goes to no terminal.
_STATUS_WIDTH, _NAME_WIDTH, _WIDTH = 8, 18, 110


@click.command(epilog="Example: stinfer doctor --bank her2st.h5")
@click.option("--bank", type=FILE, help="Check this bank too, and encode with its own models.")
@click.option(
    "--bank-key",
    type=FILE,
    metavar="FILE|DIR",
    help="Public key (.pub), or folder of them, that must have signed the bank. [default: those of the "
    "environment variable STINFER_BANK_KEYS, where it is set]",
)
@click.option(
    "--out-dir", type=FILE, metavar="DIR", help="Folder that predictions will go to. [default: this folder]"
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead, for other programs.")
@shows_errors
def doctor(bank: Path | None, bank_key: Path | None, out_dir: Path | None, *, as_json: bool) -> None:
    """Say whether a run would work on this machine, and what it would use. Takes some seconds.

    Looks at the program and its libraries, processor, memory and their limits, ONNX Runtime and CUDA,
    OpenSlide, a patch against the embedding it must give, folders, and the bank. The exit code is 0 if a run
    would work and 1 if not; "note" marks what is worth knowing and stops no run.

    With --json, "schema_version" is 1, "works" true or false, and "checks" holds, by name, "status" (ok, note
    or failed), "found" and "fix" in words, and "facts". Names stay as they are while the version does.
    """
    import json

    from stinfer.checkup import Examination
    from stinfer.doctor import examine

    checks = []
    for check in examine(bank, bank_key=bank_key, out_dir=out_dir):
        checks.append(check)
        if not as_json:
            click.echo(_row(_STATUS[check.status], check.name, check.found))
            if check.fix:
                click.echo(_row("", "", f"Try: {check.fix}"))
    found = Examination(tuple(checks))
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        failed = ", ".join(check.name.replace("_", " ") for check in checks if check.status == "failed")
        click.echo(f"\nA run would not work: see {failed}" if failed else "\nA run would work")
    if not found.works:
        raise SystemExit(1)


def _row(status: str, name: str, text: str) -> str:
    first = f"{status:<{_STATUS_WIDTH}}{name.replace('_', ' '):<{_NAME_WIDTH}}"
    width = max(shutil.get_terminal_size((_WIDTH, 24)).columns, 2 * len(first))
    return textwrap.fill(
        text, width, initial_indent=first, subsequent_indent=" " * len(first), break_on_hyphens=False
    )
