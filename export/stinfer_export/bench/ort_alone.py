"""ONNX Runtime and nothing else, to compare with: a model on pixels that lie ready in memory.

A process of its own: ``python -m stinfer_export.bench.ort_alone SPEC RESULT``.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from stinfer.contract import MODEL_INPUT
from stinfer.gpu import CPU, CUDA, providers
from stinfer.onnx_runtime import ort


def run(spec: dict[str, Any]) -> dict[str, float]:
    """Encode arrays.

    Parameters
    ----------
    spec : `model`, `outputs`, `threads`, `device`, by default ``cpu``, and `batches`, a `.npz` of uint8 (n,
        height, width, 3); a batch is encoded `repeats` times

    Returns
    -------
    `seconds` and `n`, of pictures
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = spec["threads"]
    options.log_severity_level = 4
    chosen = providers(CUDA if spec.get("device") == "cuda" else CPU)
    session = ort.InferenceSession(spec["model"], options, providers=chosen)
    with np.load(spec["batches"]) as stored:
        batches = [stored[name] for name in stored.files]
    for shape in {batch.shape for batch in batches}:
        session.run(spec["outputs"], {MODEL_INPUT: np.zeros(shape, dtype=np.uint8)})
    start = time.perf_counter()
    for _ in range(spec["repeats"]):
        for batch in batches:
            session.run(spec["outputs"], {MODEL_INPUT: batch})
    return {"seconds": time.perf_counter() - start, "n": spec["repeats"] * sum(map(len, batches))}


if __name__ == "__main__":
    asked, result = (Path(argument) for argument in sys.argv[1:3])
    result.write_text(json.dumps(run(json.loads(asked.read_text(encoding="utf-8")))), encoding="utf-8")
