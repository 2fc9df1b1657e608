"""Tables of measurements: Markdown, and its place in the README."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stinfer.errors import SettingError
from stinfer.files import make_folder, written_beside
from stinfer.machine import cores_allowed
from stinfer.record import software_versions


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def insert(path: Path, name: str, text: str) -> None:
    """Put a text between the two markers of its name, in place of what stands there.

    Parameters
    ----------
    path : a Markdown file with lines ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->``
    name : of the markers
    text : without them

    Raises
    ------
    SettingError
        The file does not have both, once each and in this order.
    """
    first, last = f"<!-- bench:{name} -->\n", f"<!-- /bench:{name} -->"
    whole = path.read_text(encoding="utf-8") if path.is_file() else ""
    start, end = whole.find(first), whole.find(last)
    if not (whole.count(first) == whole.count(last) == 1 and start < end):
        what = f"{path} has not the lines {first.strip()} and {last}, once each and in this order"
        raise SettingError(what, "add them where the table is to stand, or leave out --readme")
    with written_beside(path) as partial:
        partial.write_text(whole[: start + len(first)] + text + "\n" + whole[end:], encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write measurements with the machine they were taken on."""
    make_folder(path.parent)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    machine = {
        "cores": cores_allowed(),
        "processor": platform.processor() or platform.machine(),
        "load": load,
    }
    whole = {"machine": machine, "software": software_versions(), **content}
    with written_beside(path) as partial:
        partial.write_text(json.dumps(whole, indent=1, allow_nan=False) + "\n", encoding="utf-8")
