"""From embedded sections and what was fitted to them to a bank: index and write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stinfer.bank import Bank
from stinfer.bank_settings import BankSettings
from stinfer.contract import I64
from stinfer.embed import FieldOfView
from stinfer.encoder_stack import EncoderStack
from stinfer.files import sha256_file
from stinfer.neighbors import annoy_installed
from stinfer.own_section import OwnSection
from stinfer.raw_embedding import RawEmbedding
from stinfer.record import Notices, software_versions
from stinfer.stain import Stain
from stinfer_export import annoy_index
from stinfer_export.bank_fit import BankFit, Layout
from stinfer_export.bank_plan import BankPlan
from stinfer_export.bank_writer import write_bank
from stinfer_export.gene_ids import join_gene_ids
from stinfer_export.joining import JoinedParts, gene_presence
from stinfer_export.section_encoding import Part


@dataclass(frozen=True)
class BankSummary:
    """What was built.

    Parameters
    ----------
    path : the bank
    n_refs, n_genes : its size
    notices : what was dropped, filled in or left out
    """

    path: Path
    n_refs: int
    n_genes: int
    notices: tuple[str, ...]


@dataclass(frozen=True)
class EncodedSections:
    """Sections, embedded and joined, and what embedded them.

    Parameters
    ----------
    joined : the sections
    encoders : backbones, nothing projected
    models : their ONNX files, in the same order
    view : what a spot's embedding looks at
    stain : that every section was brought to; None where they were left as they are
    """

    joined: JoinedParts
    encoders: EncoderStack
    models: tuple[bytes, ...]
    view: FieldOfView
    stain: Stain | None

    @property
    def layout(self) -> Layout:
        """Of the embeddings."""
        return Layout.of(self.encoders, len(self.view.sides_um))


@dataclass(frozen=True)
class Merged:
    """What a bank that is merged of others says beyond what one of sections does.

    Parameters
    ----------
    origins : (n_refs,), name of each reference's origin
    records : of each origin, what the bank says of it
    n_sections : (n_genes,), sections that list the gene
    """

    origins: tuple[str, ...]
    records: Mapping[str, Mapping[str, Any]]
    n_sections: I64


def pack_bank(
    encoded: EncodedSections,
    fit: BankFit,
    plan: BankPlan,
    out: Path,
    notices: Notices,
    merged: Merged | None = None,
) -> BankSummary:
    """Index and write a bank of sections that are embedded.

    Parameters
    ----------
    encoded : the sections
    fit : what was fitted to them
    plan : how to make it
    out : the bank to write
    notices : of what became of the sections; told what could not be done, and kept in the bank
    merged : where the sections come from banks

    Raises
    ------
    OutputWriteError
        The disk is full, or the folder cannot be written.
    """
    index = None
    if annoy_installed():
        index = annoy_index.build_index(fit.embedding, fit.distance, fit.k)
    else:
        notices.add("annoy is not installed: the bank has no index, and search in it is exact")
    gene_ids = join_gene_ids(encoded.joined.parts, encoded.joined.genes, notices)
    bank = _bank(out, encoded, fit, plan, index, gene_ids, merged)
    unique = dict(zip(bank.settings.models_sha256, encoded.models, strict=True))
    write_bank(
        bank,
        RawEmbedding.of(encoded.joined.embeddings),
        models=unique if plan.include_model else {},
        annoy=index.data if index else None,
        sources={part.name: part.source for part in encoded.joined.parts},
        origins={} if merged is None else merged.records,
        notices=notices.texts,
    )
    return BankSummary(out, bank.n_refs, len(bank.genes), tuple(notices.texts))


def _bank(
    out: Path,
    encoded: EncodedSections,
    fit: BankFit,
    plan: BankPlan,
    index: annoy_index.AnnoyIndexBytes | None,
    gene_ids: tuple[str, ...] | None,
    merged: Merged | None,
) -> Bank:
    joined, members, view = encoded.joined, encoded.encoders.members, encoded.view
    parts, calibration = joined.parts, fit.calibration
    presence = gene_presence(joined)
    if merged is not None:
        presence["n_sections"] = merged.n_sections.astype(np.int32)
    return Bank(
        path=out,
        settings=BankSettings(
            dataset=plan.dataset,
            preset=plan.preset,
            backbones=tuple(member.encoder.card.backbone for member in members),
            models_sha256=tuple(member.encoder.sha256 for member in members),
            orientations=tuple(member.orientations for member in members),
            reductions=tuple(member.reduction for member in members),
            stain="none" if encoded.stain is None else "macenko",
            pooling=view.pooling,
            fov_um=view.sides_um,
            window=view.window,
            um_per_px=view.um_per_px,
            pitch_um=plan.pitch_um,
            spot_diameter_um=plan.spot_diameter_um,
            normalization="log1p_cp10k",
            gene_join=plan.gene_join,
            metric=fit.metric_kind,
            distance=fit.distance,
            k=fit.k,
            weighting=fit.weighting,
            temperature=calibration.temperature,
            domain_k=calibration.domain_k,
            tuning=fit.tuning,
            cross_validation=fit.cross_validation,
            annoy_search_k=index.search_k if index else 0,
            annoy_trees=annoy_index.N_TREES if index else 0,
            annoy_seed=annoy_index.SEED,
            annoy_recall=index.recall if index else 0.0,
            software=", ".join(f"{name} {version}" for name, version in software_versions().items()),
        ),
        genes=joined.genes,
        gene_columns={
            "cv_pearson": calibration.gene_pearson,
            "cv_pearson_sd": calibration.gene_pearson_sd,
            "interval_scale": calibration.interval_scale,
            "interval_floor": calibration.interval_floor,
            **presence,
        },
        spots=tuple(f"{part.name}_{spot}" for part in parts for spot in part.spots),
        sections=tuple(part.name for part in parts for _ in part.spots),
        patients=tuple(part.patient for part in parts for _ in part.spots),
        spot_columns={
            "array_row": np.concatenate([part.array[:, 1] for part in parts]),
            "array_col": np.concatenate([part.array[:, 0] for part in parts]),
            "total_counts": np.concatenate([part.totals for part in parts]),
        },
        spatial=np.concatenate([part.centers_l0 for part in parts]),
        expression=joined.expression,
        embedding=fit.embedding,
        metric=fit.metric,
        projections=fit.projections,
        stain=encoded.stain,
        distance_quantiles=calibration.distance_quantiles,
        hashes={},
        gene_ids=gene_ids,
        origins=None if merged is None else merged.origins,
        own_section=_own_section(parts[0], fit),
    )


def _own_section(part: Part, fit: BankFit) -> OwnSection | None:
    if fit.place_weight is None or fit.weight_per_um is None:
        return None
    return OwnSection(sha256_file(part.image_path), part.mpp, part.mpp, fit.place_weight, fit.weight_per_um)
