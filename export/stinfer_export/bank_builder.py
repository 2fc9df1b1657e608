"""From measured sections to a bank: embed, normalise, fit the metric, calibrate, index.

References are embedded by the runtime's own code and ONNX file, as a query will be.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stinfer.bank import Bank, Sparse
from stinfer.contract import (
    AnyArray,
    BankSettings,
)
from stinfer.encoder import Device, Encoder
from stinfer.errors import SettingError
from stinfer.feature_map import Progress
from stinfer.files import refuse_existing, refuse_same_file
from stinfer.metric import (
    project,
)
from stinfer.neighbors import annoy_installed
from stinfer.record import Notices, software_versions
from stinfer_export import annoy_index
from stinfer_export.bank_plan import BankPlan, GeneJoin, choose_metric, choose_view, fit_metric
from stinfer_export.bank_writer import write_bank
from stinfer_export.calibration import calibrate
from stinfer_export.datasets.section import Section
from stinfer_export.gene_ids import join_gene_ids
from stinfer_export.section_encoding import Part, encode_section

# On her2st C2 to C5 the best of 50, 75 and 100 with every weighting; see the README.
DEFAULT_K = 100
# Of few references fewer are averaged, or every prediction would be near the mean of all.
DEFAULT_K_SHARE = 5


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


def build_bank(
    sections: Iterable[Section],
    plan: BankPlan,
    model_path: Path,
    out: Path,
    *,
    device: Device = "auto",
    threads: int | None = None,
    batch_size: int = 32,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BankSummary:
    """Build a bank and write it.

    Parameters
    ----------
    sections : measured sections, one after the other
    plan : how to make it
    model_path : ONNX file of the backbone
    out : the bank to write
    device, threads, batch_size : as for prediction
    overwrite : replace an existing bank
    progress : called with what is done of a section, how much there is, and of what

    Raises
    ------
    StInferError
        Of the sections, the slides, the model, the settings or the output; nothing is left half-written.
    """
    refuse_same_file([model_path], [out])
    refuse_existing(out, overwrite=overwrite)
    notices = Notices()
    try:
        model = model_path.read_bytes()
    except OSError as error:
        what = f"model {model_path} cannot be read: {error.strerror}"
        raise SettingError(what, "write one with stinfer-export backbone NAME") from error
    encoder = Encoder(model, str(model_path), pooling=plan.pooling or "map", device=device, threads=threads)
    if encoder.fallback:
        notices.add(f"running on the CPU: {encoder.fallback}")
    view = choose_view(plan, encoder.card)
    if plan.pooling is None and view.pooling == "patch":
        notices.add(f"patches are encoded, not a map: {encoder.card.map_refusal}")
    metric_kind = choose_metric(plan, view, encoder.card)
    parts = [
        encode_section(section, plan, view, encoder, batch_size, notices, progress) for section in sections
    ]
    parts = [part for part in parts if part.spots]
    if not parts:
        what = "no section has a spot that can be used"
        raise SettingError(what, "allow more of a patch to lie outside with --max-outside")
    genes = _join_genes(parts, plan.gene_join, notices)
    expression = _stack(parts, genes)
    raw = np.concatenate([part.embeddings for part in parts])
    projection, metric = fit_metric(raw, metric_kind, len(view.sides_um))
    embedding = metric.apply(project(raw, projection))
    k = _choose_k(plan.k, len(embedding), notices)
    codes = np.repeat(np.arange(len(parts)), [len(part.spots) for part in parts])
    calibration = calibrate(embedding, codes, expression, plan.distance, k, plan.weighting)
    index = None
    if annoy_installed():
        index = annoy_index.build_index(embedding, plan.distance, k)
    else:
        notices.add("annoy is not installed: the bank has no index, and search in it is exact")
    versions = software_versions().items()
    bank = Bank(
        path=out,
        settings=BankSettings(
            dataset=plan.dataset,
            backbone=encoder.card.backbone,
            model_sha256=encoder.sha256,
            pooling=view.pooling,
            fov_um=view.sides_um,
            window=view.window,
            um_per_px=view.um_per_px,
            pitch_um=plan.pitch_um,
            spot_diameter_um=plan.spot_diameter_um,
            normalization="log1p_cp10k",
            gene_join=plan.gene_join,
            metric=metric_kind,
            distance=plan.distance,
            k=k,
            weighting=plan.weighting,
            temperature=calibration.temperature,
            domain_k=calibration.domain_k,
            cross_validation=calibration.scheme,
            annoy_search_k=index.search_k if index else 0,
            annoy_trees=annoy_index.N_TREES if index else 0,
            annoy_seed=annoy_index.SEED,
            annoy_recall=index.recall if index else 0.0,
            software=", ".join(f"{name} {version}" for name, version in versions),
        ),
        genes=genes,
        gene_columns={
            "cv_pearson": calibration.gene_pearson,
            "cv_pearson_sd": calibration.gene_pearson_sd,
            **_gene_presence(parts, genes, expression),
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
        expression=expression,
        embedding=embedding,
        metric=metric,
        projection=projection,
        distance_quantiles=calibration.distance_quantiles,
        hashes={},
        gene_ids=join_gene_ids(parts, genes, notices),
    )
    write_bank(
        bank,
        model=model if plan.include_model else None,
        annoy=index.data if index else None,
        sources={part.name: part.source for part in parts},
        notices=notices.texts,
    )
    return BankSummary(out, len(embedding), len(genes), tuple(notices.texts))


def _join_genes(parts: Sequence[Part], join: GeneJoin, notices: Notices) -> tuple[str, ...]:
    """Return the bank's genes in alphabetical order, and say what the join did."""
    sets = [set(part.genes) for part in parts]
    union, shared = set.union(*sets), set.intersection(*sets)
    n_partial = len(union) - len(shared)
    genes = union if join == "union" else shared
    if not n_partial:
        effect = "all of them listed in every section"
    elif join == "union":
        effect = f"of which {n_partial} are not listed in every section and count 0 where they are not"
    else:
        effect = f"{n_partial} more that are not listed in every section are left out"
    notices.add(f"{join} of the sections' genes: {len(genes)}, {effect}")
    if not shared and join == "intersection":
        what = "the sections have no gene in common"
        raise SettingError(what, "use --gene-join union, or check that the sections belong together")
    return tuple(sorted(genes))


