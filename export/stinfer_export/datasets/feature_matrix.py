"""Counts as 10x Genomics lists them: barcodes x features, of which genes are one type."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stinfer_export.datasets.counts import Counts
from stinfer_export.errors import DatasetError

GENE_EXPRESSION = "Gene Expression"
_N_SHOWN = 3


@dataclass(frozen=True)
class FeatureMatrix:
    """All features of some barcodes.

    Parameters
    ----------
    path : where it was read
    barcodes : n unique texts
    ids, symbols, types : of n_features: Ensembl ID, name, and what kind of feature
    counts : (n, n_features)
    """

    path: Path
    barcodes: tuple[str, ...]
    ids: tuple[str, ...]
    symbols: tuple[str, ...]
    types: tuple[str, ...]
    counts: Counts

    def __post_init__(self) -> None:
        fix = "copy the file again from its source"
        twice = [name for name, n in Counter(self.barcodes).items() if n > 1]
        if twice:
            raise DatasetError(self.path, f"barcode {twice[0]} stands in it twice", fix)
        for kind, names in (("feature", self.symbols), ("barcode", self.barcodes)):
            for number, name in enumerate(names, start=1):
                if not name.strip() or any(unicodedata.category(sign) == "Cc" for sign in name):
                    cause = f"{kind} {number} is {name!r}: blank, or with a control character"
                    raise DatasetError(self.path, cause, fix)


@dataclass(frozen=True)
class GeneTable:
    """The genes of a matrix.

    Parameters
    ----------
    genes : n_genes unique symbols
    ids : of each, as the matrix has them; None where it has none
    counts : (n, n_genes)
    notices : what was dropped and renamed
    """

    genes: tuple[str, ...]
    ids: tuple[str, ...] | None
    counts: Counts
    notices: tuple[str, ...]


def take_genes(matrix: FeatureMatrix) -> GeneTable:
    """Leave out what is no gene expression, and make symbols unique.

    Raises
    ------
    DatasetError
        It holds no gene expression.
    """
    kept = [i for i, kind in enumerate(matrix.types) if kind == GENE_EXPRESSION]
    others = Counter(kind for kind in matrix.types if kind != GENE_EXPRESSION)
    if not kept:
        cause = f"none of its {len(matrix.types)} features is of type {GENE_EXPRESSION}"
        raise DatasetError(matrix.path, cause, "give the output of a gene expression library")
    notices = [f"{n} features of type {kind} are dropped" for kind, n in sorted(others.items())]
    symbols = [matrix.symbols[i] for i in kept]
    unique = make_unique(symbols)
    renamed = [new for new, old in zip(unique, symbols, strict=True) if new != old]
    if renamed:
        more = ", …" if len(renamed) > _N_SHOWN else ""
        notices.append(
            f"{len(renamed)} genes have the symbol of another and are numbered: "
            f"{', '.join(renamed[:_N_SHOWN])}{more}"
        )
    ids = tuple(matrix.ids[i] for i in kept)
    counts = matrix.counts if len(kept) == len(matrix.types) else matrix.counts.take_genes(np.asarray(kept))
    return GeneTable(unique, ids if any(ids) else None, counts, tuple(notices))


def make_unique(names: Sequence[str]) -> tuple[str, ...]:
    """Give repeated names a number, as AnnData does.

    The first keeps its name, the others end in `-1`, `-2` and so on. A number that
    would make a name that is there already is passed over.
    """
    taken = set(names)
    seen: set[str] = set()
    numbers: Counter[str] = Counter()
    unique = []
    for name in names:
        new = name
        if name in seen:
            while new in taken:
                numbers[name] += 1
                new = f"{name}-{numbers[name]}"
            taken.add(new)
        seen.add(name)
        unique.append(new)
    return tuple(unique)
