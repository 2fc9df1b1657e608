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
from stinfer.contract import I64
from stinfer.neighbor_file import Neighbors
from stinfer.open_bank import OpenBank
from stinfer.prediction import iter_expression

# Asked at once, so that all cores have some, and averaged.
_QUERIES = 1024


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Open a bank, search it, and average what was found.

    Parameters
    ----------
    spec : `bank`, `device`, `search`, `queries` (a `.npy` of (n, dim)), `k`, `seconds`, `averages`, whether
        to average, and `neighbors`, where to keep what was found

    Returns
    -------
    `load_s`, until the first answer; `per_second`, of queries; `query_cpu_ms`, of all cores; `average_ms`,
    of a spot with all genes, or None; `peak_bytes`
    """
    with one_thread_a_product():  # as a run has it
        return _measured(spec)


def _measured(spec: dict[str, Any]) -> dict[str, Any]:
    start = time.perf_counter()
    opened = OpenBank(spec["bank"], device=spec["device"], threads=None, search=spec["search"])
    _ = opened.expression
    queries = np.load(spec["queries"])
    opened.searcher.query(queries[:1], spec["k"])
    load_s = time.perf_counter() - start
    step = max(opened.searcher.queries_at_once, _QUERIES)
    distances, indices = [], []
    start, start_cpu = time.perf_counter(), time.process_time()
    for first in range(0, len(queries), step):
        near, found = opened.searcher.query(queries[first : first + step], spec["k"])
        distances.append(near)
        indices.append(found)
        if time.perf_counter() - start > spec["seconds"]:
            break
    search_s, search_cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    n_done = sum(map(len, indices))
    np.savez(spec["neighbors"], distances=np.concatenate(distances), indices=np.concatenate(indices))
    return {
        "load_s": load_s,
        "per_second": n_done / search_s,
        "query_cpu_ms": 1e3 * search_cpu_s / n_done,
        "average_ms": _average_ms(opened, np.concatenate(indices)[:_QUERIES]) if spec["averages"] else None,
        "peak_bytes": peak_bytes(),
    }


def _average_ms(opened: OpenBank, found: I64) -> float:
    """Average the neighbors, (n, k), of spots; return milliseconds a spot."""
    neighbors = Neighbors(found, np.full(found.shape, 1 / found.shape[1], dtype=np.float32))
    chosen = np.arange(len(opened.bank.genes))
    start = time.perf_counter()
    for _ in iter_expression(opened.expression, chosen, neighbors, n_workers=opened.n_workers):
        pass
    return 1e3 * (time.perf_counter() - start) / len(found)


if __name__ == "__main__":
    asked, result = (Path(argument) for argument in sys.argv[1:3])
    result.write_text(json.dumps(run(json.loads(asked.read_text(encoding="utf-8")))), encoding="utf-8")
