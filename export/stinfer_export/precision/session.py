"""A network as ONNX Runtime runs it here: on the CPU, as the runtime would."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from stinfer.contract import F32, MODEL_INPUT, U8
from stinfer.errors import first_line
from stinfer.machine import cores_allowed
from stinfer.onnx_runtime import ORT_ERRORS, ort, suit_eight_bits
from stinfer_export.errors import QuantizationError


def open_session(model: bytes, *, optimized: bool = True) -> ort.InferenceSession:
    """Load a model.

    Parameters
    ----------
    model : ONNX file
    optimized : let ONNX Runtime join operators; else every tensor of the graph is computed as it stands

    Raises
    ------
    QuantizationError
        ONNX Runtime does not load it.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = cores_allowed()
    suit_eight_bits(options, model)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        cause = f"ONNX Runtime does not load it ({first_line(error)})"
        raise QuantizationError(cause) from error


def encode(session: ort.InferenceSession, patches: U8, batch_size: int = 16) -> Mapping[str, F32]:
    """Compute all outputs for some patches; of maps the mean over the patch's cells.

    Parameters
    ----------
    session : of a model
    patches : (n, side, side, 3) RGB
    batch_size : patches encoded at a time

    Returns
    -------
    of each output (n, channels)

    Raises
    ------
    QuantizationError
        ONNX Runtime fails on them, or a value is not finite.
    """
    names = [output.name for output in session.get_outputs()]
    found: dict[str, list[F32]] = {name: [] for name in names}
    for first in range(0, len(patches), batch_size):
        try:
            given = session.run(names, {MODEL_INPUT: patches[first : first + batch_size]})
        except ORT_ERRORS as error:
            cause = f"ONNX Runtime cannot run it ({first_line(error)})"
            raise QuantizationError(cause) from error
        for name, values in zip(names, given, strict=True):
            if not np.isfinite(values).all():
                cause = f"its {name} is not finite"
                raise QuantizationError(cause)
            found[name].append(values.mean(axis=(2, 3)) if values.ndim == 4 else values)
    return {name: np.concatenate(parts).astype(np.float32) for name, parts in found.items()}
