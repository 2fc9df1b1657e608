"""The evaluation from end to end: embed once, then fold by fold fit, predict and compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from stinfer.contract import F32, I64
from stinfer.embed import FieldOfView
from stinfer.encoder import Device
from stinfer.encoder_stack import EncoderStack, Member
from stinfer.errors import GeneUnknownError, SettingError
from stinfer.feature_map import Progress
from stinfer.genes import read_names, select_genes
from stinfer.record import Notices, software_versions
from stinfer.stain import Stain
from stinfer_export.bank_builder import common_stain, open_models
from stinfer_export.bank_fit import Layout, fit_bank
from stinfer_export.bank_plan import BankPlan
from stinfer_export.datasets.section import Section
from stinfer_export.evaluation.between_spots import BetweenResult, evaluate_between, places_inside
from stinfer_export.evaluation.folds import Split
from stinfer_export.evaluation.interpolation import Spots
from stinfer_export.evaluation.methods import Training, predict, train
from stinfer_export.evaluation.own_bank import OwnBank
from stinfer_export.evaluation.results import FoldResult, SectionResult, compare
from stinfer_export.evaluation.section_cache import SectionCache
from stinfer_export.evaluation.upstream import (
    PATCH_PX,
    predict_upstream,
    published_member,
    published_view,
    raw_counts,
)
from stinfer_export.gene_choice import DEFAULT_MIN_DETECTED, DEFAULT_N_GENES, variable_genes
from stinfer_export.gene_ids import join_gene_ids
from stinfer_export.joining import JoinedParts, join_parts, measured
from stinfer_export.section_encoding import Part
from stinfer_export.stain_choice import Stains, choose_stain, cross_validated, refuse_one_section

Protocol = Literal["stinfer", "upstream"]
TOP, ALL = "top", "all"
_N_SHOWN = 5


@dataclass(frozen=True)
class GeneSet:
    """Which genes are predicted and compared.

    Parameters
    ----------
    request : ``top``, those of largest variance on the training side; ``all`` that are detected there often
        enough; or a file, or names, as for prediction
    n_genes : of ``top``
    min_detected : part of the training spots, 0 to 1, that must be exceeded with ``top`` and ``all``
    """

    request: str = TOP
    n_genes: int = DEFAULT_N_GENES
    min_detected: float = DEFAULT_MIN_DETECTED

    def choose(self, joined: JoinedParts, notices: Notices) -> I64:
        """Choose columns on the training side alone.

        Raises
        ------
        SettingError
            No gene is left.
        GeneUnknownError
            None of the genes that are asked for is there.
        """
        if self.request not in (TOP, ALL):
            return self._listed(joined, notices)
        limit = self.n_genes if self.request == TOP else None
        chosen = variable_genes(joined.expression, limit, self.min_detected)
        if not len(chosen):
            what = f"no gene is detected in more than {self.min_detected:.0%} of the training spots"
            raise SettingError(what, "lower --min-detected")
        return chosen

    def _listed(self, joined: JoinedParts, notices: Notices) -> I64:
        """Find the genes of a list; those that the training side does not have cannot be predicted."""
        names = read_names(self.request)
        ids = join_gene_ids(joined.parts, joined.genes, notices)
        try:
            return select_genes(names, joined.genes, ids, notices)
        except GeneUnknownError as error:
            absent = set(error.genes)
            if not set(names) - absent:
                raise
        listed = ", ".join(sorted(absent)[:_N_SHOWN]) + (", …" if len(absent) > _N_SHOWN else "")
        notices.add(f"{len(absent)} genes of the list are in no training section: {listed}")
        return select_genes([name for name in names if name not in absent], joined.genes, ids, notices)


@dataclass(frozen=True)
class Evaluation:
    """All that was found.

    Parameters
    ----------
    folds : in their order
    encoding : of each section the spots and the seconds their embedding took
    notices : what was dropped, filled in or left out
    """

    folds: tuple[FoldResult, ...]
    encoding: dict[str, tuple[int, float]]
    notices: tuple[str, ...]

    @property
    def seconds_per_spot(self) -> float:
        """Of encoding, over all sections."""
        n_spots = sum(n for n, _ in self.encoding.values())
        return sum(seconds for _, seconds in self.encoding.values()) / n_spots


class _FoldNotices(Notices):
    """Says what became of a fold, and of which."""

    def __init__(self, whole: Notices, name: str) -> None:
        super().__init__()
        self._whole, self._name = whole, name

    def add(self, text: str) -> None:
        self._whole.add(f"fold {self._name}: {text}")


class Evaluator:
    """Evaluates one way of making a bank.

    Parameters
    ----------
    plan : of the bank
    model_paths : ONNX files of the backbones
    cache_folder : of embeddings
    genes : that are compared
    protocol : ``stinfer``, or ``upstream`` as the published code has it
    device, threads, batch_size : as for prediction
    progress : called with what is done of a section, how much there is, and of what

    Raises
    ------
    StInferError
        Of the models or the settings.
    """

    def __init__(
        self,
        plan: BankPlan,
        model_paths: Sequence[Path],
        cache_folder: Path,
        genes: GeneSet,
        protocol: Protocol = "stinfer",
        *,
        device: Device = "auto",
        threads: int | None = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._sections: dict[str, Section] = {}
        self._plan, self._genes, self._protocol = plan, genes, protocol
        self._notices = Notices()
        if protocol == "upstream":
            members: tuple[Member, ...] = (published_member(model_paths, device, threads),)
            self._view: FieldOfView | None = None
            self._encoders = EncoderStack(members, "patch")
        else:
            members, _, view = open_models(plan, model_paths, self._notices, device=device, threads=threads)
            self._view = view
            self._encoders = EncoderStack(members, view.pooling)
        self._cache = SectionCache(cache_folder, plan, self._encoders, batch_size, self._notices, progress)
        self._encoding: dict[str, tuple[int, float]] = {}
        self._parts: dict[str, Part] = {}

    def run(self, sections: Sequence[Section], splits: Sequence[Split]) -> Evaluation:
        """Evaluate fold by fold.

        Parameters
        ----------
        sections : all of them
        splits : which are predicted from which

        Raises
        ------
        StInferError
            Of the sections, the slides or the settings.
        """
        self._sections = {section.name: section for section in sections}
        self._encoding, self._parts = {}, {}
        folds = tuple(self._fold(split) for split in splits)
        texts = tuple(dict.fromkeys(self._notices.texts))
        return Evaluation(folds, self._encoding, texts)

    def settings(self) -> dict[str, object]:
        """Return what an evaluation was made with, for the record."""
        plan, genes = self._plan, self._genes
        common: dict[str, object] = {
            "protocol": self._protocol,
            "dataset": plan.dataset,
            "genes": "list" if genes.request not in (TOP, ALL) else genes.request,
            "n_genes": genes.n_genes,
            "min_detected": genes.min_detected,
            "models_sha256": [member.encoder.sha256 for member in self._encoders.members],
            "backbones": [member.encoder.card.backbone for member in self._encoders.members],
            "software": software_versions(),
        }
        if self._view is None:
            return {**common, "values": "raw counts, and log1p CP10K of them", "patch_px": PATCH_PX}
        return {
            **common,
            "values": "log1p of counts per 10,000, not smoothed",
            "preset": plan.preset,
            "orientations": plan.orientations,
            "reductions": list(plan.reductions),
            "stain": plan.stain,
            "pooling": self._view.pooling,
            "fov_um": list(self._view.sides_um),
            "window": self._view.window,
            "gene_join": plan.gene_join,
            "max_outside": plan.max_outside,
        }

    def _fold(self, split: Split) -> FoldResult:
        notices = _FoldNotices(self._notices, split.name)
        stain = self._stain(split, notices) if self._protocol == "stinfer" else None
        known = [part for name in split.train if (part := self._part(name, stain)).spots]
        asked = [part for name in split.test if (part := self._part(name, stain)).spots]
        if not known or not asked:
            what = f"fold {split.name}: no spot of its training or its held-out sections can be used"
            raise SettingError(what, "allow more of a patch to lie outside with --max-outside")
        joined = join_parts(known, self._plan.gene_join, notices)
        genes = self._genes.choose(joined, notices)
        embeddings = np.concatenate([part.embeddings for part in asked])
        if self._view is None:
            counts = np.concatenate(
                [raw_counts(part, measured(part, [joined.genes[i] for i in genes])[0]) for part in known]
            )
            totals = np.concatenate([part.totals for part in known])
            counted, predicted = predict_upstream(joined.embeddings, counts, totals, embeddings)
            fitted, between = {}, []
        else:
            layout = Layout.of(self._encoders, len(self._view.sides_um))
            training = train(joined, layout, self._plan, genes, notices)
            counted, predicted = {}, predict(training, embeddings)
            fitted = {**training.fitted, "stain": "none" if stain is None else "macenko"}
            between = [one for part in asked for one in self._between(part, training, stain)]
        return FoldResult(
            split,
            tuple(joined.genes[i] for i in genes),
            fitted,
            tuple(_compared(asked, [joined.genes[i] for i in genes], counted, predicted)),
            tuple(between),
        )

    def _stain(self, split: Split, notices: Notices) -> Stain | None:
        """Settle the stain that the fold is brought to, by its training side alone, as its bank would."""
        layout = Layout.of(self._encoders, len(self._view.sides_um)) if self._view else None

        def attempt(kind: Stains) -> tuple[Stain | None, float]:
            wanted = None
            if kind == "macenko":
                wanted = common_stain([self._sections[name] for name in split.train])
            if self._plan.stain != "auto" or layout is None:
                return wanted, 0.0
            known = [part for name in split.train if (part := self._part(name, wanted)).spots]
            refuse_one_section(self._plan.stain, len(known))
            joined = join_parts(known, self._plan.gene_join, notices)
            return wanted, cross_validated(fit_bank(joined, layout, self._plan, notices), joined)

        return choose_stain(self._plan.stain, attempt, lambda made: made[1], notices)[0]

    def _part(self, name: str, stain: Stain | None) -> Part:
        if stain is None and name in self._parts:
            return self._parts[name]
        section = self._sections[name]
        part, seconds = self._cache.part(section, self._view or published_view(section), stain)
        self._encoding[name] = (len(part.spots), seconds)
        if stain is None:
            self._parts[name] = part
        return part

    def _between(self, part: Part, training: Training, stain: Stain | None) -> list[BetweenResult]:
        spots = self._spots(part, training, measured(part, training.names)[0])
        dense, spot_of = None, None
        if self._view is not None and self._view.pooling == "map":
            section = places_inside(self._sections[part.name], self._plan.spot_diameter_um)
            # What became of the spots has been said.
            places = self._cache.part(section, self._view, stain, quiet=True)[0]
            position = {spot: i for i, spot in enumerate(part.spots)}
            owners = np.asarray([position.get(spot.rpartition("/")[0], -1) for spot in places.spots])
            dense = self._spots(places, training, np.zeros((len(owners), 0), dtype=np.float32))[owners >= 0]
            spot_of = owners[owners >= 0]
        own = OwnBank(part, training.layout, self._plan, training.names)
        return evaluate_between(part.name, spots, part.array, dense, spot_of, own.predict)

    def _spots(self, part: Part, training: Training, expression: F32) -> Spots:
        return Spots(part.centers_l0 * part.mpp, training.mapped(part.embeddings), expression)


def _compared(
    asked: Sequence[Part], genes: Sequence[str], counted: Mapping[str, F32], predicted: Mapping[str, F32]
) -> Iterator[SectionResult]:
    """Compare section by section; the only place where what was held out is looked at.

    Parameters
    ----------
    asked : the sections
    genes : n_genes symbols
    counted : of each method that predicts raw counts, (n_spots, n_genes) of all sections
    predicted : of each that predicts log1p CP10K
    """
    first = 0
    for part in asked:
        rows = slice(first, first + len(part.spots))
        first = rows.stop
        truth, n_absent = measured(part, genes)
        of_part = {name: values[rows] for name, values in predicted.items()}
        if counted:
            of_counts = {name: values[rows] for name, values in counted.items()}
            found = compare(part, genes, n_absent, of_counts, raw_counts(part, truth))
            more = compare(part, genes, n_absent, of_part, truth)
            yield replace(
                found, by_gene={**found.by_gene, **more.by_gene}, by_spot={**found.by_spot, **more.by_spot}
            )
        else:
            yield compare(part, genes, n_absent, of_part, truth)
