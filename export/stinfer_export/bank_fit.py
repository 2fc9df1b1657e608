"""From joined sections to what a bank is read by: projections, metric, neighbors, calibration."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from stinfer.contract import F32, I64
from stinfer.encoder_stack import EncoderStack
from stinfer.errors import SettingError
from stinfer.metric import (
    AffineMetric,
    balancing_metric,
    identity_metric,
    principal_projection,
    standardizing_metric,
)
from stinfer.neighbors import Distance
from stinfer.own_section import with_place
from stinfer.predict import Weighting
from stinfer.record import Notices
from stinfer_export.bank_plan import N_COMPONENTS, BankPlan, MetricKind
from stinfer_export.calibration import Calibration, Fold, calibrate, whole_folds
from stinfer_export.gene_choice import DEFAULT_MIN_DETECTED, DEFAULT_N_GENES, variable_genes
from stinfer_export.joining import JoinedParts
from stinfer_export.joint_distance import (
    NEIGHBORS_TRIED,
    choose_joint,
    fifths,
    weight_per_um,
    with_places,
)
from stinfer_export.recipe import Learned, MetricFit, Spots, learn

# On her2st C2 to C5 the best of 50, 75 and 100 with every weighting; see the README.
DEFAULT_K = 100
# Of few references fewer are averaged, or every prediction would be near the mean of all.
DEFAULT_K_SHARE = 5
# A section with fewer spots says nothing of how well it is predicted.
_MIN_FOLD = 5
# Of a bank of its own section: a fifth of them is a fold.
MIN_OWN_SECTION = 25
LEAVE_A_FIFTH_OUT = "leave-a-fifth-out"


@dataclass(frozen=True)
class Layout:
    """What an embedding consists of: for every window, the backbones' parts one after the other.

    Parameters
    ----------
    n_windows : of them; 1 with patches
    widths : lengths of the backbones' parts of a window
    blocks : of each backbone, lengths of the parts of its own that count alike
    projectable : of each backbone, whether its cells may be projected before they are averaged
    """

    n_windows: int
    widths: tuple[int, ...]
    blocks: tuple[tuple[int, ...], ...]
    projectable: tuple[bool, ...]

    @classmethod
    def of(cls, encoders: EncoderStack, n_windows: int) -> Layout:
        """Take it from the backbones, none of them projected."""
        is_map = encoders.pooling == "map"
        blocks, projectable = [], []
        for member, width in zip(encoders.members, encoders.widths, strict=True):
            card = member.encoder.card
            headless = card.map_traits is not None and not card.map_traits.head
            blocks.append(card.layers if is_map and headless else (width,))
            projectable.append(headless or not is_map)
        return cls(n_windows, encoders.widths, tuple(blocks), tuple(projectable))

    @property
    def all_blocks(self) -> tuple[int, ...]:
        """Lengths of all parts of an embedding that count alike."""
        return tuple(length for _ in range(self.n_windows) for blocks in self.blocks for length in blocks)

    def parts(self, embedding: F32) -> list[F32]:
        """Cut embeddings, (n, dim), into (n, n_windows, width) of each backbone."""
        windows = embedding.reshape(len(embedding), self.n_windows, sum(self.widths))
        edges = np.cumsum([0, *self.widths])
        return [windows[:, :, first:last] for first, last in pairwise(edges)]


@dataclass(frozen=True)
class BankFit:
    """How a bank reads embeddings, fitted on its references.

    Parameters
    ----------
    projections : of each backbone, (width, n) or None
    metric : after them
    embedding : (n_refs, n), of the references, after both
    metric_kind, distance, k, weighting : of the bank
    tuning : what they were chosen by
    cross_validation : what `calibration` was measured by
    calibration : accuracy and distances of held-out references
    place_weight : of a bank of its own section, see `Joint`; None of all others
    weight_per_um : what a µm counts there; None elsewhere
    """

    projections: tuple[F32 | None, ...]
    metric: AffineMetric
    embedding: F32
    metric_kind: MetricKind
    distance: Distance
    k: int
    weighting: Weighting
    tuning: str
    cross_validation: str
    calibration: Calibration
    place_weight: float | None = None
    weight_per_um: float | None = None


def fit_bank(joined: JoinedParts, layout: Layout, plan: BankPlan, notices: Notices) -> BankFit:
    """Fit projections and metric, choose what the plan leaves open, and calibrate.

    Parameters
    ----------
    joined : the references; nothing else is looked at
    layout : of their embeddings
    plan : of the bank
    notices : told what could not be done
    """
    if plan.own_section:
        return _fit_own_section(joined, layout, plan, notices)
    kind = _choose_metric(joined.section_codes, layout, plan, notices)
    _refuse_too_many(plan.k, len(joined.embeddings))
    distance = plan.distance or default_distance(kind)
    single = len(joined.parts) == 1
    tuning, temperature = "none", None
    if kind == "supervised":
        spots = _spots(joined, layout)
        learned = learn(spots, k=plan.k)
        k, tuning = learned.k, "leave-one-section-out"
        # It was chosen for Euclidean distances, and is in units of them.
        temperature = learned.temperature if distance == "euclidean" else None
        projections, metric = _compose(learned, layout)
        folds = _supervised_folds(spots, spots.groups, learned.penalty)
    else:
        k = plan.k or _announced_k(len(joined.embeddings), notices)
        projections, metric = _fit_unsupervised(joined.embeddings, kind, layout)
    embedding = metric.apply(project(joined.embeddings, projections, layout))
    if kind != "supervised":
        folds = whole_folds(embedding, joined.section_codes)
    scheme = "leave-one-spot-out" if single else "leave-one-section-out"
    return BankFit(
        projections=projections,
        metric=metric,
        embedding=embedding,
        metric_kind=kind,
        distance=distance,
        k=k,
        weighting=plan.weighting,
        tuning=tuning,
        cross_validation=scheme if len(embedding) > 1 else "none",
        calibration=calibrate(
            folds, joined.section_codes, joined.expression, distance, k, plan.weighting, temperature
        ),
    )


def _fit_own_section(joined: JoinedParts, layout: Layout, plan: BankPlan, notices: Notices) -> BankFit:
    """Fit the bank of one section that predicts between its spots, a fifth of which is left out to choose.

    Raises
    ------
    SettingError
        There are too few spots, or the distance is none that places can be joined to.
    """
    n_refs, parts = len(joined.embeddings), joined.parts
    refuse_several_sections(len(parts))
    if n_refs < MIN_OWN_SECTION:
        what = (
            f"--own-section: section {parts[0].name} has {n_refs} spots, too few to leave a fifth of them out"
        )
        raise SettingError(what, f"it takes {MIN_OWN_SECTION}; leave --own-section out")
    _refuse_too_many(plan.k, n_refs)
    if plan.distance == "cosine":
        what = "--own-section joins appearance and place in a euclidean distance, and --distance is cosine"
        raise SettingError(what, "leave --distance out")
    held_out = fifths(n_refs)
    kind = _choose_metric(held_out, layout, plan, notices)
    if kind == "supervised":
        spots = _spots(joined, layout)
        learned = learn(spots, held_out, k=plan.k)
        projections, metric = _compose(learned, layout)
        folds = _supervised_folds(spots, held_out, learned.penalty)
    else:
        projections, metric = _fit_unsupervised(joined.embeddings, kind, layout)
    mapped = metric.apply(project(joined.embeddings, projections, layout))
    if kind != "supervised":
        folds = whole_folds(mapped, held_out)
    places_um = parts[0].centers_l0 * parts[0].mpp
    genes = variable_genes(joined.expression, DEFAULT_N_GENES, DEFAULT_MIN_DETECTED)
    joint = choose_joint(
        folds,
        places_um,
        joined.expression.columns(genes),
        neighbors=NEIGHBORS_TRIED if plan.k is None else (plan.k,),
        weighting=plan.weighting,
    )
    if joint.place_weight == 0:
        notices.add(
            "place does not help to predict spots of this section from the others, and counts nothing"
        )
    weight = weight_per_um(mapped, places_um, joint.place_weight)
    k = joint.k if plan.k is None else plan.k
    return BankFit(
        projections=projections,
        metric=metric,
        embedding=with_place(mapped, places_um, weight),
        metric_kind=kind,
        distance="euclidean",
        k=k,
        weighting=plan.weighting,
        tuning=LEAVE_A_FIFTH_OUT,
        cross_validation=LEAVE_A_FIFTH_OUT,
        calibration=calibrate(
            [with_places(fold, places_um, joint.place_weight) for fold in folds],
            joined.section_codes, joined.expression, "euclidean", k, plan.weighting, None,
        ),
        place_weight=joint.place_weight,
        weight_per_um=weight,
    )  # fmt: skip


def refuse_several_sections(n_sections: int) -> None:
    """Refuse a bank of its own section that would be of several.

    Raises
    ------
    SettingError
        There is more than one: places of different sections lie in frames of their own.
    """
    if n_sections > 1:
        what = "--own-section is for one section, whose places are compared, and several are given"
        raise SettingError(what, "give one, or leave --own-section out")


def project(embeddings: F32, projections: tuple[F32 | None, ...], layout: Layout) -> F32:
    """Project each backbone's part of every window.

    Parameters
    ----------
    embeddings : (n, dim)
    projections : of each backbone, or None
    layout : of the embeddings

    Returns
    -------
    (n, dim after the projections)
    """
    parts = [
        part if projection is None else np.asarray(part @ projection, dtype=np.float32)
        for part, projection in zip(layout.parts(embeddings), projections, strict=True)
    ]
    return np.concatenate(parts, axis=2).reshape(len(embeddings), -1)


def default_k(n_refs: int) -> int:
    """Return how many neighbors are averaged where nobody says and nothing is learned."""
    return min(DEFAULT_K, max(n_refs // DEFAULT_K_SHARE, 1))


def default_metric(section_sizes: I64, layout: Layout) -> MetricKind:
    """Return the metric of a bank where nobody says: supervised where there are sections to learn from.

    Parameters
    ----------
    section_sizes : spots of each section
    layout : of the embeddings
    """
    if len(section_sizes) > 1 and int(section_sizes.min()) >= _MIN_FOLD:
        return "supervised"
    return "pca" if all(layout.projectable) else "standardize"


def default_distance(metric: MetricKind) -> Distance:
    """Return the distance where nobody says."""
    return "euclidean" if metric == "supervised" else "cosine"


def _refuse_too_many(k: int | None, n_refs: int) -> None:
    if k is not None and k > n_refs:
        what = f"--k {k} is larger than the bank's {n_refs} references"
        raise SettingError(what, "give a smaller one")


def _announced_k(n_refs: int, notices: Notices) -> int:
    k = default_k(n_refs)
    if k < DEFAULT_K:
        notices.add(f"k is {k}, not {DEFAULT_K}: a {DEFAULT_K_SHARE}th of the {n_refs} references")
    return k


def _choose_metric(groups: I64, layout: Layout, plan: BankPlan, notices: Notices) -> MetricKind:
    """Settle the metric: supervised where there are sections to learn from.

    Raises
    ------
    SettingError
        The one asked for cannot be had.
    """
    sizes = np.bincount(groups)
    usual = default_metric(sizes, layout)
    reason = f"it needs at least two sections, each of at least {_MIN_FOLD} spots"
    if plan.metric == "supervised" and usual != "supervised":
        what = (
            f"--metric supervised cannot be fitted to {len(sizes)} sections of at least {sizes.min()} spots"
        )
        raise SettingError(what, f"{reason}; or use another metric")
    if plan.metric is None and usual != "supervised":
        notices.add(f"the metric is not learned: {reason}")
    return plan.metric or usual


def _spots(joined: JoinedParts, layout: Layout) -> Spots:
    totals = np.concatenate([part.totals for part in joined.parts])
    expression = joined.expression
    if expression.coverage is not None:
        # A gene that some were not measured for tells banks apart, not tissues.
        expression = expression.only_columns(np.flatnonzero(expression.coverage.measured.all(axis=0)))
    return Spots(joined.embeddings, layout.all_blocks, expression, totals, joined.section_codes)


def _supervised_folds(spots: Spots, held_out: I64, penalty: float) -> list[Fold]:
    """Leave each group of spots out of a metric of its own."""
    folds = []
    for group in np.unique(held_out):
        held, known = np.flatnonzero(held_out == group), np.flatnonzero(held_out != group)
        fit = MetricFit(spots[known])
        metric = AffineMetric(fit.mean.astype(np.float32), fit.components(penalty).astype(np.float32))
        folds.append(
            Fold(held, known, metric.apply(spots.embedding[held]), metric.apply(spots.embedding[known]))
        )
    return folds


def _fit_unsupervised(
    raw: F32, kind: MetricKind, layout: Layout
) -> tuple[tuple[F32 | None, ...], AffineMetric]:
    if kind != "pca":
        metric = standardizing_metric(raw) if kind == "standardize" else identity_metric(raw.shape[1])
        return (None,) * len(layout.widths), metric
    projections = tuple(
        principal_projection(part.reshape(len(raw), -1), layout.n_windows, N_COMPONENTS)
        for part in layout.parts(raw)
    )
    return projections, balancing_metric(project(raw, projections, layout), layout.n_windows)


def _compose(learned: Learned, layout: Layout) -> tuple[tuple[F32 | None, ...], AffineMetric]:
    """Write a metric of whole embeddings as projections of cells, where those may be, and what is left.

    A backbone's projection holds each window's part of the metric, side by side. After the averaging,
    every window's own part is taken, and the windows are added.
    """
    n_directions = learned.components.shape[1]
    windows = learned.components.reshape(layout.n_windows, sum(layout.widths), n_directions)
    mean = learned.mean.reshape(layout.n_windows, sum(layout.widths))
    edges = np.cumsum([0, *layout.widths])
    projections: list[F32 | None] = []
    parts, means = [], []
    for first, last, projectable in zip(edges[:-1], edges[1:], layout.projectable, strict=True):
        part = windows[:, first:last]
        if not projectable:
            projections.append(None)
            parts.append(part)
            means.append(mean[:, first:last])
            continue
        side_by_side = part.transpose(1, 0, 2).reshape(last - first, -1)
        projections.append(side_by_side.astype(np.float32))
        own = np.zeros((layout.n_windows, layout.n_windows * n_directions, n_directions))
        for window in range(layout.n_windows):
            columns = slice(window * n_directions, (window + 1) * n_directions)
            own[window, columns] = np.eye(n_directions)
        parts.append(own)
        means.append(mean[:, first:last] @ side_by_side)
    components = np.concatenate(parts, axis=1).reshape(-1, n_directions)
    return tuple(projections), AffineMetric(
        np.concatenate(means, axis=1).ravel().astype(np.float32), components.astype(np.float32)
    )
