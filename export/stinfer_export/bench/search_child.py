"""One search of a bank, a process of its own: ``python -m stinfer_export.bench.search_child SPEC RESULT``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from stinfer.bench_run import peak_bytes
from stinfer.blas import one_thread_a_product
from stinfer.neighbor_file import Neighbors
from stinfer.open_bank import OpenBank
from stinfer.prediction import iter_expression

# Asked at once, so that all cores have some, and averaged.
_QUERIES = 1024


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Open a bank, search it, and average what was found.

    Parameters
    ----------
    spec : `bank`, `device`, `search`, `queries` (a `.npy` of (n, dim)), `k`, `seconds`, and `neighbors`,
        where to keep what was found

    Returns
    -------
    `load_s`, until the first answer; `per_second`, of queries; `average_ms`, of a spot with all genes;
    `peak_bytes`
    """
    with one_thread_a_product():  # as a run has it
        return _measured(spec)


def _measured(spec: dict[str, Any]) -> dict[str, Any]:
    start = time.perf_counter()
    opened = OpenBank(spec["bank"], device=spec["device"], threads=None, search=spec["search"])
    expression = opened.expression
    queries = np.load(spec["queries"])
    opened.searcher.query(queries[:1], spec["k"])
    load_s = time.perf_counter() - start
    step = max(opened.searcher.queries_at_once, _QUERIES)
    distances, indices = [], []
    start = time.perf_counter()
    for first in range(0, len(queries), step):
        near, found = opened.searcher.query(queries[first : first + step], spec["k"])
        distances.append(near)
        indices.append(found)
        if time.perf_counter() - start > spec["seconds"]:
            break
    search_s = time.perf_counter() - start
    n_done = sum(map(len, indices))
    np.savez(spec["neighbors"], distances=np.concatenate(distances), indices=np.concatenate(indices))
    some = np.concatenate(indices)[:_QUERIES]
    weights = np.full(some.shape, 1 / spec["k"], dtype=np.float32)
    chosen = np.arange(len(opened.bank.genes))
    start = time.perf_counter()
    averaged = iter_expression(expression, chosen, Neighbors(some, weights), n_workers=opened.n_workers)
    for _ in averaged:
        pass
    return {
        "load_s": load_s,
        "per_second": n_done / search_s,
        "average_ms": 1e3 * (time.perf_counter() - start) / len(some),
        "peak_bytes": peak_bytes(),
    }


if __name__ == "__main__":
    asked, result = (Path(argument) for argument in sys.argv[1:3])
    result.write_text(json.dumps(run(json.loads(asked.read_text(encoding="utf-8")))), encoding="utf-8")
