"""Sections put together: their genes joined, their expression and embeddings below each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stinfer.contract import F32, I64, AnyArray
from stinfer.errors import SettingError
from stinfer.record import Notices
from stinfer.sparse import Sparse
from stinfer_export.bank_plan import GeneJoin
from stinfer_export.section_encoding import Part


@dataclass(frozen=True)
class JoinedParts:
    """The spots of several sections, in their order.

    Parameters
    ----------
    parts : the sections
    genes : n_genes symbols, in alphabetical order
    expression : (n_spots, n_genes), log1p CP10K; 0 where a section does not list a gene; of merged banks with
        what was measured of which spots
    embeddings : (n_spots, dim), as the backbone gives them
    section_codes : (n_spots,), number of each spot's section
    """

    parts: tuple[Part, ...]
    genes: tuple[str, ...]
    expression: Sparse
    embeddings: F32
    section_codes: I64


def join_parts(parts: Sequence[Part], join: GeneJoin, notices: Notices) -> JoinedParts:
    """Put sections together, and say what became of genes that are not listed in every one.

    Parameters
    ----------
    parts : sections, each with at least one spot
    join : keep the genes of any section, or of every section

    Raises
    ------
    SettingError
        No gene is left.
    """
    genes = _join_genes(parts, join, notices)
    return JoinedParts(
        parts=tuple(parts),
        genes=genes,
        expression=stack(parts, genes),
        embeddings=np.concatenate([part.embeddings for part in parts]),
        section_codes=np.repeat(np.arange(len(parts)), [len(part.spots) for part in parts]),
    )


def gene_presence(joined: JoinedParts) -> dict[str, AnyArray]:
    """Say in how many sections a gene is listed, and in what part of the spots that measure it detected."""
    listed = [set(part.genes) for part in joined.parts]
    n_genes, n_spots = len(joined.genes), len(joined.embeddings)
    coverage = joined.expression.coverage
    n_measuring = n_spots if coverage is None else coverage.n_measuring()
    detected = np.bincount(joined.expression.indices[:], minlength=n_genes) / n_measuring
    return {
        "detected_fraction": detected.astype(np.float32),
        "n_sections": np.asarray(
            [sum(gene in one for one in listed) for gene in joined.genes], dtype=np.int32
        ),
    }


def measured(part: Part, genes: Sequence[str]) -> tuple[F32, int]:
    """Take some genes of a section.

    Returns
    -------
    values : (n_spots, n_genes), log1p CP10K; 0 where the section does not list a gene
    n_absent : genes that it does not list
    """
    column_of = {gene: i for i, gene in enumerate(part.genes)}
    listed = np.asarray([gene in column_of for gene in genes], dtype=np.bool_)
    columns = np.asarray([column_of[gene] for gene in genes if gene in column_of], dtype=np.int64)
    values = np.zeros((len(part.spots), len(genes)), dtype=np.float32)
    values[:, listed] = part.expression.columns(columns)
    return values, int((~listed).sum())


def _join_genes(parts: Sequence[Part], join: GeneJoin, notices: Notices) -> tuple[str, ...]:
    """Return the bank's genes in alphabetical order, and say what the join did."""
    sets = [set(part.genes) for part in parts]
    union, shared = set.union(*sets), set.intersection(*sets)
    n_partial = len(union) - len(shared)
    genes = union if join == "union" else shared
    if not n_partial:
        effect = "all of them listed in every section"
    elif join == "union":
        effect = f"of which {n_partial} are not listed in every section and count 0 where they are not"
    else:
        effect = f"{n_partial} more that are not listed in every section are left out"
    notices.add(f"{join} of the sections' genes: {len(genes)}, {effect}")
    if not shared and join == "intersection":
        what = "the sections have no gene in common"
        raise SettingError(what, "use --gene-join union, or check that the sections belong together")
    return tuple(sorted(genes))


def stack(parts: Sequence[Part], genes: Sequence[str]) -> Sparse:
    """Put sections below each other, in the bank's gene order; columns ascend in every row.

    Parameters
    ----------
    parts : the sections
    genes : n_genes symbols; what a section lists beside them is left out

    Returns
    -------
    (n_spots, n_genes), log1p CP10K
    """
    column_of = {gene: i for i, gene in enumerate(genes)}
    data, indices, lengths = [], [], []
    for part in parts:
        renamed = np.asarray([column_of.get(gene, -1) for gene in part.genes], dtype=np.int64)
        columns = renamed[part.expression.indices[:]]
        rows = np.repeat(np.arange(len(part.spots)), np.diff(part.expression.indptr))
        order = np.lexsort((columns, rows))
        order = order[columns[order] >= 0]
        data.append(part.expression.data[:][order])
        indices.append(columns[order].astype(np.int32))
        lengths.append(np.bincount(rows[order], minlength=len(part.spots)))
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    return Sparse(np.concatenate(data), np.concatenate(indices), indptr, len(genes))
