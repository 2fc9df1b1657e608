"""Whether the parts of a bank fit together, whatever their hashes say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stinfer.contract import AnyArray
from stinfer.errors import BankFormatError
from stinfer.own_section import N_PLACE_COLUMNS
from stinfer.stain import Stain
from stinfer.stored_array import StoredArray, iter_blocks

if TYPE_CHECKING:
    from stinfer.bank import Bank

MAX_ORIGINS = 32
# Of a stain: how far from 1 its directions' lengths may be, the least sine between them, the largest amount.
_UNIT_SLACK, _LEAST_APART, _MAX_AMOUNT = 1e-6, 1e-3, 1000.0


def check_shapes(bank: Bank) -> None:
    """Refuse parts that do not fit together.

    Raises
    ------
    BankFormatError
        It says which.
    """
    n_refs, n_genes = bank.n_refs, len(bank.genes)
    sparse = bank.expression
    if bank.distance_quantiles.ndim != 1 or bank.embedding.ndim != 2 or sparse.indptr.ndim != 1:
        cause = "its arrays have not the format's dimensions"
        raise BankFormatError(bank.path, cause)
    checks = {
        "it has no references": n_refs > 0 and n_genes > 0,
        "its sections do not fit its spots": len(bank.sections) == len(bank.patients) == n_refs,
        "its spot columns do not fit its spots": all(
            c.shape == (n_refs,) for c in bank.spot_columns.values()
        ),
        "domain_k is larger than its number of references": bank.settings.domain_k <= n_refs,
        "its expression does not fit its spots and genes": (
            len(sparse.indptr) == n_refs + 1 and sparse.n_columns == n_genes
        ),
        "its embeddings do not fit its spots": len(bank.embedding) == n_refs,
        "its spots' coordinates do not fit": bank.spatial.shape == (n_refs, 2),
        "its gene symbols repeat": len(set(bank.genes)) == n_genes,
        "its spots' names repeat": len(set(bank.spots)) == n_refs,
        "its numbers are not of the format's types": _types_fit(bank),
        "its gene columns do not fit its genes": all(
            c.shape == (n_genes,) for c in bank.gene_columns.values()
        ),
        "its gene IDs do not fit its genes": bank.gene_ids is None or len(bank.gene_ids) == n_genes,
        "its metric does not fit its embeddings": _metric_fits(bank),
        "its projections are no matrices": all(p is None or p.ndim == 2 for p in bank.projections),
        "its stain is none": _stain_fits(bank.stain),
        "its distance quantiles do not ascend": (
            bank.distance_quantiles.size > 1 and bool((np.diff(bank.distance_quantiles) >= 0).all())
        ),
        "k is larger than its number of references": bank.settings.k <= n_refs,
        "it compares places, and of several sections or not by euclidean distance": (
            bank.own_section is None
            or (len(set(bank.sections)) == 1 and bank.settings.distance == "euclidean")
        ),
        "it holds values that are not finite": all(
            np.isfinite(block).all()
            for values in [*_floats(bank), bank.spatial]
            for block in iter_blocks(values)
        ),
    }
    for cause, holds in checks.items():
        if not holds:
            raise BankFormatError(bank.path, cause)
    _check_coverage(bank)


def check_expression(bank: Bank) -> None:
    """Refuse expression that is none, whatever its hash says.

    Raises
    ------
    BankFormatError
        It says why.
    """
    sparse = bank.expression
    if not sparse.is_valid():
        raise BankFormatError(bank.path, "its expression matrix is no valid CSR")
    if not all(np.isfinite(block).all() for block in iter_blocks(sparse.data)):
        raise BankFormatError(bank.path, "it holds values that are not finite")
    if not sparse.is_covered():
        raise BankFormatError(bank.path, "it has values of genes that their origin does not measure")


def _check_coverage(bank: Bank) -> None:
    coverage = bank.expression.coverage
    if coverage is None or bank.origins is None:
        return
    measured = coverage.measured
    if len(bank.origins) != bank.n_refs or not len(measured) <= MAX_ORIGINS:
        cause = f"its origins do not fit its spots, or are more than {MAX_ORIGINS}"
        raise BankFormatError(bank.path, cause)
    if measured.dtype != np.bool_ or measured.shape != (len(bank.origin_names), len(bank.genes)):
        cause = "what its origins measure does not fit its genes"
        raise BankFormatError(bank.path, cause)
    if not measured.any(axis=0).all():
        raise BankFormatError(bank.path, "it has genes that no origin measures")


def _types_fit(bank: Bank) -> bool:
    integers = (bank.expression.indices, bank.expression.indptr)
    return (
        all(values.dtype == np.float32 for values in [bank.expression.data, *_floats(bank)])
        and all(values.dtype.kind == "i" for values in integers)
        and bank.spatial.dtype == np.float64
    )


def _floats(bank: Bank) -> list[AnyArray | StoredArray]:
    return [
        *(bank.embedding, bank.metric.mean, bank.metric.components),
        *(projection for projection in bank.projections if projection is not None),
        bank.distance_quantiles,
    ]


def _metric_fits(bank: Bank) -> bool:
    mean, components = bank.metric.mean, bank.metric.components
    n_columns = components.shape[-1] + (0 if bank.own_section is None else N_PLACE_COLUMNS)
    return mean.ndim == 1 and len(components) == len(mean) and n_columns == bank.embedding.shape[1]


def _stain_fits(stain: Stain | None) -> bool:
    if stain is None:
        return True
    directions, amounts = stain.directions, stain.amounts
    if directions.shape != (2, 3) or amounts.shape != (2,):
        return False
    # Bounded before anything is computed of them.
    if not (
        (np.abs(directions) < 1 + _UNIT_SLACK).all() and ((amounts > 0) & (amounts <= _MAX_AMOUNT)).all()
    ):
        return False
    lengths = np.linalg.norm(directions, axis=1)
    apart = np.linalg.norm(np.cross(directions[0], directions[1]))
    return bool(
        directions.dtype == amounts.dtype == np.float64
        and (np.abs(lengths - 1) < _UNIT_SLACK).all()
        and apart > _LEAST_APART
    )
