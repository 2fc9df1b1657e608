from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stinfer import neighbors
from stinfer.errors import ExtraMissingError, SettingError
from stinfer.memory import Scratch
from stinfer.nearest import Nearest
from stinfer.neighbors import AnnoySearch, ExactSearch, choose_search, prepare, recall
from stinfer.stored_array import StoredArray


def f32(values):
    return np.asarray(values, dtype=np.float32)


def cloud(n, dim, seed, *, offset=0.0, spread=1.0):
    return (offset + spread * np.random.default_rng(seed).normal(size=(n, dim))).astype(np.float32)


def sklearn_search(references, queries, k, metric):
    module = pytest.importorskip("sklearn.neighbors")
    search = module.NearestNeighbors(n_neighbors=k, metric=metric, algorithm="brute")
    return search.fit(references.astype(np.float64)).kneighbors(queries.astype(np.float64))


# --- exact ----------------------------------------------------------------------------------------


def test_euclidean_by_hand():
    distances, indices = ExactSearch(f32([[3, 4], [0, 1], [6, 8]]), "euclidean").query(f32([[0, 0]]), 3)
    assert distances.tolist() == [[1.0, 5.0, 10.0]]
    assert indices.tolist() == [[1, 0, 2]]


def test_cosine_by_hand():
    references = f32([[0, 2], [-5, 0], [3, 0], [1, 1]])
    distances, indices = ExactSearch(references, "cosine").query(f32([[10, 0]]), 4)
    assert indices.tolist() == [[2, 3, 0, 1]]
    np.testing.assert_allclose(distances, [[0, 1 - np.sqrt(0.5), 1, 2]], atol=1e-6)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 7, 300])
def test_exact_agrees_with_scikit_learn(distance, k):
    references, queries = cloud(300, 24, 0), cloud(40, 24, 1)
    distances, indices = ExactSearch(references, distance).query(queries, k)
    expected, expected_indices = sklearn_search(references, queries, k, distance)
    assert np.array_equal(indices, expected_indices)
    np.testing.assert_allclose(distances, expected, rtol=1e-4, atol=1e-6)
    assert distances.dtype == np.float32


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize(("offset", "spread"), [(10.0, 0.1), (1000.0, 0.1)])
def test_exact_is_exact_far_from_the_origin(distance, offset, spread):
    # Embeddings after a ReLU share a large mean; their differences are what counts.
    references = cloud(500, 64, 2, offset=offset, spread=spread)
    queries = references[:50] + f32([[spread / 100] * 32 + [-spread / 100] * 32])
    _, indices = ExactSearch(references, distance).query(queries, 5)
    _, expected = sklearn_search(references, queries, 5, distance)
    assert np.array_equal(indices[:, 0], np.arange(50))
    # Two float32 distances at the fifth place may be too near to be told apart.
    assert (indices == expected).mean() > 0.98


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_equal_vectors_are_exactly_zero_apart(distance):
    references = cloud(100, 33, 3)
    distances, indices = ExactSearch(references, distance).query(references, 2)
    assert np.array_equal(indices[:, 0], np.arange(100))
    assert np.array_equal(distances[:, 0], np.zeros(100))
    assert (distances[:, 1] > 0).all()


def test_ties_come_in_the_order_of_the_references():
    references = f32([[1, 0], [0, 0], [0, 1], [-1, 0], [0, -1]])
    distances, indices = ExactSearch(references, "euclidean").query(f32([[0, 0]]), 5)
    assert indices.tolist() == [[1, 0, 2, 3, 4]]
    assert distances.tolist() == [[0, 1, 1, 1, 1]]


def test_of_equally_far_references_the_same_are_taken_every_time():
    references = np.ones((50, 4), dtype=np.float32)
    queries = cloud(20, 4, 4)
    first = ExactSearch(references, "euclidean").query(queries, 3)
    second = ExactSearch(references, "euclidean").query(queries, 3)
    assert np.array_equal(first[1], second[1])
    assert all(len(set(row)) == 3 for row in first[1].tolist())


def test_of_references_at_one_place_the_first_are_found(monkeypatch):
    monkeypatch.setattr(neighbors, "_REFERENCES", 16)
    references = np.concatenate([np.full((9, 4), 5), np.ones((200, 4)), np.full((9, 4), 5)])
    _, indices = ExactSearch(f32(references), "euclidean").query(f32(np.zeros((300, 4))), 3)
    assert indices.tolist() == [[9, 10, 11]] * 300


