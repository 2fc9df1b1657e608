"""Arrays that stay in their file: the same values as those in memory."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from stinfer import h5ad
from stinfer.errors import BankAlteredError
from stinfer.integrity import hash_arrays
from stinfer.sparse import Sparse
from stinfer.stored_array import StoredArray, iter_blocks, take_ranges, take_rows

VALUES = np.arange(24, dtype=np.float32).reshape(8, 3)


@pytest.fixture
def stored(tmp_path: Path) -> StoredArray:
    path = tmp_path / "values.bin"
    path.write_bytes(b"before" + VALUES.tobytes() + b"after")
    return StoredArray(path, 6, VALUES.dtype, VALUES.shape)


def test_rows_are_those_that_were_written(stored: StoredArray) -> None:
    assert len(stored) == 8
    assert (stored.ndim, stored.size) == (2, 24)
    assert stored[2:4].tolist() == [[6, 7, 8], [9, 10, 11]]
    assert stored[7:100].tolist() == [[21, 22, 23]]
    assert stored[5:5].shape == (0, 3)
    assert take_rows(stored, np.array([7, 0])).tolist() == [[21, 22, 23], [0, 1, 2]]
    assert take_ranges(stored, [(1, 2), (0, 0), (6, 8)]).tolist() == VALUES[[1, 6, 7]].tolist()
    assert take_ranges(VALUES, [(1, 2), (0, 0), (6, 8)]).tolist() == VALUES[[1, 6, 7]].tolist()
    assert take_ranges(VALUES, []).shape == (0, 3)


def test_all_values_are_given_as_the_bytes_they_are(stored: StoredArray) -> None:
    assert stored.to_bytes() == VALUES.tobytes()


def test_blocks_hold_as_many_rows_as_fit(stored: StoredArray) -> None:
    assert [len(block) for block in iter_blocks(stored, 3 * 12)] == [3, 3, 2]
    assert [len(block) for block in iter_blocks(VALUES, 1)] == [1] * 8
    assert np.array_equal(np.concatenate(list(iter_blocks(stored, 3 * 12))), VALUES)


def test_the_hash_is_that_of_the_array_in_memory(stored: StoredArray) -> None:
    assert hash_arrays(stored, VALUES[0]) == hash_arrays(VALUES, VALUES[0])


def test_a_file_that_was_changed_or_is_gone_is_refused(stored: StoredArray, tmp_path: Path) -> None:
    whole = stored.path.read_bytes()
    stored.path.write_bytes(whole + b"more")
    with pytest.raises(BankAlteredError, match="replaced or written while it was in use"):
        stored[:1]
    with pytest.raises(BankAlteredError, match="replaced or written while it was in use"):
        stored.to_bytes()
    stored.path.unlink()
    with pytest.raises(BankAlteredError, match="cannot be read: No such file"):
        stored[:1]


def test_an_array_that_reaches_beyond_its_file_is_refused(stored: StoredArray) -> None:
    beyond = StoredArray(stored.path, 6, VALUES.dtype, (9, 3))
    with pytest.raises(BankAlteredError, match="cut short"):
        beyond[8:]


def test_a_large_array_of_an_hdf5_file_is_found_in_it(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["whole"] = VALUES
        file.create_dataset("pieces", data=VALUES, chunks=(2, 3))
    with h5py.File(tmp_path / "a.h5") as file:
        found = h5ad.open_array(file, "whole", 95)
        held, pieces = (h5ad.open_array(file, name, limit) for name, limit in (("whole", 96), ("pieces", 95)))
    assert isinstance(found, StoredArray)
    assert np.array_equal(found[:], VALUES)
    for other in (held, pieces):
        assert isinstance(other, np.ndarray)
        assert np.array_equal(other, VALUES)


def test_a_matrix_in_a_file_gives_what_one_in_memory_gives(tmp_path: Path) -> None:
    dense = np.array([[0, 2, 0, 1], [0, 0, 0, 0], [3, 0, 4, 5]], dtype=np.float32)
    rows, columns = np.nonzero(dense)
    data, indices = dense[rows, columns], columns.astype(np.int32)
    indptr = np.array([0, 2, 2, 5])
    path = tmp_path / "matrix.bin"
    path.write_bytes(data.tobytes() + indices.tobytes())
    parts = [
        StoredArray(path, 0, data.dtype, data.shape),
        StoredArray(path, data.nbytes, indices.dtype, indices.shape),
    ]
    matrix = Sparse(*parts, indptr, 4)
    assert matrix.is_valid()
    assert matrix.columns(np.array([3, 0])).tolist() == [[1, 0], [0, 0], [5, 3]]
    assert matrix.columns(np.arange(4)).tolist() == dense.tolist()
    assert matrix.rows(np.array([2, 1])).columns(np.arange(4)).tolist() == dense[[2, 1]].tolist()
    assert matrix.column_means(np.array([3, 1])).tolist() == [2.0, pytest.approx(2 / 3)]
