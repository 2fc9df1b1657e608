"""Whether a bank and its queries predict as well with a model of less precision as with the original."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stinfer.contract import MODEL_EMBEDDING
from stinfer.encoder_stack import EncoderStack
from stinfer.record import Notices
from stinfer_export.agreement import pearson_by_gene
from stinfer_export.bank_builder import open_models
from stinfer_export.bank_fit import Layout
from stinfer_export.bank_plan import BankPlan, with_preset
from stinfer_export.datasets import her2st
from stinfer_export.datasets.section import Section
from stinfer_export.errors import QuantizationError
from stinfer_export.evaluation.folds import split_sections
from stinfer_export.evaluation.methods import predict_as_bank, train
from stinfer_export.gene_choice import DEFAULT_MIN_DETECTED, DEFAULT_N_GENES, variable_genes
from stinfer_export.joining import join_parts, measured
from stinfer_export.precision.fidelity import Fidelity
from stinfer_export.section_encoding import Part, encode_section

MOST_LOST = 0.005
"""Largest fall of the mean gene-wise Pearson correlation at which a model is kept."""

LEAST_COSINE = 0.95
LEAST_OVERLAP = 0.7
"""Where no expression was measured: what is asked of every output, and of the neighbors."""

# Sections of one patient; more would take long and say little more.
MOST_SECTIONS = 4


@dataclass(frozen=True)
class Accuracy:
    """Mean gene-wise Pearson correlation of held-out sections, with a bank and queries of one model.

    Parameters
    ----------
    pooling : how it was embedded, and so what the model was run on: ``patch`` or ``map``
    original, found : with the one model and with the other
    """

    pooling: str
    original: float
    found: float

    def __str__(self) -> str:
        return f"{self.pooling} {self.original:.4f} to {self.found:.4f}"


def choose_sections(sections: Sequence[Section]) -> list[Section]:
    """Take up to four sections of the patient who has most, or of any where no one has two."""
    if not sections:
        return []
    counts = Counter(section.patient for section in sections)
    patient, most = counts.most_common(1)[0]
    chosen = [section for section in sections if most == 1 or section.patient == patient]
    return chosen[:MOST_SECTIONS] if len(chosen) > 1 else []


def check_accuracy(
    sections: Sequence[Section], original: Path, found: Path, *, has_map: bool
) -> list[Accuracy]:
    """Hold each section out in turn, with both models, of patches and where there is one of the map.

    Patches of 154 µm are compared as they are; the map as the default preset has it, with what is learned
    from expression and `stain_texture` beside the network.

    Parameters
    ----------
    sections : at least two
    original, found : the model files
    has_map : whether regions can be joined into one

    Raises
    ------
    QuantizationError
        A correlation falls by more than `MOST_LOST`.
    StInferError
        Of the sections or their slides.
    """
    plan = BankPlan(her2st.NAME, her2st.PITCH_UM, her2st.SPOT_DIAMETER_UM)
    plain = BankPlan(her2st.NAME, her2st.PITCH_UM, her2st.SPOT_DIAMETER_UM, pooling="patch", metric="none")
    plans = [plain, *([with_preset(plan, "fast")] if has_map else [])]
    results = [
        Accuracy(one.pooling or "map", *(_mean_pearson(sections, one, path) for path in (original, found)))
        for one in plans
    ]
    lost = [one for one in results if not one.found >= one.original - MOST_LOST]
    if lost:
        told = "; ".join(map(str, lost))
        cause = f"the mean Pearson correlation of held-out sections falls by more than {MOST_LOST} ({told})"
        raise QuantizationError(cause)
    return results


def check_fidelity(fidelity: Fidelity) -> None:
    """Ask of the outputs alone what is needed, where no expression can be predicted.

    Raises
    ------
    QuantizationError
        They differ too much from the original's.
    """
    low = {name: value for name, value in fidelity.cosine.items() if not value >= LEAST_COSINE}
    if low:
        told = ", ".join(f"{name} {value:.4f}" for name, value in low.items())
        cause = f"the cosine to the original is below {LEAST_COSINE} ({told})"
        raise QuantizationError(cause)
    if not fidelity.overlap >= LEAST_OVERLAP:
        cause = (
            f"of the {fidelity.n_neighbors} nearest neighbors {fidelity.overlap:.0%} stay the same, "
            f"less than {LEAST_OVERLAP:.0%} (cosine of the embedding {fidelity.cosine[MODEL_EMBEDDING]:.4f})"
        )
        raise QuantizationError(cause)


def _mean_pearson(sections: Sequence[Section], plan: BankPlan, model: Path) -> float:
    """Mean over genes, sections held out and folds; a gene without a correlation counts 0."""
    # What becomes of spots was said when the data set was packed, and is the same for both models.
    quiet = _Quiet()
    members, _, view = open_models(plan, [model], quiet, device="cpu", threads=None)
    encoders = EncoderStack(members, view.pooling)
    parts = {
        section.name: encode_section(section, plan, view, encoders, None, 16, quiet, None)
        for section in sections
    }
    splits = split_sections({section.name: section.patient for section in sections}, "section")
    layout = Layout.of(encoders, len(view.sides_um))
    return float(np.mean([_fold(parts, split.train, split.test[0], layout, plan) for split in splits]))


def _fold(
    parts: dict[str, Part], known: Sequence[str], held_out: str, layout: Layout, plan: BankPlan
) -> float:
    quiet = _Quiet()
    joined = join_parts([parts[name] for name in known], plan.gene_join, quiet)
    genes = variable_genes(joined.expression, DEFAULT_N_GENES, DEFAULT_MIN_DETECTED)
    training = train(joined, layout, plan, genes, quiet)
    part = parts[held_out]
    truth, _ = measured(part, training.names)
    return float(np.nan_to_num(pearson_by_gene(predict_as_bank(training, part.embeddings), truth)).mean())


class _Quiet(Notices):
    """Keeps what is said."""

    def add(self, text: str) -> None:
        self.texts.append(text)
