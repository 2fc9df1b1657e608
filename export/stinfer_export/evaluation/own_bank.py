"""Banks of their own section, built of some of its spots and asked for the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from stinfer.contract import F32, I64, Bool
from stinfer.neighbors import ExactSearch
from stinfer.own_section import with_place
from stinfer.predict import expression_from_neighbors, neighbor_weights
from stinfer_export.bank_fit import MIN_OWN_SECTION, Layout, fit_bank, project
from stinfer_export.bank_plan import BankPlan
from stinfer_export.evaluation.section_cache import Silent
from stinfer_export.joining import join_parts, measured
from stinfer_export.section_encoding import Part


@dataclass(frozen=True)
class OwnBank:
    """Predicts spots of a section from a bank of its other spots, as `--own-section` makes it.

    Parameters
    ----------
    part : the section, embedded
    layout : of its embeddings
    plan : of the bank
    genes : that are predicted, chosen without this section
    """

    part: Part
    layout: Layout
    plan: BankPlan
    genes: Sequence[str]

    def predict(self, held: Bool) -> F32 | None:
        """Predict the spots that are held out; nothing that was measured there is looked at.

        Parameters
        ----------
        held : (n_spots,)

        Returns
        -------
        (n_held, n_genes), log1p CP10K; None where the others are too few for a bank
        """
        if (~held).sum() < MIN_OWN_SECTION:
            return None
        known, asked = (take_spots(self.part, np.flatnonzero(chosen)) for chosen in (~held, held))
        plan = replace(self.plan, own_section=True, metric=None, distance=None, k=None)
        # What becomes of the section has been said.
        fit = fit_bank(join_parts([known], "union", Silent()), self.layout, plan, Silent())
        queries = with_place(
            fit.metric.apply(project(asked.embeddings, fit.projections, self.layout)),
            asked.centers_l0 * asked.mpp,
            fit.weight_per_um or 0.0,
        )
        distances, indices = ExactSearch(fit.embedding, fit.distance).query(queries, fit.k)
        weights = neighbor_weights(distances, fit.weighting, fit.calibration.temperature)
        return expression_from_neighbors(weights, indices, measured(known, self.genes)[0])


def take_spots(part: Part, rows: I64) -> Part:
    """Take some spots of a section, (n,) rows."""
    return replace(
        part,
        spots=tuple(part.spots[i] for i in rows),
        centers_l0=part.centers_l0[rows],
        array=part.array[rows],
        expression=part.expression.rows(rows),
        totals=part.totals[rows],
        embeddings=part.embeddings[rows],
    )
