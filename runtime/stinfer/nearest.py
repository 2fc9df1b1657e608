"""The best of what was seen so far, for some queries: what the exact search keeps from block to block."""

from __future__ import annotations

import numpy as np

from stinfer.contract import F32, I64
from stinfer.memory import Scratch


class Nearest:
    """The best of what was seen so far, for some queries.

    Of references equally near, those that came first are kept.

    Parameters
    ----------
    n, k : queries, and how many to keep of each
    """

    def __init__(self, n: int, k: int) -> None:
        self._nearness = np.full((n, k), -np.inf, dtype=np.float32)
        self._indices: I64 = np.full((n, k), -1, dtype=np.int64)
        # What lies beyond the k-th of those kept, and is not sorted in yet: query, reference and nearness.
        self._pending: list[tuple[I64, I64, F32]] = []
        self._limit: F32 | None = None

    def add(self, nearness: F32, first: int, scratch: Scratch) -> None:
        """Look at further references.

        Parameters
        ----------
        nearness : (n, n_block), larger is nearer; -inf for what may not be found
        first : number of the first of them; ascending from call to call
        scratch : memory that is free to use
        """
        n, k = self._indices.shape
        if self._limit is None:
            self._limit = _surely_reached(nearness, k)
        # Hardly any of them comes before the k-th of those before.
        is_better = np.greater(nearness, self._limit, out=scratch.empty("better", nearness.shape, np.bool_))
        better = np.flatnonzero(is_better)
        rows, columns = np.divmod(better, nearness.shape[1])
        self._pending.append((rows, first + columns, nearness.reshape(-1)[better]))
        # Sorting in takes longer than to look at some that turn out not to be among the nearest.
        if sum(len(rows) for rows, _, _ in self._pending) > n * k:
            self._sort_in()

    def indices(self) -> I64:
        """Return the nearest, (n, k), ascending numbers; -1 where there are not so many."""
        self._sort_in()
        return self._indices

    def _sort_in(self) -> None:
        n, k = self._indices.shape
        if not self._pending:
            return
        rows, found, nearness = (np.concatenate(parts) for parts in zip(*self._pending, strict=True))
        self._pending.clear()
        # Stable: of a query, in the order of the references.
        order = np.argsort(rows, kind="stable")
        rows = rows[order]
        counts = np.bincount(rows, minlength=n)
        slots = k + np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        values = np.full((n, k + int(counts.max(initial=0))), -np.inf, dtype=np.float32)
        indices = np.full(values.shape, -1, dtype=np.int64)
        values[:, :k], indices[:, :k] = self._nearness, self._indices
        values[rows, slots], indices[rows, slots] = nearness[order], found[order]
        kth = np.partition(values, values.shape[1] - k, axis=1)[:, values.shape[1] - k, np.newaxis]
        kept = values > kth
        equal = values == kth
        kept |= equal & (np.cumsum(equal, axis=1) <= k - kept.sum(axis=1, keepdims=True))
        self._nearness, self._indices = values[kept].reshape(n, k), indices[kept].reshape(n, k)
        self._limit = kth if self._limit is None else np.maximum(self._limit, kth)


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
