"""Which genes accuracy is stated for: chosen on training spots alone."""

from __future__ import annotations

import numpy as np

from stinfer.contract import I64
from stinfer.sparse import Sparse

DEFAULT_N_GENES = 250
DEFAULT_MIN_DETECTED = 0.3


def variable_genes(expression: Sparse, n_genes: int | None, min_detected: float) -> I64:
    """Choose the genes of largest variance among those detected often enough.

    Parameters
    ----------
    expression : (n_spots, n_genes), log1p CP10K of the training spots; nothing else is looked at
    n_genes : how many, at most; None for all
    min_detected : part of the spots, 0 to 1, in which a gene must be detected (more than)

    Returns
    -------
    (n,), columns, largest variance first
    """
    width, coverage = expression.n_columns, expression.coverage
    # Where a gene was not measured it is not 0: only the spots where it was count.
    n_spots = np.maximum(len(expression.indptr) - 1 if coverage is None else coverage.n_measuring(), 1)
    data, indices = expression.data[:].astype(np.float64), expression.indices[:]
    total = np.bincount(indices, weights=data, minlength=width)
    squares = np.bincount(indices, weights=data**2, minlength=width)
    variance = squares / n_spots - (total / n_spots) ** 2
    detected = np.bincount(indices, minlength=width) / n_spots
    order = np.argsort(-variance, kind="stable")
    return np.asarray(order[detected[order] > min_detected][:n_genes], dtype=np.int64)
