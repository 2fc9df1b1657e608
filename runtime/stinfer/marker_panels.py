"""Marker panels that come with the program: lists of genes, each with its group, reason and source.

A panel is a text file, a gene a line and tabs between its columns; a line that begins with ``#`` is a remark.
"""

from __future__ import annotations

from pathlib import Path

from stinfer.errors import SettingError

PREFIX = "markers:"


def panel_path(name: str) -> Path:
    """Return the file of a panel.

    Raises
    ------
    SettingError
        There is no panel of this name.
    """
    known = {path.stem: path for path in sorted(_folder().glob("*.tsv"))}
    if name not in known:
        what = f"there is no marker panel {name!r}"
        raise SettingError(what, f"use one of {', '.join(PREFIX + panel for panel in known)}")
    return known[name]


def _folder() -> Path:
    """Return where the panels lie: inside the installed package, or in the project that it runs from."""
    installed = Path(__file__).parent / "panels"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "reference_bank" / "genes"
