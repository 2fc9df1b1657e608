"""The nearest references of each query, exactly or through Annoy.

Both ways give the same distances: Annoy only proposes candidates, whose distances are then
computed as the exact search computes them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from functools import partial
from itertools import repeat
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, Protocol, get_args

import numpy as np

from stinfer.ahead import in_parallel
from stinfer.bank import Bank
from stinfer.contract import F32, I64
from stinfer.errors import BankAlteredError, ExtraMissingError, SettingError, check_choice
from stinfer.memory import Scratch
from stinfer.nearest import Nearest
from stinfer.stored_array import StoredArray, iter_blocks, take_rows

Distance = Literal["cosine", "euclidean"]
SearchChoice = Literal["auto", "exact", "annoy"]
# The exact search goes through this many numbers in 2 to 3 ms of a core; from there on, shared between two
# cores, it takes longer than Annoy at a recall of 0.99. To look at what a product gave counts as 80 numbers.
_ANNOY_FROM_NUMBERS, _LOOKED_AT = 120_000_000, 80
ANNOY_MIN_RECALL = 0.99
# Annoy's names for what orders neighbors the same way.
ANNOY_METRIC: dict[Distance, Literal["angular", "euclidean"]] = {
    "cosine": "angular",
    "euclidean": "euclidean",
}
# Queries and references that are compared at once; with fewer queries more references. Their similarities,
# 8 MB, stay in the cache.
_QUERIES, _REFERENCES = 256, 8192
# Of references that stay in their file, read at once.
_BLOCK_BYTES = 8 << 20
# Kept beyond what is asked for: more than ever lie within a rounding of the last. So what is found does not
# depend on how products round.
_SURPLUS = 8
# Numbers of queries and of their neighbors that are subtracted at once: 1 MB.
_DIFFERENCES = 1 << 18
# Queries to collect for each pass over references that stay in their file: to read them is a tenth of it.
_QUERIES_A_PASS = 2048


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
        self._center = center_of(references, distance)
        self._references = references
        self._augmented: F32 | None = None
        self.queries_at_once = _QUERIES_A_PASS
        if not isinstance(references, StoredArray):
            self.queries_at_once = _QUERIES
            self._references = prepare(references, distance)
            self._augmented = np.empty((len(references), references.shape[1] + 1), dtype=np.float32)
            self._augment(self._references, self._augmented)

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
        augmented = np.ones((len(prepared), prepared.shape[1] + 1), dtype=np.float32)
        np.subtract(prepared, self._center, out=augmented[:, :-1])
        parts = [slice(i, i + _QUERIES) for i in range(0, len(prepared), _QUERIES)]
        n_kept = min(k + _SURPLUS, len(self._references))
        nearest = [Nearest(len(augmented[part]), n_kept) for part in parts]
        n_workers = max(min(self._n_workers, len(parts)), 1)
        unused: SimpleQueue[Scratch] = SimpleQueue()
        for _ in range(n_workers):
            unused.put(Scratch())

        def look(part: slice, found: Nearest, block: tuple[int, F32]) -> None:
            first, references = block
            scratch = unused.get()
            try:
                shape = (len(augmented[part]), len(references))
                nearness = scratch.empty("nearness", shape, np.float32)
                np.matmul(augmented[part], references.T, out=nearness)
                if excluded is not None and groups is not None:
                    others = groups[None, first : first + len(references)]
                    nearness[excluded[part, None] == others] = -np.inf
                found.add(nearness, first, scratch)
            finally:
                unused.put(scratch)

        with (
            nullcontext() if n_workers < 2 else ThreadPoolExecutor(n_workers) as pool,
            closing(self._blocks(len(queries))) as blocks,
        ):
            for block in blocks:
                list((map if pool is None else pool.map)(look, parts, nearest, repeat(block)))
        found_rows = np.concatenate(
            [found.indices() for found in nearest] or [np.empty((0, n_kept), dtype=np.int64)]
        )
        distances, indices = ranked(prepared, self._rows, found_rows, self._distance)
        return distances[:, :k], indices[:, :k]

    def _blocks(self, n_queries: int) -> Generator[tuple[int, F32], None, None]:
        """Give references, augmented, and from which on; those in a file are read ahead by another thread."""
        n_refs, dim = self._references.shape
        step = _REFERENCES * max(_QUERIES // max(n_queries, 1), 1)
        if self._augmented is not None:
            for first in range(0, n_refs, step):
                yield first, self._augmented[first : first + step]
            return
        step = min(step, max(_BLOCK_BYTES // (4 * dim), 1))
        # One is looked at, and up to two are read meanwhile.
        memory = [Scratch(), Scratch(), Scratch()]
        tasks = (
            partial(self._read, slice(first, min(first + step, n_refs)), memory[number % len(memory)])
            for number, first in enumerate(range(0, n_refs, step))
        )
        with closing(in_parallel(tasks, 1)) as blocks:
            yield from blocks

    def _read(self, rows: slice, scratch: Scratch) -> tuple[int, F32]:
        augmented = scratch.empty("block", (rows.stop - rows.start, len(self._center) + 1), np.float32)
        self._augment(prepare(self._references[rows], self._distance), augmented)
        return rows.start, augmented

    def _augment(self, prepared: F32, augmented: F32) -> None:
        """Fill in references less the center, and behind them half their squared lengths, less than 0.

        Behind a query less the center is a 1. So a product is q.r - |r|²/2: larger is nearer, and orders as
        the distance does, for cosine too (|r| = 1).
        """
        centered = np.subtract(prepared, self._center, out=augmented[:, :-1])
        np.einsum("nd,nd->n", centered, centered, out=augmented[:, -1])
        augmented[:, -1] /= -2

    def _rows(self, rows: I64) -> F32:
        if isinstance(self._references, StoredArray):
            # Queries that follow one another share most of their neighbors.
            used, places = np.unique(rows, return_inverse=True)
            return prepare(self._references.take(used), self._distance)[places]
        return self._references[rows]


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
        # It counts the nodes of all trees; so many are all there are.
        every = self._index.get_n_trees() * len(self._references)
        for i, vector in enumerate(prepared):
            search_k = max(self._search_k, k)
            candidates = self._index.get_nns_by_vector(vector, k, search_k=search_k)
            while len(candidates) < k and search_k < every:
                # Several trees propose the same references. To inspect all nodes takes a second.
                search_k = min(2 * search_k, every)
                candidates = self._index.get_nns_by_vector(vector, k, search_k=search_k)
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
    choice : ``auto`` takes Annoy for large banks, 200,000 references of 512 numbers or 1,250,000 of 16, whose
        index was measured to find at least 99 % of the true neighbors, and the exact search for all others
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
    n_numbers = bank.n_refs * (bank.embedding.shape[1] + _LOOKED_AT)
    worthwhile = n_numbers >= _ANNOY_FROM_NUMBERS and settings.annoy_recall >= ANNOY_MIN_RECALL
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
    found : (n, k), references of each query; -1 for none, which are infinitely far
    distance : as in `ExactSearch`
    """
    # By index first, so that ties come in the references' order.
    found = np.sort(found, axis=1)
    distances = np.empty(found.shape, dtype=np.float32)
    step = max(_DIFFERENCES // max(found.shape[1] * queries.shape[1], 1), 1)
    for first in range(0, len(found), step):
        some = slice(first, first + step)
        difference = rows(np.maximum(found[some], 0).reshape(-1)).reshape(*found[some].shape, -1)
        difference = difference - queries[some, np.newaxis]
        squared = np.einsum("nkd,nkd->nk", difference, difference)
        distances[some] = squared / 2 if distance == "cosine" else np.sqrt(squared)
    distances[found < 0] = np.inf
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
