"""Several banks, of several platforms, to one.

The references are those of all banks. What is fitted to references (metric, k, temperature, calibration) is
fitted anew, by the same code as when a bank is built of sections: every bank has a metric of its own, and in
another bank's its embeddings mean nothing. That is what banks keep the embeddings before the metric for; no
image is needed, and nothing is encoded.

A gene counts as measured by a bank if the bank lists it. Where it is not listed it is unknown, not 0: it
enters no average, no accuracy and no interval; the metric is fitted to the genes that all banks measure.

What evens out the platforms is log1p CP10K of each spot's own total, within its platform's own genes: the
depth of sequencing. Nothing else is corrected: shallow spots keep their zeros and noise, a gene that one
platform catches better than another stays higher in it, and totals of a panel of few genes are other totals
than those of all genes. The metric is fitted to expression less each section's mean, so that it does
not learn the platforms; but spots that look alike are averaged, whatever measured them. What accuracy that
gives, the merged bank says itself: every section is predicted from all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stinfer import h5ad
from stinfer.bank import Bank
from stinfer.bank_shapes import MAX_ORIGINS
from stinfer.blas import one_thread_a_product
from stinfer.contract import F32, I64, Bool
from stinfer.coverage import Coverage
from stinfer.embed import FieldOfView, open_encoders
from stinfer.encoder_stack import EncoderStack
from stinfer.errors import SettingError
from stinfer.files import refuse_existing, refuse_same_file
from stinfer.integrity import hash_arrays
from stinfer.neighbors import Distance
from stinfer.predict import Weighting
from stinfer.record import Notices, plain_name
from stinfer.sparse import Sparse
from stinfer_export.bank_fit import fit_bank
from stinfer_export.bank_packing import BankSummary, EncodedSections, Merged, pack_bank
from stinfer_export.bank_plan import BankPlan, MetricKind, common_preset
from stinfer_export.errors import BankMergeError
from stinfer_export.gene_matching import GeneList, MatchedGenes, match_genes
from stinfer_export.joining import JoinedParts, stack
from stinfer_export.section_encoding import Part

# Fewer genes tell no two tissues apart.
MIN_SHARED_GENES = 50
# What must be the same for embeddings to be.
_SAME = (
    "models_sha256",
    "backbones",
    "orientations",
    "reductions",
    "stain",
    "pooling",
    "fov_um",
    "window",
    "um_per_px",
    "normalization",
)
# Parts of counts in common genes that differ by more than this are told.
_COUNTS_RATIO = 0.9


@dataclass(frozen=True)
class _Input:
    """A bank to merge, and what its references and genes become.

    Parameters
    ----------
    bank : it
    raw : (n_refs, dim), its embeddings before the metric
    origins : (n_refs,), names in the merged bank
    """

    bank: Bank
    raw: F32
    origins: tuple[str, ...]

    @property
    def measured(self) -> dict[str, Bool]:
        """Of each origin, which of the bank's genes it measures, (n_genes,)."""
        coverage = self.bank.expression.coverage
        if coverage is None:
            return {self.origins[0]: np.ones(len(self.bank.genes), dtype=np.bool_)}
        names = dict(zip(coverage.origin_of.tolist(), self.origins, strict=True))
        return {names[origin]: coverage.measured[origin] for origin in sorted(names)}


