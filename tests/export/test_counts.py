"""Sparse counts against the dense table, and what are no counts."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest

from stinfer_export.datasets.counts import Counts, complain_of_values
from stinfer_export.datasets.feature_matrix import make_unique

NEEDED = ", and raw counts are needed"
TABLE = np.array([[0, 3, 0, 1], [0, 0, 0, 0], [5, 0, 2, 0]])


def test_zeros_are_left_out():
    counts = Counts.from_dense(TABLE)

    assert counts.values.tolist() == [3, 1, 5, 2]
    assert counts.columns.tolist() == [1, 3, 0, 2]
    assert counts.starts.tolist() == [0, 2, 2, 4]
    assert counts.totals().tolist() == [4, 0, 7]
    assert counts.to_dense().tolist() == TABLE.tolist()


def test_entries_are_put_in_order():
    rows, columns = (np.array(places) for places in ([2, 0, 2, 0, 1], [2, 3, 0, 1, 1]))

    counts = Counts.from_entries(rows, columns, np.array([2.0, 1.0, 5.0, 3.0, 0.0]), (3, 4))

    assert counts.values.dtype == np.int64
    assert counts.to_dense().tolist() == TABLE.tolist()
    assert counts.starts.tolist() == [0, 2, 2, 4]  # the stored zero is gone


def test_spots_and_genes_are_taken_as_of_a_table():
    counts = Counts.from_dense(TABLE)

    assert counts.take_spots([2, 0, 1, 2]).to_dense().tolist() == TABLE[[2, 0, 1, 2]].tolist()
    assert counts.take_spots([]).to_dense().tolist() == []
    assert counts.take_genes([0, 3]).to_dense().tolist() == TABLE[:, [0, 3]].tolist()
    assert counts.take_genes([1]).starts.tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("rows", "columns", "complaint"),
    [
        ([0, 3], [0, 0], "has an entry of spot 4, but only 3"),
        ([0, 1], [0, -1], "has an entry of gene 0, but only 4"),
        ([1, 1], [2, 2], "holds spot 2, gene 3 twice"),
    ],
)
def test_entries_beyond_the_table_or_twice(rows, columns, complaint):
    with pytest.raises(ValueError, match=complaint):
        Counts.from_entries(np.array(rows), np.array(columns), np.array([1, 1]), (3, 4))


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ([1.0, 2.0, 3.0, 4.0], ""),
        ([1, 2, 3, 4], ""),
        ([1.0, 2.0, 3.0, 2.0**60], "holds 1.15292e+18, which is no count"),
        ([1.0, np.inf, 3.0, 4.0], "holds values that are not finite"),
        (
            [1.0, -0.5, 3.0, 4.0],
            f"holds negative values (-0.5): it is scaled or centered{NEEDED}",
        ),
        # Rows 0 and 1: 0.25 + 0.75 and 0.5 + 0.5.
        (
            [0.25, 0.75, 0.5, 0.5],
            f"holds fractions (0.25): every spot is normalised to 1{NEEDED}",
        ),
        # ln 2 and ln 4, which are ln(1 + 1) and ln(1 + 3); and twice ln(1 + 2).
        (
            np.log([2, 4, 3, 3]).tolist(),
            "holds fractions (0.693147): it is log1p of counts per 4, and raw counts are needed",
        ),
        (
            [0.25, 2.5, 1.0, 1.0],
            "holds fractions (0.25): none is above 2.5, so it may hold logarithms; raw counts are needed",
        ),
        ([0.25, 99.0, 1.0, 1.0], "holds fractions (0.25): raw counts are whole numbers"),
    ],
)
def test_what_is_no_count_is_told_apart(values, complaint):
    assert complain_of_values(np.array(values), np.array([0, 0, 1, 1]), 3) == complaint


def test_texts_are_no_counts():
    assert complain_of_values(np.array([b"1"]), np.array([0]), 1) == "holds values of type |S1, not counts"


@pytest.mark.parametrize(
    ("names", "unique"),
    [
        (["A", "B", "A", "A", "B"], ("A", "B", "A-1", "A-2", "B-1")),
        (["A", "A", "A-1"], ("A", "A-2", "A-1")),
        (["A-1", "A", "A", "A"], ("A-1", "A", "A-2", "A-3")),
    ],
)
@pytest.mark.filterwarnings("ignore:Suffix used:UserWarning")
def test_symbols_are_made_unique_as_anndata_does(names, unique):
    assert make_unique(names) == unique
    assert tuple(anndata.utils.make_index_unique(pd.Index(names))) == unique
