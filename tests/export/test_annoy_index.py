"""The Annoy index of a bank, read back with Annoy itself and held against brute force."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("annoy")

from annoy import AnnoyIndex  # after the skip

from stinfer_export.annoy_index import N_TREES, build_index

METRIC = {"cosine": "angular", "euclidean": "euclidean"}


def _vectors(n, dim, seed=3):
    return np.random.default_rng(seed).normal(1, 1, (n, dim)).astype(np.float32)


def _as_stored(vectors, distance):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if distance == "cosine" else vectors


def _load(built, dim, distance, folder):
    path = folder / "index.ann"
    path.write_bytes(built.data)
    index = AnnoyIndex(dim, METRIC[distance])
    index.load(str(path))
    return index


def _recall(index, vectors, k, search_k):
    """Ask Annoy for the neighbors of at most 200 vectors; compare with the distance of the k-th true one."""
    exact = vectors.astype(float)
    hits = []
    for i in np.unique(np.linspace(0, len(vectors) - 1, 200).astype(int)):
        distances = np.linalg.norm(exact - exact[i], axis=1)
        found = index.get_nns_by_vector(vectors[i], k, search_k=search_k)
        hits.append((distances[found] <= np.sort(distances)[k - 1] + 1e-6).sum() / k)
    return np.mean(hits)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_the_index_holds_the_references_in_order(distance, tmp_path):
    vectors = _vectors(60, 5)

    index = _load(build_index(vectors, distance, 4), 5, distance, tmp_path)

    assert index.get_n_items() == 60
    assert index.get_n_trees() == N_TREES == 50
    items = [index.get_item_vector(i) for i in range(60)]
    np.testing.assert_allclose(items, _as_stored(vectors, distance), rtol=1e-6)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_the_same_references_give_the_same_bytes(distance):
    vectors = _vectors(300, 12)

    first, second = (build_index(vectors.copy(), distance, 10) for _ in range(2))

    assert first == second
    vectors[7, 3] += 1
    assert build_index(vectors, distance, 10).data != first.data


@pytest.mark.parametrize(("distance", "n_refs"), [("cosine", 1500), ("euclidean", 1500), ("cosine", 500)])
def test_search_k_is_the_first_doubling_that_finds_99_percent(distance, n_refs, tmp_path):
    # In 40 dimensions of noise everything is far from everything: hard for an index of trees.
    vectors = _vectors(n_refs, 40)

    built = build_index(vectors, distance, 10)

    index = _load(built, 40, distance, tmp_path)
    stored = _as_stored(vectors, distance).astype(np.float32)
    doublings = np.log2(built.search_k / 10)
    assert doublings == round(doublings) >= 1
    assert built.recall >= 0.99
    assert _recall(index, stored, 10, built.search_k) == pytest.approx(built.recall, abs=1e-3)
    assert _recall(index, stored, 10, built.search_k // 2) < 0.99


def test_recall_counts_neighbors_that_are_equally_far(tmp_path):
    # Every place five times: which of the five are found is all the same.
    vectors = np.repeat(_vectors(40, 3), 5, axis=0)

    built = build_index(vectors, "euclidean", 3)

    assert built.recall >= 0.99
    assert _recall(_load(built, 3, "euclidean", tmp_path), vectors, 3, built.search_k) >= 0.99


@pytest.mark.parametrize("n_refs", [1, 2, 7, 40, 400])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_all_references_may_be_asked_for(n_refs, distance):
    built = build_index(_vectors(n_refs, 6), distance, n_refs)

    assert built.recall == 1.0


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_references_that_are_all_alike_are_indexed(distance):
    built = build_index(np.ones((100, 4), dtype=np.float32), distance, 20)

    assert built.recall == 1.0


def test_a_reference_without_a_direction_is_indexed(tmp_path):
    vectors = _vectors(50, 4)
    vectors[20] = 0

    index = _load(build_index(vectors, "cosine", 5), 4, "cosine", tmp_path)

    assert index.get_item_vector(20) == [0, 0, 0, 0]
    assert index.get_n_items() == 50