@one_thread_a_product()
def merge_banks(
    paths: Sequence[Path],
    out: Path,
    *,
    metric: MetricKind | None = None,
    distance: Distance | None = None,
    k: int | None = None,
    weighting: Weighting = "softmax",
    include_model: bool = True,
    overwrite: bool = False,
) -> BankSummary:
    """Merge banks into one and write it.

    Parameters
    ----------
    paths : banks of the same models, fields of view and scale; the first one's pitch and spots are those of
        a prediction unless told
    out : the bank to write
    metric, distance, k, weighting, include_model : see `BankPlan`
    overwrite : replace an existing bank

    Raises
    ------
    SettingError
        There are fewer than two banks, or what is asked for cannot be had.
    BankError
        One cannot be used.
    BankMergeError
        Two do not go together.
    """
    refuse_same_file(paths, [out])
    refuse_existing(out, overwrite=overwrite)
    if len(paths) < 2:
        what = f"{len(paths)} bank given to merge"
        raise SettingError(what, "give two or more")
    notices = Notices()
    banks = [Bank.open(path) for path in paths]
    for bank in banks[1:]:
        _refuse_other_encoding(banks[0], bank)
    _refuse_same_sections(banks)
    inputs = _open_inputs(banks)
    for bank, one in zip(banks, inputs, strict=True):
        for text in _kept_notices(bank):  # said when it was built
            notices.texts.append(f"{one.origins[0] if bank.origins is None else bank.path.stem}: {text}")
    lists = [GeneList(bank.path.name, bank.genes, bank.gene_ids) for bank in banks]
    matched = match_genes(lists, notices)
    joined, origins = _join(inputs, matched, notices)
    shared = _refuse_few_shared(banks, joined)
    notices.add(
        f"union of the banks' genes: {len(matched.genes)}, of which {shared} are measured by all of "
        f"{', '.join(sorted(set(origins)))}; where a gene was not measured it does not count"
    )
    records = _records(inputs, joined, notices)
    settings = banks[0].settings
    giver = next((bank for bank in banks if bank.holds_models), banks[0])
    bare = [replace(one, projection=None) for one in open_encoders(giver, device="cpu", threads=1).members]
    encoded = EncodedSections(
        joined,
        EncoderStack(bare, settings.pooling),
        tuple(giver.models()),
        FieldOfView.of(settings),
        banks[0].stain,
    )
    presets = {bank.settings.preset for bank in banks}
    plan = BankPlan(
        dataset="+".join(dict.fromkeys(name for bank in banks for name in bank.settings.dataset.split("+"))),
        pitch_um=settings.pitch_um,
        spot_diameter_um=settings.spot_diameter_um,
        metric=metric,
        distance=distance,
        k=k,
        weighting=weighting,
        include_model=include_model,
        preset=common_preset(presets),
        stain=settings.stain,
    )
    n_sections = np.zeros(len(matched.genes), dtype=np.int64)
    position = {gene: i for i, gene in enumerate(matched.genes)}
    for bank, names in zip(banks, matched.names, strict=True):
        n_sections[[position[name] for name in names]] += bank.gene_columns["n_sections"]
    fit = fit_bank(encoded.joined, encoded.layout, plan, notices)
    return pack_bank(encoded, fit, plan, out, notices, Merged(origins, records, n_sections))


def _refuse_other_encoding(a: Bank, b: Bank) -> None:
    """Refuse banks whose embeddings are not of the same kind."""
    left, right = a.settings, b.settings
    if a.own_section is not None or b.own_section is not None:
        cause = "one of them compares places on its own section, which another section does not have"
        raise BankMergeError(a.path, b.path, cause, "build it again without --own-section")
    for name in _SAME:
        values = getattr(left, name), getattr(right, name)
        if values[0] != values[1]:
            cause = f"{name} is {_shown(values[0])} in the first and {_shown(values[1])} in the second"
            raise BankMergeError(a.path, b.path, cause, "build one again as the other")
    if a.stain is not None and b.stain is not None:
        stains = [hash_arrays(bank.stain.directions, bank.stain.amounts) for bank in (a, b) if bank.stain]
        if stains[0] != stains[1]:
            cause = "slides are brought to another stain (macenko) in each, that of its own sections"
            raise BankMergeError(a.path, b.path, cause, "build both with --stain none")


def _refuse_same_sections(banks: Sequence[Bank]) -> None:
    """Refuse a section that two banks hold: it would vote twice, and be predicted from itself."""
    seen: dict[str, tuple[Bank, str]] = {}
    for bank in banks:
        for name, rows in _sections(bank):
            total = bank.spot_columns["total_counts"][rows]
            place = [bank.spot_columns[column][rows] for column in ("array_row", "array_col")]
            key = hash_arrays(np.asarray(total, dtype=np.float64), *place)
            if key in seen:
                other, other_name = seen[key]
                cause = f"section {name} of the second is section {other_name} of the first"
                fix = "build one of them without it"
                raise BankMergeError(other.path, bank.path, cause, fix)
            seen[key] = (bank, name)


