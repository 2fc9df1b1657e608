"""Write a bank: `reference_bank/FORMAT.md` in code."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from stinfer import h5ad
from stinfer.bank import MEASURED, RAW, Bank, model_names
from stinfer.bank_parts import ANNOY, GENE_IDS, OWN_SECTION, part_hashes
from stinfer.contract import F64
from stinfer.integrity import hash_arrays
from stinfer.raw_embedding import RawEmbedding
from stinfer.stain import Stain


def write_bank(
    bank: Bank,
    raw: RawEmbedding,
    *,
    models: Mapping[str, bytes],
    annoy: bytes | None,
    sources: Mapping[str, Any],
    origins: Mapping[str, Any],
    notices: list[str],
) -> None:
    """Write a bank to its path, all or nothing.

    Parameters
    ----------
    bank : its content; `hashes` are computed here
    raw : the references' embeddings before the metric
    models : bytes of the ONNX files by their SHA-256, or none to leave them out
    annoy : bytes of the Annoy index, or None where there is none
    sources : for each section, what it was read from
    origins : for each bank that was merged into this one, what it was; none of a bank of sections
    notices : what was dropped, filled in or left out

    Raises
    ------
    OutputWriteError
        The disk is full, or the folder cannot be written.
    """
    names = zip(model_names(bank.settings), bank.settings.models_sha256, strict=True)
    blobs = {name: models[sha256] for name, sha256 in names if sha256 in models}
    if annoy is not None:
        blobs[ANNOY] = annoy
    version = bank.format_version
    hashes = {
        **{part: hash_of() for part, hash_of in part_hashes(bank, version).items()},
        RAW: hash_arrays(raw.codes, raw.middle, raw.step),
        **{name: hashlib.sha256(data).hexdigest() for name, data in blobs.items()},
    }
    sparse = bank.expression
    uns: dict[str, Any] = {
        **bank.settings.to_uns(version),
        "metric_mean": bank.metric.mean,
        "metric_components": bank.metric.components,
        **{f"projection_{i}": p for i, p in enumerate(bank.projections) if p is not None},
        **({} if bank.stain is None else _stain(bank.stain)),
        **({} if bank.own_section is None else {OWN_SECTION: bank.own_section.to_mapping()}),
        "distance_quantiles": bank.distance_quantiles,
        "raw_middle": raw.middle,
        "raw_step": raw.step,
        "sources": sources,
        **({"origins": origins} if origins else {}),
        "notices": notices,
        "hashes": hashes,
        **{name: np.frombuffer(data, dtype=np.uint8) for name, data in blobs.items()},
    }
    with h5ad.new_file(bank.path) as new:
        file = new.root
        h5ad.write_csr(
            file, "X", sparse.data[:], sparse.indices[:], sparse.indptr, (bank.n_refs, sparse.n_columns)
        )
        texts = {"section": bank.sections, "patient": bank.patients}
        if bank.origins is not None and sparse.coverage is not None:
            texts["origin"] = bank.origins
            h5ad.write_array(file["varm"], MEASURED, np.ascontiguousarray(sparse.coverage.measured.T))
        h5ad.write_table(file, "obs", bank.spots, bank.spot_columns, texts)
        ids = {} if bank.gene_ids is None else {GENE_IDS: bank.gene_ids}
        h5ad.write_table(file, "var", bank.genes, bank.gene_columns, texts=ids)
        h5ad.write_array(file["obsm"], "spatial", bank.spatial)
        h5ad.write_array(file["obsm"], "embedding", bank.embedding[:])
        h5ad.write_array(file["obsm"], RAW, raw.codes)
        h5ad.write_mapping(file["uns"], "stinfer", uns)


def _stain(stain: Stain) -> dict[str, F64]:
    return {"stain_directions": stain.directions, "stain_amounts": stain.amounts}