def test_what_a_product_rounds_away_is_told_apart():
    # Six references each at two places far apart: squared lengths of 8,000,000 drop what is below 1/2.
    references = np.concatenate([cloud(6, 8, 25, offset=at, spread=0.01) for at in (-1000, 1000)])
    queries = np.concatenate([cloud(20, 8, 26, offset=at, spread=0.01) for at in (-1000, 1000)])
    exact = np.linalg.norm(queries[:, None].astype(float) - references[None].astype(float), axis=2)
    distances, indices = ExactSearch(references, "euclidean").query(queries, 2)
    assert np.array_equal(indices, np.argsort(exact, axis=1)[:, :2])
    np.testing.assert_allclose(distances, np.sort(exact, axis=1)[:, :2], rtol=1e-5)


def test_excluded_groups_are_not_found():
    references = f32([[0], [1], [2], [3], [4], [5]])
    groups = np.array([7, 7, 8, 8, 9, 9])
    queries = f32([[0], [0], [5]])
    distances, indices = ExactSearch(references, "euclidean").query(
        queries, 2, excluded=np.array([7, 8, 9]), groups=groups
    )
    assert indices.tolist() == [[2, 3], [0, 1], [3, 2]]
    assert distances.tolist() == [[2, 3], [0, 1], [2, 3]]


def test_blocks_of_queries_change_nothing(monkeypatch):
    references, queries = cloud(90, 8, 5), cloud(25, 8, 6)
    groups, excluded = np.arange(90) % 5, np.arange(25) % 5
    search = ExactSearch(references, "euclidean")
    whole = search.query(queries, 4, excluded=excluded, groups=groups)
    monkeypatch.setattr(neighbors, "_QUERIES", 4)
    monkeypatch.setattr(neighbors, "_REFERENCES", 40)
    parts = search.query(queries, 4, excluded=excluded, groups=groups)
    assert np.array_equal(whole[1], parts[1])
    assert np.array_equal(whole[0], parts[0])
    monkeypatch.setattr(neighbors, "_QUERIES", 1)
    monkeypatch.setattr(neighbors, "_REFERENCES", 1)
    assert np.array_equal(whole[1], search.query(queries, 4, excluded=excluded, groups=groups)[1])


@pytest.mark.parametrize("k", [1, 7, 64, 65, 900])
def test_of_many_references_at_once_the_nearest_are_found(k):
    # 700 places, most of them twice, so that many distances are equal; the nearest come first, and last.
    places = cloud(700, 3, 18)
    references = np.concatenate([places, places[:600]])[np.argsort(-cloud(1300, 1, 19)[:, 0])]
    queries = np.concatenate([cloud(6, 3, 20), references[[0, 1299]]])
    distances, indices = ExactSearch(references, "euclidean").query(queries, k)
    exact = np.linalg.norm(queries[:, None].astype(float) - references[None].astype(float), axis=2)
    np.testing.assert_allclose(distances, np.sort(exact, axis=1)[:, :k], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(exact, indices, axis=1), distances, rtol=1e-5, atol=1e-6)
    assert all(len(set(row)) == k for row in indices.tolist())


@pytest.mark.parametrize("in_file", [False, True])
def test_threads_change_nothing(tmp_path, monkeypatch, in_file):
    monkeypatch.setattr(neighbors, "_QUERIES", 8)
    references, queries = cloud(900, 5, 21), cloud(60, 5, 22)
    groups, excluded = np.arange(900) % 5, np.arange(60) % 5
    given = stored(tmp_path, references) if in_file else references
    one, three = (
        ExactSearch(given, "cosine", n_workers).query(queries, 11, excluded=excluded, groups=groups)
        for n_workers in (1, 3)
    )
    assert np.array_equal(one[1], three[1])
    assert np.array_equal(one[0], three[0])


def test_prepare_scales_to_length_one():
    np.testing.assert_allclose(prepare(f32([[3, 4], [0, -2]]), "cosine"), [[0.6, 0.8], [0, -1]], rtol=1e-6)
    assert prepare(f32([[3, 4]]), "euclidean").tolist() == [[3, 4]]
    # Squares of these overflow or vanish in float32.
    np.testing.assert_allclose(
        prepare(f32([[3e30, 4e30], [3e-30, 4e-30]]), "cosine"), [[0.6, 0.8]] * 2, rtol=1e-6
    )


