"""Whether stain normalization is kept, by what cross-validation says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stinfer.errors import SettingError
from stinfer.record import Notices
from stinfer_export.stain_choice import choose_stain, cross_validated, refuse_one_section

_SPEC = importlib.util.spec_from_file_location("joined_parts", Path(__file__).parent / "joined_parts.py")
joined_parts = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(joined_parts)


@pytest.mark.parametrize(
    ("with_it", "kept", "said"),
    [
        (
            0.310,
            "macenko",
            "kept: held-out sections are predicted with a Pearson correlation of 0.310 with it",
        ),
        (0.304, "none", "left out: held-out sections are predicted with a Pearson correlation of 0.304"),
        (0.250, "none", "left out: held-out sections are predicted with a Pearson correlation of 0.250"),
    ],
)
def test_it_is_kept_where_it_gains_something(with_it, kept, said):
    notices = Notices()
    scores = {"none": 0.3, "macenko": with_it}
    assert choose_stain("auto", lambda stain: stain, scores.get, notices) == kept
    (text,) = notices.texts
    assert text.startswith(f"stain normalization is {said}")
    assert text.endswith("0.300 without")


@pytest.mark.parametrize("stain", ["none", "macenko"])
def test_what_is_asked_for_is_made_once_and_not_compared(stain):
    made = []
    notices = Notices()
    assert choose_stain(stain, made.append, lambda _: pytest.fail("compared"), notices) is None
    assert (made, notices.texts) == ([stain], [])


def test_one_section_has_nothing_to_choose_by():
    with pytest.raises(SettingError, match="--stain auto chooses by predicting sections from the others"):
        refuse_one_section("auto", 1)
    refuse_one_section("auto", 2)
    refuse_one_section("macenko", 1)


def test_accuracy_is_the_mean_of_genes_that_are_often_detected():
    # The second gene is in 2 of 8 spots, the third has no correlation and counts 0.
    expression = np.ones((8, 3))
    expression[:, 0] = np.arange(1, 9)
    expression[:6, 1] = 0
    joined = joined_parts.join(np.zeros((8, 1)), expression, [0, 0, 0, 0, 1, 1, 1, 1])
    pearson = np.array([0.6, 0.9, np.nan], dtype=np.float32)
    fit = SimpleNamespace(calibration=SimpleNamespace(gene_pearson=pearson))
    assert cross_validated(fit, joined) == pytest.approx(0.3)
