"""Whether stain normalization is kept: only where sections that are left out are predicted better with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

import numpy as np

from stinfer.errors import SettingError
from stinfer.record import Notices
from stinfer_export.bank_fit import BankFit
from stinfer_export.gene_choice import DEFAULT_MIN_DETECTED, DEFAULT_N_GENES, variable_genes
from stinfer_export.joining import JoinedParts

Stains = Literal["none", "macenko"]
# What it must gain in Pearson's correlation to be worth a slide's stains being measured; less is chance.
LEAST_GAIN = 0.005

T = TypeVar("T")


def choose_stain(
    stain: Literal["none", "macenko", "auto"],
    attempt: Callable[[Stains], T],
    accuracy: Callable[[T], float],
    notices: Notices,
) -> T:
    """Make something as asked, or, with ``auto``, both ways, and keep the better.

    Parameters
    ----------
    stain : as asked
    attempt : makes it with or without stain normalization
    accuracy : of what was made, from cross-validation
    notices : told what was chosen, and why
    """
    if stain != "auto":
        return attempt(stain)
    plain, normalized = attempt("none"), attempt("macenko")
    without, gained = accuracy(plain), accuracy(normalized) - accuracy(plain)
    kept = gained >= LEAST_GAIN
    notices.add(
        f"stain normalization is {'kept' if kept else 'left out'}: held-out sections are predicted with a "
        f"Pearson correlation of {without + gained:.3f} with it, {without:.3f} without"
    )
    return normalized if kept else plain


def refuse_one_section(stain: str, n_sections: int) -> None:
    """Refuse to choose where there is nothing to choose by.

    Raises
    ------
    SettingError
        It is to be chosen, and no section can be left out.
    """
    if stain == "auto" and n_sections < 2:
        what = "--stain auto chooses by predicting sections from the others, and there is one"
        raise SettingError(what, "use --stain none or macenko")


def cross_validated(fit: BankFit, joined: JoinedParts) -> float:
    """Return how well a bank predicts its own sections when they are left out.

    Returns
    -------
    mean Pearson correlation of the 250 genes of largest variance detected in over 30 % of the spots
    """
    genes = variable_genes(joined.expression, DEFAULT_N_GENES, DEFAULT_MIN_DETECTED)
    found = np.nan_to_num(fit.calibration.gene_pearson[genes].astype(np.float64))
    return float(found.mean()) if len(found) else 0.0
