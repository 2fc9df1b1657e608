"""The bank's metric: an affine map of embeddings, fitted when the bank is built.

Its first, linear part may be a projection of each window's channels. It commutes with the averaging of
cells, so a map holds projected cells alone.
"""

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


def principal_projection(embeddings: F32, n_windows: int, n_components: int) -> F32:
    """Fit the projection to the directions in which standardised embeddings vary most.

    Every window's embeddings are centred on their own mean; channels are divided by their standard
    deviation over all windows, those that do not vary left out. The directions are shared by the
    windows, so that a cell needs to be projected once.

    Parameters
    ----------
    embeddings : (n_refs, n_windows * channels), windows one after the other
    n_windows : of them
    n_components : how many directions to keep, at most

    Returns
    -------
    (channels, n): standard deviations' inverse and directions in one

    References
    ----------
    K. Pearson, "On lines and planes of closest fit to systems of points in space", Phil. Mag. 2 (1901)
    559-572.
    """
    windows = embeddings.reshape(len(embeddings), n_windows, -1).astype(np.float64)
    centered = (windows - windows.mean(axis=0)).reshape(len(embeddings) * n_windows, -1)
    scale = standardizing_metric(windows.reshape(centered.shape).astype(np.float32)).components
    covariance = np.cov((centered * scale).T, bias=True).reshape(len(scale), len(scale))
    variance, directions = np.linalg.eigh(covariance)
    order = np.argsort(-variance, kind="stable")[: min(n_components, max(len(embeddings) - 1, 1))]
    chosen = directions[:, order]
    # A direction and its opposite are the same: the largest entry is made positive.
    largest = np.take_along_axis(chosen, np.abs(chosen).argmax(axis=0)[np.newaxis], axis=0)
    return np.asarray(scale[:, np.newaxis] * chosen * np.sign(largest), dtype=np.float32)


def project(embeddings: F32, projection: F32 | None) -> F32:
    """Project each window of some embeddings.

    Parameters
    ----------
    embeddings : (n, n_windows * channels)
    projection : (channels, n_components), or None to leave them as they are

    Returns
    -------
    (n, n_windows * n_components)
    """
    if projection is None:
        return embeddings
    windows = embeddings.reshape(-1, len(projection))
    return np.asarray((windows @ projection).reshape(len(embeddings), -1), dtype=np.float32)


def balancing_metric(projected: F32, n_windows: int) -> AffineMetric:
    """Fit the metric that gives every window mean 0 and the same total variance.

    Parameters
    ----------
    projected : (n_refs, n_windows * n_components)
    n_windows : of them
    """
    exact = projected.astype(np.float64)
    mean = exact.mean(axis=0)
    total = exact.var(axis=0).reshape(n_windows, -1).sum(axis=1)
    scale = np.where(total > 0, 1.0 / np.sqrt(np.where(total > 0, total, 1.0)), 0.0)
    components = np.repeat(scale, projected.shape[1] // n_windows)
    return AffineMetric(mean.astype(np.float32), components.astype(np.float32))
