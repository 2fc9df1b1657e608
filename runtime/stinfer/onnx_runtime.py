"""ONNX Runtime, imported here alone and told first to keep to itself.

Its library holds a telemetry client that starts as it is imported: it looks up its maker's servers and
leaves a device number in the home folder. Only an environment variable set before stops it. On Windows it
also hands events to the system, which a call stops.
"""

from __future__ import annotations

import base64
import functools
import os

import numpy as np

from stinfer.errors import ExtraMissingError
from stinfer.onnx_guard import uses_operator

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

try:
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as _errors
except ImportError as error:
    raise ExtraMissingError(package="onnxruntime", extra="cpu", purpose="running a backbone") from error

ort.disable_telemetry_events()
# It would tell the terminal what it could not load; that is checked and said by us.
ort.set_default_logger_severity(4)

# What ONNX Runtime raises for a model or an input it cannot use; there is no common base.
ORT_ERRORS: tuple[type[Exception], ...] = (
    _errors.EPFail,
    _errors.Fail,
    _errors.InvalidArgument,
    _errors.InvalidGraph,
    _errors.InvalidProtobuf,
    _errors.NoSuchFile,
    _errors.NotImplemented,
    _errors.RuntimeException,
)

# Memory that is kept from one region to the next: taken as needed, where ONNX Runtime's own stock doubles.
SHARED_MEMORY = "session.use_env_allocators"
ort.create_and_register_allocator(
    ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT),
    ort.OrtArenaCfg(
        {
            "arena_extend_strategy": 1,  # as requested
            "initial_chunk_size_bytes": -1,
            "max_dead_bytes_per_chunk": -1,
            "max_mem": 0,
        }
    ),
)

# Told to be exact, ONNX Runtime takes another way to multiply 8-bit numbers: right on every processor, and
# less than half as fast where the usual way is right too.
_EXACT_INTEGERS = "session.x64quantprecision"
# It would quantise before pooling what a network quantises after it, to join layers that are in eight bits
# anyhow: where those before the pooling are not, the pooling of bytes takes a quarter of the time.
_LEFT_OUT = ("optimization.disable_specified_optimizers", "QDQPropagationTransformer")
# c = MatMulInteger(a, b) of uint8 and int8.
_PRODUCT = base64.b64decode(
    "CAg6YgoYCgFhCgFiEgFjIg1NYXRNdWxJbnRlZ2VyEgFnWhUKAWESEAoOCAISCgoDEgFuCgMSAWtaFQoBYhIQCg4IAxIKCgMS"
    "AWsKAxIBbWIVCgFjEhAKDggGEgoKAxIBbgoDEgFtQgQKABAR"
)


def suit_eight_bits(options: ort.SessionOptions, model: bytes) -> None:
    """Let a model in eight bits be run as it stands, and give the same on every processor.

    Parameters
    ----------
    options : of the session to come
    model : ONNX file
    """
    if not uses_operator(model, "DequantizeLinear"):
        return
    options.add_session_config_entry(*_LEFT_OUT)
    if sums_are_cut():
        options.add_session_config_entry(_EXACT_INTEGERS, "1")


@functools.cache
def sums_are_cut() -> bool:
    """Say whether ONNX Runtime cuts sums of two 8-bit products at 16 bits here.

    It does on x86 processors with AVX2 and without VNNI, in whose instructions the sum has no more.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(_PRODUCT, options, providers=["CPUExecutionProvider"])
    ones = (np.full((4, 64), 255, dtype=np.uint8), np.full((64, 16), 127, dtype=np.int8))
    (found,) = session.run(None, dict(zip("ab", ones, strict=True)))
    return bool((found != 64 * 255 * 127).any())


__all__ = ["ORT_ERRORS", "SHARED_MEMORY", "ort", "suit_eight_bits", "sums_are_cut"]
