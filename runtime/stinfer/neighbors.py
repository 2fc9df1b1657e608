"""The nearest references of each query, exactly or through Annoy.

Both ways give the same distances: Annoy only proposes candidates, whose distances are then
computed as the exact search computes them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

from stinfer.bank import Bank
from stinfer.contract import F32, I64
from stinfer.errors import BankAlteredError, ExtraMissingError, SettingError, check_choice
from stinfer.stored_array import StoredArray, iter_blocks, take_rows

Distance = Literal["cosine", "euclidean"]
SearchChoice = Literal["auto", "exact", "annoy"]
# Below this many references a matrix product is faster than Annoy at the recall that `auto` wants.
ANNOY_FROM_REFS = 200_000
ANNOY_MIN_RECALL = 0.99
# Annoy's names for what orders neighbors the same way.
ANNOY_METRIC: dict[Distance, Literal["angular", "euclidean"]] = {
    "cosine": "angular",
    "euclidean": "euclidean",
}
# Queries and references that are compared at once; with fewer queries more references. Their similarities,
# 8 MB, stay in the cache.
_QUERIES, _REFERENCES = 256, 8192
# Numbers of queries and of their neighbors that are subtracted at once: 1 MB.
_DIFFERENCES = 1 << 18
# Queries to collect for each pass over references that stay in their file.
_QUERIES_A_PASS = 1024


class Search(Protocol):
    """A way to find neighbors.

    Attributes
    ----------
    name : str
        ``exact`` or ``annoy``.
    queries_at_once : int
        How many queries it is best asked at once; what more costs is memory.
    """

    name: str
    queries_at_once: int

    def query(self, queries: F32, k: int) -> tuple[F32, I64]:
        """Find the `k` nearest references of each query.

        Parameters
        ----------
        queries : (n, dim)
        k : at most the number of references

        Returns
        -------
        distances : (n, k), ascending
        indices : (n, k), rows of the references
        """


class ExactSearch:
    """Compare every query with every reference, as matrix products, block by block.

    Parameters
    ----------
    references : (n_refs, dim); where they stay in their file, they are read once for all queries of a call
    distance : ``cosine`` is 1 - cos, 0 to 2; ``euclidean`` the length of the difference
    n_workers : threads that blocks of queries are shared between
    """

    name = "exact"

    def __init__(self, references: F32 | StoredArray, distance: Distance, n_workers: int = 1) -> None:
        self._distance: Distance = distance
        self._n_workers = n_workers
        self._stored = references if isinstance(references, StoredArray) else None
        self.queries_at_once = _QUERIES if self._stored is None else _QUERIES_A_PASS
        self._center = center_of(references, distance)
        self._n_refs = len(references)
        if not isinstance(references, StoredArray):
            self._references = prepare(references, distance)
            self._centered = self._references - self._center
            self._half_norms = (self._centered * self._centered).sum(axis=1) / 2

    def query(
        self, queries: F32, k: int, excluded: I64 | None = None, groups: I64 | None = None
    ) -> tuple[F32, I64]:
        """Find the nearest references; see `Search.query`.

        Parameters
        ----------
        queries : (n, dim)
        k : at most the number of references that may be found
        excluded : (n,), a group of references that each query must not find
        groups : (n_refs,), the group of each reference; needed with `excluded`
        """
        prepared = prepare(queries, self._distance)
        centered = prepared - self._center
        parts = [slice(i, i + _QUERIES) for i in range(0, len(queries), _QUERIES)]
        nearest = [Nearest(len(centered[part]), k) for part in parts]
        step = _REFERENCES * max(_QUERIES // max(len(queries), 1), 1)

        def look(part: slice, found: Nearest, block: tuple[int, F32, F32]) -> None:
            first, references, half_norms = block
            # Larger is nearer: q.r - |r|²/2 orders as the distance does, for cosine too (|r| = 1).
            nearness = centered[part] @ references.T
            nearness -= half_norms
            if excluded is not None and groups is not None:
                others = groups[None, first : first + len(references)]
                nearness[excluded[part, None] == others] = -np.inf
            found.add(nearness, first)

        n_workers = min(self._n_workers, len(parts))
        with nullcontext() if n_workers < 2 else ThreadPoolExecutor(n_workers) as pool:
            for block in self._blocks(step):
                list((map if pool is None else pool.map)(look, parts, nearest, repeat(block)))
        found_rows = np.concatenate(
            [found.indices for found in nearest] or [np.empty((0, k), dtype=np.int64)]
        )
        return ranked(prepared, self._rows, found_rows, self._distance)

    def _blocks(self, step: int) -> Iterator[tuple[int, F32, F32]]:
        """Give references less the center, and half their squared lengths, from which reference on."""
        if self._stored is None:
            for first in range(0, self._n_refs, step):
                block = slice(first, first + step)
                yield first, self._centered[block], self._half_norms[block]
            return
        for first in range(0, self._n_refs, step):
            centered = prepare(self._stored[first : first + step], self._distance) - self._center
            yield first, centered, (centered * centered).sum(axis=1) / 2

    def _rows(self, rows: I64) -> F32:
        if self._stored is None:
            return self._references[rows]
        return prepare(self._stored.take(rows), self._distance)


class Nearest:
    """The best of what was seen so far, for some queries.

    Parameters
    ----------
    n, k : queries, and how many to keep of each

    Attributes
    ----------
    indices : ndarray
        (n, k), in no order.
    """

    def __init__(self, n: int, k: int) -> None:
        self._nearness = np.full((n, k), -np.inf, dtype=np.float32)
        self.indices: I64 = np.zeros((n, k), dtype=np.int64)
        self._any = False

    def add(self, nearness: F32, first: int) -> None:
        """Look at further references.

        Parameters
        ----------
        nearness : (n, n_block), larger is nearer
        first : number of the first of them
        """
        n, k = self.indices.shape
        limit = self._nearness.min(axis=1, keepdims=True)
        if not self._any:
            limit = np.maximum(limit, _surely_reached(nearness, k))
            self._any = True
        # Hardly any of them comes before the k-th of those before.
        better = np.flatnonzero(nearness > limit)
        if not better.size:
            return
        rows, columns = np.divmod(better, nearness.shape[1])
        counts = np.bincount(rows, minlength=n)
        slots = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        values = np.full((n, k + counts.max()), -np.inf, dtype=np.float32)
        indices = np.zeros(values.shape, dtype=np.int64)
        values[:, :k], indices[:, :k] = self._nearness, self.indices
        values[rows, k + slots] = nearness.reshape(-1)[better]
        indices[rows, k + slots] = first + columns
        chosen = np.argpartition(-values, k - 1, axis=1)[:, :k]
        self._nearness = np.take_along_axis(values, chosen, axis=1)
        self.indices = np.take_along_axis(indices, chosen, axis=1)


def _surely_reached(nearness: F32, k: int) -> F32:
    """Return what at least `k` references of a block exceed, and few more, (n, 1); -inf if it has no more."""
    n, n_block = nearness.shape
    if n_block <= k:
        return np.full((n, 1), -np.inf, dtype=np.float32)
    # The best of every group: so many of them are enough to tell.
    size = max(n_block // (4 * k), 1)
    n_groups = n_block // size
    best = nearness[:, : size * n_groups].reshape(n, size, n_groups).max(axis=1)
    kth = np.partition(best, n_groups - k, axis=1)[:, n_groups - k, np.newaxis]
    return np.asarray(np.nextafter(kth, np.float32(-np.inf)), dtype=np.float32)


class AnnoySearch:
    """Ask an Annoy index for candidates and rank them exactly.

    Parameters
    ----------
    index : file of the index, as Annoy saved it; it is mapped into memory, not read
    references : (n_refs, dim), what the index was built from
    distance : as in `ExactSearch`
    search_k : nodes to inspect per query

    Raises
    ------
    ExtraMissingError
        Annoy is not installed.
    OSError
        The file is no index of so many references.
    """

    name = "annoy"
    queries_at_once = 1

    def __init__(self, index: Path, references: F32 | StoredArray, distance: Distance, search_k: int) -> None:
        self._references = references
        self._distance: Distance = distance
        self._search_k = search_k
        self._index = _load_annoy(index, references.shape[1], distance)
        if self._index.get_n_items() != len(references):
            msg = f"it holds {self._index.get_n_items()} items, expected {len(references)}"
            raise OSError(msg)

    def query(self, queries: F32, k: int) -> tuple[F32, I64]:
        """Find the nearest references; see `Search.query`."""
        prepared = prepare(queries, self._distance)
        found = np.empty((len(prepared), k), dtype=np.int64)
        for i, vector in enumerate(prepared):
            candidates = self._index.get_nns_by_vector(vector, k, search_k=max(self._search_k, k))
            if len(candidates) < k:
                # It counts the nodes of all trees; so many are all there are.
                every = self._index.get_n_trees() * len(self._references)
                candidates = self._index.get_nns_by_vector(vector, k, search_k=every)
            found[i] = candidates
        return ranked(prepared, self._rows, found, self._distance)

    def _rows(self, rows: I64) -> F32:
        return prepare(take_rows(self._references, rows), self._distance)

    def holds_references(self) -> bool:
        """Say whether the index holds just the references, value for value."""
        if self._index.get_n_items() != len(self._references):
            return False
        vectors = (
            vector for block in iter_blocks(self._references) for vector in prepare(block, self._distance)
        )
        return all(
            np.array_equal(np.asarray(self._index.get_item_vector(i), dtype=np.float32), vector)
            for i, vector in enumerate(vectors)
        )


def choose_search(choice: SearchChoice, bank: Bank, n_workers: int = 1) -> Search:
    """Prepare the search of a bank's references.

    Parameters
    ----------
    choice : ``auto`` takes Annoy for large banks whose index was measured to find at least 99 % of
        the true neighbors, and the exact search for all others
    bank : the bank
    n_workers : see `ExactSearch`

    Raises
    ------
    SettingError
        ``annoy`` was asked for and the bank has no index.
    ExtraMissingError
        ``annoy`` was asked for and Annoy is not installed.
    """
    check_choice("search", choice, get_args(SearchChoice))
    settings = bank.settings
    worthwhile = bank.n_refs >= ANNOY_FROM_REFS and settings.annoy_recall >= ANNOY_MIN_RECALL
    if choice == "exact" or (choice == "auto" and not (worthwhile and annoy_installed())):
        return ExactSearch(bank.embedding, settings.distance, n_workers)
    # Annoy reads only files, and maps them: on POSIX the mapping outlives the name.
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index.ann"
        if not bank.annoy_index(index):
            what = f"--search annoy: bank {bank.path} holds no Annoy index"
            raise SettingError(what, "use --search exact, or build the bank where Annoy is installed")
        try:
            return AnnoySearch(index, bank.embedding, settings.distance, settings.annoy_search_k)
        except OSError as error:
            raise BankAlteredError(bank.path, "Annoy index", str(error)) from error


def annoy_installed() -> bool:
    """Say whether Annoy can be imported."""
    import importlib.util

    return importlib.util.find_spec("annoy") is not None


def prepare(vectors: F32, distance: Distance) -> F32:
    """Scale vectors to length one for cosine; leave them for Euclidean.

    A vector of zeros has no direction and stays as it is, 1/2 from every other.
    """
    if distance == "euclidean":
        return np.ascontiguousarray(vectors, dtype=np.float32)
    norms = np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    return np.asarray(vectors / np.where(norms > 0, norms, 1.0), dtype=np.float32)


def center_of(references: F32 | StoredArray, distance: Distance) -> F32:
    """Return the mean of prepared references, (dim,).

    Differences are what counts: without the common part a product tells small ones apart.
    """
    total = sum(prepare(block, distance).sum(axis=0, dtype=np.float64) for block in iter_blocks(references))
    return np.asarray(total / len(references), dtype=np.float32)


def recall(found: F32, true: F32) -> float:
    """Return the share of neighbors found that are as near as the true ones.

    By distance, not by index: of references equally far, either is right.

    Parameters
    ----------
    found, true : (n, k), ascending distances, computed in the same way
    """
    return float((found <= true[:, -1:]).mean())


def ranked(queries: F32, rows: Callable[[I64], F32], found: I64, distance: Distance) -> tuple[F32, I64]:
    """Compute the distances from differences, so that equal vectors are exactly 0 apart; sort.

    Parameters
    ----------
    queries : (n, dim), prepared
    rows : gives some references, prepared
    found : (n, k), references of each query
    distance : as in `ExactSearch`
    """
    # By index first, so that ties come in the references' order.
    found = np.sort(found, axis=1)
    distances = np.empty(found.shape, dtype=np.float32)
    step = max(_DIFFERENCES // max(found.shape[1] * queries.shape[1], 1), 1)
    for first in range(0, len(found), step):
        some = slice(first, first + step)
        difference = rows(found[some].reshape(-1)).reshape(*found[some].shape, -1)
        difference = difference - queries[some, np.newaxis]
        squared = np.einsum("nkd,nkd->nk", difference, difference)
        distances[some] = squared / 2 if distance == "cosine" else np.sqrt(squared)
    order = np.argsort(distances, axis=1, kind="stable")
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(found, order, axis=1)


def _load_annoy(index: Path, dim: int, distance: Distance) -> Any:
    try:
        from annoy import AnnoyIndex
    except ImportError as error:
        raise ExtraMissingError(package="annoy", extra="annoy", purpose="--search annoy") from error
    loaded = AnnoyIndex(dim, ANNOY_METRIC[distance])
    loaded.load(str(index))
    return loaded
