"""The nearest references of every origin of a bank, each origin searched by itself."""

from __future__ import annotations

import numpy as np

from stinfer.contract import F32, I64
from stinfer.neighbors import Distance, ExactSearch
from stinfer.stored_array import StoredArray, take_rows


class OriginSearch:
    """Exact searches, one an origin; the distances are those of a search among all references.

    Parameters
    ----------
    references : (n_refs, dim)
    origin_of : (n_refs,), origin of each, 0 to n_origins - 1
    n_origins : of them; one may have no reference
    distance : as in `ExactSearch`
    """

    def __init__(
        self, references: F32 | StoredArray, origin_of: I64, n_origins: int, distance: Distance
    ) -> None:
        self._members = [np.flatnonzero(origin_of == origin) for origin in range(n_origins)]
        self._searches = [
            ExactSearch(take_rows(references, members), distance) if len(members) else None
            for members in self._members
        ]

    @property
    def n_origins(self) -> int:
        """Number of origins."""
        return len(self._members)

    def query(self, queries: F32, k: int) -> tuple[F32, I64]:
        """Find the nearest references of each origin.

        Parameters
        ----------
        queries : (n, dim)
        k : how many; where an origin has fewer, all

        Returns
        -------
        distances, indices : (n, n_origins, k), see `stinfer.voters.OriginNeighbors`
        """
        shape = (len(queries), len(self._members), k)
        distances = np.full(shape, np.inf, dtype=np.float32)
        indices = np.zeros(shape, dtype=np.int64)
        for origin, (members, search) in enumerate(zip(self._members, self._searches, strict=True)):
            if search is not None:
                n_found = min(k, len(members))
                near, found = search.query(queries, n_found)
                distances[:, origin, :n_found], indices[:, origin, :n_found] = near, members[found]
        return distances, indices
