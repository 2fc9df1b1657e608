"""What predictions are compared with: simple methods on the same embeddings. Imports numpy alone.

Each takes embeddings and expression of the training spots and the embeddings of the held-out ones, and
gives (n_test, n_genes) predictions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stinfer.contract import F32, F64, I64
from stinfer.neighbors import ExactSearch
from stinfer.predict import Weighting, expression_from_neighbors, neighbor_weights
from stinfer_export.agreement import pearson_by_gene

PLAIN_K = 50
HEST_COMPONENTS = 256
RIDGE_ALPHAS = tuple(float(alpha) for alpha in 10.0 ** np.arange(-1, 7))


def mean_expression(n_test: int, expression: F32) -> F32:
    """Predict every gene's training mean everywhere.

    Parameters
    ----------
    n_test : held-out spots
    expression : (n_train, n_genes)
    """
    return np.tile(expression.mean(axis=0, dtype=np.float64).astype(np.float32), (n_test, 1))


def plain_neighbors(train: F32, expression: F32, test: F32, weighting: Weighting, k: int = PLAIN_K) -> F32:
    """Average the nearest references by cosine of the embeddings as the backbone gives them.

    Parameters
    ----------
    train : (n_train, dim)
    expression : (n_train, n_genes)
    test : (n_test, dim)
    weighting : ``uniform`` or ``inverse``
    k : neighbors; fewer where there are not as many
    """
    distances, indices = ExactSearch(train, "cosine").query(test, min(k, len(train)))
    return expression_from_neighbors(neighbor_weights(distances, weighting, 1.0), indices, expression)


def upstream_neighbors(train: F32, counts: F32, test: F32, k: int) -> F32:
    """Predict as the published code does: raw counts, cosine distance d, weights 1 - d / sum(d).

    Parameters
    ----------
    train : (n_train, dim)
    counts : (n_train, n_genes), raw
    test : (n_test, dim)
    k : neighbors; fewer where there are not as many
    """
    distances, indices = ExactSearch(train, "cosine").query(test, min(k, len(train)))
    total = distances.sum(axis=1, dtype=np.float64, keepdims=True)
    weights = 1.0 - distances / np.where(total > 0, total, 1.0)
    weights /= weights.sum(axis=1, keepdims=True)
    return expression_from_neighbors(weights.astype(np.float32), indices, counts)


def hest_ridge(train: F32, expression: F32, test: F32) -> F32:
    """Regress expression on 256 principal components, as HEST-Benchmark does.

    Embeddings are standardised and reduced to at most 256 principal components; ridge regression has
    alpha = 100 / (components x genes). Expression is centered first, which leaves correlations as they are.

    Parameters
    ----------
    train : (n_train, dim)
    expression : (n_train, n_genes)
    test : (n_test, dim)

    References
    ----------
    G. Jaume et al., "HEST-1k: A Dataset for Spatial Transcriptomics and Histology Image Analysis", NeurIPS
    (2024), https://github.com/mahmoodlab/HEST
    """
    fitted, asked = principal_components(train, test, HEST_COMPONENTS)
    alpha = 100.0 / (fitted.shape[1] * expression.shape[1])
    return ridge(fitted, expression, asked, alpha)


def cross_validated_ridge(train: F32, expression: F32, test: F32, groups: I64) -> F32:
    """Regress expression on the same components, with alpha chosen by cross-validation.

    It is the alpha with which the training groups, each predicted from the others, agree best: in the mean
    over genes of Pearson's correlation.

    Parameters
    ----------
    train : (n_train, dim)
    expression : (n_train, n_genes)
    test : (n_test, dim)
    groups : (n_train,), section or patient of each training spot, at least two of them
    """
    scores = np.zeros(len(RIDGE_ALPHAS))
    for group in np.unique(groups):
        held = groups == group
        fitted, asked = principal_components(train[~held], train[held], HEST_COMPONENTS)
        predictions = ridges(fitted, expression[~held], asked, RIDGE_ALPHAS)
        for i, predicted in enumerate(predictions):
            scores[i] += float(np.nan_to_num(pearson_by_gene(predicted, expression[held])).mean())
    fitted, asked = principal_components(train, test, HEST_COMPONENTS)
    return ridge(fitted, expression, asked, RIDGE_ALPHAS[int(np.argmax(scores))])


def principal_components(train: F32, test: F32, n_components: int) -> tuple[F64, F64]:
    """Standardise embeddings and reduce them to the training spots' principal components.

    Parameters
    ----------
    train, test : (n, dim)
    n_components : at most; fewer where there are fewer spots or numbers

    Returns
    -------
    train, test : (n, n_components), mean 0 over the training spots
    """
    mean, deviation = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    varies = deviation > 1e-6 * np.maximum(np.abs(mean), 1e-12)
    scale = np.where(varies, 1.0 / np.where(varies, deviation, 1.0), 0.0)
    known, asked = (train - mean) * scale, (test - mean) * scale
    # Through the smaller product with itself: thousands of columns take long to decompose.
    wide = known.shape[0] <= known.shape[1]
    squares, vectors = np.linalg.eigh(known @ known.T if wide else known.T @ known)
    order = np.argsort(-squares, kind="stable")[: max(min(n_components, len(train) - 1), 1)]
    order = order[squares[order] > 1e-12 * max(float(squares[-1]), 1e-12)]
    kept = vectors[:, order]
    if wide:
        kept = known.T @ (kept / np.sqrt(squares[order]))
    return known @ kept, asked @ kept


def ridge(train: F64, expression: F32, test: F64, alpha: float) -> F32:
    """Predict by ridge regression of one alpha; see `ridges`."""
    return ridges(train, expression, test, [alpha])[0]


def ridges(train: F64, expression: F32, test: F64, alphas: Sequence[float]) -> list[F32]:
    """Predict by ridge regression with an intercept that is not penalised.

    Minimises |y - X b|^2 + alpha |b|^2, X and y centered.

    Parameters
    ----------
    train : (n_train, d)
    expression : (n_train, n_genes)
    test : (n_test, d)
    alphas : of the penalty, above 0

    Returns
    -------
    a prediction (n_test, n_genes) for each alpha
    """
    center, mean = train.mean(axis=0), expression.mean(axis=0, dtype=np.float64)
    left, values, right = np.linalg.svd(train - center, full_matrices=False)
    turned = left.T @ (expression - mean)
    asked = (test - center) @ right.T
    found = []
    for alpha in alphas:
        shrunk = (values / (values**2 + alpha))[:, np.newaxis] * turned
        found.append(np.asarray(asked @ shrunk + mean, dtype=np.float32))
    return found
