"""How much of what a network says is left after its numbers were made smaller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stinfer.contract import F32, F64, I64, MODEL_EMBEDDING

N_NEIGHBORS = 50


@dataclass(frozen=True)
class Fidelity:
    """Agreement of a model's outputs with those of the original, on tissue that calibrated nothing.

    Parameters
    ----------
    cosine : of each output, mean over patches of the cosine of the two vectors
    centered : of each output the same, after the original's mean over all patches was taken from both: what
        all tissue has in common does not count
    overlap : mean part, 0 to 1, of a patch's nearest neighbors by embedding that stay the same
    n_neighbors : of them; 50, or a quarter of few patches
    n_patches : compared
    """

    cosine: dict[str, float]
    centered: dict[str, float]
    overlap: float
    n_neighbors: int
    n_patches: int

    @property
    def score(self) -> float:
        """What candidates are compared by: the mean of `centered` over the outputs."""
        return float(np.mean(list(self.centered.values())))


def compare(original: Mapping[str, F32], found: Mapping[str, F32]) -> Fidelity:
    """Compare what two models say of the same patches.

    Parameters
    ----------
    original, found : of each output (n, channels)
    """
    n_patches = len(original[MODEL_EMBEDDING])
    n_neighbors = max(1, min(N_NEIGHBORS, n_patches // 4))
    cosine, centered = {}, {}
    for name, values in original.items():
        truth, other = values.astype(np.float64), found[name].astype(np.float64)
        middle = truth.mean(axis=0)
        cosine[name] = float(_cosines(truth, other).mean())
        centered[name] = float(_cosines(truth - middle, other - middle).mean())
    return Fidelity(
        cosine=cosine,
        centered=centered,
        overlap=_overlap(original[MODEL_EMBEDDING], found[MODEL_EMBEDDING], n_neighbors),
        n_neighbors=n_neighbors,
        n_patches=n_patches,
    )


def _cosines(one: F64, other: F64) -> F64:
    """Cosine row by row; of two zeros 1, of one 0."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    both_zero = ~one.any(axis=1) & ~other.any(axis=1)
    products = np.sum(one * other, axis=1)
    found: F64 = np.where(both_zero, 1.0, products / np.where(lengths > 0, lengths, 1.0))
    return found


def _overlap(one: F32, other: F32, n_neighbors: int) -> float:
    nearest = [_nearest(embedding.astype(np.float64), n_neighbors) for embedding in (one, other)]
    shared = [len(np.intersect1d(a, b)) for a, b in zip(*nearest, strict=True)]
    return float(np.mean(shared)) / n_neighbors


def _nearest(embedding: F64, n_neighbors: int) -> I64:
    """Return the rows of largest cosine, (n, n_neighbors), a row itself left out."""
    lengths = np.linalg.norm(embedding, axis=1, keepdims=True)
    unit = embedding / np.where(lengths > 0, lengths, 1.0)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argsort(-similarity, axis=1, kind="stable")[:, :n_neighbors].astype(np.int64)
