"""What `stinfer bank diff` says of two banks, and `stinfer bank info --json` of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from stinfer.bank import Bank

_N_SHOWN = 5
_GENES_AT_ONCE = 256


def summarize_bank(bank: Bank) -> dict[str, Any]:
    """Return what a bank holds as texts, numbers and lists of them, ready for JSON.

    Returns
    -------
    `file`, `settings` (as hashed), `n_references`, `n_genes`, `stored_fraction` (of values that are not 0),
    `has_gene_ids`, `sections` (a list of name, patient and number of references), `origins` (of a merged
    bank, a list of name and numbers of references and genes), `mean_cv_pearson` (None where no gene has one),
    `own_section` (None of a bank that is of any slide) and `hashes`
    """
    return {
        "file": bank.path.name,
        "settings": bank.settings.to_mapping(bank.format_version),
        "n_references": bank.n_refs,
        "n_genes": len(bank.genes),
        "stored_fraction": len(bank.expression.data) / bank.expression.n_measured,
        "has_gene_ids": bank.gene_ids is not None,
        "sections": [
            {"name": section, "patient": patient, "n_references": n}
            for (patient, section), n in sorted(_sections(bank).items())
        ],
        "origins": [
            {"name": name, "n_references": n_refs, "n_genes": n_genes}
            for name, n_refs, n_genes in bank.origin_sizes()
        ],
        "mean_cv_pearson": _mean_accuracy(bank),
        "own_section": None if bank.own_section is None else bank.own_section.to_mapping(),
        "hashes": dict(sorted(bank.hashes.items())),
    }


def diff_banks(a: Bank, b: Bank) -> Iterator[str]:
    """Compare two banks: settings, sections, genes, then part by part.

    Yields
    ------
    a line for each difference, then one of what is the same
    """
    left, right = (bank.settings.to_mapping(bank.format_version) for bank in (a, b))
    for name, value in left.items():
        if value != right[name]:
            yield f"{name}: {_shown(value)} | {_shown(right[name])}"
    yield from _diff_sections(a, b)
    yield from _diff_origins(a, b)
    yield from _diff_genes(a, b)
    accuracies = [_mean_accuracy(bank) for bank in (a, b)]
    if accuracies[0] != accuracies[1]:
        shown = ["none" if value is None else f"{value:.3f}" for value in accuracies]
        yield f"mean cross-validated Pearson over genes: {' | '.join(shown)}"
    same = []
    for part in dict.fromkeys([*a.hashes, *b.hashes]):
        if a.hashes.get(part) == b.hashes.get(part):
            same += [part] if part in a.hashes else []
        elif part in a.hashes and part in b.hashes:
            yield f"{part}: differs{_how_far(part, a, b)}"
        else:
            yield f"{part}: only in {'the first' if part in a.hashes else 'the second'}"
    yield f"the same: {', '.join(same) or 'nothing'}"


def _diff_sections(a: Bank, b: Bank) -> Iterator[str]:
    left, right = _sections(a), _sections(b)
    for patient, section in sorted(left.keys() | right.keys()):
        n = [found[patient, section] for found in (left, right)]
        if n[0] != n[1]:
            yield f"section {section} of patient {patient}: {n[0]} | {n[1]} references"


def _diff_origins(a: Bank, b: Bank) -> Iterator[str]:
    left, right = (
        {name: f"{n_refs} references x {n_genes} genes" for name, n_refs, n_genes in bank.origin_sizes()}
        for bank in (a, b)
    )
    for name in sorted(left.keys() | right.keys()):
        if left.get(name) != right.get(name):
            yield f"origin {name}: {left.get(name, 'none')} | {right.get(name, 'none')}"


def _diff_genes(a: Bank, b: Bank) -> Iterator[str]:
    left, right = set(a.genes), set(b.genes)
    for only, which in ((left - right, "first"), (right - left, "second")):
        if only:
            yield f"{len(only)} genes only in the {which}: {_first(sorted(only))}"
    if a.gene_ids is not None and b.gene_ids is not None:
        ids = dict(zip(b.genes, b.gene_ids, strict=True))
        other = [
            gene for gene, own in zip(a.genes, a.gene_ids, strict=True) if gene in right and ids[gene] != own
        ]
        if other:
            yield f"{len(other)} genes have other Ensembl IDs: {_first(other)}"


def _how_far(part: str, a: Bank, b: Bank) -> str:
    """Say by how much a part's numbers differ, where they stand for the same."""
    if part == "embedding" and a.spots == b.spots and a.embedding.shape == b.embedding.shape:
        return f", by {np.abs(a.embedding[:] - b.embedding[:]).max():.3g} at the most"
    if part == "expression" and a.spots == b.spots and a.genes == b.genes:
        farthest = 0.0
        for first in range(0, len(a.genes), _GENES_AT_ONCE):
            some = np.arange(first, min(first + _GENES_AT_ONCE, len(a.genes)))
            difference = a.expression.columns(some) - b.expression.columns(some)
            farthest = max(farthest, float(np.abs(difference).max()))
        return f", by {farthest:.3g} at the most"
    return ""


def _sections(bank: Bank) -> Counter[tuple[str, str]]:
    return Counter(zip(bank.patients, bank.sections, strict=True))


def _mean_accuracy(bank: Bank) -> float | None:
    values = bank.gene_columns.get("cv_pearson")
    known = np.empty(0) if values is None else values[np.isfinite(values)]
    return float(known.mean(dtype=np.float64)) if len(known) else None


def _first(names: Sequence[str]) -> str:
    more = ", …" if len(names) > _N_SHOWN else ""
    return ", ".join(names[:_N_SHOWN]) + more


def _shown(value: Any) -> str:
    if not isinstance(value, list):
        return f"{value}"
    return ",".join(one if isinstance(one, str) else f"{one:g}" for one in value)