def _stack(parts: Sequence[Part], genes: Sequence[str]) -> Sparse:
    """Put the sections below each other, in the bank's gene order; columns ascend in every row."""
    column_of = {gene: i for i, gene in enumerate(genes)}
    data, indices, lengths = [], [], []
    for part in parts:
        renamed = np.asarray([column_of.get(gene, -1) for gene in part.genes], dtype=np.int64)
        columns = renamed[part.expression.indices]
        rows = np.repeat(np.arange(len(part.spots)), np.diff(part.expression.indptr))
        order = np.lexsort((columns, rows))
        order = order[columns[order] >= 0]
        data.append(part.expression.data[order])
        indices.append(columns[order].astype(np.int32))
        lengths.append(np.bincount(rows[order], minlength=len(part.spots)))
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    return Sparse(np.concatenate(data), np.concatenate(indices), indptr, len(genes))


def _gene_presence(parts: Sequence[Part], genes: Sequence[str], expression: Sparse) -> dict[str, AnyArray]:
    """Say in how many sections a gene is listed, and in what part of the spots it is detected."""
    listed = [set(part.genes) for part in parts]
    detected = np.bincount(expression.indices, minlength=len(genes)) / (len(expression.indptr) - 1)
    return {
        "detected_fraction": detected.astype(np.float32),
        "n_sections": np.asarray([sum(gene in one for one in listed) for gene in genes], dtype=np.int32),
    }


def default_k(n_refs: int) -> int:
    """Return how many neighbors are averaged where nobody says."""
    return min(DEFAULT_K, max(n_refs // DEFAULT_K_SHARE, 1))


def _choose_k(asked: int | None, n_refs: int, notices: Notices) -> int:
    if asked is not None and asked > n_refs:
        what = f"--k {asked} is larger than the bank's {n_refs} references"
        raise SettingError(what, "give a smaller one")
    if asked is not None:
        return asked
    k = default_k(n_refs)
    if k < DEFAULT_K:
        notices.add(f"k is {k}, not {DEFAULT_K}: a {DEFAULT_K_SHARE}th of the {n_refs} references")
    return k
