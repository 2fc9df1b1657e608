"""Expression between measured spots: from appearance and place, against interpolation of place alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from stinfer.contract import F32, F64, Bool
from stinfer.neighbors import ExactSearch
from stinfer.predict import expression_from_neighbors, neighbor_weights
from stinfer_export.agreement import pearson_by_gene
from stinfer_export.calibration import Fold
from stinfer_export.joint_distance import Joint, fifths, predict_joint

# Tried by cross-validation; as many neighbors as with appearance.
IDW_POWERS = (1.0, 2.0, 3.0)

# Predicts the spots asked for from those that are known: (known places, their expression, asked places).
Method = Callable[["Spots", "Spots"], F32]


@dataclass(frozen=True)
class Spots:
    """Measured spots of one section.

    Parameters
    ----------
    places : (n, 2), µm
    embedding : (n, dim), after a metric that was fitted without this section's expression
    expression : (n, n_genes), log1p CP10K
    """

    places: F64
    embedding: F32
    expression: F32

    def __getitem__(self, chosen: Bool) -> Spots:
        return Spots(self.places[chosen], self.embedding[chosen], self.expression[chosen])


def alternate(array: F64) -> Bool:
    """Mark every other spot of an array, as the dark squares of a chessboard.

    Parameters
    ----------
    array : (n, 2), column and row; refined coordinates are rounded

    Returns
    -------
    (n,)
    """
    return np.asarray(np.rint(array).astype(np.int64).sum(axis=1) % 2 == 0)


def inverse_distance(known: Spots, asked: Spots, k: int, power: float) -> F32:
    """Average the k nearest spots by place, weighing 1 / distance^power.

    References
    ----------
    D. Shepard, "A two-dimensional interpolation function for irregularly-spaced data", Proc. 23rd ACM
    National Conference (1968) 517-524.
    """
    search = ExactSearch(known.places.astype(np.float32), "euclidean")
    distances, indices = search.query(asked.places.astype(np.float32), min(k, len(known.places)))
    weights = neighbor_weights(distances**power, "inverse", 1.0)
    return expression_from_neighbors(weights, indices, known.expression)


def bicubic(known: Spots, asked: Spots) -> F32:
    """Interpolate with piecewise cubic polynomials on triangles; beyond the spots take the nearest.

    References
    ----------
    P. Alfeld, "A trivariate Clough-Tocher scheme for tetrahedral data", CAGD 1 (1984) 169-181, as in
    `scipy.interpolate.CloughTocher2DInterpolator`.
    """
    from scipy.interpolate import CloughTocher2DInterpolator

    found = CloughTocher2DInterpolator(known.places, known.expression)(asked.places)
    nearest = inverse_distance(known, asked, 1, 1.0)
    return np.asarray(np.where(np.isfinite(found), found, nearest), dtype=np.float32)


def joint_neighbors(known: Spots, asked: Spots, joint: Joint) -> F32:
    """Average the nearest spots by appearance and place together, as a bank of its own section does.

    Parameters
    ----------
    known, asked : spots
    joint : how
    """
    n_known = len(known.places)
    held = np.arange(n_known, n_known + len(asked.places))
    fold = Fold(held, np.arange(n_known), asked.embedding, known.embedding)
    return predict_joint(fold, np.concatenate([known.places, asked.places]), known.expression, joint)


def choose(known: Spots, methods: Sequence[Method]) -> Method:
    """Choose the method that predicts best when known spots are left out, a fifth of them at a time.

    Parameters
    ----------
    known : spots; no other is looked at
    methods : to choose from; of equals the first

    Returns
    -------
    that of the largest mean of Pearson's correlation over genes
    """
    fold = fifths(len(known.places))
    scores = []
    for method in methods:
        predicted = np.empty_like(known.expression)
        for i in np.unique(fold):
            predicted[fold == i] = method(known[fold != i], known[fold == i])
        scores.append(float(np.nan_to_num(pearson_by_gene(predicted, known.expression)).mean()))
    return methods[int(np.argmax(scores))]
