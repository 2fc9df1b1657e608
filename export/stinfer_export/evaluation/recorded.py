"""What a bank recorded of its own cross-validation: all that can honestly be said of one that is finished.

Its embeddings are kept after a metric that was fitted to every section, so none can be held out any more.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stinfer.bank import Bank
from stinfer.errors import SettingError
from stinfer_export.gene_choice import variable_genes


def recorded_lines(bank: Bank, n_genes: int, min_detected: float) -> Iterator[str]:
    """Say it, line by line.

    Parameters
    ----------
    bank : it
    n_genes, min_detected : see `variable_genes`

    Raises
    ------
    SettingError
        The bank recorded nothing, or no gene is left.
    """
    scheme, pearson = bank.settings.cross_validation, bank.gene_columns.get("cv_pearson")
    if scheme == "none" or pearson is None:
        what = f"bank {bank.path} recorded no cross-validation"
        raise SettingError(what, "evaluate the data set it was made of: stinfer-export evaluate her2st DIR")
    genes = variable_genes(bank.expression, n_genes, min_detected)
    if not len(genes):
        what = f"no gene of bank {bank.path} is detected in more than {min_detected:.0%} of its spots"
        raise SettingError(what, "lower --min-detected")
    found = np.nan_to_num(np.asarray(pearson, dtype=np.float64)[genes])
    low, middle, high = np.quantile(found, [0.25, 0.5, 0.75])
    yield f"{bank.path}: {'+'.join(bank.settings.backbones)}, {len(set(bank.sections))} sections"
    yield f"mean gene-wise Pearson {found.mean():.3f} (quartiles {low:.3f}, {middle:.3f}, {high:.3f})"
    yield f"of {len(genes)} genes, as the bank recorded it when it was built: {scheme}"
    left_out = "spots" if bank.own_section is not None else "section"
    yield (
        f"The metric was fitted without the {left_out} left out; k, temperature and these genes were chosen "
        "with all, so it is a little too good. stinfer-export evaluate her2st DIR chooses without it."
    )