def _open_inputs(banks: Sequence[Bank]) -> list[_Input]:
    used: set[str] = set()
    inputs = []
    for bank in banks:
        raw = bank.raw_embedding()
        if raw is None:
            cause = f"{bank.path.name} has none of the embeddings before its metric that a common one needs"
            fix = "it was built before there were any: build it again"
            others = [other.path for other in banks if other is not bank]
            raise BankMergeError(others[0], bank.path, cause, fix)
        own = bank.origin_names or (plain_name(bank.path.stem),)
        names = {name: _unused(name, used) for name in own}
        origins = bank.origins or own * bank.n_refs
        inputs.append(_Input(bank, raw.restored(), tuple(names[name] for name in origins)))
    if len(used) > MAX_ORIGINS:
        what = f"the merged bank would be of {len(used)} banks, more than {MAX_ORIGINS}"
        raise SettingError(what, "pack sections of one platform into one bank")
    return inputs


def _unused(name: str, used: set[str]) -> str:
    """Return a name, or that and a number, and count it as used."""
    found, n = name, 1
    while found in used:
        n += 1
        found = f"{name}.{n}"
    used.add(found)
    return found


def _sections(bank: Bank) -> list[tuple[str, I64]]:
    """Return the sections in the order of their first references, and the references of each."""
    names = np.asarray(bank.sections)
    return [(name, np.flatnonzero(names == name)) for name in dict.fromkeys(bank.sections)]


def _join(
    inputs: Sequence[_Input], matched: MatchedGenes, notices: Notices
) -> tuple[JoinedParts, tuple[str, ...]]:
    """Put the banks' sections below each other.

    Returns
    -------
    joined : with what each origin measures
    origins : (n_spots,), name of each spot's origin
    """
    used: set[str] = set()
    parts, origins, embeddings = [], [], []
    ids = {} if matched.gene_ids is None else dict(zip(matched.genes, matched.gene_ids, strict=True))
    for one, names in zip(inputs, matched.names, strict=True):
        bank = one.bank
        sources = _sources(bank)
        for section, rows in _sections(bank):
            name = _unused(section, used)
            if name != section:
                notices.add(f"section {section} of {bank.path.name} is called {name}: another has its name")
            parts.append(
                Part(
                    name=name,
                    patient=bank.patients[rows[0]],
                    # No image is needed: embeddings and counts are all that is taken from a section.
                    image_path=Path(str(sources.get(section, {}).get("image", ""))),
                    mpp=float(sources.get(section, {}).get("mpp_um", np.nan)),
                    spots=tuple(bank.spots[row].removeprefix(f"{section}_") for row in rows),
                    centers_l0=bank.spatial[rows],
                    array=np.column_stack([bank.spot_columns[c][rows] for c in ("array_col", "array_row")]),
                    genes=names,
                    gene_ids=tuple(ids[gene] for gene in names) if ids else None,
                    expression=bank.expression.rows(rows),
                    totals=bank.spot_columns["total_counts"][rows],
                    embeddings=one.raw[rows],
                    source=sources.get(section, {}),
                )
            )
            origins += [one.origins[row] for row in rows]
            embeddings.append(one.raw[rows])
    expression = stack(parts, matched.genes)
    coverage = _coverage(inputs, matched, origins)
    joined = JoinedParts(
        parts=tuple(parts),
        genes=matched.genes,
        expression=replace(expression, coverage=coverage),
        embeddings=np.concatenate(embeddings),
        section_codes=np.repeat(np.arange(len(parts)), [len(part.spots) for part in parts]),
    )
    return joined, tuple(origins)


def _coverage(inputs: Sequence[_Input], matched: MatchedGenes, origins: Sequence[str]) -> Coverage:
    names, codes = np.unique(np.asarray(origins), return_inverse=True)
    order = {str(name): i for i, name in enumerate(names)}
    position = {gene: i for i, gene in enumerate(matched.genes)}
    measured = np.zeros((len(names), len(matched.genes)), dtype=np.bool_)
    for one, genes in zip(inputs, matched.names, strict=True):
        columns = np.asarray([position[gene] for gene in genes])
        for name, own in one.measured.items():
            measured[order[name], columns[own]] = True
    return Coverage(codes.astype(np.int64), measured)


