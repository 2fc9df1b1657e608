"""Which genes to predict: names, a file of names, or all."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stinfer.contract import I64
from stinfer.errors import GeneUnknownError, SettingError
from stinfer.files import is_file

ALL = "all"
_N_NEAREST = 3


def select_genes(request: str | Sequence[str], known: Sequence[str]) -> I64:
    """Find the genes asked for.

    Parameters
    ----------
    request : ``all``; names, as a list or separated by commas; or the path of a text file with one
        name a line (empty lines and what follows a ``#`` are passed over)
    known : the bank's genes

    Returns
    -------
    (n,), ascending positions in `known`: the order of the bank, each gene once

    Raises
    ------
    GeneUnknownError
        A name is not in the bank; it says which are near.
    SettingError
        No gene is named, or the file cannot be read.
    """
    if request == ALL:
        return np.arange(len(known), dtype=np.int64)
    names = _names(request) if isinstance(request, str) else list(request)
    if not names:
        what = "--genes names no gene"
        raise SettingError(what, "name genes separated by commas, give a file with one name a line, or: all")
    position = {gene: i for i, gene in enumerate(known)}
    unknown = [name for name in dict.fromkeys(names) if name not in position]
    if unknown:
        raise GeneUnknownError(unknown, [nearest_genes(name, known) for name in unknown[:5]], len(known))
    return np.asarray(sorted({position[name] for name in names}), dtype=np.int64)


def nearest_genes(name: str, known: Sequence[str]) -> list[str]:
    """Return up to three known genes whose names are most like this one, whatever the case."""
    by_upper: dict[str, str] = {}
    for gene in known:
        by_upper.setdefault(gene.upper(), gene)
    near = difflib.get_close_matches(name.upper(), list(by_upper), n=_N_NEAREST, cutoff=0.6)
    return [by_upper[upper] for upper in near]


def _names(request: str) -> list[str]:
    path = Path(request)
    if path.suffix in (".txt", ".csv", ".tsv") and not is_file(path):
        what = f"gene list {path} does not exist"
        raise SettingError(what, "check the path, or name genes separated by commas")
    if "," not in request and is_file(path):
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            what = f"gene list {path} cannot be read as text ({error})"
            raise SettingError(what, "give a text file with one gene a line") from error
        names = [line.split("#", 1)[0].strip() for line in lines]
    else:
        names = [name.strip() for name in request.split(",")]
    return [name for name in names if name]
