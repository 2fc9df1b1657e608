"""What the tests of a bank's fitting share: joined sections made of numbers, and layouts of cards alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
from scipy import sparse

from stinfer.contract import MapTraits, ModelCard
from stinfer.encoder_stack import EncoderStack, Member
from stinfer.sparse import Sparse
from stinfer_export.bank_fit import Layout
from stinfer_export.joining import JoinedParts
from stinfer_export.section_encoding import Part


def to_sparse(dense):
    matrix = sparse.csr_matrix(np.asarray(dense, dtype=np.float32))
    return Sparse(matrix.data, matrix.indices, matrix.indptr.astype(np.int64), matrix.shape[1])


def join(embeddings, expression, codes, totals=None):
    """Join sections; the spots of a section follow each other."""
    embeddings = np.asarray(embeddings, dtype=np.float32)
    codes = np.asarray(codes, dtype=np.int64)
    totals = np.full(len(codes), 100.0) if totals is None else np.asarray(totals, dtype=np.float64)
    expression = np.asarray(expression, dtype=np.float32)
    genes = tuple(f"G{i:03}" for i in range(expression.shape[1]))
    parts = []
    for code in np.unique(codes):
        rows = np.flatnonzero(codes == code)
        parts.append(
            Part(
                name=f"S{code}",
                patient="S",
                image_path=Path("S.png"),
                mpp=1.0,
                spots=tuple(f"{row}x0" for row in rows),
                centers_l0=np.zeros((len(rows), 2)),
                array=np.zeros((len(rows), 2)),
                genes=genes,
                gene_ids=None,
                expression=to_sparse(expression[rows]),
                totals=totals[rows],
                embeddings=embeddings[rows],
                source={},
            )
        )
    return JoinedParts(tuple(parts), genes, to_sparse(expression), embeddings, codes)


def card(name, channels, *, moments=(), head_dim=0):
    """A backbone of maps; with a head its embedding of a window has `head_dim` numbers."""
    traits = MapTraits(0, (0.0, 0.0), b"head" if head_dim else b"")
    return ModelCard(name, 224, head_dim or channels, channels, 32, "", "fp32", moments, traits, "")


def layout(cards, n_windows, pooling="map"):
    """Lay out what backbones with these cards give; nothing is encoded."""
    members = []
    for one in cards:
        has_head = one.map_traits is not None and one.map_traits.head
        encoder = SimpleNamespace(card=one, window_dim=one.dim if has_head else sum(one.layers))
        members.append(Member(encoder))
    return Layout.of(EncoderStack(members, pooling), n_windows)
