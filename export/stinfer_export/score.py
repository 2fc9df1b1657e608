"""How well a prediction agrees with measured counts that it has not seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from stinfer import h5ad
from stinfer.bank import Bank
from stinfer.contract import F32, F64
from stinfer.errors import SettingError
from stinfer.files import sha256_file
from stinfer.predict import log1p_cp10k
from stinfer_export.agreement import pearson_by_gene
from stinfer_export.datasets.her2st import read_counts
from stinfer_export.gene_choice import DEFAULT_MIN_DETECTED, DEFAULT_N_GENES, variable_genes

_GRID = "grid over tissue"  # the record's word for places that no file gave


@dataclass(frozen=True)
class Score:
    """Agreement of a prediction with measured counts.

    Parameters
    ----------
    genes : n_genes symbols, chosen on the bank alone
    pearson : (n_genes,), over spots; NaN where prediction or measurement does not vary
    n_spots : spots compared
    n_unmatched : spots of the prediction that were not measured
    n_absent : chosen genes that the measurement does not list, counted as 0
    """

    genes: tuple[str, ...]
    pearson: F64
    n_spots: int
    n_unmatched: int
    n_absent: int

    @property
    def mean(self) -> float:
        """Mean over genes; a gene without a correlation counts 0, as one that is not predicted."""
        return float(np.nan_to_num(self.pearson).mean())


def score_prediction(
    prediction: Path,
    counts: Path,
    bank: Bank,
    *,
    n_genes: int = DEFAULT_N_GENES,
    min_detected: float = DEFAULT_MIN_DETECTED,
) -> Score:
    """Correlate a prediction with measured log1p CP10K, gene by gene over spots.

    Parameters
    ----------
    prediction : the `.h5ad` file of a run at the spots of a file
    counts : table of raw counts, spots x genes; its spots are named as those of the prediction
    bank : the bank that predicted; it alone decides which genes are compared
    n_genes, min_detected : see `variable_genes`

    Raises
    ------
    DatasetError
        The counts cannot be read.
    SettingError
        The prediction cannot be read, is on a grid or of another bank, lacks a gene, or shares no spot
        with the counts.
    """
    genes, spots, table = read_counts(counts)
    chosen = [bank.genes[i] for i in variable_genes(bank.expression, n_genes, min_detected)]
    if not chosen:
        what = f"no gene of bank {bank.path} is detected in more than {min_detected:.0%} of its spots"
        raise SettingError(what, "lower --min-detected")
    names, predicted = _read_prediction(prediction, chosen, bank)
    totals = table.sum(axis=1)
    row_of = {spot: i for i, spot in enumerate(spots) if totals[i] > 0}
    shared = [i for i, name in enumerate(names) if name in row_of]
    if len(shared) < 2:
        what = f"prediction {prediction} and counts {counts} share {len(shared)} spots"
        raise SettingError(what, "predict at the measured spots, with --spots FILE of the same section")
    rows = [row_of[names[i]] for i in shared]
    column_of = {gene: i for i, gene in enumerate(genes)}
    columns = np.asarray([column_of.get(gene, -1) for gene in chosen])
    measured = np.where(columns >= 0, log1p_cp10k(table[rows], totals[rows])[:, columns], np.float32(0))
    return Score(
        genes=tuple(chosen),
        pearson=pearson_by_gene(predicted[shared], measured),
        n_spots=len(shared),
        n_unmatched=len(names) - len(shared),
        n_absent=int((columns < 0).sum()),
    )


def _read_prediction(path: Path, genes: list[str], bank: Bank) -> tuple[list[str], F32]:
    fix = "give the .h5ad file that stinfer-run wrote, made with --genes all"
    try:
        with h5py.File(path, "r") as file:
            places = h5ad.read_scalars(file["uns/stinfer/places"])
            sha256 = h5ad.read_scalars(file["uns/stinfer/bank"])["sha256"]
            position = {gene: i for i, gene in enumerate(h5ad.read_strings(file["var"], "_index"))}
            names, values = h5ad.read_strings(file["obs"], "_index"), h5ad.read_array(file, "X")
    except (OSError, KeyError, ValueError, AttributeError) as error:
        what = f"prediction {path} cannot be read ({error})"
        raise SettingError(what, fix) from error
    if places.get("source") == _GRID:
        what = f"prediction {path} is on a grid, whose names are not those of measured spots"
        raise SettingError(what, "predict with --spots FILE of the measured section")
    if sha256 != sha256_file(bank.path):
        what = f"prediction {path} was made with another bank than {bank.path}"
        raise SettingError(what, "give the bank that predicted, or predict again with this one")
    missing = [gene for gene in genes if gene not in position]
    if missing:
        what = f"prediction {path} lacks {len(missing)} of the genes to compare ({missing[0]}, …)"
        raise SettingError(what, fix)
    return names, values[:, [position[gene] for gene in genes]]
