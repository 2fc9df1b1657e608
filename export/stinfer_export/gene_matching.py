"""The same genes under one name: what banks of several platforms call theirs, matched.

A gene of a later bank is the one of the earlier banks

1. whose Ensembl ID it has, where both have one, whatever the symbols; the version does not count;
2. else whose symbol it has, letter for letter: human and mouse genes differ by the case alone;
3. else that was renamed, by the table of `stinfer.gene_names`, if just one of those banks' genes fits.

Every gene is matched once. It keeps the first bank's symbol and ID.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from stinfer.gene_names import other_names
from stinfer.record import Notices

_N_SHOWN = 5
_ENSEMBL_ID = re.compile(r"ENS[A-Z]*G\d{11}(?:\.\d+)?")
_VERSION = re.compile(r"(?<=\d)\.\d+$")


@dataclass(frozen=True)
class GeneList:
    """What a bank calls its genes.

    Parameters
    ----------
    bank : its name, for notices
    genes : unique symbols
    gene_ids : their Ensembl IDs, empty where one is not known; None where the bank has none
    """

    bank: str
    genes: tuple[str, ...]
    gene_ids: tuple[str, ...] | None

    def ids(self) -> dict[str, str]:
        """Return the IDs of those genes that have one, or are called by it, without their versions."""
        pairs = zip(self.genes, self.gene_ids or [""] * len(self.genes), strict=True)
        found = {gene: gene_id or (gene if _ENSEMBL_ID.fullmatch(gene) else "") for gene, gene_id in pairs}
        return {gene: _VERSION.sub("", gene_id) for gene, gene_id in found.items() if gene_id}


@dataclass(frozen=True)
class MatchedGenes:
    """The union of several banks' genes.

    Parameters
    ----------
    genes : symbols, in the order of code points
    gene_ids : their Ensembl IDs, empty where none is known; None where no bank has any
    names : of each bank, the union's symbols of its genes, in its own order
    """

    genes: tuple[str, ...]
    gene_ids: tuple[str, ...] | None
    names: tuple[tuple[str, ...], ...]


def match_genes(lists: Sequence[GeneList], notices: Notices) -> MatchedGenes:
    """Match the genes of banks, and say where names and IDs contradict each other.

    Parameters
    ----------
    lists : of the banks, in their order
    notices : told which genes are taken for the same under two names, and where IDs differ
    """
    ids: dict[str, str] = {}
    known: dict[str, None] = {}
    names = []
    for one in lists:
        mapped = _match(one, known, ids, notices)
        own = one.ids()
        for gene, name in mapped.items():
            known.setdefault(name)
            if gene in own:
                ids.setdefault(name, own[gene])
        names.append(tuple(mapped[gene] for gene in one.genes))
    genes = tuple(sorted(known))
    return MatchedGenes(genes, tuple(ids.get(gene, "") for gene in genes) if ids else None, tuple(names))


def _match(one: GeneList, known: dict[str, None], ids: dict[str, str], notices: Notices) -> dict[str, str]:
    """Return the name in the union of every gene of a bank."""
    own = one.ids()
    by_id: dict[str, str] = {}
    for name, gene_id in ids.items():
        by_id.setdefault(gene_id, name)
    mapped: dict[str, str] = {}
    taken: set[str] = set()

    def take(gene: str, name: str) -> None:
        mapped[gene] = name
        taken.add(name)

    for gene in one.genes:
        found = by_id.get(own.get(gene, ""))
        # Of two genes with one ID, that of the same symbol.
        if found is not None and own[gene] == ids.get(gene):
            found = gene
        if found is not None and found not in taken:
            take(gene, found)
    by_other_symbol = [f"{gene} as {name}" for gene, name in mapped.items() if gene != name]
    contradicted = []
    for gene in one.genes:
        if gene not in mapped and gene in known and gene not in taken:
            take(gene, gene)
            if gene in own and gene in ids:
                contradicted.append(f"{gene} ({ids[gene]}, {own[gene]})")
    renamed = []
    for gene in one.genes:
        if gene in mapped:
            continue
        fitting = [
            name
            for name in other_names(gene)
            # Letter for letter here too; and genes whose IDs are known and differ were not renamed.
            if gene in other_names(name)
            and name in known
            and name not in taken
            and not (gene in own and name in ids)
        ]
        if len(fitting) == 1:
            take(gene, fitting[0])
            renamed.append(f"{gene} as {fitting[0]}")
    added = []
    used = {*known, *one.genes}
    for gene in one.genes:
        if gene in mapped:
            continue
        name = gene
        if gene in known:
            name = _unused(gene, used)
            used.add(name)
            added.append(f"{gene} as {name}")
        take(gene, name)
    for texts, said in (
        (by_other_symbol, "have another symbol than in the banks before, but the same Ensembl ID"),
        (contradicted, "have another Ensembl ID than in the banks before, and are the same by symbol"),
        (renamed, "are found under the symbol that they had, or have, before or after they were renamed"),
        (added, "have the symbol of another gene in the banks before, and are renamed"),
    ):
        if texts:
            more = ", …" if len(texts) > _N_SHOWN else ""
            notices.add(f"{len(texts)} genes of {one.bank} {said}: {', '.join(texts[:_N_SHOWN])}{more}")
    return mapped


def _unused(name: str, used: set[str]) -> str:
    """Return a name, or that and a number, as AnnData makes names unique."""
    found, n = name, 0
    while found in used:
        n += 1
        found = f"{name}-{n}"
    return found
