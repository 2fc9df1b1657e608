"""ONNX Runtime and nothing else, to compare with: a model on pixels that lie ready in memory.

A process of its own: ``python -m stinfer_export.bench.ort_alone SPEC RESULT``.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from stinfer.contract import MODEL_INPUT, U8
from stinfer.gpu import CPU, CUDA, providers
from stinfer.onnx_outputs import keep_outputs
from stinfer.onnx_runtime import ort, suit_eight_bits


def run(spec: dict[str, Any]) -> dict[str, float]:
    """Encode arrays.

    Parameters
    ----------
    spec : `model`, `outputs`, `threads`, `device`, by default ``cpu``, and `batches`, a `.npz` of uint8 (n,
        height, width, 3); a batch is encoded `repeats` times, by `callers` at the same time, or by one; these
        share the `threads`

    Returns
    -------
    `seconds` and `n`, of pictures
    """
    n_callers = spec.get("callers", 1)
    options = ort.SessionOptions()
    options.intra_op_num_threads = spec["threads"] - n_callers + 1
    options.log_severity_level = 4
    stored = Path(spec["model"]).read_bytes()
    suit_eight_bits(options, stored)
    chosen = providers(CUDA if spec.get("device") == "cuda" else CPU)
    # What a run leaves out is left out here too.
    model = keep_outputs(stored, lambda name: name in spec["outputs"])
    session = ort.InferenceSession(model, options, providers=chosen)
    with np.load(spec["batches"]) as arrays:
        batches = [arrays[name] for name in arrays.files]

    def encode(batch: U8) -> int:
        session.run(spec["outputs"], {MODEL_INPUT: batch})
        return len(batch)

    with ThreadPoolExecutor(n_callers) as pool:
        shapes = {batch.shape for batch in batches}
        list(pool.map(encode, [np.zeros(shape, dtype=np.uint8) for shape in shapes] * n_callers))
        start = time.perf_counter()
        n = sum(pool.map(encode, batches * spec["repeats"]))
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "n": n}


if __name__ == "__main__":
    asked, result = (Path(argument) for argument in sys.argv[1:3])
    result.write_text(json.dumps(run(json.loads(asked.read_text(encoding="utf-8")))), encoding="utf-8")