def test_a_vector_of_zeros_is_half_from_every_other():
    distances, _ = ExactSearch(f32([[0, 0], [5, 0], [0, -1]]), "cosine").query(f32([[0, 0], [7, 0]]), 3)
    assert distances.tolist() == [[0, 0.5, 0.5], [0, 0.5, 1]]


def test_recall_by_hand():
    true = f32([[1, 2, 3], [1, 1, 2]])
    found = f32([[1, 2, 4], [1, 2, 2]])
    # First row: 2 of 3. Second: all three are as near as the third true one.
    assert recall(found, true) == pytest.approx(5 / 6)
    assert recall(true, true) == 1.0
    assert recall(true + 10, true) == 0.0


# --- annoy ----------------------------------------------------------------------------------------


def annoy_file(tmp_path, references, distance, trees=20, seed=1):
    annoy = pytest.importorskip("annoy")
    index = annoy.AnnoyIndex(references.shape[1], neighbors.ANNOY_METRIC[distance])
    index.set_seed(seed)
    for i, vector in enumerate(prepare(references, distance)):
        index.add_item(i, vector)
    index.build(trees, n_jobs=1)
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.ann"
    index.save(str(path))
    return path


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_annoy_gives_the_distances_of_the_exact_search(tmp_path, distance):
    references, queries = cloud(1500, 16, 7), cloud(60, 16, 8)
    index = annoy_file(tmp_path, references, distance)
    distances, indices = AnnoySearch(index, references, distance, 1500).query(queries, 10)
    true, true_indices = ExactSearch(references, distance).query(queries, 10)
    agree = indices == true_indices
    assert agree.mean() > 0.9
    assert np.array_equal(distances[agree], true[agree])
    assert (np.diff(distances, axis=1) >= 0).all()
    all_distances, _ = sklearn_search(references, queries, 1500, distance)
    assert (distances >= all_distances[:, :10] * (1 - 1e-4) - 1e-6).all()
    hits = [len(set(a) & set(b)) for a, b in zip(indices.tolist(), true_indices.tolist(), strict=True)]
    assert recall(distances, true) == pytest.approx(sum(hits) / 600)


def test_annoy_inspecting_everything_is_exact(tmp_path):
    references, queries = cloud(300, 8, 9), cloud(30, 8, 10)
    index = annoy_file(tmp_path, references, "cosine")
    found = AnnoySearch(index, references, "cosine", 20 * 300).query(queries, 5)
    true = ExactSearch(references, "cosine").query(queries, 5)
    assert np.array_equal(found[1], true[1])
    assert np.array_equal(found[0], true[0])


def test_annoy_is_deterministic(tmp_path):
    references, queries = cloud(500, 8, 11), cloud(20, 8, 12)
    first, second = (annoy_file(tmp_path, references, "euclidean") for _ in range(2))
    assert first.read_bytes() == second.read_bytes()
    answers = [AnnoySearch(index, references, "euclidean", 50).query(queries, 5) for index in (first, second)]
    assert np.array_equal(answers[0][1], answers[1][1])


def test_annoy_always_gives_k_neighbors(tmp_path):
    # Ten trees propose the same references again and again: of 250 inspected, fewer differ.
    references = cloud(300, 8, 13)
    index = annoy_file(tmp_path, references, "euclidean", trees=10)
    _, indices = AnnoySearch(index, references, "euclidean", 1).query(cloud(5, 8, 14), 250)
    assert [len(set(row)) for row in indices.tolist()] == [250] * 5


