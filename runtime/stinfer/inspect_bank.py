"""What `stinfer bank info` and `stinfer bank verify` say of a bank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stinfer.bank import RAW, Bank
from stinfer.contract import I64
from stinfer.embed import open_encoders
from stinfer.errors import BankAlteredError
from stinfer.genes import PREDICTABLE_PEARSON, is_predictable
from stinfer.neighbors import AnnoySearch, ExactSearch, annoy_installed, choose_search, recall
from stinfer.signing import accepted_keys, verify_signature
from stinfer.stored_array import take_rows

_N_RECALL_QUERIES = 200
# What an index of the recorded parameters may lose against the recall it was recorded with.
_RECALL_SLACK = 0.02


def describe_bank(bank: Bank) -> str:
    """Describe a bank in a few aligned lines."""
    s = bank.settings
    counts = Counter(zip(bank.patients, bank.sections, strict=True))
    sections = ", ".join(f"{section} ({n})" for (_, section), n in sorted(counts.items()))
    stored = len(bank.expression.data) / bank.expression.n_measured
    annoy = (
        f"{s.annoy_trees} trees, search_k {s.annoy_search_k}, recall {s.annoy_recall:.3f} at k {s.k}"
        if s.annoy_trees
        else "none: search is exact"
    )
    sides = ", ".join(f"{side:g}" for side in s.fov_um)
    how = {"patch": f"a patch of {s.patch_px} px", "map": f"{s.window} windows of a feature map"}[s.pooling]
    n_numbers = bank.metric.components.shape[-1]
    accuracy = bank.gene_columns.get("cv_pearson")
    n_predictable = int(is_predictable(accuracy, len(bank.genes)).sum())
    lines = {
        "bank": bank.path.name,
        "data set": f"{s.dataset}, patients {len(set(bank.patients))}, sections {len(counts)}",
        "references": f"{bank.n_refs} spots: {sections}",
        "genes": f"{len(bank.genes)} ({_describe_join(bank)}), {stored:.0%} of values not zero",
        **({"merged of": "; ".join(_describe_origins(bank))} if bank.origins else {}),
        "predictable": f"{n_predictable} of the genes, with a cross-validated correlation of at least "
        f"{PREDICTABLE_PEARSON:g} ({s.cross_validation})",
        "expression": "log1p of counts per 10,000",
        "preset": s.preset,
        "backbones": "; ".join(_describe_models(bank)),
        "models": "inside the bank"
        if bank.holds_models
        else "left out: put " + ", ".join(f"{name}.onnx" for name in s.backbones) + " beside it",
        **_describe_own_section(bank),
        "embedding": f"{n_numbers} numbers ({s.pooling}), metric {s.metric}, {s.distance}",
        "field of view": f"{sides} µm, {how}, at {s.um_per_px:.3f} µm per pixel",
        "stain": {"none": "as it is", "macenko": "brought to that of the references"}[s.stain],
        "spots": f"{s.spot_diameter_um:g} µm wide, {s.pitch_um:g} µm apart",
        "neighbors": f"k {s.k}, weighting {s.weighting}, softmax temperature {s.temperature:.4g}",
        "annoy index": annoy,
        "merging": _describe_merging(bank),
        "built with": s.software,
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines.items())


def _describe_merging(bank: Bank) -> str:
    if bank.own_section is not None:
        return "cannot be merged: it compares places on its own section"
    if RAW not in bank.hashes:
        return "cannot be merged: embeddings before the metric are not kept"
    return "can be merged with others"


def _describe_join(bank: Bank) -> str:
    coverage = bank.expression.coverage
    if coverage is None:
        return f"{bank.settings.gene_join} of the sections' genes"
    return f"union of the merged banks' genes; {int(coverage.measured.all(axis=0).sum())} measured in all"


def _describe_origins(bank: Bank) -> Iterator[str]:
    for name, n_refs, n_genes in bank.origin_sizes():
        yield f"{name} ({n_refs} references, {n_genes} genes)"


def _describe_own_section(bank: Bank) -> dict[str, str]:
    own = bank.own_section
    if own is None:
        return {}
    return {
        "own section": f"predicts {bank.sections[0]} alone, the image of SHA-256 {own.slide_sha256}",
        "place": f"counts {own.place_weight:g} times what appearance counts, {own.weight_per_um:.3g} per µm",
    }


def _describe_models(bank: Bank) -> Iterator[str]:
    s = bank.settings
    models = zip(s.backbones, s.models_sha256, s.orientations, s.reductions, strict=True)
    for name, sha256, orientations, reduction in models:
        seen = "" if orientations == 1 else f" in {orientations} orientations"
        seen += "" if reduction == 1 else f" at {reduction * s.um_per_px:.3f} µm per pixel"
        yield f"{name}{seen}, SHA-256 {sha256}"


def verify_bank(path: Path, key: Path | None = None) -> Iterator[str]:
    """Check everything that can be checked about a bank.

    Parameters
    ----------
    path : the bank
    key : public key, or folder of them, that must have signed it; see `stinfer.signing.accepted_keys`

    Yields
    ------
    what was found in order, a line each

    Raises
    ------
    BankError, ModelError, KeyFileError
        What is wrong.
    """
    keys = accepted_keys(key)
    if keys is not None:
        yield f"signed by key {verify_signature(path, keys).name}"
    bank = Bank.open(path)
    yield f"format, shapes and finiteness: {bank.n_refs} references x {len(bank.genes)} genes"
    yield f"hashes of {', '.join(sorted(bank.hashes))}"
    for backbone in open_encoders(bank, device="cpu", threads=None).name.split("+"):
        yield f"model {backbone} loads and is the one that made the embeddings"
    if bank.raw_embedding() is not None:
        yield "embeddings before the metric are what was written"
    if "annoy" not in bank.hashes:
        yield "no Annoy index: search is exact"
    elif not annoy_installed():
        yield "Annoy index not compared with the embeddings: annoy is not installed here"
    else:
        yield f"Annoy index holds the embeddings, recall {_check_index(bank):.3f}"


def _check_index(bank: Bank) -> float:
    """Compare the index with the embeddings; return its recall."""
    s = bank.settings
    annoy = choose_search("annoy", bank)
    if not isinstance(annoy, AnnoySearch) or not annoy.holds_references():
        cause = "it was not built from the bank's embeddings"
        raise BankAlteredError(bank.path, "Annoy index", cause)
    queries = take_rows(bank.embedding, recall_queries(bank.n_refs))
    truth = ExactSearch(bank.embedding, s.distance).query(queries, s.k)[0]
    found = recall(annoy.query(queries, s.k)[0], truth)
    if found < s.annoy_recall - _RECALL_SLACK:
        cause = f"it finds {found:.3f} of the true neighbors, recorded is {s.annoy_recall:.3f}"
        raise BankAlteredError(bank.path, "Annoy index", cause)
    return found


def recall_queries(n_refs: int) -> I64:
    """Return which references serve as queries when recall is measured: at most 200, evenly spaced."""
    return np.unique(np.linspace(0, n_refs - 1, _N_RECALL_QUERIES).astype(np.int64))
