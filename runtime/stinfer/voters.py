"""Who votes for a gene that not every origin of a bank measures: the nearest references that do.

The k nearest references of every origin are kept. Of the genes that some origins measure, the k nearest of
those origins' references vote, as they would in a bank of those origins alone: a neighbor that was not
measured is passed over, and the next one takes its place. So no gene is without voters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stinfer.contract import F32, I64, Bool
from stinfer.predict import Weighting, neighbor_weights


@dataclass(frozen=True)
class OriginNeighbors:
    """The nearest references of each origin, from which those of any set of origins follow.

    Parameters
    ----------
    distances : (n_spots, n_origins, k), ascending; infinite where an origin has fewer references
    indices : (n_spots, n_origins, k), references; any where the distance is infinite
    weighting, temperature : how they vote, see `neighbor_weights`
    """

    distances: F32
    indices: I64
    weighting: Weighting
    temperature: float

    def __getitem__(self, spots: slice) -> OriginNeighbors:
        return OriginNeighbors(self.distances[spots], self.indices[spots], self.weighting, self.temperature)

    def voters(self, origins: Bool) -> tuple[I64, F32]:
        """Return the k nearest references of some origins, and their weights.

        Parameters
        ----------
        origins : (n_origins,), at least one

        Returns
        -------
        indices : (n_spots, k), nearest first, equals in the order of the references
        weights : (n_spots, k), rows sum to 1, or are 0 where these origins have no reference at all
        """
        n_spots, _, k = self.distances.shape
        distances = self.distances[:, origins].reshape(n_spots, -1)
        indices = self.indices[:, origins].reshape(n_spots, -1)
        order = np.lexsort((indices, distances), axis=1)[:, :k]
        distances = np.take_along_axis(distances, order, axis=1)
        return np.take_along_axis(indices, order, axis=1), self._weights(distances)

    def _weights(self, distances: F32) -> F32:
        there = np.isfinite(distances)
        alone = ~there.any(axis=1, keepdims=True)
        # A row without any has nothing to weigh; it is told apart by its weights of 0.
        weights = neighbor_weights(
            np.where(alone, np.float32(1), distances), self.weighting, self.temperature
        )
        weights = np.where(there, weights, np.float32(0))
        total = weights.sum(axis=1, keepdims=True)
        return np.asarray(weights / np.where(total > 0, total, np.float32(1)), dtype=np.float32)
