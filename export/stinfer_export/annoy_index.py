"""The Annoy index of a bank, with parameters that reach the wanted recall."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from stinfer.contract import F32
from stinfer.inspect_bank import recall_queries
from stinfer.neighbors import (
    ANNOY_METRIC,
    ANNOY_MIN_RECALL,
    AnnoySearch,
    Distance,
    ExactSearch,
    prepare,
    recall,
)

N_TREES = 50
SEED = 0


@dataclass(frozen=True)
class AnnoyIndexBytes:
    """An index as Annoy saves it.

    Parameters
    ----------
    data : the file's bytes
    search_k : nodes to inspect per query
    recall : share of the true neighbors found so, 0 to 1
    """

    data: bytes
    search_k: int
    recall: float


def build_index(embedding: F32, distance: Distance, k: int) -> AnnoyIndexBytes:
    """Build an index and find how many nodes a query must inspect.

    `search_k` doubles until at least 99 % of the true neighbors are found, or every reference is
    inspected. One thread and a fixed seed: the same embeddings give the same bytes.

    Parameters
    ----------
    embedding : (n_refs, dim), after the metric
    distance : of the bank
    k : neighbors that will be asked for
    """
    from annoy import AnnoyIndex

    n_refs, dim = embedding.shape
    index = AnnoyIndex(dim, ANNOY_METRIC[distance])
    index.set_seed(SEED)
    for i, vector in enumerate(prepare(embedding, distance)):
        index.add_item(i, vector)
    queries = embedding[recall_queries(n_refs)]
    truth = ExactSearch(embedding, distance).query(queries, k)[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.ann"
        index.build(N_TREES, n_jobs=1)
        index.save(str(path))
        search_k = k
        while True:
            found = recall(AnnoySearch(path, embedding, distance, search_k).query(queries, k)[0], truth)
            if found >= ANNOY_MIN_RECALL or search_k > N_TREES * n_refs:
                return AnnoyIndexBytes(path.read_bytes(), search_k, found)
            search_k *= 2
