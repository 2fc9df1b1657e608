"""Which genes to predict: those that can be, names, a file of names, a marker panel, or all."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from stinfer.contract import I64, AnyArray, Bool
from stinfer.errors import GeneUnknownError, SettingError
from stinfer.files import is_file
from stinfer.gene_names import other_names
from stinfer.marker_panels import PREFIX, panel_path
from stinfer.record import Notices

ALL = "all"
PREDICTABLE = "predictable"
# A gene counts as predictable from this cross-validated correlation on.
PREDICTABLE_PEARSON = 0.2
_N_NEAREST = 3
_N_SHOWN = 5
_MEANING = f" (cross-validated correlation of at least {PREDICTABLE_PEARSON:g})"
_ENSEMBL_ID = re.compile(r"(ENS[A-Z]*G\d{11})(?:\.\d+)?", re.IGNORECASE)


def select_genes(
    request: str | Sequence[str] | None,
    known: Sequence[str],
    gene_ids: Sequence[str] | None = None,
    notices: Notices | None = None,
    accuracy: AnyArray | None = None,
) -> I64:
    """Find the genes asked for.

    A name is a symbol in any case, an Ensembl ID with or without its version, or a symbol that the gene had
    before it was renamed, or has now.

    Parameters
    ----------
    request : ``all``; ``predictable``, those whose `accuracy` is at least 0.2; names, as a list or separated
        by commas; ``markers:NAME``, a panel that comes with the program; or the path of a text file with one
        name a line (empty lines, and what follows a tab or a ``#``, are passed over); None for
        ``predictable`` where any gene is that, else ``all``
    known : the bank's genes
    gene_ids : their Ensembl IDs, where the bank has them
    accuracy : (n_known,), cross-validated Pearson correlation of each gene, NaN where there is none
    notices : told what was found under another name, what of a panel the bank does not have, and how many
        genes are predictable where none is named

    Returns
    -------
    (n,), ascending positions in `known`: the order of the bank, each gene once

    Raises
    ------
    GeneUnknownError
        A name is not in the bank, or nothing of a panel; it says which are near.
    SettingError
        No gene is named, there is no such panel, or the file cannot be read.
    """
    if request is None or request in (ALL, PREDICTABLE):
        return _by_accuracy(request, len(known), accuracy, notices)
    names = read_names(request) if isinstance(request, str) else list(request)
    if not names:
        what = "--genes names no gene"
        raise SettingError(what, "name genes separated by commas, give a file with one name a line, or: all")
    names = list(dict.fromkeys(names))
    find = _Finder(known, gene_ids)
    found = {name: position for name in names if (position := find(name)) is not None}
    unknown = [name for name in names if name not in found]
    is_panel = isinstance(request, str) and request.startswith(PREFIX)
    if unknown and not (is_panel and found):
        nearest = [nearest_genes(name, known) for name in unknown[:_N_SHOWN]]
        raise GeneUnknownError(
            unknown, nearest, len(known), has_ids=bool(gene_ids) or not any(map(_bare_id, unknown))
        )
    if notices is not None:
        for text in _remarks(request, found, unknown, known):
            notices.add(text)
    return np.asarray(sorted(set(found.values())), dtype=np.int64)


def _by_accuracy(
    request: str | Sequence[str] | None, n_known: int, accuracy: AnyArray | None, notices: Notices | None
) -> I64:
    found = np.flatnonzero(is_predictable(accuracy, n_known))
    n_predictable = len(found)
    if request == PREDICTABLE and not n_predictable:
        what = f"no gene of the bank has a cross-validated correlation of at least {PREDICTABLE_PEARSON:g}"
        raise SettingError(
            what, "name genes, or give --genes all; the bank's cv_pearson says how far to trust"
        )
    if request == ALL or not n_predictable:
        text = f"all {n_known} genes are predicted, of which {n_predictable} are predictable{_MEANING}"
        found = np.arange(n_known, dtype=np.int64)
    else:
        text = f"{n_predictable} of {n_known} genes are predicted, those that are predictable{_MEANING}"
    if notices is not None and n_predictable < n_known:
        notices.add(text)
    return np.asarray(found, dtype=np.int64)


def is_predictable(accuracy: AnyArray | None, n_known: int) -> Bool:
    """Say which of a bank's genes are predictable; see `select_genes`."""
    known = np.zeros(n_known) if accuracy is None else np.nan_to_num(accuracy)
    return np.asarray(known >= PREDICTABLE_PEARSON)


def is_naming(request: str | Sequence[str] | None) -> bool:
    """Say whether genes are asked for by name, not by how well they are predicted."""
    return request is not None and request not in (ALL, PREDICTABLE)


def notice_doubtful(
    named: Sequence[int], known: Sequence[str], accuracy: AnyArray | None, notices: Notices
) -> None:
    """Say which of the genes that were named are not known to be predictable.

    Parameters
    ----------
    named : positions in `known`
    known, accuracy : see `select_genes`
    """
    predictable = is_predictable(accuracy, len(known))
    doubtful = sorted({int(i) for i in named if not predictable[i]})
    if not doubtful:
        return
    shown = []
    for i in doubtful[:_N_SHOWN]:
        value = np.nan if accuracy is None else accuracy[i]
        shown.append(f"{known[i]} (unknown)" if np.isnan(value) else f"{known[i]} ({value:.2f})")
    more = ", …" if len(doubtful) > _N_SHOWN else ""
    notices.add(
        f"{len(doubtful)} of the {len(set(named))} genes named are not predictable{_MEANING}: "
        f"{', '.join(shown)}{more}"
    )


def nearest_genes(name: str, known: Sequence[str]) -> list[str]:
    """Return up to three known genes whose names are most like this one, whatever the case."""
    by_upper: dict[str, str] = {}
    for gene in known:
        by_upper.setdefault(gene.upper(), gene)
    near = difflib.get_close_matches(name.upper(), list(by_upper), n=_N_NEAREST, cutoff=0.6)
    return [by_upper[upper] for upper in near]


class _Finder:
    """Finds a gene by any of its names.

    Parameters
    ----------
    known : the bank's genes
    gene_ids : their Ensembl IDs, where it has them
    """

    def __init__(self, known: Sequence[str], gene_ids: Sequence[str] | None) -> None:
        self._exact = {gene: i for i, gene in enumerate(known)}
        self._any_case: dict[str, int | None] = {}
        for i, gene in enumerate(known):
            # Of two that differ in case alone neither is meant by a third way to write them.
            self._any_case[gene.upper()] = None if gene.upper() in self._any_case else i
        self._by_id: dict[str, int] = {}
        for i, gene_id in enumerate(gene_ids or ()):
            self._by_id.setdefault(_bare_id(gene_id), i)

    def __call__(self, name: str) -> int | None:
        """Return the gene's position; None where it is not known."""
        if name in self._exact:
            return self._exact[name]
        gene_id = _bare_id(name)
        if gene_id:
            return self._by_id.get(gene_id)
        for candidate in (name, *other_names(name)):
            position = self._any_case.get(candidate.upper())
            if position is not None:
                return position
        return None


def _bare_id(name: str) -> str:
    """Return an Ensembl ID in capitals, without its version; empty where it is none."""
    match = _ENSEMBL_ID.fullmatch(name)
    return match[1].upper() if match else ""


def _remarks(
    request: str | Sequence[str], found: dict[str, int], unknown: list[str], known: Sequence[str]
) -> Iterator[str]:
    others = {n: known[i] for n, i in found.items() if n != known[i] and not _bare_id(n)}
    renamed = [f"{name} as {gene}" for name, gene in others.items() if name.upper() != gene.upper()]
    if renamed:
        yield f"{len(renamed)} genes are found under another name: {', '.join(renamed)}"
    recased = [f"{name} as {gene}" for name, gene in others.items() if name.upper() == gene.upper()]
    if recased:
        more = ", …" if len(recased) > _N_SHOWN else ""
        yield f"{len(recased)} genes are found in another case: {', '.join(recased[:_N_SHOWN])}{more}"
    if unknown:
        missing = []
        for name in unknown:
            near = nearest_genes(name, known)
            missing.append(f"{name} (nearest: {', '.join(near)})" if near else name)
        yield (
            f"{len(unknown)} of the {len(found) + len(unknown)} genes of {request} are not in the bank: "
            + (", ".join(missing))
        )


def read_names(request: str) -> list[str]:
    """Read the names of a list, a file or a panel; see `select_genes`.

    Raises
    ------
    SettingError
        There is no such panel, or the file cannot be read.
    """
    if request.startswith(PREFIX):
        return _read_list(panel_path(request.removeprefix(PREFIX)))
    path = Path(request)
    if path.suffix in (".txt", ".csv", ".tsv") and not is_file(path):
        what = f"gene list {path} does not exist"
        raise SettingError(what, "check the path, or name genes separated by commas")
    if "," not in request and is_file(path):
        return _read_list(path)
    return [name for name in (name.strip() for name in request.split(",")) if name]


def _read_list(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        what = f"gene list {path} cannot be read as text ({error})"
        raise SettingError(what, "give a text file with one gene a line") from error
    names = [line.split("#", 1)[0].strip().split("\t", 1)[0].strip() for line in lines]
    return [name for name in names if name]
