"""What predicts a held-out section: the bank as it is built, and baselines on the same embeddings.

Nothing here is given the expression of a held-out section.
"""

from __future__ import annotations

from dataclasses import dataclass

from stinfer.contract import F32, I64
from stinfer.neighbors import ExactSearch
from stinfer.predict import expression_from_neighbors, neighbor_weights
from stinfer.record import Notices
from stinfer_export.bank_fit import BankFit, Layout, fit_bank, project
from stinfer_export.bank_plan import BankPlan
from stinfer_export.evaluation import baselines
from stinfer_export.joining import JoinedParts

OURS = "stinfer"
# In the order of the table, with what it calls them.
METHODS = {
    OURS: "stInfer bank",
    "cv_ridge": "ridge, alpha cross-validated",
    "hest_ridge": "ridge, HEST-Benchmark",
    "knn_inverse": f"kNN, 1/d, k {baselines.PLAIN_K}",
    "knn_uniform": f"kNN, uniform, k {baselines.PLAIN_K}",
    "mean": "mean expression",
}


@dataclass(frozen=True)
class Training:
    """The training side of a fold.

    Parameters
    ----------
    joined : its sections
    layout : of their embeddings
    fit : the bank made of them
    genes : (n_genes,), columns that are predicted, chosen on them
    """

    joined: JoinedParts
    layout: Layout
    fit: BankFit
    genes: I64

    @property
    def names(self) -> tuple[str, ...]:
        """Symbols of the genes that are predicted."""
        return tuple(self.joined.genes[i] for i in self.genes)

    @property
    def fitted(self) -> dict[str, object]:
        """What the bank chose for itself."""
        fit = self.fit
        return {
            "metric": fit.metric_kind,
            "distance": fit.distance,
            "k": fit.k,
            "weighting": fit.weighting,
            "temperature": fit.calibration.temperature,
        }

    def mapped(self, embeddings: F32) -> F32:
        """Bring embeddings, (n, dim), through projections and metric: what the bank compares."""
        return self.fit.metric.apply(project(embeddings, self.fit.projections, self.layout))


def train(joined: JoinedParts, layout: Layout, plan: BankPlan, genes: I64, notices: Notices) -> Training:
    """Make a bank of the training sections.

    Parameters
    ----------
    joined : the sections; nothing else is looked at
    layout : of their embeddings
    plan : of the bank
    genes : (n_genes,), columns to predict, chosen on the same sections
    notices : told what could not be done
    """
    return Training(joined, layout, fit_bank(joined, layout, plan, notices), genes)


def predict_as_bank(training: Training, asked: F32) -> F32:
    """Predict spots as the bank would.

    Parameters
    ----------
    training : the training side
    asked : (n, dim), embeddings of the spots, as the backbones give them

    Returns
    -------
    (n, n_genes), log1p CP10K
    """
    fit = training.fit
    expression = training.joined.expression.columns(training.genes)
    distances, indices = ExactSearch(fit.embedding, fit.distance).query(training.mapped(asked), fit.k)
    weights = neighbor_weights(distances, fit.weighting, fit.calibration.temperature)
    return expression_from_neighbors(weights, indices, expression)


def predict(training: Training, asked: F32) -> dict[str, F32]:
    """Predict spots with every method.

    Parameters
    ----------
    training : the training side
    asked : (n, dim), embeddings of the spots, as the backbones give them

    Returns
    -------
    of each method (n, n_genes), log1p CP10K; the cross-validated ridge is left out where the training
    side is one section
    """
    joined = training.joined
    known, expression = joined.embeddings, joined.expression.columns(training.genes)
    found = {OURS: predict_as_bank(training, asked)}
    if len(joined.parts) > 1:
        found["cv_ridge"] = baselines.cross_validated_ridge(known, expression, asked, joined.section_codes)
    found["hest_ridge"] = baselines.hest_ridge(known, expression, asked)
    found["knn_inverse"] = baselines.plain_neighbors(known, expression, asked, "inverse")
    found["knn_uniform"] = baselines.plain_neighbors(known, expression, asked, "uniform")
    found["mean"] = baselines.mean_expression(len(asked), expression)
    return found
