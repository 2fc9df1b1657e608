"""Banks of any size with made-up references: their content is chance, what they cost is not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stinfer.bank import Bank
from stinfer.bank_settings import BankSettings
from stinfer.contract import F32, Pooling
from stinfer.encoder import Encoder
from stinfer.encoder_stack import EncoderStack, Member
from stinfer.genes import PREDICTABLE_PEARSON
from stinfer.metric import AffineMetric, identity_metric
from stinfer.raw_embedding import RawEmbedding
from stinfer.sparse import Sparse
from stinfer.stored_array import take_rows
from stinfer_export import annoy_index
from stinfer_export.bank_plan import DEFAULT_MAP_FOV_UM, DEFAULT_PATCH_FOV_UM, DEFAULT_UM_PER_PX
from stinfer_export.bank_writer import write_bank

K = 50
# One gene of so many is predictable, as in banks of her2st; the others are predicted where all are asked for.
_PREDICTABLE_EACH = 5
# Numbers of an embedding after a supervised metric, and of a cell after its projection.
N_MAPPED, N_PROJECTED = 16, 64
_N_CLUSTERS = 200
# References drawn at once, which stay in the cache.
_DRAWN = 1024
# Queries on a line from one reference to another.
_STEPS = 64


@dataclass(frozen=True)
class Size:
    """How large a bank is.

    Parameters
    ----------
    n_refs, n_genes : of the bank
    n_stored : genes of a reference that are not 0
    n_numbers : of an embedding after the metric; None for as many as before it
    """

    n_refs: int = 13_620
    n_genes: int = 15_000
    n_stored: int = 3_000
    n_numbers: int | None = N_MAPPED


def write_made_up_bank(
    path: Path,
    model: bytes,
    size: Size,
    *,
    pooling: Pooling = "patch",
    around: F32 | None = None,
    with_annoy: bool = False,
    seed: int = 0,
) -> Bank:
    """Write a bank, and return it.

    Parameters
    ----------
    path : to write; replaced if it is there
    model : ONNX file of the one backbone
    size : of the bank
    pooling : of the bank; with ``map`` it has the default windows
    around : (n, dim), embeddings before the metric that the references are to lie around; None for chance
    with_annoy : build an Annoy index, which takes minutes for many references
    seed : of all that is chance
    """
    rng = np.random.default_rng(seed)
    encoder = Encoder(model, "to be measured", pooling=pooling, device="cpu")
    projects = pooling == "map" and (encoder.card.map_traits is None or not encoder.card.map_traits.head)
    projection: F32 | None = None
    if projects:
        drawn = rng.normal(0, encoder.window_dim**-0.5, (encoder.window_dim, N_PROJECTED))
        projection = drawn.astype(np.float32)
    stack = EncoderStack([Member(encoder, projection=projection)], pooling)
    fov_um = DEFAULT_PATCH_FOV_UM if pooling == "patch" else DEFAULT_MAP_FOV_UM
    dim = len(fov_um) * sum(stack.widths)
    metric = _metric(rng, dim, size.n_numbers)
    embedding = _cloud(rng, size.n_refs, metric, around)
    index = annoy_index.build_index(embedding, "euclidean", K) if with_annoy else None
    names = tuple(f"s{i % 36}_{i}" for i in range(size.n_refs))
    sections = tuple(f"s{i % 36}" for i in range(size.n_refs))
    bank = Bank(
        path=path,
        settings=BankSettings(
            dataset="made up",
            preset="custom",
            backbones=(encoder.card.backbone,),
            models_sha256=(encoder.sha256,),
            orientations=(1,),
            reductions=(1,),
            stain="none",
            pooling=pooling,
            fov_um=fov_um,
            window="square",
            um_per_px=fov_um[0] / encoder.card.input_size_px if pooling == "patch" else DEFAULT_UM_PER_PX,
            pitch_um=200.0,
            spot_diameter_um=100.0,
            normalization="log1p_cp10k",
            gene_join="union",
            metric="none",
            distance="euclidean",
            k=K,
            weighting="inverse",
            temperature=1.0,
            domain_k=10,
            tuning="none",
            cross_validation="none",
            annoy_search_k=index.search_k if index else 0,
            annoy_trees=annoy_index.N_TREES if index else 0,
            annoy_seed=annoy_index.SEED,
            annoy_recall=index.recall if index else 0.0,
            software="made up",
        ),
        genes=tuple(f"G{i:05d}" for i in range(size.n_genes)),
        gene_columns={"cv_pearson": _accuracy(size.n_genes)},
        spots=names,
        sections=sections,
        patients=sections,
        spot_columns={},
        spatial=np.zeros((size.n_refs, 2)),
        expression=_expression(rng, size),
        embedding=embedding,
        metric=metric,
        projections=(projection,),
        stain=None,
        distance_quantiles=np.linspace(0, 1, 101, dtype=np.float32),
        hashes={},
    )
    blob = index.data if index else None
    # Nothing that is measured reads what merging reads.
    nothing = np.zeros(1, dtype=np.float32)
    raw = RawEmbedding(np.zeros((size.n_refs, 1), dtype=np.int16), nothing, nothing)
    models = {encoder.sha256: model}
    write_bank(bank, raw, models=models, annoy=blob, sources={}, origins={}, notices=[])
    return bank


def made_up_queries(bank: Bank, n: int, seed: int = 1) -> F32:
    """Return (n, n_numbers) queries, after the metric, as of places that follow one another over tissue.

    They go in straight lines of 64 from one reference to another.
    """
    ends = np.random.default_rng(seed).integers(0, bank.n_refs, size=(2, -(-n // _STEPS)))
    first, last = (take_rows(bank.embedding, rows)[:, np.newaxis] for rows in ends)
    share = np.linspace(0, 1, _STEPS, dtype=np.float32)[:, np.newaxis]
    return np.asarray((first + share * (last - first)).reshape(-1, first.shape[2])[:n], dtype=np.float32)


def _metric(rng: np.random.Generator, dim: int, n_numbers: int | None) -> AffineMetric:
    if n_numbers is None or n_numbers == dim:
        return identity_metric(dim)
    components = rng.normal(0, dim**-0.5, (dim, n_numbers)).astype(np.float32)
    return AffineMetric(np.zeros(dim, dtype=np.float32), components)


def _cloud(rng: np.random.Generator, n_refs: int, metric: AffineMetric, around: F32 | None) -> F32:
    """Draw references around some places: those given, or clusters as tissues are."""
    n_numbers = metric.components.shape[-1]
    if around is None:
        places = rng.normal(0, 1, (_N_CLUSTERS, n_numbers)).astype(np.float32)
    else:
        places = metric.apply(around)
    spread = places.std(axis=0) / 2 + np.float32(1e-3)
    of = rng.integers(0, len(places), n_refs)
    drawn = np.empty((n_refs, n_numbers), dtype=np.float32)
    for first in range(0, n_refs, _DRAWN):
        block = drawn[first : first + _DRAWN]
        rng.standard_normal(out=block, dtype=np.float32)
        block *= spread
        block += places[of[first : first + _DRAWN]]
    return drawn


def _accuracy(n_genes: int) -> F32:
    """Return a cross-validated correlation for each gene, (n_genes,)."""
    found = np.zeros(n_genes, dtype=np.float32)
    found[::_PREDICTABLE_EACH] = 2 * PREDICTABLE_PEARSON
    return found


def _expression(rng: np.random.Generator, size: Size) -> Sparse:
    """Draw genes that are not 0, evenly spread over a reference's row."""
    step = size.n_genes // size.n_stored
    columns = np.arange(size.n_stored, dtype=np.int32) * step
    indices = (columns + rng.integers(0, step, (size.n_refs, 1), dtype=np.int32)).reshape(-1)
    values = rng.gamma(2.0, 0.5, 1 << 20).astype(np.float32) + np.float32(0.01)
    data = np.empty(len(indices), dtype=np.float32)
    for first in range(0, len(data), len(values)):
        data[first : first + len(values)] = values[: len(data) - first]
    indptr = np.arange(size.n_refs + 1, dtype=np.int64) * size.n_stored
    return Sparse(data, indices, indptr, size.n_genes)
