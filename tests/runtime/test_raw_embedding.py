"""Embeddings before the metric, rounded and restored."""

from __future__ import annotations

import numpy as np

from stinfer.raw_embedding import RawEmbedding


def test_every_number_is_restored_to_half_a_step() -> None:
    random = np.random.default_rng(0)
    # Small variation on a large mean, large numbers, and one that is far from the others.
    embedding = np.stack(
        [1e4 + random.normal(size=3000), 1e6 * random.normal(size=3000), random.normal(size=3000)], axis=1
    ).astype(np.float32)
    embedding[7, 2] = 500
    raw = RawEmbedding.of(embedding)
    restored = raw.restored()
    # Half a step of a 65,534th of the range, and the rounding of float32.
    slack = np.ptp(embedding, axis=0) / 65_534 / 2 + 2 * np.spacing(np.abs(embedding).max(axis=0))
    assert (np.abs(restored - embedding).max(axis=0) <= slack).all()
    assert raw.codes.dtype == np.int16


def test_by_hand() -> None:
    raw = RawEmbedding.of(np.array([[0, 5], [65_534, 5], [32_767, 5], [10, 5]], dtype=np.float32))
    assert raw.middle.tolist() == [32_767, 5]
    assert raw.step.tolist() == [1, 0]
    assert raw.codes.tolist() == [[-32_767, 0], [32_767, 0], [0, 0], [-32_757, 0]]
    assert raw.restored().tolist() == [[0, 5], [65_534, 5], [32_767, 5], [10, 5]]
