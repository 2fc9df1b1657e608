"""Compressed sparse rows against the dense matrix that they stand for."""

from __future__ import annotations

import numpy as np
import pytest

from stinfer import sparse
from stinfer.sparse import Sparse

# 0 5 0 7
# 0 0 0 0
# 1 2 3 4
# 0 0 9 0
DENSE = np.array([[0, 5, 0, 7], [0, 0, 0, 0], [1, 2, 3, 4], [0, 0, 9, 0]], dtype=np.float32)
DATA = np.array([5, 7, 1, 2, 3, 4, 9], dtype=np.float32)
INDICES = np.array([1, 3, 0, 1, 2, 3, 2], dtype=np.int32)
INDPTR = np.array([0, 2, 2, 6, 7], dtype=np.int64)
MATRIX = Sparse(DATA, INDICES, INDPTR, 4)


def dense(matrix: Sparse) -> np.ndarray:
    """Fill in the values one by one."""
    found = np.zeros((len(matrix.indptr) - 1, matrix.n_columns), dtype=np.float32)
    for row in range(len(found)):
        for at in range(matrix.indptr[row], matrix.indptr[row + 1]):
            found[row, matrix.indices[at]] += matrix.data[at]
    return found


def test_rows_by_hand() -> None:
    found = MATRIX.rows(np.array([3, 0]))
    assert found.data.tolist() == [9, 5, 7]
    assert found.indices.tolist() == [2, 1, 3]
    assert found.indptr.tolist() == [0, 1, 3]
    assert found.n_columns == 4


@pytest.mark.parametrize("chosen", [[0, 1, 2, 3], [2], [1], [1, 1], [3, 2, 0], [2, 2, 0, 2], []], ids=str)
def test_rows_are_those_of_the_dense_matrix(chosen: list[int]) -> None:
    found = MATRIX.rows(np.array(chosen, dtype=np.int64))
    np.testing.assert_array_equal(dense(found), DENSE[chosen])
    assert found.is_valid()
    assert (found.data.dtype, found.indptr.dtype) == (np.float32, np.int64)


def test_rows_of_indices_of_32_bits() -> None:
    small = Sparse(DATA, INDICES, INDPTR.astype(np.int32), 4)
    np.testing.assert_array_equal(dense(small.rows(np.array([2, 3]))), DENSE[[2, 3]])


def test_columns_of_some_rows_are_those_of_the_dense_matrix() -> None:
    found = MATRIX.rows(np.array([2, 1, 0])).columns(np.array([3, 1]))
    np.testing.assert_array_equal(found, DENSE[[2, 1, 0]][:, [3, 1]])


@pytest.mark.parametrize("n_workers", [1, 3])
@pytest.mark.parametrize("block", [1, 3, 100])
def test_columns_taken_in_blocks_by_threads(
    monkeypatch: pytest.MonkeyPatch, n_workers: int, block: int
) -> None:
    monkeypatch.setattr(sparse, "_BLOCK", block)
    for chosen in ([0, 1, 2, 3], [3, 0, 2], [1], []):
        found = MATRIX.columns(np.array(chosen, dtype=np.int64), n_workers)
        np.testing.assert_array_equal(found, DENSE[:, chosen])


def test_a_matrix_is_valid_with_empty_rows_anywhere_and_with_none_stored() -> None:
    assert MATRIX.is_valid()
    # Rows 0, 2 and 3 are empty; the others hold columns that begin below where the row before ended.
    indptr = np.array([0, 0, 2, 2, 2, 3])
    assert Sparse(DATA[:3], np.array([0, 3, 1]), indptr, 4).is_valid()
    assert Sparse(DATA[:0], INDICES[:0], np.zeros(5, dtype=np.int64), 4).is_valid()


@pytest.mark.parametrize(
    ("indices", "indptr"),
    [
        ([3, 1, 0, 1, 2, 3, 2], [0, 2, 2, 6, 7]),  # a row that descends
        ([1, 1, 0, 1, 2, 3, 2], [0, 2, 2, 6, 7]),  # a column twice
        ([1, 3, 0, 1, 2, 2, 3], [0, 2, 2, 7, 7]),  # twice within a longer row
        ([1, 4, 0, 1, 2, 3, 2], [0, 2, 2, 6, 7]),  # beyond the width
        ([-1, 3, 0, 1, 2, 3, 2], [0, 2, 2, 6, 7]),
        ([1, 3, 0, 1, 2, 3], [0, 2, 2, 6, 7]),  # fewer columns than values
        ([1, 3, 0, 1, 2, 3, 2], [1, 2, 2, 6, 7]),  # the first value in no row
        ([1, 3, 0, 1, 2, 3, 2], [0, 2, 2, 6, 6]),  # the last one in none
        ([1, 3, 0, 1, 2, 3, 2], [0, 2, 1, 6, 7]),  # rows that go back
        ([1, 3, 0, 1, 2, 3, 2], [0, 2, 9, 6, 7]),  # a row beyond the values
        ([1, 3, 0, 1, 2, 3, 2], []),
        ([[1, 3, 0, 1, 2, 3, 2]], [0, 2, 2, 6, 7]),
    ],
    ids=str,
)
def test_what_is_no_csr_is_not_valid(indices: list, indptr: list) -> None:
    assert not Sparse(DATA, np.array(indices), np.array(indptr), 4).is_valid()
