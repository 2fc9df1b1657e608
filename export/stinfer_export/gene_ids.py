"""Ensembl IDs of a bank's genes, joined from its sections."""

from __future__ import annotations

from collections.abc import Sequence

from stinfer.record import Notices
from stinfer_export.section_encoding import Part

_N_SHOWN = 3


def join_gene_ids(parts: Sequence[Part], genes: Sequence[str], notices: Notices) -> tuple[str, ...] | None:
    """Return the ID of every gene, the first section's that knows it; None where no section knows any.

    A gene without one has an empty text. That sections disagree is told.
    """
    found: dict[str, str] = {}
    contradicted: dict[str, str] = {}
    for part in parts:
        for gene, gene_id in zip(part.genes, part.gene_ids or [""] * len(part.genes), strict=True):
            if gene_id and found.setdefault(gene, gene_id) != gene_id:
                contradicted[gene] = gene_id
    if not found:
        return None
    if contradicted:
        shown = ", ".join(
            f"{gene} ({found[gene]}, {other})" for gene, other in list(contradicted.items())[:_N_SHOWN]
        )
        more = ", …" if len(contradicted) > _N_SHOWN else ""
        notices.add(
            f"sections give {len(contradicted)} genes different Ensembl IDs, the first is kept: {shown}{more}"
        )
    return tuple(found.get(gene, "") for gene in genes)
