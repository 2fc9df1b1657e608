"""The nearest references of each query, exactly or through Annoy.

Both ways give the same distances: Annoy only proposes candidates, whose distances are then
computed as the exact search computes them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

from stinfer.bank import Bank
from stinfer.contract import F32, I64
from stinfer.errors import BankAlteredError, ExtraMissingError, SettingError, check_choice

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
# Elements of the block of similarities held at once: 256 MB.
_BLOCK = 64_000_000


class Search(Protocol):
    """A way to find neighbors."""

    name: str

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
    """Compare every query with every reference, as a matrix product.

    Parameters
    ----------
    references : (n_refs, dim)
    distance : ``cosine`` is 1 - cos, 0 to 2; ``euclidean`` the length of the difference
    """

    name = "exact"

    def __init__(self, references: F32, distance: Distance) -> None:
        self._references = prepare(references, distance)
        self._distance: Distance = distance
        # Differences are what counts: without the common part a product tells small ones apart.
        self._center = self._references.mean(axis=0, dtype=np.float64).astype(np.float32)
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
        n_refs = len(self._references)
        found = np.empty((len(prepared), k), dtype=np.int64)
        step = max(_BLOCK // n_refs, 1)
        for start in range(0, len(prepared), step):
            block = prepared[start : start + step] - self._center
            # Larger is nearer: q.r - |r|²/2 orders as the distance does, for cosine too (|r| = 1).
            nearness = block @ self._centered.T - self._half_norms
            if excluded is not None and groups is not None:
                nearness[excluded[start : start + step, None] == groups[None, :]] = -np.inf
            found[start : start + step] = np.argpartition(nearness, n_refs - k, axis=1)[:, n_refs - k :]
        return _ranked(prepared, self._references, found, self._distance)


class AnnoySearch:
    """Ask an Annoy index for candidates and rank them exactly.

    Parameters
    ----------
    index : bytes of the index, as Annoy saved them
    references : (n_refs, dim), what the index was built from
    distance : as in `ExactSearch`
    search_k : nodes to inspect per query

    Raises
    ------
    ExtraMissingError
        Annoy is not installed.
    OSError
        The bytes are no index of so many references.
    """

    name = "annoy"

    def __init__(self, index: bytes, references: F32, distance: Distance, search_k: int) -> None:
        self._references = prepare(references, distance)
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
        return _ranked(prepared, self._references, found, self._distance)

    def holds_references(self) -> bool:
        """Say whether the index holds just the references, value for value."""
        if self._index.get_n_items() != len(self._references):
            return False
        return all(
            np.array_equal(np.asarray(self._index.get_item_vector(i), dtype=np.float32), vector)
            for i, vector in enumerate(self._references)
        )


def choose_search(choice: SearchChoice, bank: Bank) -> Search:
    """Prepare the search of a bank's references.

    Parameters
    ----------
    choice : ``auto`` takes Annoy for large banks whose index was measured to find at least 99 % of
        the true neighbors, and the exact search for all others
    bank : the bank

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
        return ExactSearch(bank.embedding, settings.distance)
    index = bank.annoy_index()
    if index is None:
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


def recall(found: F32, true: F32) -> float:
    """Return the share of neighbors found that are as near as the true ones.

    By distance, not by index: of references equally far, either is right.

    Parameters
    ----------
    found, true : (n, k), ascending distances, computed in the same way
    """
    return float((found <= true[:, -1:]).mean())


def _ranked(queries: F32, references: F32, found: I64, distance: Distance) -> tuple[F32, I64]:
    """Compute the distances from differences, so that equal vectors are exactly 0 apart; sort."""
    # By index first, so that ties come in the references' order.
    found = np.sort(found, axis=1)
    distances = np.empty(found.shape, dtype=np.float32)
    for i, row in enumerate(found):
        difference = references[row] - queries[i]
        squared = np.einsum("kd,kd->k", difference, difference)
        distances[i] = squared / 2 if distance == "cosine" else np.sqrt(squared)
    order = np.argsort(distances, axis=1, kind="stable")
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(found, order, axis=1)


def _load_annoy(index: bytes, dim: int, distance: Distance) -> Any:
    try:
        from annoy import AnnoyIndex
    except ImportError as error:
        raise ExtraMissingError(package="annoy", extra="annoy", purpose="--search annoy") from error
    loaded = AnnoyIndex(dim, ANNOY_METRIC[distance])
    # Annoy reads only files, and maps them: on POSIX the mapping outlives the name.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.ann"
        path.write_bytes(index)
        loaded.load(str(path), prefault=True)
    return loaded
