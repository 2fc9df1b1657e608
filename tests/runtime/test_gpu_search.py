"""The graph that searches on the GPU, here on the CPU, against numpy; and what if there is no room."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import stinfer
from stinfer import gpu_search, open_bank
from stinfer.gpu import CPU
from stinfer.gpu_search import GpuSearch, NoRoomError
from stinfer.neighbors import ExactSearch
from stinfer.open_bank import OpenBank
from stinfer.stored_array import StoredArray

DATA = Path(__file__).parents[1] / "data"


def cloud(n, dim, seed, *, offset=0.0):
    return (offset + np.random.default_rng(seed).normal(size=(n, dim))).astype(np.float32)


def by_hand(references, queries, k, distance):
    """All distances in double precision, sorted; of equal ones the first reference."""
    a, b = references.astype(np.float64), queries.astype(np.float64)
    if distance == "cosine":
        a, b = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in (a, b))
        all_of_them = 1 - b @ a.T
    else:
        all_of_them = np.linalg.norm(b[:, None] - a[None], axis=2)
    order = np.argsort(all_of_them, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(all_of_them, order, axis=1), order


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("block", [64, 65_536])
def test_it_finds_what_numpy_finds(monkeypatch, distance, block):
    monkeypatch.setattr(gpu_search, "_REFERENCES", block)
    monkeypatch.setattr(gpu_search, "_QUERIES", 7)
    references, queries = cloud(1000, 12, 0, offset=3.0), cloud(30, 12, 1, offset=3.0)

    distances, indices = GpuSearch(references, distance, CPU).query(queries, 20)

    expected, rows = by_hand(references, queries, 20, distance)
    np.testing.assert_array_equal(indices, rows)
    np.testing.assert_allclose(distances, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_it_finds_what_the_search_on_the_cpu_finds_to_the_bit(monkeypatch, tmp_path, distance):
    monkeypatch.setattr(gpu_search, "_REFERENCES", 300)
    references, queries = cloud(1000, 12, 2, offset=3.0), cloud(30, 12, 3, offset=3.0)
    path = tmp_path / "references.bin"
    path.write_bytes(references.tobytes())
    stored = StoredArray(path, 0, references.dtype, references.shape)
    expected = ExactSearch(references, distance).query(queries, 50)

    for kept in (references, stored):
        found = GpuSearch(kept, distance, CPU).query(queries, 50)
        np.testing.assert_array_equal(found[1], expected[1])
        np.testing.assert_array_equal(found[0], expected[0])


def test_all_references_and_fewer_than_a_block_and_no_queries(monkeypatch):
    monkeypatch.setattr(gpu_search, "_REFERENCES", 4)
    references = cloud(9, 3, 4)
    search = GpuSearch(references, "euclidean", CPU)

    distances, indices = search.query(references, 9)

    assert np.sort(indices, axis=1).tolist() == [list(range(9))] * 9
    assert indices[:, 0].tolist() == list(range(9))
    assert distances[:, 0].tolist() == [0.0] * 9
    assert [part.shape for part in search.query(references[:0], 5)] == [(0, 5), (0, 5)]


def test_equal_references_come_in_their_order():
    references = np.zeros((40, 3), dtype=np.float32)
    references[7:] = 1.0
    _, indices = GpuSearch(references, "euclidean", CPU).query(np.zeros((1, 3), dtype=np.float32), 7)
    assert indices.tolist() == [[0, 1, 2, 3, 4, 5, 6]]


def test_references_that_take_more_than_they_may_are_refused(monkeypatch):
    monkeypatch.setattr(gpu_search, "MOST_BYTES", 2_000_000)
    # A length and 499 numbers of 4 bytes each: 1,000 references take 2 MB.
    assert GpuSearch(cloud(1000, 499, 5), "cosine", CPU).query(cloud(1, 499, 6), 1)[1].shape == (1, 1)
    message = r"1,001 references of 499 numbers take 2 MB of the GPU, of which they may have 2 MB"
    with pytest.raises(NoRoomError, match=message):
        GpuSearch(cloud(1001, 499, 5), "cosine", CPU)


def test_references_that_cannot_be_copied_are_no_room(monkeypatch):
    def refuse(*_):
        msg = "Failed to allocate memory for requested buffer"
        raise RuntimeError(msg)

    monkeypatch.setattr(gpu_search.GpuSearch, "_there", refuse)
    with pytest.raises(
        NoRoomError, match=r"3 references of 4 numbers cannot be copied to the GPU \(Failed to"
    ):
        GpuSearch(cloud(3, 4, 5), "cosine", CPU)


@pytest.mark.parametrize(
    ("asked", "on_gpu", "expected"),
    [
        ({}, True, "GpuSearch"),
        ({"search": "exact"}, True, "GpuSearch"),
        ({}, False, "ExactSearch"),
        ({"device": "cpu"}, True, "ExactSearch"),
    ],
)
def test_where_models_run_on_cuda_the_search_does_too(monkeypatch, asked, on_gpu, expected):
    monkeypatch.setattr(open_bank, "is_installed", lambda: True)
    monkeypatch.setattr(open_bank, "GpuSearch", lambda *given: GpuSearch(*given, CPU))
    opened = OpenBank(DATA / "board.h5", **{"device": "auto", "threads": 1, "search": "auto", **asked})
    opened.encoders = SimpleNamespace(on_gpu=on_gpu)

    assert type(opened.searcher).__name__ == expected
    assert opened.search_fallback == ""


def test_without_room_the_search_runs_on_the_cpu_and_says_so(monkeypatch, tmp_path):
    def refuse(*_):
        msg = "49 references of 3 numbers take 1 MB of the GPU, which has 0 MB free"
        raise NoRoomError(msg)

    monkeypatch.setattr(open_bank, "is_installed", lambda: True)
    monkeypatch.setattr(open_bank, "GpuSearch", refuse)
    opened = OpenBank(DATA / "board.h5", device="auto", threads=1, search="exact")
    monkeypatch.setattr(type(opened.encoders), "on_gpu", True)
    monkeypatch.setattr(type(opened.encoders), "patches_at_once", 8)

    result = stinfer.predict_slide(DATA / "board.png", opened, out=tmp_path / "p.h5ad", mpp=5.0)

    assert [notice for notice in result.notices if "CPU" in notice] == [
        "searching on the CPU: 49 references of 3 numbers take 1 MB of the GPU, which has 0 MB free"
    ]
