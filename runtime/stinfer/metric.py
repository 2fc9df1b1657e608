"""The bank's metric: an affine map of embeddings, fitted when the bank is built."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stinfer.contract import F32


@dataclass(frozen=True)
class AffineMetric:
    """Maps an embedding x to (x - mean) components.

    Parameters
    ----------
    mean : (dim,)
    components : (dim, n) a matrix, or (dim,) the diagonal of one
    """

    mean: F32
    components: F32

    def apply(self, embeddings: F32) -> F32:
        """Map embeddings.

        Parameters
        ----------
        embeddings : (n_spots, dim), as the backbone gives them

        Returns
        -------
        (n_spots, dim) or (n_spots, n)
        """
        centered = embeddings - self.mean
        if self.components.ndim == 1:
            return np.asarray(centered * self.components, dtype=np.float32)
        return np.asarray(centered @ self.components, dtype=np.float32)


def identity_metric(dim: int) -> AffineMetric:
    """Return the metric that changes nothing."""
    return AffineMetric(np.zeros(dim, dtype=np.float32), np.ones(dim, dtype=np.float32))


def standardizing_metric(embeddings: F32) -> AffineMetric:
    """Fit the metric that gives every component mean 0 and standard deviation 1.

    A component that does not vary is left out (multiplied by 0): it tells references apart by
    rounding alone.

    Parameters
    ----------
    embeddings : (n_refs, dim)
    """
    exact = embeddings.astype(np.float64)
    mean, deviation = exact.mean(axis=0), exact.std(axis=0)
    varies = deviation > 1e-6 * np.maximum(np.abs(mean), 1e-12)
    scale = np.where(varies, 1.0 / np.where(varies, deviation, 1.0), 0.0)
    return AffineMetric(mean.astype(np.float32), scale.astype(np.float32))