def test_annoy_inspects_no_more_than_it_takes(tmp_path, monkeypatch):
    references = cloud(300, 8, 13)
    search = AnnoySearch(annoy_file(tmp_path, references, "euclidean", trees=10), references, "euclidean", 1)
    asked = []

    class Index:
        def get_n_trees(self):
            return 10

        def get_nns_by_vector(self, vector, k, search_k):
            asked.append(search_k)
            return list(range(min(k, search_k // 10)))

    monkeypatch.setattr(search, "_index", Index())
    search.query(cloud(1, 8, 14), 25)
    assert asked == [25, 50, 100, 200, 400]


def test_an_index_of_other_references_is_noticed(tmp_path):
    references = cloud(60, 8, 15)
    index = annoy_file(tmp_path, references, "cosine")
    assert AnnoySearch(index, references, "cosine", 100).holds_references()
    changed = references.copy()
    changed[59, 7] += 1e-3
    assert not AnnoySearch(index, changed, "cosine", 100).holds_references()
    with pytest.raises(OSError, match="60 items, expected 59"):
        AnnoySearch(index, references[:59], "cosine", 100)


def test_annoy_missing_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "annoy", None)
    with pytest.raises(ExtraMissingError) as caught:
        AnnoySearch(Path("index.ann"), cloud(3, 2, 0), "cosine", 1)
    assert "annoy" in caught.value.what
    assert caught.value.fix == "pip install 'stinfer[annoy]'"


# --- references that stay in their file --------------------------------------------------------------


def stored(tmp_path, values):
    path = tmp_path / "references.bin"
    path.write_bytes(b"head" + values.tobytes())
    return StoredArray(path, 4, values.dtype, values.shape)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_references_in_a_file_are_searched_as_those_in_memory(tmp_path, distance, monkeypatch):
    monkeypatch.setattr(neighbors, "_REFERENCES", 64)
    references, queries = cloud(1000, 12, 16, offset=3.0), cloud(30, 12, 17, offset=3.0)
    held = ExactSearch(references, distance).query(queries, 20)
    found = ExactSearch(stored(tmp_path, references), distance).query(queries, 20)
    assert np.array_equal(found[1], held[1])
    assert np.array_equal(found[0], held[0])


def test_of_a_large_file_few_references_are_held_however_few_queries_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(neighbors, "_BLOCK_BYTES", 4 * 12 * 100)
    references = stored(tmp_path, cloud(1000, 12, 23))
    search = ExactSearch(references, "euclidean")
    held = []

    def read(self, rows, of=StoredArray.__getitem__):
        held.append(of(self, rows))
        return held[-1]

    monkeypatch.setattr(StoredArray, "__getitem__", read)
    search.query(cloud(1, 12, 24), 3)
    assert [len(block) for block in held] == [100] * 10


def test_the_nearest_are_kept_block_by_block():
    nearest = Nearest(2, 3)
    nearest.add(f32([[5, 1, 4, 2], [0, 0, 0, 0]]), 0, Scratch())
    nearest.add(f32([[3, -4, 9, 0], [0, -1, 0, 7]]), 4, Scratch())
    # 5, 4 and 9. What equals the third does not displace it: 7, and the two zeros that came first.
    assert nearest.indices().tolist() == [[0, 2, 6], [0, 1, 7]]


# --- choice ---------------------------------------------------------------------------------------


def bank(n_refs=10, recall_=1.0, index=None):
    settings = SimpleNamespace(distance="cosine", annoy_recall=recall_, annoy_search_k=100)
    return SimpleNamespace(
        settings=settings,
        n_refs=n_refs,
        embedding=cloud(10, 4, 16),
        path="bank.h5",
        annoy_index=lambda target: index is not None and bool(target.write_bytes(index.read_bytes())),
    )


@pytest.mark.parametrize(
    ("choice", "n_refs", "recall_", "expected"),
    [
        ("exact", 10**6, 1.0, "exact"),
        ("auto", 10, 1.0, "exact"),  # few references
        ("auto", 1_428_572, 0.98, "exact"),  # an index that misses too much
        ("auto", 1_428_571, 0.99, "exact"),  # of 4 numbers, and 80 each to look at: 119,999,964
        ("auto", 1_428_572, 0.99, "annoy"),
        ("annoy", 10, 0.5, "annoy"),
    ],
)
def test_choice_of_search(tmp_path, choice, n_refs, recall_, expected):
    index = annoy_file(tmp_path, cloud(10, 4, 16), "cosine")
    assert choose_search(choice, bank(n_refs, recall_, index)).name == expected


def test_auto_without_annoy_is_exact(monkeypatch):
    monkeypatch.setattr(neighbors, "annoy_installed", lambda: False)
    assert choose_search("auto", bank(1_428_572)).name == "exact"


def test_annoy_of_a_bank_without_index_is_refused():
    with pytest.raises(SettingError, match=r"--search annoy: bank bank\.h5 holds no Annoy index"):
        choose_search("annoy", bank())
