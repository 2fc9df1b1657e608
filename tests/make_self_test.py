"""Make what `stinfer doctor` tests itself with: a model, and the embedding it must give of a patch.

Run it with the `bank` extra where `stain_texture` or the patch has changed:
``python tests/make_self_test.py``. The embedding is computed by onnx's reference implementation in Python, so
that it does not depend on the ONNX Runtime that is to be tested.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from onnx import load
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from stinfer.contract import MODEL_EMBEDDING, MODEL_INPUT
from stinfer.self_test import EXPECTED, MODEL, built_in_patch
from stinfer_export.stain_texture import write_stain_texture


class GatherElements(OpRun):
    """Onnx's own fails where more is looked up than the table is long."""

    op_domain = ""

    def _run(self, data: np.ndarray, indices: np.ndarray, axis: int) -> tuple[np.ndarray]:
        return (np.take_along_axis(data, indices, axis),)


def reference_embedding(model: Path) -> list[float]:
    """Encode the patch without ONNX Runtime."""
    evaluator = ReferenceEvaluator(load(model), new_ops=[GatherElements])
    found = evaluator.run([MODEL_EMBEDDING], {MODEL_INPUT: built_in_patch()[np.newaxis]})[0]
    return [float(f"{value:.6g}") for value in found[0]]


def main(folder: Path) -> None:
    """Write both."""
    folder.mkdir(parents=True, exist_ok=True)
    write_stain_texture(folder / MODEL)
    embedding = reference_embedding(folder / MODEL)
    (folder / EXPECTED).write_text(json.dumps({"embedding": embedding}, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "runtime/stinfer/data")