def _refuse_few_shared(banks: Sequence[Bank], joined: JoinedParts) -> int:
    """Return how many genes all origins measure."""
    coverage = joined.expression.coverage
    n_shared = 0 if coverage is None else int(coverage.measured.all(axis=0).sum())
    if n_shared < MIN_SHARED_GENES:
        cause = f"all have {n_shared} genes in common, of {MIN_SHARED_GENES} that a common metric needs"
        fix = "check that they are of one species, and name genes alike or have Ensembl IDs"
        raise BankMergeError(banks[0].path, banks[1].path, cause, fix)
    return n_shared


def _records(inputs: Sequence[_Input], joined: JoinedParts, notices: Notices) -> dict[str, dict[str, Any]]:
    """Say of each origin what it is, and how its counts compare."""
    coverage = joined.expression.coverage
    totals = np.concatenate([part.totals for part in joined.parts])
    shares = _share_of_counts(joined.expression)
    records: dict[str, dict[str, Any]] = {}
    first = 0
    for one in inputs:
        settings, known = one.bank.settings, _origin_records(one.bank)
        codes = np.asarray(one.origins)[np.concatenate([rows for _, rows in _sections(one.bank)])]
        own = dict(zip(one.origins, one.bank.origins or one.origins, strict=True))
        for name, measured in one.measured.items():
            rows = first + np.flatnonzero(codes == name)
            records[name] = {
                "dataset": settings.dataset,
                "pitch_um": settings.pitch_um,
                "spot_diameter_um": settings.spot_diameter_um,
                "gene_join": settings.gene_join,
                **known.get(own[name], {}),
                "n_references": len(rows),
                "n_genes": int(measured.sum()),
                "median_total_counts": float(np.median(totals[rows])),
                "shared_counts_fraction": float(np.median(shares[rows])),
            }
        first += one.bank.n_refs
    depths = ", ".join(f"{record['median_total_counts']:.6g} in {name}" for name, record in records.items())
    notices.add(f"median counts of a spot: {depths}; of platforms nothing but depth is evened out")
    found = {name: record["shared_counts_fraction"] for name, record in records.items()}
    if coverage is not None and min(found.values()) < _COUNTS_RATIO * max(found.values()):
        said = ", ".join(f"{share:.0%} in {name}" for name, share in found.items())
        notices.add(
            f"part of a spot's counts in genes that all measure: {said}; log1p CP10K, of all genes that each "
            "measures, is not quite the same quantity in all"
        )
    return records


def _share_of_counts(expression: Sparse) -> F32:
    """Return the part of each spot's counts that is in genes that all origins measure, (n_spots,)."""
    coverage = expression.coverage
    everywhere: Bool = np.ones(expression.n_columns, dtype=np.bool_)
    if coverage is not None:
        everywhere = np.asarray(coverage.measured.all(axis=0))
    rows = np.repeat(np.arange(len(expression.indptr) - 1), np.diff(expression.indptr))
    counts = np.expm1(expression.data[:].astype(np.float64))
    n_rows = len(expression.indptr) - 1
    total = np.bincount(rows, weights=counts, minlength=n_rows)
    shared = np.bincount(rows, weights=counts * everywhere[expression.indices[:]], minlength=n_rows)
    return np.asarray(shared / np.where(total > 0, total, 1.0), dtype=np.float32)


def _sources(bank: Bank) -> dict[str, dict[str, Any]]:
    """Read what each section of a bank was read from."""
    with h5py.File(bank.path, "r") as file:
        group = file["uns/stinfer"].get("sources", {})
        return {name: dict(h5ad.read_scalars(group[name])) for name in group}


def _origin_records(bank: Bank) -> dict[str, dict[str, Any]]:
    """Read what a merged bank says of its origins."""
    with h5py.File(bank.path, "r") as file:
        group = file["uns/stinfer"].get("origins", {})
        return {name: dict(h5ad.read_scalars(group[name])) for name in group}


def _kept_notices(bank: Bank) -> list[str]:
    with h5py.File(bank.path, "r") as file:
        return h5ad.read_strings(file["uns/stinfer"], "notices")


def _shown(value: object) -> str:
    if not isinstance(value, tuple):
        return f"{value}"
    return ", ".join(one[:16] if isinstance(one, str) else f"{one:g}" for one in value)
